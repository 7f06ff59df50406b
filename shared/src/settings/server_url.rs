//! Checks of the URL of a server before a library parses it. An unescaped special character in a password ends the password
//! early, and the rest becomes a host, a path or a parameter. No error shows such a part.

use std::net::Ipv6Addr;

use percent_encoding::percent_decode_str;

/// An @ in a user or a password, or in a place that follows them.
pub(crate) const STRAY_AT: &str =
    "the URL has an @ that does not end the user and password; escape every other @ as %40";

/// Appended to an error of a URL that cannot be parsed.
pub(crate) const ESCAPE: &str =
    "escape special characters in the user and the password, such as @ as %40 and / as %2F";

/// Parameters whose values may be secret.
const SECRET: [&str; 2] = ["password", "sentinelPassword"];

/// Longest name of a parameter that an error shows.
const MAX_NAME_BYTES: usize = 63;

/// Checks names of hosts, decoded.
pub(crate) fn check_hosts<'a>(mut hosts: impl Iterator<Item = &'a str>) -> Result<(), String> {
    match hosts.find(|host| !is_host(host)) {
        None => Ok(()),
        Some(host) if host.contains('@') => Err(STRAY_AT.to_owned()),
        Some("") => Err("the URL has a host without a name; set its name or remove its comma".to_owned()),
        Some(_) => Err(format!("the URL has a host with a character that no host name has; {ESCAPE}")),
    }
}

/// Checks the parameters after the question mark: all must be supported.
pub(crate) fn check_parameters(query: &str, supported: &[&str]) -> Result<(), String> {
    let mut secret = None;
    let mut unsupported = Vec::new();
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let name = parameter.split_once('=').map_or(parameter, |(name, _)| name);
        let name = percent_decode_str(name).decode_utf8_lossy();
        if !supported.contains(&&*name) {
            if query.contains('@') {
                return Err(STRAY_AT.to_owned());
            }
            if let Some(secret) = secret {
                return Err(format!(
                    "a parameter after {secret} is not supported; remove it, or escape & in the {secret} as %26"
                ));
            }
            unsupported.push(shown(&name));
        }
        secret = secret.or_else(|| SECRET.into_iter().find(|secret| name == *secret));
    }
    match &unsupported[..] {
        [] => Ok(()),
        [one] => Err(format!("the parameter {one} is not supported; remove it")),
        several => Err(format!("the parameters {} are not supported; remove them", several.join(", "))),
    }
}

/// Returns a name in quotes, unless it is unlike any name of a parameter.
fn shown(name: &str) -> String {
    let is_name = name.len() <= MAX_NAME_BYTES
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    if is_name { format!("'{name}'") } else { "with an invalid name".to_owned() }
}

/// Returns whether the text can be a host name or an IP address.
fn is_host(host: &str) -> bool {
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
    };
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let (address, zone) = address.split_once('%').unwrap_or((address, "0"));
    is_name(host) || (address.parse::<Ipv6Addr>().is_ok() && is_name(zone))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hosts(host: &str) -> Result<(), String> {
        check_hosts(["db.example.org", host].into_iter())
    }

    #[test]
    fn names_and_addresses_are_hosts() {
        for host in
            ["localhost", "a_b-c.d.", "10.0.0.1", "::1", "[::1]", "fe80::1%eth0", "xn--bcher-kva.example"]
        {
            assert_eq!(hosts(host), Ok(()), "{host}");
        }
        for host in ["a b", "dor&3-horse", "a:b", "[::1", "::1%", "a%20", "bücher", "a/b", "a\n"] {
            let why = hosts(host).unwrap_err();
            assert!(why.contains("no host name has") && !why.contains(host), "{why}");
        }
        assert_eq!(hosts("dor@host").unwrap_err(), STRAY_AT);
        assert!(hosts("").unwrap_err().contains("without a name"));
    }

    #[test]
    fn unsupported_parameters_are_named_unless_they_may_be_secret() {
        let check = |query| check_parameters(query, &["node", "password", "user"]);
        assert_eq!(check(""), Ok(()));
        assert_eq!(check("node=a:1&node=b:2&&user=x&password=y@z"), Ok(()));
        assert_eq!(check("db=hunter2").unwrap_err(), "the parameter 'db' is not supported; remove it");
        assert_eq!(
            check("db=1&node=a:1&family").unwrap_err(),
            "the parameters 'db', 'family' are not supported; remove them"
        );
        for secret in ["password=a&hunter2=b", "user=a&password=b&hunter2"] {
            let why = check(secret).unwrap_err();
            assert!(why.contains("escape & in the password as %26") && !why.contains("hunter2"), "{why}");
        }
        assert_eq!(check("hunter2@host/0").unwrap_err(), STRAY_AT);
        assert_eq!(check("db=hunter2@host").unwrap_err(), STRAY_AT);
        let strange = check("hunter2:/=b").unwrap_err();
        assert_eq!(strange, "the parameter with an invalid name is not supported; remove it");
    }

    proptest! {
        #[test]
        fn no_value_of_a_parameter_is_shown(name in "[a-z]{1,8}", value in "[A-Z!-,./:-@]{4,16}") {
            if let Err(why) = check_parameters(&format!("{name}={value}"), &["node"]) {
                prop_assert!(!why.contains(&value), "{}", why);
            }
        }
    }
}
