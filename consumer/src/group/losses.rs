//! Losses in Redis: compares a stream with what was seen of it before.

use crate::{
    store::{incidents::IncidentKind, watermarks::Watermark},
    stream::{CreatedGroup, PartitionInfo},
};

/// What Redis has lost of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    pub kind: IncidentKind,
    /// Number of entries that were lost before a consumer read them.
    pub undelivered: u64,
    /// Maximum number of entries that were lost after a consumer had read them. The consumer stores them if it is alive.
    pub pending: u64,
    /// Whether `undelivered` is a minimum. Otherwise it is a maximum: consumers may have stored some of the entries.
    pub is_minimum: bool,
}

/// What happened to a stream since a watermark.
#[derive(Clone, Copy, Debug)]
pub struct Since<'a> {
    pub info: &'a PartitionInfo,
    /// Creation of the group by this process.
    pub created: Option<&'a CreatedGroup>,
    /// Number of entries that the consumers have read, which the creation of the group ends; `None` if it is unknown.
    pub read: Option<u64>,
    /// Whether the stream is known to have gone back to an earlier state, which entries added since may hide.
    pub went_back: bool,
}

impl Loss {
    /// Returns both losses of a stream as one.
    #[must_use]
    pub fn and(self, later: Self) -> Self {
        Self {
            kind: self.kind.min(later.kind),
            undelivered: self.undelivered.saturating_add(later.undelivered),
            pending: self.pending.saturating_add(later.pending),
            is_minimum: self.is_minimum && later.is_minimum,
        }
    }

    /// Returns these losses without earlier ones that they include.
    #[must_use]
    pub fn without(self, earlier: Self) -> Self {
        Self {
            undelivered: self.undelivered.saturating_sub(earlier.undelivered),
            pending: self.pending.saturating_sub(earlier.pending),
            ..self
        }
    }
}

/// Returns the watermark of a stream.
pub fn watermark(info: &PartitionInfo) -> Watermark {
    let pending = info.group.as_ref().map_or(0, |group| group.pending);
    Watermark {
        last_generated: info.last_generated,
        last_delivered: info.group.as_ref().map(|group| group.last_delivered).unwrap_or_default(),
        oldest_undelivered: match &info.group {
            Some(group) => group.oldest_undelivered,
            None => info.first,
        },
        settled_below: info.oldest().unwrap_or(info.last_generated),
        entries_added: info.entries_added,
        undelivered: info.backlog().saturating_sub(pending),
        pending,
        has_group: info.group.is_some(),
        sampled_ms: info.now_ms,
    }
}

/// Returns what a stream has lost since a watermark.
pub fn loss(before: &Watermark, since: Since<'_>) -> Option<Loss> {
    let Since { info, created, read, went_back } = since;
    // A stream that was empty had entries when its group vanished, if some were read.
    let had_entries = before.has_group && created.is_some() && read.is_some_and(|read| read > 0);
    if before.entries_added == 0 && !had_entries {
        return None;
    }
    // Entries of a later stream may have been stored and trimmed since the group was created.
    let missing = missing_entries(before, created.map_or(info, |created| &created.stream), went_back);
    if let Some(missing) = missing {
        // The newest entries are missing, and undelivered entries are newer than pending ones.
        let unread = before.undelivered.saturating_sub(read.unwrap_or(0));
        let undelivered = missing.min(unread);
        let pending = (missing - undelivered).min(before.pending + (before.undelivered - unread));
        let is_minimum = read.is_some() || undelivered == 0;
        return Some(Loss { kind: IncidentKind::StreamLost, undelivered, pending, is_minimum });
    }
    let of = |kind, undelivered| Loss { kind, undelivered, pending: 0, is_minimum: true };
    if before.has_group && (created.is_some() || info.group.is_none()) {
        // The entries are read again from the start of the stream.
        return Some(of(IncidentKind::GroupLost, 0));
    }
    Some(of(IncidentKind::EntriesRemoved, removed_undelivered(before, info)?))
}

/// Returns how many of the entries ever added are not in the history of this stream, if it is another stream or an earlier
/// state of the same one.
fn missing_entries(before: &Watermark, info: &PartitionInfo, went_back: bool) -> Option<u64> {
    let is_after = info.first.is_some_and(|first| first > before.last_generated);
    // Nothing was removed from this stream, so its first entry is the first one ever added.
    let is_another = info.entries_added == 0 || (info.length == info.entries_added && is_after);
    if is_another {
        return Some(before.entries_added);
    }
    let went_back =
        went_back || info.last_generated < before.last_generated || info.entries_added < before.entries_added;
    went_back.then(|| before.entries_added.saturating_sub(info.entries_added).max(1))
}

/// Returns the minimum number of entries that were removed before they were delivered. Only certain while the position of
/// the group stays the same: then its next entry can change only by removal.
fn removed_undelivered(before: &Watermark, info: &PartitionInfo) -> Option<u64> {
    let group = info.group.as_ref()?;
    let next = before.oldest_undelivered?;
    let is_removed = group.oldest_undelivered.is_none_or(|oldest| oldest > next);
    if group.last_delivered != before.last_delivered || !is_removed {
        return None;
    }
    let expected = before.undelivered + info.entries_added.saturating_sub(before.entries_added);
    // Unless entries before the position are left, all entries of the stream are undelivered.
    let is_all_undelivered = info.first.is_none_or(|first| first > group.last_delivered);
    let left = if is_all_undelivered { info.length } else { expected };
    Some(expected.saturating_sub(left).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{entry::EntryId, stream::GroupInfo};

    fn id(ms: u64) -> EntryId {
        EntryId { ms, seq: 0 }
    }

    /// A stream of entries 1 to `added`; those up to `acknowledged` are trimmed, those up to `delivered` are delivered.
    fn stream(added: u64, delivered: u64, acknowledged: u64) -> PartitionInfo {
        let entry = |ms: u64, bound: u64| (ms <= bound).then(|| id(ms));
        PartitionInfo {
            now_ms: 1_000,
            length: added - acknowledged,
            last_generated: id(added),
            entries_added: added,
            first: entry(acknowledged + 1, added),
            dead: 0,
            group: Some(GroupInfo {
                last_delivered: id(delivered),
                pending: delivered - acknowledged,
                lag: Some(added - delivered),
                oldest_pending: entry(acknowledged + 1, delivered),
                oldest_pending_idle_ms: None,
                oldest_undelivered: entry(delivered + 1, added),
            }),
        }
    }

    /// A stream of entries 101 to 100 + `added`, all undelivered.
    fn later_stream(added: u64) -> PartitionInfo {
        PartitionInfo {
            length: added,
            last_generated: id(100 + added),
            entries_added: added,
            first: (added > 0).then(|| id(101)),
            group: Some(GroupInfo::default()),
            ..PartitionInfo::default()
        }
    }

    fn lost(undelivered: u64, pending: u64) -> Loss {
        Loss { kind: IncidentKind::StreamLost, undelivered, pending, is_minimum: true }
    }

    fn loss(before: &Watermark, info: &PartitionInfo) -> Option<Loss> {
        super::loss(before, Since { info, created: None, read: Some(0), went_back: false })
    }

    fn loss_of_group(before: &Watermark, stream: &PartitionInfo, info: &PartitionInfo) -> Option<Loss> {
        let created = CreatedGroup { stream: stream.clone(), read: 0 };
        super::loss(before, Since { info, created: Some(&created), read: Some(0), went_back: false })
    }

    #[test]
    fn progress_is_no_loss() {
        let before = watermark(&stream(50, 20, 10));
        for later in [stream(50, 20, 10), stream(50, 50, 10), stream(50, 50, 50), stream(90, 20, 10)] {
            assert_eq!(loss(&before, &later), None, "{later:?}");
        }
        // Trimmed completely, and a first entry since then.
        assert_eq!(loss(&watermark(&stream(50, 50, 50)), &stream(51, 50, 50)), None);
        // The first start.
        let nothing = watermark(&PartitionInfo::default());
        assert_eq!(loss_of_group(&nothing, &PartitionInfo::default(), &later_stream(7)), None);
    }

    #[test]
    fn a_vanished_stream_has_lost_its_backlog() {
        let before = watermark(&stream(50, 20, 10));
        assert_eq!(loss(&before, &PartitionInfo::default()), Some(lost(30, 10)));
        // It was created again, and has more entries than before.
        for added in [1, 49, 50, 80] {
            let now = later_stream(added);
            assert_eq!(loss_of_group(&before, &now, &now), Some(lost(30, 10)), "{added}");
        }
        let drained = watermark(&stream(50, 50, 50));
        assert_eq!(loss(&drained, &PartitionInfo::default()), Some(lost(0, 0)));
    }

    #[test]
    fn a_later_stream_that_was_drained_does_not_hide_the_lost_one() {
        let before = watermark(&stream(50, 20, 10));
        let mut drained = later_stream(80);
        drained.length = 0;
        drained.first = None;
        for at_creation in [PartitionInfo::default(), PartitionInfo { group: None, ..later_stream(7) }] {
            assert_eq!(loss_of_group(&before, &at_creation, &drained), Some(lost(30, 10)));
        }
    }

    #[test]
    fn a_stream_that_filled_and_vanished_between_two_samples_is_lost() {
        let before = watermark(&stream(0, 0, 0));
        let now = later_stream(3);
        let created = CreatedGroup { stream: PartitionInfo { group: None, ..now.clone() }, read: 0 };
        let after_reading = |read| {
            super::loss(
                &before,
                Since { info: &now, created: Some(&created), read: Some(read), went_back: false },
            )
        };
        assert_eq!(after_reading(5), Some(lost(0, 0)));
        assert_eq!(after_reading(0), None, "nothing is known of it");
        assert_eq!(loss(&before, &now), None, "its first entries");
    }

    #[test]
    fn entries_that_were_read_meanwhile_may_be_stored() {
        let before = watermark(&stream(50, 20, 10));
        let gone = PartitionInfo::default();
        let after_reading =
            |read| super::loss(&before, Since { info: &gone, created: None, read, went_back: false });
        assert_eq!(after_reading(Some(12)), Some(lost(18, 22)));
        assert_eq!(after_reading(Some(99)), Some(lost(0, 40)));
        assert_eq!(after_reading(None), Some(Loss { is_minimum: false, ..lost(30, 10) }));
    }

    #[test]
    fn an_earlier_state_has_lost_the_newest_entries() {
        let before = watermark(&stream(50, 20, 10));
        assert_eq!(loss(&before, &stream(45, 15, 10)), Some(lost(5, 0)));
        assert_eq!(loss(&before, &stream(15, 15, 10)), Some(lost(30, 5)));
    }

    #[test]
    fn an_earlier_state_with_later_entries_has_lost_at_least_one() {
        let before = watermark(&stream(50, 20, 10));
        let since = Since { info: &stream(55, 20, 10), created: None, read: Some(0), went_back: true };
        assert_eq!(super::loss(&before, since), Some(lost(1, 0)));
    }

    #[test]
    fn a_vanished_group_loses_no_entries() {
        let before = watermark(&stream(50, 20, 10));
        let group_lost = Some(Loss { kind: IncidentKind::GroupLost, ..lost(0, 0) });
        let ungrouped = PartitionInfo { group: None, ..stream(50, 20, 10) };
        assert_eq!(loss_of_group(&before, &ungrouped, &stream(50, 20, 10)), group_lost);
        assert_eq!(loss(&before, &ungrouped), group_lost);
    }

    #[test]
    fn removed_undelivered_entries_are_counted() {
        let before = watermark(&stream(50, 20, 20));
        let removed = |undelivered| Some(Loss { kind: IncidentKind::EntriesRemoved, ..lost(undelivered, 0) });
        let mut trimmed = stream(60, 20, 20);
        trimmed.first = Some(id(41));
        trimmed.length = 20;
        trimmed.group.as_mut().unwrap().oldest_undelivered = Some(id(41));
        assert_eq!(loss(&before, &trimmed), removed(20));
        assert_eq!(loss(&watermark(&trimmed), &trimmed), None, "reported once");
        // Entries that other consumers have read are left before the position.
        let before = watermark(&stream(50, 20, 10));
        trimmed.first = Some(id(11));
        assert_eq!(loss(&before, &trimmed), removed(1));
    }
}
