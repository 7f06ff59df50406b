//! Faults of the table: changes that administrators and other applications make while consumers write.

use devstack::postgres_server;
use tokio_postgres::{Client, Error};

use crate::{
    chaos::{injector::Injector, malformed::NEIGHBOUR_POST, plan::Fault, setup::CONSUMER_ROLE},
    load::Load,
};

const SLOW_ROWS: &str = "
CREATE OR REPLACE FUNCTION slow_row() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN PERFORM pg_sleep(0.001); RETURN NEW; END';
CREATE TRIGGER slow_rows BEFORE INSERT ON likes FOR EACH ROW EXECUTE FUNCTION slow_row()";

/// Number of likes between the newest stored one and one that is sent soon.
const AHEAD: u64 = 2_000;

impl Injector {
    pub(super) fn add_column(&self, fault: Fault) -> Result<(), Error> {
        self.sql("ALTER TABLE likes ADD COLUMN note text")?;
        self.pause(fault.outage);
        self.sql("ALTER TABLE likes DROP COLUMN note")
    }

    pub(super) fn rebuild_key(&self) -> Result<(), Error> {
        self.sql(
            "ALTER TABLE likes DROP CONSTRAINT likes_pkey; ALTER TABLE likes ADD PRIMARY KEY (post_id, user_id)",
        )
    }

    pub(super) fn revoke_rights(&self, fault: Fault) -> Result<(), Error> {
        self.sql(&format!("REVOKE INSERT ON likes FROM {CONSUMER_ROLE}"))?;
        self.pause(fault.outage);
        self.sql(&format!("GRANT INSERT ON likes TO {CONSUMER_ROLE}"))
    }

    pub(super) fn slow_rows(&self, fault: Fault) -> Result<(), Error> {
        self.sql(SLOW_ROWS)?;
        self.pause(fault.outage);
        self.sql("DROP TRIGGER slow_rows ON likes")
    }

    pub(super) fn lock_key(&self, fault: Fault) -> Result<(), Error> {
        let url = self.stack.postgres.url("postgres");
        let connected = self.runtime.block_on(async {
            let client = postgres_server::connect(&url).await?;
            insert_uncommitted(&client, self.load).await.map(|()| client)
        });
        let client = connected?;
        self.pause(fault.outage);
        self.runtime.block_on(client.batch_execute("ROLLBACK"))
    }
}

/// Inserts one row, which cannot cause a deadlock, in a transaction that stays open.
async fn insert_uncommitted(client: &Client, load: Load) -> Result<(), Error> {
    let newest = "SELECT coalesce(max(user_id), 0) FROM likes WHERE post_id <> $1";
    let newest: i64 = client.query_one(newest, &[&NEIGHBOUR_POST.cast_signed()]).await?.get(0);
    let sent_once = |first: &u64| load.first_of_pair(*first) == *first && !load.is_rejected(*first);
    let first = (newest.cast_unsigned() + AHEAD..load.likes).find(sent_once).unwrap_or_default();
    let (user, post) = load.pair(first);
    client.batch_execute("BEGIN").await?;
    let sql =
        "INSERT INTO likes (user_id, post_id, created_at) VALUES ($1, $2, now()) ON CONFLICT DO NOTHING";
    client.execute(sql, &[&user.cast_signed(), &post.cast_signed()]).await.map(drop)
}
