//! Faults of the Postgres server and its connections.

use std::mem;

use devstack::{
    StackError,
    postgres_server::{self, PostgresServer},
};

use crate::chaos::{
    injector::{Injector, InjectorError},
    login::Login,
    plan::Fault,
};

impl Injector {
    pub(super) fn restart_postgres(&mut self, fault: Fault) -> Result<(), StackError> {
        self.stack.postgres.stop();
        self.pause(fault.outage);
        self.stack.postgres.start_again()
    }

    pub(super) fn kill_postgres(&mut self, fault: Fault) -> Result<(), StackError> {
        self.stack.postgres.kill();
        self.pause(fault.outage);
        self.stack.postgres.start_again()
    }

    pub(super) fn freeze_postgres(&self, fault: Fault) {
        self.stack.postgres.pause();
        self.pause(fault.outage);
        self.stack.postgres.resume();
    }

    pub(super) fn fail_over_postgres(&mut self, fault: Fault) -> Result<(), InjectorError> {
        let Self { stack, standby, .. } = self;
        stack.postgres.kill();
        let port = stack.postgres.port();
        standby.promote()?;
        mem::swap(&mut stack.postgres, standby);
        // Commits wait for a standby from the second failover on.
        self.pause(fault.outage);
        self.standby = PostgresServer::standby_of(&self.stack.postgres, Some(port))?;
        Ok(self.make_commits_wait_for_the_standby()?)
    }

    /// Makes replication synchronous, so that a failover loses nothing.
    pub(super) fn make_commits_wait_for_the_standby(&self) -> Result<(), tokio_postgres::Error> {
        self.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")?;
        self.sql("SELECT pg_reload_conf()")
    }

    pub(super) fn cut_postgres_connections(&self) -> Result<(), tokio_postgres::Error> {
        self.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE application_name LIKE 'likestream%' AND pid <> pg_backend_pid()",
        )
    }

    pub(super) fn rotate_postgres_password(&mut self, fault: Fault) -> Result<(), InjectorError> {
        self.postgres_login.rotate();
        self.sql(&set_password(&self.postgres_login))?;
        // A session outlives the password that opened it.
        self.cut_postgres_connections()?;
        self.pause(fault.outage);
        Ok(self.postgres_login.write()?)
    }

    /// Runs statements in one transaction as superuser.
    pub(super) fn sql(&self, statements: &str) -> Result<(), tokio_postgres::Error> {
        let url = self.stack.postgres.url("postgres");
        self.runtime.block_on(async { postgres_server::connect(&url).await?.batch_execute(statements).await })
    }
}

/// SQL that sets the password of a role.
pub(super) fn set_password(login: &Login) -> String {
    format!("ALTER ROLE {} PASSWORD '{}'", login.user(), login.password())
}
