//! State of the screen, and the effect of keys.

use std::{cmp::Reverse, collections::VecDeque};

use ratatui::{
    crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
    widgets::TableState,
};
use tokio::time::Instant;

use crate::{
    overview::{Overview, PartitionOverview},
    selection::EntryRef,
};

/// Maximum number of samples in the curves.
const SAMPLES: usize = 240;

/// Sort order of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Partition,
    Backlog,
    Pending,
    Oldest,
    Dead,
}

impl Order {
    const ALL: [Self; 5] = [Self::Partition, Self::Backlog, Self::Pending, Self::Oldest, Self::Dead];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Partition => "partition",
            Self::Backlog => "backlog",
            Self::Pending => "pending",
            Self::Oldest => "oldest",
            Self::Dead => "dead",
        }
    }

    /// Returns the next order, or the previous one.
    fn step(self, forward: bool) -> Self {
        let index = Self::ALL.iter().position(|order| *order == self).unwrap_or(0);
        let step = if forward { 1 } else { Self::ALL.len() - 1 };
        Self::ALL[(index + step) % Self::ALL.len()]
    }

    fn sort(self, rows: &mut [PartitionOverview]) {
        rows.sort_by_key(|row| {
            let number = match self {
                Self::Partition => None,
                Self::Backlog => Some(row.backlog.unwrap_or(u64::MAX)),
                Self::Pending => Some(row.pending),
                Self::Oldest => row.oldest_age_ms,
                Self::Dead => Some(row.dead),
            };
            (Reverse(number), row.partition)
        });
    }
}

/// Totals of one update, for the curves.
#[derive(Clone, Copy)]
pub(super) struct Sample {
    at: Instant,
    added: u64,
    pub(super) backlog: Option<u64>,
}

pub(super) struct Screen {
    pub(super) overview: Overview,
    pub(super) samples: VecDeque<Sample>,
    pub(super) order: Order,
    pub(super) table: TableState,
    /// Text of an opened entry.
    pub(super) opened: Option<String>,
    /// Error of the last update.
    pub(super) problem: Option<String>,
}

/// Effect of a key outside the screen.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum KeyAction {
    Nothing,
    Quit,
    /// Ctrl-C.
    Interrupt,
    Open(EntryRef),
}

impl Screen {
    pub(super) fn new(overview: Overview) -> Self {
        let table = TableState::default().with_selected(Some(0));
        let mut screen = Self {
            overview: overview.clone(),
            samples: VecDeque::new(),
            order: Order::Partition,
            table,
            opened: None,
            problem: None,
        };
        screen.update(overview);
        screen
    }

    pub(super) fn update(&mut self, overview: Overview) {
        let added = overview.partitions.iter().map(|row| row.entries_added).sum();
        self.samples.push_back(Sample { at: Instant::now(), added, backlog: overview.total.backlog });
        if self.samples.len() > SAMPLES {
            self.samples.pop_front();
        }
        self.overview = overview;
        self.problem = None;
        self.order.sort(&mut self.overview.partitions);
    }

    pub(super) fn press(&mut self, key: KeyEvent) -> KeyAction {
        if key.kind == KeyEventKind::Release {
            return KeyAction::Nothing;
        }
        if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
            return KeyAction::Interrupt;
        }
        if self.opened.take().is_some() {
            return KeyAction::Nothing;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return KeyAction::Quit,
            KeyCode::Char('s') | KeyCode::Right => self.sort_by(self.order.step(true)),
            KeyCode::Left => self.sort_by(self.order.step(false)),
            KeyCode::Down => self.table.select_next(),
            KeyCode::Up => self.table.select_previous(),
            KeyCode::Enter => {
                let row = self.table.selected().and_then(|at| self.overview.partitions.get(at));
                let Some(row) = row else { return KeyAction::Nothing };
                match row.oldest_pending.as_ref().and_then(|id| id.parse().ok()) {
                    Some(id) => return KeyAction::Open(EntryRef { partition: row.partition, id }),
                    None => self.opened = Some(format!("nothing is pending in partition {}", row.partition)),
                }
            }
            _ => {}
        }
        KeyAction::Nothing
    }

    fn sort_by(&mut self, order: Order) {
        self.order = order;
        order.sort(&mut self.overview.partitions);
    }

    /// Returns entries appended and entries settled per second, between consecutive samples.
    pub(super) fn rates(&self) -> (Vec<u64>, Vec<u64>) {
        let pairs = self.samples.iter().zip(self.samples.iter().skip(1));
        let rates = pairs.map(|(before, after)| {
            let seconds = (after.at - before.at).as_secs_f64().max(1e-3);
            let added = after.added.saturating_sub(before.added);
            let settled = match (before.backlog, after.backlog) {
                (Some(before), Some(after)) => (before + added).saturating_sub(after),
                _ => 0,
            };
            (per_second(added, seconds), per_second(settled, seconds))
        });
        rates.unzip()
    }
}

fn per_second(entries: u64, seconds: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate for people to read")]
    let rate = (entries as f64 / seconds).round() as u64;
    rate
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::overview::Total;

    fn partition(partition: u16, backlog: Option<u64>, pending: u64) -> PartitionOverview {
        PartitionOverview {
            partition,
            has_group: true,
            paused: partition == 1,
            owners: vec!["host-1-77-0a1b2c3d".to_owned()],
            length: 0,
            entries_added: 10,
            lag: backlog,
            pending,
            backlog,
            oldest_age_ms: Some(61_000),
            oldest_pending: (pending > 0).then(|| "1700000000000-0".to_owned()),
            oldest_pending_idle_ms: None,
            last_commit_ms_ago: None,
            last_delivered_id: None,
            last_generated_id: "0-0".to_owned(),
            ids_ahead_ms: 0,
            ids_exhausted: false,
            dead: 0,
        }
    }

    pub(in super::super) fn screen() -> Screen {
        Screen::new(Overview {
            stream: "likes".to_owned(),
            group: "likes-writers".to_owned(),
            redis: "Redis at 127.0.0.1:6379".to_owned(),
            redis_problems: Vec::new(),
            all_paused: false,
            open_incidents: None,
            partitions: vec![partition(0, Some(5), 0), partition(1, Some(50), 7), partition(2, None, 0)],
            consumers: Vec::new(),
            total: Total { paused: 1, ..Total::default() },
        })
    }

    fn press(screen: &mut Screen, code: KeyCode) -> KeyAction {
        screen.press(KeyEvent::new(code, KeyModifiers::NONE))
    }

    #[test]
    fn keys_sort_select_open_and_quit() {
        let mut screen = screen();
        assert_eq!(press(&mut screen, KeyCode::Char('s')), KeyAction::Nothing);
        // An unknown backlog comes first: it may be the largest.
        let order: Vec<u16> = screen.overview.partitions.iter().map(|row| row.partition).collect();
        assert_eq!(order, [2, 1, 0]);
        press(&mut screen, KeyCode::Down);
        let entry = EntryRef { partition: 1, id: "1700000000000-0".parse().unwrap() };
        assert_eq!(press(&mut screen, KeyCode::Enter), KeyAction::Open(entry));
        screen.opened = Some("likes       1".to_owned());
        assert_eq!(
            press(&mut screen, KeyCode::Char('q')),
            KeyAction::Nothing,
            "the first press closes the opened entry"
        );
        assert_eq!(press(&mut screen, KeyCode::Char('q')), KeyAction::Quit);
    }
}
