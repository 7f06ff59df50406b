//! In-memory fake of the membership records. As in `heartbeat.lua`, a name belongs to its first process while the record is
//! fresh.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use fred::prelude::Error;
use tokio::time::{Instant, sleep};

use super::connection_lost;
use crate::{
    stream::{Heartbeat, Heartbeats, LIVENESS_TIMEOUT, Member, MemberState},
    testing::Journal,
};

/// Members of a group, for member `a`.
#[derive(Clone)]
pub(crate) struct FakeMembers {
    started: Instant,
    state: Arc<Mutex<State>>,
    pub(crate) journal: Journal,
}

#[derive(Default)]
struct State {
    records: BTreeMap<String, Record>,
    is_away: bool,
    stepped_ms: i64,
    latency: Duration,
    loses_replies: bool,
}

struct Record {
    process: String,
    state: MemberState,
    static_assignment: String,
    heartbeat_at: u64,
}

impl Default for FakeMembers {
    fn default() -> Self {
        Self { started: Instant::now(), state: Arc::default(), journal: Journal::default() }
    }
}

impl FakeMembers {
    /// Makes heartbeats fail or succeed.
    pub(crate) fn set_away(&self, is_away: bool) {
        self.lock().is_away = is_away;
    }

    /// Sets the latency of heartbeats. They are recorded before the latency, and then the reply may be lost.
    pub(crate) fn slow(&self, latency: Duration, loses_replies: bool) {
        let mut state = self.lock();
        state.latency = latency;
        state.loses_replies = loses_replies;
    }

    /// Records a heartbeat of another process under this name.
    pub(crate) fn other(&self, name: &str) {
        let record = Record {
            process: "another".to_owned(),
            state: MemberState::Active,
            static_assignment: String::new(),
            heartbeat_at: self.now_ms(),
        };
        self.lock().records.insert(name.to_owned(), record);
    }

    /// Returns the state announced by `a`.
    pub(crate) fn announced(&self) -> Option<MemberState> {
        self.lock().records.get("a").map(|record| record.state)
    }

    /// Records a heartbeat and returns the members.
    fn record(&self, heartbeat: &Heartbeat) -> Result<Option<Vec<Member>>, Error> {
        let now_ms = self.now_ms();
        let liveness_timeout_ms = u64::try_from(LIVENESS_TIMEOUT.as_millis()).unwrap();
        let mut state = self.lock();
        if state.is_away {
            self.journal.record("heartbeat failed");
            return Err(connection_lost());
        }
        self.journal.record("heartbeat");
        let is_fresh = |record: &Record| record.heartbeat_at + liveness_timeout_ms > now_ms;
        for silent in &heartbeat.silent {
            state
                .records
                .retain(|name, record| silent.name != **name || record.heartbeat_at != silent.heartbeat_at);
        }
        if state.records.get("a").is_some_and(|record| record.process != self.process() && is_fresh(record)) {
            return Ok(None);
        }
        let record = Record {
            process: self.process().to_owned(),
            state: heartbeat.state,
            static_assignment: heartbeat.static_assignment.clone(),
            heartbeat_at: now_ms,
        };
        state.records.insert("a".to_owned(), record);
        let members = state.records.iter().map(|(name, record)| Member {
            name: name.as_str().into(),
            process: record.process.clone(),
            state: record.state,
            static_assignment: record.static_assignment.clone(),
            heartbeat_at: record.heartbeat_at,
            is_alive: record.heartbeat_at + liveness_timeout_ms > now_ms,
        });
        Ok(Some(members.collect()))
    }

    /// Steps the clock of Redis.
    pub(crate) fn step_clock(&self, ms: i64) {
        self.lock().stepped_ms += ms;
    }

    /// Returns the names with a record.
    pub(crate) fn records(&self) -> Vec<String> {
        self.lock().records.keys().cloned().collect()
    }

    fn now_ms(&self) -> u64 {
        let elapsed = Instant::now().duration_since(self.started);
        let elapsed = i64::try_from(elapsed.as_millis()).unwrap();
        u64::try_from(1_700_000_000_000 + elapsed + self.lock().stepped_ms).unwrap()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Heartbeats for FakeMembers {
    fn consumer(&self) -> &'static str {
        "a"
    }

    fn group(&self) -> &'static str {
        "group"
    }

    fn process(&self) -> &'static str {
        "process of a"
    }

    async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<Option<Vec<Member>>, Error> {
        let (latency, loses_replies) = {
            let state = self.lock();
            (state.latency, state.loses_replies)
        };
        let reply = self.record(heartbeat);
        if !latency.is_zero() {
            sleep(latency).await;
        }
        if loses_replies { Err(connection_lost()) } else { reply }
    }

    async fn resign(&self) -> Result<(), Error> {
        self.journal.record("resign");
        let mut state = self.lock();
        if state.is_away {
            return Err(connection_lost());
        }
        state.records.retain(|name, record| name != "a" || record.process != self.process());
        Ok(())
    }
}
