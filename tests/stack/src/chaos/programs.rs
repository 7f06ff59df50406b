//! Faults of ingest and the consumers.

use std::{process::Stdio, time::Duration};

use devstack::{StackError, postgres_server, process::wait_until, program};

use crate::{
    chaos::{
        group,
        injector::{Injector, InjectorError},
        plan::Fault,
        setup::OTHER_DATABASE,
    },
    stack::loopback,
};

/// Time limit for a consumer to refuse to start.
const REFUSAL_LIMIT: Duration = Duration::from_secs(20);

impl Injector {
    /// Index of the consumer that a fault affects.
    fn consumer_of(&self, fault: Fault) -> usize {
        fault.target % self.stack.consumers.len()
    }

    pub(super) fn kill_consumer(&mut self, fault: Fault) -> Result<(), StackError> {
        let consumer = self.consumer_of(fault);
        self.stack.consumers[consumer].kill();
        self.pause(fault.outage);
        self.stack.replace_consumer(consumer)
    }

    pub(super) fn kill_ingest(&mut self) -> Result<(), StackError> {
        self.stack.ingest.kill();
        self.stack.replace_ingest()
    }

    pub(super) fn roll_out_consumers(&mut self) -> Result<(), StackError> {
        for consumer in 0..self.stack.consumers.len() {
            self.stack.consumers[consumer].stop()?;
            self.stack.replace_consumer(consumer)?;
        }
        Ok(())
    }

    pub(super) fn roll_out_ingest(&mut self) -> Result<(), StackError> {
        self.stack.ingest.stop()?;
        self.stack.replace_ingest()
    }

    /// Starts a consumer whose database is another one than that of its group.
    ///
    /// # Errors
    /// When it does not exit with code 2, or has read or stored a like.
    pub(super) fn start_consumer_of_another_database(&self) -> Result<(), InjectorError> {
        let database_url = self.stack.postgres.url(OTHER_DATABASE);
        let settings = [
            ("REDIS_URL", self.stack.redis.url()),
            ("DATABASE_URL", database_url.clone()),
            ("CONSUMER_ADMIN_LISTEN", loopback(0)),
            ("CONSUMER_NAME", OTHER_DATABASE.to_owned()),
        ];
        let mut command = program::command("consumer", &settings)?;
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let spawned = command.spawn();
        let mut consumer =
            spawned.map_err(|source| StackError::Spawn { program: "consumer".to_owned(), source })?;
        let mut status = None;
        wait_until(REFUSAL_LIMIT, || {
            status = consumer.try_wait().ok().flatten();
            status.is_some()
        });
        let _ = consumer.kill();
        let _ = consumer.wait();
        let (rows, has_read) = self.runtime.block_on(async {
            let table = postgres_server::connect(&database_url).await?;
            let rows: i64 = table.query_one("SELECT count(*) FROM likes", &[]).await?.get(0);
            Ok::<_, InjectorError>((rows, group::has_reader(&self.redis, OTHER_DATABASE).await?))
        })?;
        if rows == 0 && !has_read && status.is_some_and(|status| status.code() == Some(2)) {
            return Ok(());
        }
        let end = status.map_or_else(|| "it runs".to_owned(), |status| status.to_string());
        Err(InjectorError::OtherDatabase { end, rows, has_read })
    }

    pub(super) fn kill_consumer_at_frozen_postgres(&mut self, fault: Fault) -> Result<(), StackError> {
        let consumer = self.consumer_of(fault);
        self.stack.postgres.pause();
        self.pause(fault.outage);
        self.stack.consumers[consumer].kill();
        self.stack.postgres.resume();
        self.stack.replace_consumer(consumer)
    }

    pub(super) fn kill_consumer_at_frozen_redis(&mut self, fault: Fault) -> Result<(), StackError> {
        let consumer = self.consumer_of(fault);
        self.freeze_redis(fault, |injector| injector.stack.consumers[consumer].kill())?;
        self.stack.replace_consumer(consumer)
    }
}
