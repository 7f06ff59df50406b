//! The URL of Postgres.
//!
//! Source: Postgres manual, "Connection URIs" of libpq.

use tokio_postgres::{Config, config::Host};

use super::tls::Parameters;
use crate::settings::server_url::{ESCAPE, STRAY_AT, check_hosts, check_parameters};

const EXPECTED: &str = "expected a URL such as postgres://user:password@host:5432/database";

/// Parameters of TLS, and those of tokio-postgres.
const SUPPORTED: [&str; 22] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslnegotiation",
    "channel_binding",
    "user",
    "password",
    "dbname",
    "host",
    "hostaddr",
    "port",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "target_session_attrs",
    "load_balance_hosts",
    "application_name",
    "options",
];

/// Parameters whose values may contain an @.
const FREE_TEXT: [&str; 5] = ["user", "password", "dbname", "application_name", "options"];

/// Parses a URL. The error shows no part of it that may belong to a password.
pub(super) fn parse(url: &str) -> Result<(Parameters, Config), String> {
    let (parameters, rest) = take_out(url)?;
    // The parser's error may quote a part of the URL, and so a part of the password.
    let config: Config = rest.parse().map_err(|_| format!("the URL is not valid; {EXPECTED}; {ESCAPE}"))?;
    if config.get_hosts().is_empty() {
        return Err(format!("the URL has no host; {EXPECTED}"));
    }
    check_hosts(config.get_hosts().iter().filter_map(|host| match host {
        Host::Tcp(name) => Some(&**name),
        Host::Unix(_) => None,
    }))?;
    Ok((parameters, config))
}

/// Removes the TLS parameters from a URL. Returns them and the rest, which tokio-postgres can parse.
fn take_out(url: &str) -> Result<(Parameters, String), String> {
    let mut taken = Parameters::default();
    // Without a scheme it is a list of keys and values.
    let Some((_, parts)) = url.split_once("://") else { return Ok((taken, url.to_owned())) };
    // As for tokio-postgres, the first @ ends the password, which may contain a question mark.
    let (login, place) = parts.split_once('@').unwrap_or(("", parts));
    let (place, query) = place.split_once('?').unwrap_or((place, ""));
    if place.contains('@') || has_free_text(login) {
        return Err(STRAY_AT.to_owned());
    }
    check_parameters(query, &SUPPORTED)?;
    if query.is_empty() {
        return Ok((taken, url.to_owned()));
    }
    let others = query.split('&').filter(|parameter| !taken.takes(parameter)).collect::<Vec<_>>().join("&");
    let before = &url[..url.len() - query.len()];
    let before = if others.is_empty() { before.trim_end_matches('?') } else { before };
    Ok((taken, format!("{before}{others}")))
}

/// Returns whether the text before the first @ has a parameter that may contain an @: then the @ belongs to its value.
fn has_free_text(login: &str) -> bool {
    let parameters = login.split(['?', '&']).skip(1);
    parameters.filter_map(|parameter| parameter.split_once('=')).any(|(name, _)| FREE_TEXT.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_parameters_are_removed_from_a_url() {
        for (url, rest, mode) in [
            ("postgres://u@h/d", "postgres://u@h/d", None),
            ("postgres://u@h/d?", "postgres://u@h/d?", None),
            ("postgres://u@h/d?sslmode=require", "postgres://u@h/d", Some("require")),
            ("postgres://u:a?sslmode=b@h,i:2/d?connect_timeout=3", "", None),
            (
                "postgres://u@h/d?options=-c%20a&sslmode=verify%2Dfull&port=1",
                "postgres://u@h/d?options=-c%20a&port=1",
                Some("verify-full"),
            ),
            ("postgres://u@h/d?sslmode=", "postgres://u@h/d", None),
            ("host=h sslmode=require", "", None),
        ] {
            let (parameters, left) = take_out(url).unwrap();
            assert_eq!(left, if rest.is_empty() { url } else { rest });
            assert_eq!(parameters.mode.as_deref(), mode, "{url}");
        }
        let (all, rest) = take_out("postgres://h?sslcert=/a%20b&sslkey=/k&sslrootcert=system").unwrap();
        assert_eq!(rest, "postgres://h");
        assert_eq!((all.certificate.as_deref(), all.key.as_deref()), (Some("/a b"), Some("/k")));
        assert_eq!(all.root.as_deref(), Some("system"));
    }

    #[test]
    fn an_unescaped_at_sign_is_refused_without_showing_the_password() {
        for url in [
            "postgres://likes:Tr0ub@dor&3-horse@host/db",
            "postgres://likes:Tr0ub@dor/3-horse@host/db",
            "postgres://likes:Tr0ub@dor?3-horse@host/db",
            "postgres://likes:Tr0ub@dor?horse=x@host/db",
            "postgres://host/db?user=likes&password=Tr0ub@dor",
            "postgres://likes:x@Tr0ub%40dor/db",
            "host=Tr0ub@dor user=likes",
        ] {
            assert_eq!(parse(url).err().unwrap(), STRAY_AT, "{url}");
        }
        for url in
            ["postgres://likes:x@dor&3-horse/db", "postgres://likes:x@dor%203/db", "host=dor&3 user=likes"]
        {
            let error = parse(url).err().unwrap();
            assert!(error.contains("such as @ as %40") && !error.contains("dor&3"), "{error}");
        }
        for url in [
            "postgres://likes:Tr0ub%40dor%263-horse@host/db",
            "postgres://likes:Tr0ub?dor/3&horse@host/db",
            "postgres://likes@host/db?password=Tr0ub@dor",
            "postgres://likes@[::1],b.example:2/db",
            "postgres://likes@%2Frun%2Fpostgresql/db",
        ] {
            assert!(parse(url).is_ok(), "{url}");
        }
        assert!(parse("postgres://likes@a,,b/db").err().unwrap().contains("a host without a name"));
    }

    #[test]
    fn unsupported_parameters_are_named() {
        for (url, problem) in [
            ("postgres://u@h/d?sslcrl=/a", "the parameter 'sslcrl' is not supported; remove it"),
            (
                "postgres://u@h/d?ssl=true&schema=x",
                "the parameters 'ssl', 'schema' are not supported; remove them",
            ),
            (
                "postgres://h/d?password=a&hunter2=b",
                "a parameter after password is not supported; remove it, or escape & in the password as %26",
            ),
        ] {
            assert_eq!(parse(url).err().unwrap(), problem);
        }
    }

    #[test]
    fn every_supported_parameter_is_accepted() {
        for name in SUPPORTED {
            let value = match name {
                "sslmode" | "channel_binding" => "prefer",
                "sslnegotiation" => "postgres",
                "hostaddr" => "127.0.0.1",
                "target_session_attrs" => "any",
                "load_balance_hosts" => "disable",
                _ => "1",
            };
            assert!(parse(&format!("postgres://u@h/d?{name}={value}")).is_ok(), "{name}");
        }
    }
}
