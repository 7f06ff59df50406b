//! What a failed command means: was it executed, is it worth another try, who is to blame.

use fred::{
    prelude::{Error, ErrorKind},
    types::config::Server,
};

/// What an error says about its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The server answered, and will answer so again.
    Refused,
    /// It was not carried out, and may be soon, here or elsewhere.
    NotExecuted,
    /// It was carried out or not.
    Unknown,
}

pub(super) fn outcome(error: &Error) -> Outcome {
    match (error_code(error), error.kind()) {
        // The last two come from a server that was the master a moment ago, or will be.
        (Some("MOVED" | "ASK" | "TRYAGAIN" | "LOADING" | "READONLY" | "MASTERDOWN"), _) => {
            Outcome::NotExecuted
        }
        // fred closes the connection over this one, and gives it as the answer to all that was in flight.
        (Some("CLUSTERDOWN"), _)
        | (
            None,
            ErrorKind::IO | ErrorKind::Canceled | ErrorKind::Timeout | ErrorKind::Tls | ErrorKind::Unknown,
        ) => Outcome::Unknown,
        _ => Outcome::Refused,
    }
}

/// The slot and the server that a redirection names, `MOVED 3999 127.0.0.1:6381` or `ASK 3999 127.0.0.1:6381`.
pub(super) fn redirected(error: &Error, code: &str) -> Option<(u16, Server)> {
    let mut words = error.details().split(' ');
    let (_, slot, server) = (words.next().filter(|word| *word == code)?, words.next()?, words.next()?);
    let (host, port) = server.rsplit_once(':')?;
    Some((slot.parse().ok()?, Server::new(host, port.parse().ok()?)))
}

/// Whether Redis doesn't let us in, or we will not be let in by such a one, which waiting will not change.
pub fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Auth | ErrorKind::Config | ErrorKind::Tls)
        || matches!(error_code(error), Some("NOAUTH" | "WRONGPASS" | "NOPERM"))
        || error.details().contains("DB index is out of range")
}

/// Whether the server, or what is between, is in trouble: no answer, or a broken connection.
pub fn is_away(error: &Error) -> bool {
    outcome(error) != Outcome::Refused
}

/// The error code that a Redis server's error starts with, like `NOGROUP` or `OOM`.
pub fn error_code(error: &Error) -> Option<&str> {
    let code = error.details().split(' ').next()?;
    (code.len() >= 2 && code.bytes().all(|b| b.is_ascii_uppercase())).then_some(code)
}

/// What kind of error it is, for metrics and spans: one of few.
pub fn error_type(error: &Error) -> &'static str {
    const CODES: [&str; 16] = [
        "BUSY",
        "CLUSTERDOWN",
        "ERR",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "MOVED",
        "NOAUTH",
        "NOGROUP",
        "NOPERM",
        "NOREPLICAS",
        "OOM",
        "READONLY",
        "TRYAGAIN",
        "WRONGPASS",
        "WRONGTYPE",
    ];
    let code = error_code(error).and_then(|code| CODES.into_iter().find(|known| *known == code));
    code.unwrap_or(match error.kind() {
        ErrorKind::Timeout => "timeout",
        ErrorKind::IO | ErrorKind::Canceled | ErrorKind::Tls => "connection",
        _ => "_OTHER",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_whether_a_command_was_carried_out() {
        let outcome = |kind, text: &'static str| outcome(&Error::new(kind, text));
        assert_eq!(outcome(ErrorKind::Cluster, "ASK 1 127.0.0.1:7"), Outcome::NotExecuted);
        assert_eq!(outcome(ErrorKind::Unknown, "TRYAGAIN Multiple keys"), Outcome::NotExecuted);
        assert_eq!(outcome(ErrorKind::Cluster, "CLUSTERDOWN The cluster is down"), Outcome::Unknown);
        assert_eq!(outcome(ErrorKind::Timeout, "Request timed out."), Outcome::Unknown);
        assert_eq!(outcome(ErrorKind::Unknown, "NOGROUP No such key"), Outcome::Refused);
        assert_eq!(outcome(ErrorKind::Parse, "Cannot convert"), Outcome::Refused);
        let moved = Error::new(ErrorKind::Cluster, "MOVED 3999 127.0.0.1:6381");
        assert_eq!(redirected(&moved, "MOVED"), Some((3_999, Server::new("127.0.0.1", 6_381))));
        assert_eq!(redirected(&moved, "ASK"), None);
    }

    #[test]
    fn error_codes_are_those_of_the_server() {
        let code = |text: &'static str| error_code(&Error::new(ErrorKind::Unknown, text)).map(str::to_owned);
        assert_eq!(code("NOGROUP No such key").as_deref(), Some("NOGROUP"));
        assert_eq!(code("OOM command not allowed").as_deref(), Some("OOM"));
        assert_eq!(code("Connection reset"), None);
    }
}
