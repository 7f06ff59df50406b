//! Faults of the Redis servers, their connections and their streams.

use devstack::{StackError, backlog::Keys};
use fred::prelude::Value;

use crate::{
    chaos::{
        injector::{Injector, InjectorError},
        login::Login,
        plan::Fault,
    },
    stack_redis::StackRedis,
};

const SLOW_BYTES_PER_SECOND: u32 = 4_000_000;

/// Number of large entries that have to pass a slow link: half a second.
const LARGE_ENTRIES: u32 = 16;

impl Injector {
    pub(super) fn restart_redis(&mut self, fault: Fault) -> Result<(), StackError> {
        let server = self.stack.redis.server_of(&stream_of(fault))?;
        server.stop();
        let port = server.port();
        self.start_redis_again(port, fault)
    }

    pub(super) fn kill_redis(&mut self, fault: Fault) -> Result<(), StackError> {
        let server = self.stack.redis.server_of(&stream_of(fault))?;
        server.kill();
        let port = server.port();
        self.start_redis_again(port, fault)
    }

    /// Starts a server after the outage and waits until Redis is healthy.
    fn start_redis_again(&mut self, port: u16, fault: Fault) -> Result<(), StackError> {
        self.pause(fault.outage);
        self.stack.redis.server_at(port)?.start_again()?;
        // A server that restarts knows only the default user.
        set_passwords(&self.stack.redis, &self.redis_logins)?;
        self.stack.redis.wait_healthy()
    }

    /// Freezes the server of a partition and calls `before_resume` just before it resumes.
    pub(super) fn freeze_redis(
        &mut self,
        fault: Fault,
        before_resume: impl FnOnce(&mut Self),
    ) -> Result<(), StackError> {
        let server = self.stack.redis.server_of(&stream_of(fault))?;
        server.pause();
        let port = server.port();
        self.pause(fault.outage);
        before_resume(self);
        self.stack.redis.server_at(port)?.resume();
        self.stack.redis.wait_healthy()
    }

    pub(super) fn move_slot(&self, fault: Fault) -> Result<(), StackError> {
        self.stack.redis.move_slot(&stream_of(fault), fault.outage / 4)
    }

    pub(super) fn cut_redis_connections(&self) -> Result<(), fred::error::Error> {
        self.redis_command("CLIENT", &["KILL", "TYPE", "normal", "SKIPME", "yes"])
    }

    pub(super) fn rotate_redis_passwords(&mut self, fault: Fault) -> Result<(), InjectorError> {
        self.redis_logins.iter_mut().for_each(Login::rotate);
        set_passwords(&self.stack.redis, &self.redis_logins)?;
        // A connection outlives the password that opened it.
        self.cut_redis_connections()?;
        self.pause(fault.outage);
        Ok(self.redis_logins.iter().try_for_each(Login::write)?)
    }

    pub(super) fn fill_redis(&self, fault: Fault) -> Result<(), fred::error::Error> {
        self.redis_command("CONFIG", &["SET", "maxmemory", "1"])?;
        self.pause(fault.outage);
        self.redis_command("CONFIG", &["SET", "maxmemory", "0"])
    }

    pub(super) fn append_malformed(&mut self, fault: Fault) {
        let keys = Keys::default();
        let Self { runtime, redis, malformed, .. } = self;
        runtime.block_on(async {
            for _ in 0..fault.malformed {
                malformed.append(redis, &keys).await;
            }
        });
    }

    pub(super) fn slow_link(&mut self, fault: Fault) {
        let Some(link) = &self.link else { return };
        link.limit(Some(SLOW_BYTES_PER_SECOND));
        let stream = stream_of(fault);
        let Self { runtime, redis, malformed, .. } = self;
        runtime.block_on(async {
            for _ in 0..LARGE_ENTRIES {
                malformed.append_large(redis, &stream).await;
            }
        });
        self.pause(fault.outage);
        if let Some(link) = &self.link {
            link.limit(None);
        }
    }

    /// Sends a command to all servers.
    pub(super) fn redis_command(
        &self,
        name: &'static str,
        arguments: &[&str],
    ) -> Result<(), fred::error::Error> {
        for server in self.redis.servers() {
            let arguments = arguments.iter().map(|argument| Value::from(*argument)).collect();
            self.runtime.block_on(server.send::<Value>(name, arguments))?;
        }
        Ok(())
    }
}

/// Sets the passwords of users on all servers. The users have all permissions.
pub(super) fn set_passwords(redis: &StackRedis, logins: &[Login]) -> Result<(), StackError> {
    for login in logins {
        let password = format!(">{}", login.password());
        let command = ["ACL", "SETUSER", login.user(), "on", "resetpass", &password, "~*", "&*", "+@all"];
        for server in redis.servers() {
            server.command(&command)?;
        }
    }
    Ok(())
}

/// Stream of the partition that a fault affects.
fn stream_of(fault: Fault) -> String {
    let streams: Vec<String> = Keys::default().streams().collect();
    streams[fault.target % streams.len()].clone()
}
