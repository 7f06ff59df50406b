//! Servers and programs of a chaos run, before the first fault.

use std::{collections::BTreeMap, error::Error};

use devstack::{
    backlog,
    link::Link,
    postgres_server::{self, PostgresServer},
    process::Lifetime,
    program,
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::{
    chaos::{injector::Injector, login::Login, loss::Lost, malformed::Malformed, postgres, redis},
    load::{Load, REJECTED_POST},
    stack::{Stack, StackOptions},
    stack_redis::Deployment,
};

/// Role of the consumers: a superuser would keep revoked rights.
pub(super) const CONSUMER_ROLE: &str = "likestream_consumer";
/// Database on the same server, with the same tables.
pub(super) const OTHER_DATABASE: &str = "other";
const ROLES: &str = include_str!("../../../../sql/roles.sql");

/// `pg_hba.conf`: the consumers need a password.
const LOGINS: &str = "\
local all postgres trust
host all,replication postgres 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
";

/// Time zone of Postgres: a time that is stored without its zone is wrong by hours.
const TIME_ZONE: &str = "<+0530>-5:30";

pub(super) const CONSUMERS: usize = 3;

impl Injector {
    /// Starts the servers and programs. `stop` ends the injection of faults.
    pub(crate) async fn start(
        deployment: Deployment,
        load: Load,
        stop: CancellationToken,
    ) -> Result<Self, Box<dyn Error>> {
        let mut stack = Stack::start(stack_options(deployment), Lifetime::Attached)?;
        let redis = backlog::connect(&stack.redis.url()).await?;
        let standby = PostgresServer::standby_of(&stack.postgres, None)?;
        let [primary_port, standby_port] = [&stack.postgres, &standby].map(PostgresServer::port);
        let database_url = format!(
            "postgres://127.0.0.1:{primary_port},127.0.0.1:{standby_port}/postgres?target_session_attrs=read-write"
        );
        let folder = stack.logs.path();
        let postgres_login = Login::create(CONSUMER_ROLE, database_url, folder.join("database-url"))?;
        prepare_databases(&stack.postgres, &postgres_login).await?;
        let link = match (deployment, stack.redis.servers()) {
            (Deployment::One, [server]) => Some(Link::start(server.port()).await?),
            _ => None,
        };
        let redis_url = stack.redis.url();
        let consumers_redis_url = link.as_ref().map_or_else(|| redis_url.clone(), Link::redis_url);
        let redis_logins = vec![
            Login::create("ingest", redis_url, folder.join("redis-url-of-ingest"))?,
            Login::create("consumer", consumers_redis_url, folder.join("redis-url-of-consumers"))?,
        ];
        redis::set_passwords(&stack.redis, &redis_logins)?;
        stack.restart_ingest([("REDIS_URL_FILE", redis_logins[0].setting())])?;
        stack.restart_consumers([
            ("REDIS_URL_FILE", redis_logins[1].setting()),
            ("DATABASE_URL_FILE", postgres_login.setting()),
        ])?;
        Ok(Self {
            stack,
            standby,
            link,
            redis,
            postgres_login,
            redis_logins,
            runtime: Handle::current(),
            stop,
            malformed: Malformed::default(),
            lost: Lost::default(),
            load,
            injected: BTreeMap::new(),
        })
    }
}

/// Creates the role of the consumers and another database, and makes the table reject some of the likes.
async fn prepare_databases(postgres: &PostgresServer, login: &Login) -> Result<(), Box<dyn Error>> {
    let check = format!("ALTER TABLE likes ADD CHECK (post_id <> {REJECTED_POST})");
    let admin = postgres_server::connect(&postgres.url("postgres")).await?;
    admin.batch_execute(ROLES).await?;
    admin.batch_execute(&postgres::set_password(login)).await?;
    admin.batch_execute(&check).await?;
    admin.batch_execute(&format!("CREATE DATABASE {OTHER_DATABASE}")).await?;
    program::run("likesctl", &["migrate"], &[("DATABASE_URL", postgres.url(OTHER_DATABASE))])?;
    Ok(())
}

/// Settings under which a crash of Redis loses no accepted like and pending entries are claimed within seconds.
fn stack_options(redis: Deployment) -> StackOptions {
    let acks = match redis {
        Deployment::One => "memory",
        // A failover loses entries that the replica has not received.
        Deployment::Cluster => "replicas:1",
    };
    // A standby reconnects at once, and misses nothing while it was away.
    let postgres_settings =
        [("wal_retrieve_retry_interval", "200ms"), ("wal_keep_size", "1GB"), ("timezone", TIME_ZONE)];
    let consumer_settings = [("BATCH_LINGER", "20ms"), ("WRITE_TIMEOUT", "900ms"), ("CLAIM_MIN_IDLE", "2s")];
    StackOptions {
        consumer_admin_ports: vec![0; CONSUMERS],
        redis_arguments: ["--appendfsync", "always"].map(str::to_owned).to_vec(),
        redis,
        postgres_settings: postgres_settings
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
        postgres_files: vec![("pg_hba.conf".to_owned(), LOGINS.to_owned())],
        ingest_settings: vec![("REDIS_ACK", acks.to_owned())],
        consumer_settings: consumer_settings.map(|(name, value)| (name, value.to_owned())).to_vec(),
        ..StackOptions::default()
    }
}
