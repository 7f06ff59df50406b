//! A private Redis with a replica, and three sentinels that watch over them.

use std::time::Duration;

use crate::{
    StackError,
    process::{Lifetime, wait_until},
    redis_server::{RedisOptions, RedisServer},
};

const SENTINELS: usize = 3;
const READY_SECONDS: u64 = 90;

/// What the sentinels call the master.
const MASTER: &str = "likestream";

/// How long the master may be silent before another one is made, and how long that may take.
const DOWN_AFTER_MS: &str = "1000";
const FAILOVER_TIMEOUT_MS: &str = "3000";

/// Five servers on loopback.
#[derive(Debug)]
pub struct RedisSentinels {
    /// Two: at first the first one is the master.
    pub servers: Vec<RedisServer>,
    sentinels: Vec<RedisServer>,
}

impl RedisSentinels {
    /// Starts all of them and waits until the sentinels know one another and the replica.
    ///
    /// # Errors
    /// When that does not happen in time.
    pub fn start() -> Result<Self, StackError> {
        let server = |arguments: &[&str]| {
            let arguments = [&["--appendonly", "yes"], arguments].concat();
            let arguments = arguments.into_iter().map(str::to_owned).collect();
            RedisServer::start(RedisOptions { arguments, ..RedisOptions::default() }, Lifetime::Leashed)
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
            sentinels.push(RedisServer::start(options, Lifetime::Leashed)?);
        }
        let all = Self { servers: vec![master, replica], sentinels };
        let others = format!("num-other-sentinels\n{}\n", SENTINELS - 1);
        let up = wait_until(Duration::from_secs(READY_SECONDS), || {
            all.sentinels.iter().all(|sentinel| {
                let about = sentinel.command(&["SENTINEL", "MASTER", MASTER]).unwrap_or_default();
                about.contains(&others)
                    && about.contains("num-slaves\n1\n")
                    && about.contains("flags\nmaster\n")
            })
        });
        if up { Ok(all) } else { Err(all.trouble("know one another")) }
    }

    /// Where it is, by the sentinels.
    pub fn url(&self) -> String {
        let ports: Vec<u16> = self.sentinels.iter().map(RedisServer::port).collect();
        format!(
            "redis-sentinel://127.0.0.1:{}/0?sentinelServiceName={MASTER}&node=127.0.0.1:{}&node=127.0.0.1:{}",
            ports[0], ports[1], ports[2]
        )
    }

    /// Which server is the master by now, by what most sentinels say.
    ///
    /// # Errors
    /// When they don't agree.
    pub fn master(&self) -> Result<usize, StackError> {
        let says = |sentinel: &RedisServer, server: &RedisServer| {
            let told = sentinel.command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER]);
            told.is_ok_and(|told| told.lines().nth(1) == Some(&server.port().to_string()))
        };
        let most = |server: &&RedisServer| {
            self.sentinels.iter().filter(|sentinel| says(sentinel, server)).count() > SENTINELS / 2
        };
        self.servers.iter().position(|server| most(&server)).ok_or_else(|| self.trouble("agree"))
    }

    fn trouble(&self, what: &'static str) -> StackError {
        let log = self.sentinels[0].folder().join("redis.log");
        StackError::Timeout { program: "the sentinels".to_owned(), what, seconds: READY_SECONDS, log }
    }
}
