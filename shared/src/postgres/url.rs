//! The URL of Postgres.
//!
//! Source: Postgres manual, "Connection URIs" of libpq.

use percent_encoding::percent_decode_str;
use tokio_postgres::{
    Config,
    config::{Host, TargetSessionAttrs},
};

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

/// A parsed URL.
pub(super) struct Parsed {
    pub(super) tls: Parameters,
    pub(super) kind: SessionKind,
    pub(super) config: Config,
}

/// Kind of session that `target_session_attrs` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum SessionKind {
    #[default]
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
}

impl SessionKind {
    fn parse(value: &str) -> Option<Self> {
        let kinds = [Self::Any, Self::ReadWrite, Self::ReadOnly, Self::Primary, Self::Standby];
        kinds.into_iter().find(|kind| kind.name() == value)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::ReadWrite => "read-write",
            Self::ReadOnly => "read-only",
            Self::Primary => "primary",
            Self::Standby => "standby",
        }
    }

    /// Returns a query and its answer in a session of this kind.
    pub(super) fn check(self) -> Option<(&'static str, &'static str)> {
        let (read_only, recovery) = ("SHOW transaction_read_only", "SELECT pg_catalog.pg_is_in_recovery()");
        match self {
            Self::Any => None,
            Self::ReadWrite => Some((read_only, "off")),
            Self::ReadOnly => Some((read_only, "on")),
            Self::Primary => Some((recovery, "f")),
            Self::Standby => Some((recovery, "t")),
        }
    }

    /// Describes a server whose sessions are not of this kind.
    pub(super) fn opposite(self) -> &'static str {
        match self {
            Self::Any => "",
            Self::ReadWrite => "read-only",
            Self::ReadOnly => "not read-only",
            Self::Primary => "a standby",
            Self::Standby => "not a standby",
        }
    }
}

/// Parameters of a URL that tokio-postgres does not handle.
#[derive(Debug, Default)]
struct Taken {
    tls: Parameters,
    kind: Option<String>,
}

impl Taken {
    fn takes(&mut self, parameter: &str) -> bool {
        match parameter.split_once('=') {
            Some(("target_session_attrs", value)) => {
                let value = percent_decode_str(value).decode_utf8_lossy().into_owned();
                self.kind = Some(value).filter(|value| !value.is_empty());
                true
            }
            _ => self.tls.takes(parameter),
        }
    }

    fn kind(&self, config: &Config) -> Result<SessionKind, String> {
        let Some(value) = &self.kind else {
            // From a list of keys and values.
            return Ok(match config.get_target_session_attrs() {
                TargetSessionAttrs::ReadWrite => SessionKind::ReadWrite,
                TargetSessionAttrs::ReadOnly => SessionKind::ReadOnly,
                _ => SessionKind::Any,
            });
        };
        SessionKind::parse(value).ok_or_else(|| {
            // The end of a password can be here, after a question mark that was not escaped.
            let is_known = value == "prefer-standby";
            let value = if is_known { format!(" '{value}'") } else { String::new() };
            let expected = "any, read-write, read-only, primary or standby";
            format!("target_session_attrs{value} is not supported; expected {expected}")
        })
    }
}

/// Parses a URL. The error shows no part of it that may belong to a password.
pub(super) fn parse(url: &str) -> Result<Parsed, String> {
    let (taken, rest) = take_out(url)?;
    // The parser's error may quote a part of the URL, and so a part of the password.
    let config: Config = rest.parse().map_err(|_| format!("the URL is not valid; {EXPECTED}; {ESCAPE}"))?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err(format!("the URL has no host; {EXPECTED}"));
    }
    check_hosts(config.get_hosts().iter().filter_map(|host| match host {
        Host::Tcp(name) => Some(&**name),
        Host::Unix(_) => None,
    }))?;
    let kind = taken.kind(&config)?;
    Ok(Parsed { tls: taken.tls, kind, config })
}

/// Removes the parameters that tokio-postgres does not handle from a URL. Returns them and the rest.
fn take_out(url: &str) -> Result<(Taken, String), String> {
    let mut taken = Taken::default();
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
            assert_eq!(parameters.tls.mode.as_deref(), mode, "{url}");
        }
        let (all, rest) = take_out("postgres://h?sslcert=/a%20b&sslkey=/k&sslrootcert=system").unwrap();
        assert_eq!(rest, "postgres://h");
        assert_eq!((all.tls.certificate.as_deref(), all.tls.key.as_deref()), (Some("/a b"), Some("/k")));
        assert_eq!(all.tls.root.as_deref(), Some("system"));
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
    fn the_kind_of_session_is_that_of_target_session_attrs() {
        for (url, kind) in [
            ("postgres://u@h/d", SessionKind::Any),
            ("postgres://u@h/d?target_session_attrs=any", SessionKind::Any),
            ("postgres://u@a,b/d?target_session_attrs=read%2Dwrite&port=1", SessionKind::ReadWrite),
            ("postgres://u@h/d?target_session_attrs=primary", SessionKind::Primary),
            ("postgres://u@h/d?target_session_attrs=standby", SessionKind::Standby),
            ("host=h target_session_attrs=read-only", SessionKind::ReadOnly),
        ] {
            assert_eq!(parse(url).unwrap().kind, kind, "{url}");
        }
        let error = parse("postgres://u@h/d?target_session_attrs=prefer-standby").err().unwrap();
        assert_eq!(
            error,
            "target_session_attrs 'prefer-standby' is not supported; expected any, read-write, read-only, primary or \
             standby"
        );
        assert!(!parse("postgres://u@h/d?target_session_attrs=hunter2").err().unwrap().contains("hunter2"));
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
