//! Private Redis with a replica and three sentinels.

use std::time::Duration;

use crate::{
    error::StackError,
    process::{Lifetime, wait_until},
    redis_server::{RedisOptions, RedisServer},
};

const SENTINELS: usize = 3;
const READY_SECONDS: u64 = 90;

/// Service name of the primary.
const MASTER: &str = "likestream";

/// Unresponsive time of the primary after which a failover begins, and the time limit of the failover.
const DOWN_AFTER_MS: &str = "1000";
const FAILOVER_TIMEOUT_MS: &str = "3000";

/// Five servers on loopback.
#[derive(Debug)]
pub struct RedisSentinels {
    /// Two servers. The first starts as the primary.
    pub servers: Vec<RedisServer>,
    sentinels: Vec<RedisServer>,
}

impl RedisSentinels {
    /// Starts all servers and waits until the sentinels have discovered one another and the replica.
    ///
    /// # Errors
    /// When discovery does not complete in time.
    pub fn start() -> Result<Self, StackError> {
        let server = |arguments: &[&str]| {
            let arguments = [&["--appendonly", "yes"], arguments].concat();
            let arguments = arguments.into_iter().map(str::to_owned).collect();
            RedisServer::start(RedisOptions { arguments, ..RedisOptions::default() }, Lifetime::Attached)
        };
        let master = server(&[])?;
        let port = master.port().to_string();
        let replica = server(&["--replicaof", &format!("127.0.0.1 {port}")])?;
        let config = format!(
            "sentinel monitor {MASTER} 127.0.0.1 {port} 2\n\
             sentinel down-after-milliseconds {MASTER} {DOWN_AFTER_MS}\n\
             sentinel failover-timeout {MASTER} {FAILOVER_TIMEOUT_MS}\n"
        );
        let mut sentinels = Vec::new();
        for _ in 0..SENTINELS {
            let options = RedisOptions {
                arguments: vec!["--sentinel".to_owned()],
                config: Some(config.clone()),
                ..RedisOptions::default()
            };
            sentinels.push(RedisServer::start(options, Lifetime::Attached)?);
        }
        let all = Self { servers: vec![master, replica], sentinels };
        let others = format!("num-other-sentinels\n{}\n", SENTINELS - 1);
        let up = wait_until(Duration::from_secs(READY_SECONDS), || {
            all.sentinels.iter().all(|sentinel| {
                let info = sentinel.command(&["SENTINEL", "MASTER", MASTER]).unwrap_or_default();
                info.contains(&others) && info.contains("num-slaves\n1\n") && info.contains("flags\nmaster\n")
            })
        });
        if up { Ok(all) } else { Err(all.timeout("discover one another")) }
    }

    /// Connection URL with all sentinels.
    pub fn url(&self) -> String {
        let ports: Vec<u16> = self.sentinels.iter().map(RedisServer::port).collect();
        format!(
            "redis-sentinel://127.0.0.1:{}/0?sentinelServiceName={MASTER}&node=127.0.0.1:{}&node=127.0.0.1:{}",
            ports[0], ports[1], ports[2]
        )
    }

    /// Index in [`RedisSentinels::servers`] of the current primary, according to a majority of the sentinels.
    ///
    /// # Errors
    /// When there is no majority.
    pub fn master(&self) -> Result<usize, StackError> {
        let names = |sentinel: &RedisServer, server: &RedisServer| {
            let address = sentinel.command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER]);
            address.is_ok_and(|address| address.lines().nth(1) == Some(&server.port().to_string()))
        };
        let is_master = |server: &&RedisServer| {
            self.sentinels.iter().filter(|sentinel| names(sentinel, server)).count() > SENTINELS / 2
        };
        self.servers
            .iter()
            .position(|server| is_master(&server))
            .ok_or_else(|| self.timeout("agree on a primary"))
    }

    fn timeout(&self, action: &'static str) -> StackError {
        let log = self.sentinels[0].folder().join("redis.log");
        StackError::Timeout { program: "the sentinels".to_owned(), action, seconds: READY_SECONDS, log }
    }
}
