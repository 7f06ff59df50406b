//! Liveness of the members. A member is dead when its record has not changed for the liveness timeout, by the monotonic clock
//! of this process: the clock of Redis may be stepped, and another server may be ahead or behind.

use std::collections::HashMap;

use tokio::time::Instant;

use crate::stream::{LIVENESS_TIMEOUT, Member, MemberName, Silent};

/// Time after which the record of a silent member is removed, in liveness timeouts.
const FORGOTTEN_AFTER: u32 = 20;

/// Records of the members, each with the time since when it has not changed.
#[derive(Default)]
pub(super) struct Liveness {
    heard: HashMap<MemberName, Heard>,
}

struct Heard {
    process: String,
    heartbeat_at: u64,
    since: Instant,
    /// Whether it was alive at `since`. A record that is old at first sight belongs to a dead member: nothing is known of its
    /// past, so that Redis's clock decides until it changes.
    was_alive: bool,
}

impl Liveness {
    /// Decides which members are alive, given all records.
    pub(super) fn observe(&mut self, members: &mut [Member]) {
        let now = Instant::now();
        let mut before = std::mem::take(&mut self.heard);
        for member in members {
            let is_same =
                |heard: &Heard| heard.process == member.process && heard.heartbeat_at == member.heartbeat_at;
            let heard = match before.remove(&member.name) {
                Some(heard) if is_same(&heard) => heard,
                changed => Heard {
                    process: member.process.clone(),
                    heartbeat_at: member.heartbeat_at,
                    since: now,
                    was_alive: changed.is_some() || member.is_alive,
                },
            };
            member.is_alive = heard.was_alive && heard.since.elapsed() < LIVENESS_TIMEOUT;
            self.heard.insert(member.name.clone(), heard);
        }
    }

    /// Returns the records that can be removed.
    pub(super) fn silent(&self) -> Vec<Silent> {
        let is_silent = |heard: &Heard| heard.since.elapsed() >= LIVENESS_TIMEOUT * FORGOTTEN_AFTER;
        let silent = self.heard.iter().filter(|(_, heard)| is_silent(heard));
        silent.map(|(name, heard)| Silent { name: name.clone(), heartbeat_at: heard.heartbeat_at }).collect()
    }
}
