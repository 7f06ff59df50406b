//! Builds Redis clients that reconnect for ever, time out, and notice a dead or frozen server.
//!
//! Together with `agreement` and the stream files of the programs this is all that touches fred.

use std::time::Duration;

use fred::{
    prelude::{
        Builder, Client, ClientLike, Config, Error, ErrorKind, EventInterface, ReconnectPolicy, TcpConfig,
    },
    types::config::UnresponsiveConfig,
};
use secrecy::ExposeSecret;

use crate::{cli::SettingError, config::RedisArgs};

/// First and longest wait between two attempts to reconnect.
const RECONNECT_MIN_MS: u32 = 50;
const RECONNECT_MAX_MS: u32 = 2_000;

/// Over the command timeout, before a silent connection is given up and made anew.
const UNRESPONSIVE_MARGIN: Duration = Duration::from_secs(3);

/// How to reach Redis.
#[derive(Clone)]
pub struct Redis {
    config: Config,
    timeout: Duration,
    address: String,
}

/// What a client is for: that decides how long a reply may take and what a broken connection means.
#[derive(Clone, Copy)]
pub enum Use {
    /// Commands that are answered at once. One that was in flight when the connection broke is sent again, so it
    /// may be carried out twice.
    Commands,
    /// Blocking reads, one at a time, each blocking this long at most. A read whose reply is lost is an error and
    /// not sent again: its entries are now pending, and only the caller knows where to look for them.
    BlockingReads(Duration),
    /// Commands of which one may speak of the one before it, as WAIT does of a write: when the connection breaks, the
    /// client ends with all that is in flight. An answer may take twice the usual time.
    OneConnection,
}

impl Redis {
    /// Reads the URL and connects to nothing yet.
    pub fn new(args: &RedisArgs) -> Result<Self, SettingError> {
        let url = args.url()?;
        let url = url.expose_secret();
        if !url.starts_with("redis://") {
            return Err(SettingError::new(
                "REDIS_URL",
                "allowed is a URL like redis://user:password@host:6379/0",
            ));
        }
        // The parser's own error might quote a part of the URL, and so of a password.
        let mut config = Config::from_url_centralized(url).map_err(|_| {
            SettingError::new("REDIS_URL", "not a URL like redis://user:password@host:6379/0")
        })?;
        config.fail_fast = true;
        let address: Vec<String> =
            config.server.hosts().iter().map(|server| format!("{}:{}", server.host, server.port)).collect();
        let address = address.join(", ");
        Ok(Self { config, timeout: args.redis_timeout, address })
    }

    /// Host and port, for people to read.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A connected client. From then on it reconnects by itself, if that suits its purpose, and says so in the log.
    pub async fn connect(&self, purpose: Use) -> Result<Client, Error> {
        let (timeout, attempts) = match purpose {
            Use::Commands => (self.timeout, 3),
            Use::BlockingReads(block) => (self.timeout + block, 1),
            Use::OneConnection => (self.timeout * 2, 1),
        };
        let mut builder = Builder::from_config(self.config.clone());
        if !matches!(purpose, Use::OneConnection) {
            builder.set_policy(ReconnectPolicy::new_exponential(0, RECONNECT_MIN_MS, RECONNECT_MAX_MS, 2));
        }
        builder
            .with_performance_config(|performance| performance.default_command_timeout = timeout)
            .with_connection_config(|connection| {
                connection.connection_timeout = self.timeout;
                connection.internal_command_timeout = self.timeout;
                connection.max_command_attempts = attempts;
                connection.unresponsive = UnresponsiveConfig {
                    max_timeout: Some(timeout + UNRESPONSIVE_MARGIN),
                    interval: Duration::from_secs(1),
                };
                connection.tcp = TcpConfig {
                    nodelay: Some(true),
                    user_timeout: Some(timeout + UNRESPONSIVE_MARGIN),
                    ..TcpConfig::default()
                };
            });
        let client = builder.build()?;
        client.init().await?;
        // One that has a password lets us in while it still loads its data.
        if let Err(error) = client.ping::<String>(None).await {
            tokio::spawn(async move { client.quit().await });
            return Err(error);
        }
        let address = self.address.clone();
        client.on_error(move |(error, _)| {
            tracing::warn!(redis = %address, %error, "connection to Redis in trouble");
            async { Ok(()) }
        });
        let address = self.address.clone();
        client.on_reconnect(move |_| {
            tracing::info!(redis = %address, "connected to Redis");
            async { Ok(()) }
        });
        Ok(client)
    }
}

/// Whether Redis doesn't let us in, which waiting will not change.
pub fn is_refusal(error: &Error) -> bool {
    *error.kind() == ErrorKind::Auth || matches!(error_code(error), Some("NOAUTH" | "WRONGPASS" | "NOPERM"))
}

/// The error code that a Redis server's error starts with, like `NOGROUP` or `OOM`.
pub fn error_code(error: &Error) -> Option<&str> {
    let code = error.details().split(' ').next()?;
    (code.len() >= 2 && code.bytes().all(|b| b.is_ascii_uppercase())).then_some(code)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        redis: RedisArgs,
    }

    fn redis(url: &str) -> Result<Redis, SettingError> {
        Redis::new(&Flags::try_parse_from(["program", "--redis-url", url]).unwrap().redis)
    }

    #[test]
    fn a_bad_url_is_refused_without_repeating_it() {
        for url in ["http://:hunter2@host", "rediss://:hunter2@host", "redis://:hunter2@host:port", "hunter2"]
        {
            let error = redis(url).err().unwrap().to_string();
            assert!(error.starts_with("REDIS_URL: ") && !error.contains("hunter2"), "{error}");
        }
        assert_eq!(redis("redis://user:hunter2@host:7000/1").ok().unwrap().address(), "host:7000");
    }

    #[test]
    fn error_codes_are_those_of_the_server() {
        let code = |text: &'static str| error_code(&Error::new(ErrorKind::Unknown, text)).map(str::to_owned);
        assert_eq!(code("NOGROUP No such key").as_deref(), Some("NOGROUP"));
        assert_eq!(code("OOM command not allowed").as_deref(), Some("OOM"));
        assert_eq!(code("Connection reset"), None);
    }
}
