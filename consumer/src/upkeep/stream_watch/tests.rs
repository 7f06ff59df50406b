use futures_util::FutureExt;

use super::*;
use crate::{entry::EntryId, stream::GroupInfo, testing::partition};

fn id(ms: u64) -> EntryId {
    EntryId { ms, seq: 0 }
}

/// A stream of entries from 1 on that no consumer has read.
fn unread(entries: u64) -> PartitionInfo {
    PartitionInfo {
        now_ms: 1_000,
        length: entries,
        last_generated: id(entries),
        entries_added: entries,
        first: Some(id(1)),
        group: Some(GroupInfo {
            lag: Some(entries),
            oldest_undelivered: Some(id(1)),
            ..GroupInfo::default()
        }),
        ..PartitionInfo::default()
    }
}

fn empty() -> PartitionInfo {
    PartitionInfo { now_ms: 2_000, group: Some(GroupInfo::default()), ..PartitionInfo::default() }
}

fn sample(info: &PartitionInfo) -> Sample {
    Sample { info: info.clone(), ..Sample::default() }
}

fn row(epoch: i64, info: &PartitionInfo) -> Update {
    Update::Loaded(Some(StoredWatermark { epoch, watermark: watermark(info) }))
}

/// Returns a watch with these samples.
fn sampled(samples: &[&PartitionInfo]) -> StreamWatch {
    let watch = StreamWatch::default();
    for info in samples {
        next_round(&watch, sample(info));
    }
    watch
}

/// Returns a round that begins at once.
fn begin_round(watch: &StreamWatch) -> Round<'_> {
    watch.begin_round(|| BTreeSet::from([partition()])).now_or_never().unwrap()
}

fn next_round(watch: &StreamWatch, sample: Sample) {
    watch.sampled(begin_round(watch), [(partition(), sample)].into_iter());
}

fn apply(watch: &StreamWatch, update: Update) {
    watch.committed(Exchanged { updates: vec![(partition(), update)], recorded: Vec::new() });
}

fn lost(watch: &StreamWatch) -> Lost {
    watch.lock().streams[&partition()].lost.unwrap()
}

/// Returns the entries that were lost and are not recorded, and the epoch.
fn state(watch: &StreamWatch) -> (Option<u64>, Option<i64>) {
    let watched = watch.lock().streams[&partition()].clone();
    (watched.lost.map(|lost| lost.loss.undelivered), watched.epoch)
}

#[test]
fn a_round_begins_after_the_one_before_has_ended() {
    let watch = sampled(&[&unread(10)]);
    let round = begin_round(&watch);
    let mut last = std::pin::pin!(watch.begin_round(BTreeSet::new));
    assert!(last.as_mut().now_or_never().is_none());
    watch.sampled(round, [(partition(), sample(&unread(20)))].into_iter());
    let last = last.now_or_never().unwrap();
    watch.sampled(last, [(partition(), sample(&unread(30)))].into_iter());
    assert_eq!(state(&watch), (None, None));
}

#[test]
fn losses_while_postgres_is_unavailable_add_up() {
    let watch = sampled(&[&unread(10), &empty(), &unread(5), &empty()]);
    assert_eq!(state(&watch), (Some(15), None));
    assert_eq!(watch.unrecorded(), BTreeMap::from([(IncidentKind::StreamLost, 1)]));
    // The watermark in Postgres is older than what this consumer has seen.
    apply(&watch, row(3, &unread(7)));
    next_round(&watch, sample(&empty()));
    assert_eq!(state(&watch), (Some(15), Some(3)));
    let reported = lost(&watch);
    apply(&watch, Update::Reported { epoch: 4, lost: reported });
    assert_eq!(state(&watch), (None, Some(4)));
}

#[test]
fn a_loss_that_is_found_while_another_is_recorded_stays() {
    let watch = sampled(&[&unread(10), &empty(), &unread(5)]);
    apply(&watch, Update::Loaded(None));
    let reported = lost(&watch);
    next_round(&watch, sample(&PartitionInfo { now_ms: 3_000, ..empty() }));
    apply(&watch, Update::Reported { epoch: 1, lost: reported });
    assert_eq!(state(&watch), (Some(5), Some(1)));
    // One without lost entries.
    let watch = sampled(&[&unread(10), &empty()]);
    apply(&watch, Update::Loaded(None));
    let reported = lost(&watch);
    let created = CreatedGroup { stream: PartitionInfo::default(), read: 1 };
    let later = PartitionInfo { now_ms: 3_000, ..empty() };
    next_round(&watch, Sample { info: later, read: 1, created: Some(created), ..Sample::default() });
    apply(&watch, Update::Reported { epoch: 1, lost: reported });
    assert_eq!(state(&watch), (Some(0), Some(1)));
}

#[test]
fn a_loss_that_an_earlier_watermark_does_not_show_stays() {
    let mut trimmed = PartitionInfo { now_ms: 2_000, length: 3, first: Some(id(8)), ..unread(10) };
    trimmed.group.as_mut().unwrap().oldest_undelivered = Some(id(8));
    let watch = sampled(&[&unread(10), &trimmed]);
    assert_eq!(state(&watch), (Some(7), None));
    let mut earlier = watermark(&unread(10));
    earlier.oldest_undelivered = None;
    apply(&watch, Update::Loaded(Some(StoredWatermark { epoch: 3, watermark: earlier })));
    next_round(&watch, sample(&trimmed));
    assert_eq!(state(&watch), (Some(7), Some(3)));
}

#[test]
fn a_loss_of_a_partition_that_was_of_another_consumer_is_a_maximum() {
    for (before, after) in [(false, true), (true, false), (false, false)] {
        let watch = StreamWatch::default();
        for (info, is_own) in [(unread(10), before), (empty(), after)] {
            let own = || is_own.then(partition).into_iter().collect();
            let round = watch.begin_round(own).now_or_never().unwrap();
            watch.sampled(round, [(partition(), sample(&info))].into_iter());
        }
        let Loss { undelivered, is_minimum, .. } = lost(&watch).loss;
        assert_eq!((undelivered, is_minimum), (10, false), "{before} {after}");
    }
    assert!(lost(&sampled(&[&unread(10), &empty()])).loss.is_minimum);
}

#[test]
fn a_loss_from_before_the_start_is_found_in_postgres() {
    let watch = sampled(&[&empty()]);
    apply(&watch, row(3, &unread(7)));
    next_round(&watch, sample(&empty()));
    assert_eq!(state(&watch), (Some(7), Some(3)));
}

#[test]
fn entries_that_were_removed_before_the_start_are_found_after_reading() {
    let mut trimmed = PartitionInfo { now_ms: 2_000, length: 3, first: Some(id(8)), ..unread(10) };
    trimmed.group.as_mut().unwrap().oldest_undelivered = Some(id(8));
    let mut drained = PartitionInfo { now_ms: 3_000, length: 0, first: None, ..unread(10) };
    drained.group = Some(GroupInfo { last_delivered: id(10), lag: Some(0), ..GroupInfo::default() });
    for (first, removed) in [(&trimmed, Some(7)), (&unread(10), None)] {
        let watch = sampled(&[first, &drained]);
        assert_eq!(state(&watch), (None, None));
        apply(&watch, row(3, &unread(10)));
        next_round(&watch, sample(&drained));
        assert_eq!(state(&watch), (removed, Some(3)));
    }
}

#[test]
fn a_watermark_is_compared_with_later_samples_only() {
    let watch = sampled(&[&unread(10)]);
    let round = begin_round(&watch);
    // Another consumer has saved it after the sample of the round was taken.
    apply(&watch, row(3, &unread(50)));
    watch.sampled(round, [(partition(), sample(&unread(40)))].into_iter());
    assert_eq!(state(&watch), (None, None));
    next_round(&watch, sample(&unread(60)));
    assert_eq!(state(&watch), (None, Some(3)));
}

#[test]
fn a_loss_that_another_consumer_has_recorded_is_dropped() {
    let watch = sampled(&[&unread(10), &empty()]);
    apply(&watch, row(4, &empty()));
    next_round(&watch, sample(&empty()));
    assert_eq!(state(&watch), (None, Some(4)));
    // Recorded between the load and the report.
    let watch = sampled(&[&unread(10)]);
    apply(&watch, row(3, &unread(10)));
    next_round(&watch, sample(&empty()));
    apply(&watch, Update::Stale);
    assert_eq!(state(&watch), (Some(10), None));
    apply(&watch, row(4, &empty()));
    next_round(&watch, sample(&empty()));
    assert_eq!(state(&watch), (None, Some(4)));
}

#[test]
fn entries_that_were_read_before_the_loss_are_no_undelivered_ones() {
    let watch = sampled(&[&unread(10)]);
    let created = CreatedGroup { stream: PartitionInfo::default(), read: 4 };
    // The other entries were read from the later stream.
    next_round(&watch, Sample { info: empty(), read: 9, created: Some(created), ..Sample::default() });
    assert_eq!(state(&watch), (Some(6), None));
}

#[test]
fn a_group_created_before_another_consumer_recorded_its_loss_is_no_loss() {
    let recorded = PartitionInfo { now_ms: 2_000, ..unread(5) };
    let now = PartitionInfo { now_ms: 2_500, ..unread(5) };
    let created = |now_ms: u64| {
        let stream = PartitionInfo { now_ms, group: None, ..unread(5) };
        Sample {
            info: now.clone(),
            read: 0,
            created: Some(CreatedGroup { stream, read: 0 }),
            ..Sample::default()
        }
    };
    let watch = sampled(&[&unread(10)]);
    next_round(&watch, created(1_500));
    assert_eq!(state(&watch), (Some(5), None));
    apply(&watch, row(4, &recorded));
    next_round(&watch, sample(&now));
    assert_eq!(state(&watch), (None, Some(4)));
    // The group vanished after it was recorded.
    let watch = StreamWatch::default();
    next_round(&watch, created(2_200));
    apply(&watch, row(4, &recorded));
    next_round(&watch, sample(&now));
    assert_eq!(state(&watch), (Some(0), Some(4)));
}

#[test]
fn partitions_are_listed_as_ranges() {
    let partitions = shared::wire::partition::PartitionCount::new(12).unwrap();
    let some = partitions.partitions().filter(|partition| ![4, 5, 7].contains(&partition.number()));
    assert_eq!(ranges(some), "0-3,6,8-11");
}
