//! Classifies failed commands (was it executed, is a retry worthwhile, does an operator have to act), and makes fred's texts
//! readable.

use std::{borrow::Cow, io};

use fred::{
    prelude::{Error, ErrorKind},
    types::config::Server,
};

use super::connection::address;
use crate::error_chain::words;

/// Whether a failed command was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Not executed: the server rejected it, and would reject it again.
    Refused,
    /// Not executed: a retry may succeed, on this server or on another.
    NotExecuted,
    /// Possibly executed: the reply was lost.
    Unknown,
}

pub(super) fn outcome(error: &Error) -> Outcome {
    match (error_code(error), error.kind()) {
        // READONLY and MASTERDOWN come from a replica during a failover, BUSY during a long script.
        (Some("MOVED" | "ASK" | "TRYAGAIN" | "LOADING" | "READONLY" | "MASTERDOWN" | "BUSY"), _) => {
            Outcome::NotExecuted
        }
        // fred closes the connection on CLUSTERDOWN, and fails all commands in flight with it.
        (Some("CLUSTERDOWN"), _)
        | (
            None,
            ErrorKind::IO | ErrorKind::Canceled | ErrorKind::Timeout | ErrorKind::Tls | ErrorKind::Unknown,
        ) => Outcome::Unknown,
        _ => Outcome::Refused,
    }
}

/// Returns the slot and the server of a redirection: `MOVED 3999 127.0.0.1:6381` or `ASK 3999 127.0.0.1:6381`. A host that is
/// missing there is `asked_host`, that of the server that replied.
pub(super) fn redirected(error: &Error, code: &str, asked_host: &str) -> Option<(u16, Server)> {
    let mut words = error.details().split(' ');
    let (_, slot, server) = (words.next().filter(|word| *word == code)?, words.next()?, words.next()?);
    let (host, port) = server.rsplit_once(':')?;
    let host = if matches!(host, "" | "?") { asked_host } else { host };
    Some((slot.parse().ok()?, Server::new(host, port.parse().ok()?)))
}

/// Whether an operator has to act before a connection can succeed: wrong credentials, missing permissions, TLS, or a URL of
/// the wrong kind.
pub fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Auth | ErrorKind::Tls)
        || matches!(error_code(error), Some("NOAUTH" | "WRONGPASS" | "NOPERM"))
        || is_over_the_url(error)
}

/// Whether the URL does not fit the server: its kind or its database.
pub(super) fn is_over_the_url(error: &Error) -> bool {
    *error.kind() == ErrorKind::Config || error.details().contains("DB index is out of range")
}

/// Whether the server is unavailable: no reply, a lost connection, or a failover.
pub fn is_away(error: &Error) -> bool {
    outcome(error) != Outcome::Refused
}

/// Text of a timeout.
const UNANSWERED: &str = "no reply within the time limit (REDIS_TIMEOUT)";

/// Start of the text of the error of [`replaced`].
const REPLACED: &str = "another incarnation of the Redis server has the partition";

/// Returns the error of a command that is bound to an incarnation which no longer serves the key.
pub(super) fn replaced(owner: &Server) -> Error {
    let owner = address(owner);
    Error::new(ErrorKind::NotFound, format!("{REPLACED}: restart, failover or move of its slot, to {owner}"))
}

/// Whether a command was not sent because the incarnation that it is bound to no longer serves the key.
pub fn is_replaced(error: &Error) -> bool {
    error.details().starts_with(REPLACED)
}

/// Whether a reply did not arrive within the time limit, from a server that was connected.
pub fn is_unanswered(error: &Error) -> bool {
    *error.kind() == ErrorKind::Timeout && error.details().starts_with(UNANSWERED)
}

/// Returns the code at the start of a server error, like `NOGROUP` or `OOM`.
pub fn error_code(error: &Error) -> Option<&str> {
    if matches!(error.kind(), ErrorKind::IO | ErrorKind::Timeout | ErrorKind::Tls | ErrorKind::Canceled) {
        return None;
    }
    let code = error.details().split(' ').next()?;
    (code.len() >= 2 && code.bytes().all(|b| b.is_ascii_uppercase())).then_some(code)
}

/// Returns whether the error means that the key of a command does not exist.
pub fn is_missing_key(error: &Error) -> bool {
    error.details().starts_with("ERR no such key")
}

/// Whether a stream takes no more entries, because its last id is the largest possible one.
fn is_exhausted(error: &Error) -> bool {
    error.details().starts_with("ERR The stream has exhausted the last possible ID")
}

/// Returns what to do about a server's error.
pub fn remedy(error: &Error) -> Option<&'static str> {
    if error.details().starts_with("ERR unknown command") {
        return Some("do not rename the command (rename-command); use Redis 7.0, Valkey 8, or newer");
    }
    Some(match error_code(error)? {
        "BUSY" => "a script occupies Redis; wait for its end, or run SCRIPT KILL",
        "CLUSTERDOWN" => "a slot has no primary; check CLUSTER INFO and CLUSTER NODES",
        "LOADING" => "wait until Redis has loaded its data",
        "MASTERDOWN" => {
            "the server is a replica without a link to its primary; check its primary and REDIS_URL"
        }
        "MISCONF" => "free or repair the disk of Redis and see its log; after a failed snapshot, run BGSAVE",
        "NOAUTH" | "WRONGPASS" => "correct the user and the password in REDIS_URL",
        "NOPERM" => "grant the permission to the user of REDIS_URL, see docs/security.md",
        "NOREPLICAS" => "connect replicas, or lower min-replicas-to-write",
        "OOM" => "see docs/runbook.md#redis-memory",
        "READONLY" => "set REDIS_URL to the primary, or promote this server with REPLICAOF NO ONE",
        _ => return None,
    })
}

/// Returns the type of an error for metrics and spans, of low cardinality.
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
    if is_exhausted(error) {
        return "ids_exhausted";
    }
    let code = error_code(error).and_then(|code| CODES.into_iter().find(|known| *known == code));
    code.unwrap_or(match error.kind() {
        ErrorKind::Timeout => "timeout",
        ErrorKind::IO | ErrorKind::Canceled | ErrorKind::Tls => "connection",
        _ => "_OTHER",
    })
}

/// Returns the error with a readable text. fred keeps only the `Debug` text of an I/O error, and Redis appends the SHA-1 of
/// a script to its errors. An error code stays at the start of the text.
pub(super) fn readable(error: &Error) -> Error {
    let details = error.details();
    let text = match io_text(details) {
        Some(text) => text,
        None if *error.kind() == ErrorKind::Timeout && details == "Request timed out." => UNANSWERED.into(),
        None => without_script(without_arguments(details)),
    };
    let text = text.trim_end_matches('.').to_owned();
    Error::new(error.kind().clone(), text)
}

/// Returns the text of an I/O error from its `Debug` text.
///
/// Source: `Debug` of `std::io::Error`.
fn io_text(debug: &str) -> Option<Cow<'_, str>> {
    if let Some(code) = debug.strip_prefix("Os { code: ") {
        let code = code.split(',').next()?.parse().ok()?;
        return Some(io::Error::from_raw_os_error(code).to_string().into());
    }
    if let Some(kind) = debug.strip_prefix("Kind(") {
        return Some(words(kind.strip_suffix(')')?).into());
    }
    let fields = debug.strip_prefix("Custom { kind: ").or_else(|| debug.strip_prefix("Error { kind: "))?;
    let (kind, text) = fields.split_once(", ")?;
    let quoted = text.split_once(": \"").and_then(|(_, text)| Some(text.rsplit_once('"')?.0));
    let variant = || text.split_once(": ").map_or(text, |(_, inner)| inner).trim_end_matches([' ', '}']);
    Some(quoted.map_or_else(|| format!("{}: {}", words(kind), words(variant())).into(), Cow::from))
}

/// Cuts off the arguments of an unknown command: they may be a whole script.
fn without_arguments(details: &str) -> &str {
    let is_unknown = details.starts_with("ERR unknown command");
    let arguments = details.find(", with args beginning with:").filter(|_| is_unknown);
    arguments.map_or(details, |at| &details[..at])
}

/// Cuts off where in a script an error occurred: ` script: <SHA-1>, on @user_script:1.`, of Redis 6 `(call to f_<SHA-1>)`.
fn without_script(details: &str) -> Cow<'_, str> {
    let is_sha1 = |text: &str| text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if let Some((text, place)) = details.rsplit_once(" script: ")
        && place.split_once(", on ").is_some_and(|(sha1, _)| is_sha1(sha1))
    {
        return text.into();
    }
    if let Some((text, call)) = details.split_once(" (call to f_")
        && let Some((sha1, rest)) = call.split_once("): ")
        && is_sha1(sha1)
    {
        // `@user_script:1: ERR …`
        let rest = rest
            .strip_prefix("@user_script")
            .and_then(|rest| rest.split_once(": "))
            .map_or(rest, |(_, rest)| rest);
        return format!("{text}: {rest}").into();
    }
    details.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_whether_a_command_was_executed() {
        let outcome = |kind, text: &'static str| outcome(&Error::new(kind, text));
        assert_eq!(outcome(ErrorKind::Cluster, "ASK 1 127.0.0.1:7"), Outcome::NotExecuted);
        assert_eq!(outcome(ErrorKind::Unknown, "TRYAGAIN Multiple keys"), Outcome::NotExecuted);
        assert_eq!(outcome(ErrorKind::Cluster, "CLUSTERDOWN The cluster is down"), Outcome::Unknown);
        assert_eq!(outcome(ErrorKind::Timeout, "Request timed out."), Outcome::Unknown);
        assert_eq!(outcome(ErrorKind::Unknown, "NOGROUP No such key"), Outcome::Refused);
        assert_eq!(outcome(ErrorKind::Parse, "Cannot convert"), Outcome::Refused);
        let moved = Error::new(ErrorKind::Cluster, "MOVED 3999 127.0.0.1:6381");
        assert_eq!(redirected(&moved, "MOVED", "asked"), Some((3_999, Server::new("127.0.0.1", 6_381))));
        assert_eq!(redirected(&moved, "ASK", "asked"), None);
        let ask = Error::new(ErrorKind::Cluster, "ASK 3999 :6381");
        assert_eq!(redirected(&ask, "ASK", "asked"), Some((3_999, Server::new("asked", 6_381))));
    }

    #[test]
    fn error_codes_are_parsed_from_server_errors() {
        let code = |text: &'static str| error_code(&Error::new(ErrorKind::Unknown, text)).map(str::to_owned);
        assert_eq!(code("NOGROUP No such key").as_deref(), Some("NOGROUP"));
        assert_eq!(code("OOM command not allowed").as_deref(), Some("OOM"));
        assert_eq!(code("Connection reset"), None);
        assert_eq!(error_code(&Error::new(ErrorKind::IO, "RPC struct is bad (os error 72)")), None);
    }

    /// The texts that fred makes of I/O errors, and that Redis 7 and Redis 6 send for errors in scripts.
    #[test]
    fn texts_are_free_of_debug_text_and_script_hashes() {
        let text = |error: Error| readable(&error).details().to_owned();
        let io = |error: io::Error| text(Error::from(error));
        assert_eq!(io(io::Error::from_raw_os_error(111)), "Connection refused (os error 111)");
        assert_eq!(io(io::ErrorKind::UnexpectedEof.into()), "unexpected eof");
        let dns = "failed to lookup address information: Name or service not known";
        assert_eq!(io(io::Error::other(dns)), dns);
        assert_eq!(
            io(io::Error::new(io::ErrorKind::InvalidData, rustls::Error::DecryptError)),
            "invalid data: decrypt error"
        );

        let server = |details: &'static str| text(Error::new(ErrorKind::Unknown, details));
        assert_eq!(
            server(
                "OOM command not allowed when used memory > 'maxmemory'. script: \
                 a7f30a777e3a14deb342c34c70e37dd1e66eb928, on @user_script:1."
            ),
            "OOM command not allowed when used memory > 'maxmemory'"
        );
        assert_eq!(
            server(
                "ERR Error running script (call to f_a7f30a777e3a14deb342c34c70e37dd1e66eb928): \
                 @user_script:1: WRONGTYPE Operation against a key"
            ),
            "ERR Error running script: WRONGTYPE Operation against a key"
        );
        assert_eq!(
            server("ERR unknown command 'EVAL', with args beginning with: 'local a = 1' '1' "),
            "ERR unknown command 'EVAL'"
        );
        let own = "ERR no such script: likes, on the server";
        assert_eq!(server(own), own);
        assert_eq!(
            text(Error::new(ErrorKind::Timeout, "Request timed out.")),
            "no reply within the time limit (REDIS_TIMEOUT)"
        );
    }

    /// A word in capitals at the start would be read as a server's error code.
    #[test]
    fn readable_texts_keep_the_meaning_of_an_error() {
        for (kind, details) in [
            (ErrorKind::IO, "Os { code: 104, kind: ConnectionReset, message: \"Connection reset by peer\" }"),
            (ErrorKind::IO, "Custom { kind: Other, error: \"failed\" }"),
            (ErrorKind::Timeout, "Request timed out."),
            (ErrorKind::Unknown, "LOADING Redis is loading the dataset in memory"),
            (ErrorKind::Cluster, "MOVED 3999 127.0.0.1:6381"),
        ] {
            let error = Error::new(kind, details);
            let readable = readable(&error);
            assert_eq!(outcome(&readable), outcome(&error), "{details}");
            assert_eq!(error_code(&readable), error_code(&error), "{details}");
        }
    }
}
