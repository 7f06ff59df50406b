//! The record of the database that a consumer group writes to.

use std::collections::BTreeMap;

use fred::prelude::{Error, Value};
use shared::redis::Retry;

use crate::{
    store::database::{DatabaseId, DatabaseIdentity},
    stream::{Streams, inspect::of_keys, reply},
};

/// Binds the group to a database, unless it is bound to another one. Also runs when Redis is out of memory, because the
/// record is small.
///
/// KEYS: binding. ARGV: id of the database that is replaced or empty, then fields and values. Returns the fields of the
/// binding, which may be another one.
const BIND: &str = include_str!("scripts/bind.lua");

/// Changes fields of the binding, if the group is bound to the database.
///
/// KEYS: binding. ARGV: id of the database, then fields and values.
const CHANGE_BINDING: &str = include_str!("scripts/change_binding.lua");

/// The database that a group is bound to, as recorded. Ids are text: a record that another program damaged matches no
/// database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Id of the database.
    pub database: String,
    pub name: String,
    pub oid: Option<u32>,
    pub address: String,
    pub system_identifier: Option<String>,
    pub timeline: Option<u32>,
    /// Differs whenever the timeline was recorded; `None` if it is the one from when the group was bound.
    pub server_recorded: Option<String>,
    /// Whether commits wait for a synchronous standby.
    pub awaits_standby: bool,
    /// Unix milliseconds by Redis's clock.
    pub bound_at_ms: u64,
    /// Consumer or operator.
    pub bound_by: String,
    /// Number of incidents that are not acknowledged; `None` if no consumer has recorded it.
    pub open_incidents: Option<u64>,
}

impl Binding {
    fn of(mut fields: BTreeMap<String, String>) -> Option<Self> {
        let database = fields.remove("database")?;
        let mut text = |name: &str| fields.remove(name).filter(|value| !value.is_empty());
        Some(Self {
            database,
            name: text("name").unwrap_or_default(),
            oid: text("oid").and_then(|oid| oid.parse().ok()),
            address: text("address").unwrap_or_default(),
            system_identifier: text("system_identifier"),
            timeline: text("timeline").and_then(|timeline| timeline.parse().ok()),
            server_recorded: text("server_recorded"),
            awaits_standby: text("awaits_standby").is_some_and(|value| value == "true"),
            bound_at_ms: text("bound_at").and_then(|at| at.parse().ok()).unwrap_or(0),
            bound_by: text("bound_by").unwrap_or_default(),
            open_incidents: text("open_incidents").and_then(|number| number.parse().ok()),
        })
    }
}

impl Streams {
    /// Binds the group to a database, unless it is bound to one other than `replaced`. Returns the resulting binding.
    pub async fn bind(
        &self,
        database: &DatabaseIdentity,
        by: &str,
        replaced: Option<&str>,
    ) -> Result<Binding, Error> {
        let DatabaseIdentity { id, name, oid, address, system_identifier, timeline, awaits_standby } =
            database;
        let fields = [
            ("database", id.to_string()),
            ("name", name.clone()),
            ("oid", oid.to_string()),
            ("address", address.clone()),
            ("system_identifier", system_identifier.clone().unwrap_or_default()),
            ("timeline", timeline.map(|timeline| timeline.to_string()).unwrap_or_default()),
            ("server_recorded", String::new()),
            ("awaits_standby", awaits_standby.to_string()),
            ("bound_by", by.to_owned()),
        ];
        let fields = fields.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        let args = [replaced.unwrap_or_default().to_owned()].into_iter().chain(fields);
        let key = [self.keys.database(&self.group)];
        let bound = self.redis.eval::<Value>(BIND, &key, Retry::Idempotent, args).await;
        let bound = bound.map_err(|error| of_keys(&key, error))?.convert()?;
        Binding::of(bound).ok_or_else(|| reply::unexpected("a binding"))
    }

    /// Returns the binding of the group; `None` if no consumer has started yet, or Redis lost it.
    pub async fn binding(&self) -> Result<Option<Binding>, Error> {
        let key = self.keys.database(&self.group);
        let args = vec![key.as_str().into()];
        let fields = self.redis.run(&key, Retry::Idempotent, "HGETALL", args).await;
        Ok(Binding::of(fields.map_err(|error| of_keys(std::slice::from_ref(&key), error))?))
    }

    /// Records the state of the server of the bound database.
    pub(crate) async fn record_server(&self, binding: &Binding) -> Result<(), Error> {
        let timeline = binding.timeline.map(|timeline| timeline.to_string()).unwrap_or_default();
        let fields = [
            ("timeline", timeline),
            ("server_recorded", binding.server_recorded.clone().unwrap_or_default()),
            ("awaits_standby", binding.awaits_standby.to_string()),
        ];
        self.change_binding(&binding.database, fields).await
    }

    /// Records the number of open incidents in a database where programs without access to Postgres find it.
    pub async fn record_open_incidents(&self, database: DatabaseId, number: u64) -> Result<(), Error> {
        self.change_binding(&database.to_string(), [("open_incidents", number.to_string())]).await
    }

    async fn change_binding(
        &self,
        database: &str,
        fields: impl IntoIterator<Item = (&str, String)>,
    ) -> Result<(), Error> {
        let key = [self.keys.database(&self.group)];
        let fields = fields.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        let args: Vec<String> = [database.to_owned()].into_iter().chain(fields).collect();
        self.redis.eval::<u64>(CHANGE_BINDING, &key, Retry::Idempotent, args).await.map(drop)
    }
}
