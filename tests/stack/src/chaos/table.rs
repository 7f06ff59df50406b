//! Faults of the table: changes that administrators and other applications make while consumers write.

use devstack::postgres_server;
use tokio_postgres::{Client, Error};

use crate::{
    chaos::{
        injector::{Injector, InjectorError},
        malformed::NEIGHBOUR_POST,
        plan::Fault,
        setup::CONSUMER_ROLE,
    },
    load::Load,
};

const SLOW_ROWS: &str = "
CREATE OR REPLACE FUNCTION slow_row() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN PERFORM pg_sleep(0.001); RETURN NEW; END';
CREATE TRIGGER slow_rows BEFORE INSERT ON likes FOR EACH ROW EXECUTE FUNCTION slow_row()";

/// Change of the table, and its reversal.
#[derive(Clone, Copy)]
struct Change {
    change: &'static str,
    repair: &'static str,
}

const NO_KEY: Change = Change {
    change: "ALTER TABLE likes DROP CONSTRAINT likes_pkey",
    repair: "ALTER TABLE likes ADD PRIMARY KEY (post_id, user_id)",
};

/// Types that cannot take every like: consumers must halt.
const HALTING_TYPES: [Change; 3] = [
    Change {
        change: "ALTER TABLE likes ALTER user_id TYPE text",
        repair: "ALTER TABLE likes ALTER user_id TYPE bigint USING user_id::bigint",
    },
    Change {
        change: "ALTER TABLE likes ALTER post_id TYPE double precision",
        repair: "ALTER TABLE likes ALTER post_id TYPE bigint",
    },
    Change {
        change: "ALTER TABLE likes ALTER created_at TYPE timestamp",
        repair: "ALTER TABLE likes ALTER created_at TYPE timestamptz",
    },
];

/// Types to which consumers must convert every like.
const CONVERTED_TYPES: [Change; 2] = [
    Change {
        change: "ALTER TABLE likes ALTER user_id TYPE numeric(20)",
        repair: "ALTER TABLE likes ALTER user_id TYPE bigint",
    },
    Change {
        change: "ALTER TABLE likes ALTER user_id TYPE integer",
        repair: "ALTER TABLE likes ALTER user_id TYPE bigint",
    },
];

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

    pub(super) fn drop_key(&self, fault: Fault) -> Result<(), InjectorError> {
        self.halt_writes(fault, NO_KEY)
    }

    pub(super) fn change_type(&self, fault: Fault) -> Result<(), InjectorError> {
        let number = fault.target % (HALTING_TYPES.len() + CONVERTED_TYPES.len());
        if let Some(change) = HALTING_TYPES.get(number) {
            return self.halt_writes(fault, *change);
        }
        let Change { change, repair } = CONVERTED_TYPES[number - HALTING_TYPES.len()];
        self.sql(change)?;
        self.pause(fault.outage);
        Ok(self.sql(repair)?)
    }

    /// Changes the table, and repairs it after the outage.
    ///
    /// # Errors
    /// When rows were written in between.
    fn halt_writes(&self, fault: Fault, Change { change, repair }: Change) -> Result<(), InjectorError> {
        let before = self.count_rows_after(change)?;
        self.pause(fault.outage);
        let rows = self.count_rows_after(repair)? - before;
        if rows == 0 { Ok(()) } else { Err(InjectorError::WrittenTo { change, rows }) }
    }

    /// Changes the table and counts its rows before others can write to it again.
    fn count_rows_after(&self, change: &str) -> Result<i64, Error> {
        let url = self.stack.postgres.url("postgres");
        self.runtime.block_on(async {
            let client = postgres_server::connect(&url).await?;
            client.batch_execute(&format!("BEGIN; {change}")).await?;
            let rows = client.query_one("SELECT count(*) FROM likes", &[]).await?.get(0);
            client.batch_execute("COMMIT").await.map(|()| rows)
        })
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
