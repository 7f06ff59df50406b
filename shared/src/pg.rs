//! Connections to Postgres, and what to do next when it says no.

mod tls;

use std::time::Duration;

use deadpool_postgres::{
    BuildError, Hook, HookError, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime,
};
use secrecy::ExposeSecret;
use tokio::time::timeout;
use tokio_postgres::{Client, Config, config::Host, error::SqlState};

use self::tls::{Parameters, Tls};
use crate::{cli::SettingError, config::PostgresArgs};

/// How long it may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long unanswered bytes may stay on the way before the connection counts as dead.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a connection may be silent before it is looked whether the other end is there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);

/// A Postgres, or a pooler before it, and how to connect to it.
#[derive(Clone)]
pub struct Postgres {
    config: Config,
    tls: Tls,
}

/// How to connect, from the URL and with this application name. Certificates are read here.
pub fn postgres(args: &PostgresArgs, application_name: &str) -> Result<Postgres, SettingError> {
    let url = args.url()?;
    let (parameters, rest) = Parameters::take_out(url.expose_secret());
    // The parser's own error might quote a part of the URL, and so of a password.
    let mut config: Config = rest.parse().map_err(|_| {
        SettingError::new("DATABASE_URL", "not a URL like postgres://user:password@host:5432/database")
    })?;
    if config.get_hosts().is_empty() {
        return Err(SettingError::new(
            "DATABASE_URL",
            "names no host, like postgres://user@host:5432/database",
        ));
    }
    let tls = parameters.apply(&mut config)?;
    config.application_name(application_name);
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    // Two hours, as long as nobody asks for another: a connection that is cut silently should be noticed before.
    if config.get_keepalives_idle() == Duration::from_hours(2) {
        config.keepalives_idle(KEEPALIVE_IDLE);
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(TCP_USER_TIMEOUT);
    }
    Ok(Postgres { config, tls })
}

impl Postgres {
    /// A connection, which ends with the client.
    ///
    /// # Errors
    /// When there is none to be had.
    pub async fn connect(&self) -> Result<Client, tokio_postgres::Error> {
        Box::pin(self.tls.connect(&self.config)).await.map(|(client, _)| client)
    }

    /// Hosts and ports, for people to read.
    pub fn address(&self) -> String {
        let config = &self.config;
        let hosts = config.get_hosts().iter().zip(config.get_ports().iter().chain(std::iter::repeat(&5432)));
        let hosts = hosts.map(|(host, port)| match host {
            Host::Tcp(name) => format!("{name}:{port}"),
            Host::Unix(folder) => format!("{}:{port}", folder.display()),
        });
        format!("Postgres at {}", hosts.collect::<Vec<_>>().join(", "))
    }

    /// A pool of at most `connections`; nothing is connected yet. Waiting for one is bounded. `session` is SQL that every
    /// new connection starts with.
    ///
    /// # Errors
    /// When deadpool can't build it, which is a mistake of this program's.
    pub fn pool(self, connections: usize, session: String) -> Result<Pool, BuildError> {
        let recycling_method = RecyclingMethod::Fast;
        let manager = Manager::from_connect(self.config, self.tls, ManagerConfig { recycling_method });
        Pool::builder(manager)
            .max_size(connections)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(CONNECT_TIMEOUT))
            .create_timeout(Some(CONNECT_TIMEOUT))
            .post_create(Hook::async_fn(move |client, _| {
                let session = session.clone();
                Box::pin(async move {
                    // A pooler lets us in and then may have no session for us. The pool's own bounds are not for this.
                    let begun = timeout(CONNECT_TIMEOUT, client.batch_execute(&session)).await;
                    let silent = || format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
                    begun.map_err(|_| HookError::message(silent()))?.map_err(HookError::Backend)
                })
            }))
            .build()
    }
}

/// Whether Postgres doesn't let us in, which waiting will not change: unknown user or database, wrong password, a
/// certificate that one side doesn't take.
pub fn is_refusal(error: &tokio_postgres::Error) -> bool {
    classify(error) == FailureClass::Halt
}

/// What to do after a failed statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureClass {
    /// The database can't do it now: the same again, later, for as long as it takes.
    Retry,
    /// It will never take these rows: find the ones that it minds.
    Reject,
    /// Someone has to mend the schema, the rights or a certificate first: say so, and look again now and then.
    Halt,
}

/// Sorts a failure by its SQLSTATE (Postgres manual, appendix A), or by what came between. Whatever is not known to be the rows' or the
/// schema's fault is worth another try: a like must not be given up over an error that nobody foresaw.
pub fn classify(error: &tokio_postgres::Error) -> FailureClass {
    let of_connection = || if tls::is_refusal(error) { FailureClass::Halt } else { FailureClass::Retry };
    error.code().map_or_else(of_connection, class_of_sqlstate)
}

fn class_of_sqlstate(state: &SqlState) -> FailureClass {
    let code = state.code();
    match code.get(..2).unwrap_or_default() {
        // data exception, integrity constraint, WITH CHECK OPTION, and what a trigger raises
        "22" | "23" | "44" | "P0" => FailureClass::Reject,
        // not supported, no such user, database or schema, undefined or forbidden
        "0A" | "28" | "3D" | "3F" | "42" => FailureClass::Halt,
        _ => FailureClass::Retry,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_sorted_by_what_to_do_next() {
        let retry = [
            "08006", "25006", "40001", "40P01", "53100", "53300", "55P03", "57014", "57P01", "58030", "XX000",
        ];
        let reject = ["22003", "22P04", "23502", "23505", "23514", "44000", "P0001"];
        let halt = ["0A000", "28P01", "3D000", "3F000", "42501", "42703", "42P01", "42P10"];
        for (codes, class) in
            [(&retry[..], FailureClass::Retry), (&reject, FailureClass::Reject), (&halt, FailureClass::Halt)]
        {
            for code in codes {
                assert_eq!(class_of_sqlstate(&SqlState::from_code(code)), class, "{code}");
            }
        }
    }
}
