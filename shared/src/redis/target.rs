//! The servers and credentials that a URL names.

use fred::{
    prelude::{Config, ServerConfig},
    types::config::Server,
};
use percent_encoding::percent_decode_str;

use super::connection::{UNIX_SOCKET, address};
use crate::settings::server_url::{STRAY_AT, check_hosts, check_parameters};

const INVALID_URL: &str = "the URL is not valid; expected a URL such as redis://user:password@host:6379/0, \
     redis-cluster://host:7000?node=other:7001 or redis-sentinel://host:26379/0?node=other:26379&sentinelServiceName=name, \
     or with TLS rediss://, rediss-cluster:// or rediss-sentinel://, or unix:///path/to/socket?db=0; escape special \
     characters in the user and the password, such as @ as %40 and / as %2F";

/// The contents of a URL.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) deployment: Deployment,
    /// Credentials and database, the same for every server. Without TLS, which comes from files.
    pub(super) login: Config,
    pub(super) has_tls: bool,
}

/// Kind of deployment.
#[derive(Clone)]
pub(super) enum Deployment {
    One(Server),
    Sentinels { sentinels: Vec<Server>, login: Box<Config>, master: String },
    Cluster { seeds: Vec<Server> },
}

impl Target {
    /// # Errors
    /// When the URL is invalid. The text shows no part of it that may be secret.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        if matches!(scheme, "unix" | "redis+unix") {
            return Self::of_unix_socket(rest);
        }
        let (scheme, has_tls) = match scheme.strip_prefix("rediss") {
            Some(kind) => (format!("redis{kind}"), true),
            None => (scheme.to_owned(), false),
        };
        let parameters: &[&str] = match scheme.as_str() {
            "redis" => &[],
            "redis-cluster" => &["node"],
            "redis-sentinel" => &["node", "sentinelServiceName", "sentinelUsername", "sentinelPassword"],
            _ => return Err(INVALID_URL.to_owned()),
        };
        check_parts(rest, parameters)?;
        // fred's own parser would choose the trusted certificates for a rediss:// URL itself.
        let url = &format!("{scheme}://{rest}");
        // The parser's error may quote a part of the URL, and so a part of the password.
        let login = match scheme.as_str() {
            "redis-cluster" => Config::from_url_clustered(url),
            "redis-sentinel" => Config::from_url_sentinel(url),
            _ => Config::from_url_centralized(url),
        };
        let login = login.map_err(|_| INVALID_URL.to_owned())?;
        check_hosts(login.server.hosts().iter().map(|server| &*server.host))?;
        let deployment = match &login.server {
            ServerConfig::Centralized { server } => Deployment::One(server.clone()),
            ServerConfig::Clustered { hosts, .. } => Deployment::Cluster { seeds: hosts.clone() },
            ServerConfig::Sentinel { hosts, service_name, username, password } => Deployment::Sentinels {
                sentinels: hosts.clone(),
                login: Box::new(Config {
                    username: username.clone(),
                    password: password.clone(),
                    ..Config::default()
                }),
                master: service_name.clone(),
            },
            ServerConfig::Unix { .. } => return Err(INVALID_URL.to_owned()),
        };
        Ok(Self { deployment, login, has_tls })
    }

    /// Parses `[user:password@]/path[?db=number]`.
    fn of_unix_socket(rest: &str) -> Result<Self, String> {
        check_parts(rest, &["db"])?;
        let decoded = |text: &str| {
            let decoded = percent_decode_str(text).decode_utf8().ok()?;
            Some(decoded.into_owned()).filter(|text| !text.is_empty())
        };
        let invalid = || INVALID_URL.to_owned();
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let at = place.find('/').ok_or_else(invalid)?;
        let (before, path) = place.split_at(at);
        let path = decoded(path).filter(|path| path.len() > 1).ok_or_else(invalid)?;
        let credentials = match before.strip_suffix('@') {
            Some(credentials) => credentials.split_once(':').ok_or_else(invalid)?,
            None if before.is_empty() => ("", ""),
            None => return Err(invalid()),
        };
        let database = query.split('&').find_map(|parameter| parameter.strip_prefix("db="));
        let login = Config {
            username: decoded(credentials.0),
            password: decoded(credentials.1),
            database: database.map(str::parse).transpose().map_err(|_| invalid())?,
            ..Config::default()
        };
        Ok(Self { deployment: Deployment::One(Server::new(path, UNIX_SOCKET)), login, has_tls: false })
    }

    /// Returns the hosts and ports, or the path.
    pub(super) fn address(&self) -> String {
        let servers = match &self.deployment {
            Deployment::One(server) => std::slice::from_ref(server),
            Deployment::Sentinels { sentinels: servers, .. } | Deployment::Cluster { seeds: servers } => {
                servers
            }
        };
        servers.iter().map(address).collect::<Vec<_>>().join(", ")
    }
}

/// Checks the parts after the scheme for traces of a password with special characters.
fn check_parts(rest: &str, parameters: &[&str]) -> Result<(), String> {
    let after_hosts = rest.find(['/', '?', '#']).map_or("", |at| &rest[at..]);
    let (place, fragment) = after_hosts.split_once('#').unwrap_or((after_hosts, ""));
    let (path, query) = place.split_once('?').unwrap_or((place, ""));
    if path.contains('@') || fragment.contains('@') {
        return Err(STRAY_AT.to_owned());
    }
    check_parameters(query, parameters)
}
