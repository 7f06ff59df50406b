//! Entries that can't be stored, or not all of them, and what has to become of them.

use std::collections::HashMap;

use fred::bytes::Bytes;
use shared::{
    redis::{Connections, Retry},
    wire::{codec, like::Like, partition::Partition},
};

use crate::backlog::Keys;

/// Good likes in entries with a bad one are for this post.
pub(crate) const NEIGHBOUR_POST: u64 = 2_000_000_012;

/// All malformed entries that were, or may have been, appended.
#[derive(Default)]
pub(crate) struct Malformed {
    /// The payload of a dead letter → whether it must be there, or only may, because the answer to its append was lost.
    letters: HashMap<Bytes, Certainty>,
    /// The users of good neighbours that must be in the table, and those that may.
    neighbours: HashMap<i64, Certainty>,
    made: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Certainty {
    Must,
    May,
}

impl Malformed {
    /// Appends a malformed entry of another sort each time, with bytes that no other has.
    pub(crate) async fn append(&mut self, redis: &Connections, keys: &Keys) {
        self.made += 1;
        let number = self.made;
        let (payload, letter, neighbour) = match number % 3 {
            0 => {
                let garbage = Bytes::from([b"\xc1 malformed ".as_slice(), &number.to_be_bytes()].concat());
                (garbage.clone(), garbage, None)
            }
            1 => {
                // [250, number]: a version from the future
                let future = Bytes::from([&[0x92, 0xcc, 250, 0xce], &number.to_be_bytes()[..]].concat());
                (future.clone(), future, None)
            }
            _ => {
                // [1, [number, NEIGHBOUR_POST, 1], [0, number, 1]]: the second has a user that there can't be
                let bad = [&[0x93, 0x00, 0xce], &number.to_be_bytes()[..], &[0x01]].concat();
                let good =
                    Like::new(number.into(), NEIGHBOUR_POST.into(), 1).map(|like| codec::encode(&[like]));
                let mut payload = good.unwrap_or_default();
                payload.extend_from_slice(&bad);
                if let Some(array) = payload.first_mut() {
                    *array += 1;
                }
                (Bytes::from(payload), Bytes::from(codec::frame(&[&bad])), Some(i64::from(number)))
            }
        };
        let partitions: Vec<Partition> = keys.partitions().collect();
        let partition = partitions[number as usize % partitions.len()];
        let stream = keys.stream(partition);
        let args = vec![stream.as_str().into(), "*".into(), codec::FIELD.into(), payload.into()];
        let appended = redis.run::<String>(&stream, Retry::NonIdempotent, "XADD", args).await;
        let certainty = if appended.is_ok() { Certainty::Must } else { Certainty::May };
        self.letters.insert(letter, certainty);
        if let Some(user) = neighbour {
            self.neighbours.insert(user, certainty);
        }
    }

    /// How many have been made.
    pub(crate) fn made(&self) -> u32 {
        self.made
    }

    /// What is expected of a dead letter with this payload; nothing if it is no malformed.
    pub(crate) fn letter(&self, payload: &Bytes) -> Option<Certainty> {
        self.letters.get(payload).copied()
    }

    /// How many letters and neighbours must be there and are not, and how many are there that must not be.
    pub(crate) fn missing_and_foreign(
        &self,
        letters: &HashMap<Bytes, u32>,
        neighbours: &[i64],
    ) -> (u64, u64) {
        let must = |certainty: &Certainty| *certainty == Certainty::Must;
        let letters_missing =
            self.letters.iter().filter(|(payload, c)| must(c) && !letters.contains_key(*payload)).count();
        let neighbours_missing =
            self.neighbours.iter().filter(|(user, c)| must(c) && !neighbours.contains(user)).count();
        let foreign = neighbours.iter().filter(|user| !self.neighbours.contains_key(user)).count();
        ((letters_missing + neighbours_missing) as u64, foreign as u64)
    }
}
