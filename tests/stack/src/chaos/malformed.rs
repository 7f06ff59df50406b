//! Malformed entries, and the dead letters and rows that must result from them.

use std::collections::HashMap;

use devstack::backlog::Keys;
use fred::bytes::Bytes;
use shared::{
    redis::{Connections, Retry},
    wire::{codec, like::Like},
};

/// Valid likes that share an entry with an invalid one are for this post.
pub(crate) const NEIGHBOUR_POST: u64 = 2_000_000_012;

/// Size of a large entry.
const LARGE_BYTES: usize = 128 << 10;

/// All malformed entries whose append succeeded or may have succeeded.
#[derive(Default)]
pub(crate) struct Malformed {
    /// Payloads of dead letters.
    dead_letters: HashMap<Bytes, Certainty>,
    /// Users of valid likes in the same entry. They must be in the table.
    neighbours: HashMap<i64, Certainty>,
    /// Entries by their payloads.
    entries: HashMap<Bytes, Entry>,
    count: u32,
}

/// Knowledge of whether an entry was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Certainty {
    Appended,
    /// The response of the append was lost, or the entry was lost after it.
    Indeterminate,
}

/// Malformed entry with its expected results.
struct Entry {
    payload: Bytes,
    dead_letter: Bytes,
    neighbour: Option<i64>,
}

impl Entry {
    /// Builds one of three kinds of malformed entry with a unique payload.
    fn new(number: u32) -> Self {
        match number % 3 {
            0 => {
                let garbage = [b"\xc1 malformed ".as_slice(), &number.to_be_bytes()].concat();
                Self::rejected_as_a_whole(garbage)
            }
            1 => {
                // [250, number]: an unknown version
                let future = [&[0x92, 0xcc, 250, 0xce], &number.to_be_bytes()[..]].concat();
                Self::rejected_as_a_whole(future)
            }
            _ => Self::with_invalid_like(number),
        }
    }

    /// Builds a large malformed entry with a unique payload.
    fn large(number: u32) -> Self {
        let mut garbage = [b"\xc1 large ".as_slice(), &number.to_be_bytes()].concat();
        garbage.resize(LARGE_BYTES, b'x');
        Self::rejected_as_a_whole(garbage)
    }

    fn rejected_as_a_whole(payload: Vec<u8>) -> Self {
        let payload = Bytes::from(payload);
        Self { dead_letter: payload.clone(), payload, neighbour: None }
    }

    /// [1, [number, NEIGHBOUR_POST, 1], [0, number, 1]]: the user of the second like is invalid.
    fn with_invalid_like(number: u32) -> Self {
        let invalid = [&[0x93, 0x00, 0xce], &number.to_be_bytes()[..], &[0x01]].concat();
        let valid = Like::new(number.into(), NEIGHBOUR_POST.into(), 1).map(|like| codec::encode(&[like]));
        let mut payload = valid.unwrap_or_default();
        payload.extend_from_slice(&invalid);
        if let Some(array) = payload.first_mut() {
            *array += 1;
        }
        let dead_letter = codec::frame(1, &invalid).into();
        Self { payload: payload.into(), dead_letter, neighbour: Some(number.into()) }
    }
}

impl Malformed {
    /// Appends a malformed entry.
    pub(crate) async fn append(&mut self, redis: &Connections, keys: &Keys) {
        self.count += 1;
        let streams: Vec<String> = keys.streams().collect();
        let stream = &streams[self.count as usize % streams.len()];
        self.append_entry(redis, stream, Entry::new(self.count)).await;
    }

    /// Appends a large malformed entry to a stream.
    pub(crate) async fn append_large(&mut self, redis: &Connections, stream: &str) {
        self.count += 1;
        self.append_entry(redis, stream, Entry::large(self.count)).await;
    }

    async fn append_entry(&mut self, redis: &Connections, stream: &str, entry: Entry) {
        let args = vec![stream.into(), "*".into(), codec::FIELD.into(), entry.payload.clone().into()];
        let appended = redis.run::<String>(stream, Retry::NonIdempotent, "XADD", args).await;
        let certainty = if appended.is_ok() { Certainty::Appended } else { Certainty::Indeterminate };
        self.expect(&entry, certainty);
        self.entries.insert(entry.payload.clone(), entry);
    }

    fn expect(&mut self, entry: &Entry, certainty: Certainty) {
        self.dead_letters.insert(entry.dead_letter.clone(), certainty);
        if let Some(user) = entry.neighbour {
            self.neighbours.insert(user, certainty);
        }
    }

    /// Expects no results of an entry that Redis has lost.
    pub(crate) fn lose(&mut self, payload: &Bytes) {
        if let Some(entry) = self.entries.remove(payload) {
            self.expect(&entry, Certainty::Indeterminate);
        }
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Returns whether a malformed entry results in a dead letter with this payload.
    pub(crate) fn is_dead_letter(&self, payload: &Bytes) -> bool {
        self.dead_letters.contains_key(payload)
    }

    /// Counts required dead letters and rows that were not found.
    pub(crate) fn missing(&self, dead_letters: &HashMap<Bytes, u32>, neighbours: &[i64]) -> u64 {
        let required = |certainty: &Certainty| *certainty == Certainty::Appended;
        let dead = self.dead_letters.iter().filter(|(_, certainty)| required(certainty));
        let missing_dead_letters = dead.filter(|(payload, _)| !dead_letters.contains_key(*payload)).count();
        let rows = self.neighbours.iter().filter(|(_, certainty)| required(certainty));
        let missing_rows = rows.filter(|(user, _)| !neighbours.contains(user)).count();
        (missing_dead_letters + missing_rows) as u64
    }

    /// Counts rows that result from no malformed entry.
    pub(crate) fn unexpected_neighbours(&self, neighbours: &[i64]) -> u64 {
        neighbours.iter().filter(|user| !self.neighbours.contains_key(user)).count() as u64
    }
}
