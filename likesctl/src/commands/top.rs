//! `likesctl top`: how everything stands, on one screen. It changes nothing.

use std::{
    cmp::Reverse,
    collections::VecDeque,
    io::{self, IsTerminal},
    time::Duration,
};

use clap::Args;
use fred::prelude::Error;
use ratatui::{
    DefaultTerminal, Frame,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout, Rect},
    style::{Color, Style, Stylize},
    text::{Line, Text},
    widgets::{Block, Clear, Paragraph, Row, Sparkline, Table, TableState, Wrap},
};
use shared::settings::args::positive_duration;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::{
    commands::pending,
    context::{Context, RedisAccess},
    exit::{CliError, Exit},
    output::{age_or_none, count},
    overview::{Overview, PartitionOverview},
    selection::EntryRef,
};

/// So many looks are remembered for the curves.
const REMEMBERED: usize = 240;

/// How wide the bar of a backlog is.
const BAR: usize = 8;

#[derive(Args)]
pub(crate) struct Options {
    /// Between two looks
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = positive_duration)]
    interval: Duration,

    #[command(flatten)]
    redis: RedisAccess,
}

/// What rows are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Partition,
    Backlog,
    Pending,
    Oldest,
    Dead,
}

impl Order {
    const ALL: [Self; 5] = [Self::Partition, Self::Backlog, Self::Pending, Self::Oldest, Self::Dead];

    fn name(self) -> &'static str {
        match self {
            Self::Partition => "partition",
            Self::Backlog => "backlog",
            Self::Pending => "pending",
            Self::Oldest => "oldest",
            Self::Dead => "dead",
        }
    }

    /// The next one, or the one before.
    fn step(self, forward: bool) -> Self {
        let at = Self::ALL.iter().position(|order| *order == self).unwrap_or(0);
        let by = if forward { 1 } else { Self::ALL.len() - 1 };
        Self::ALL[(at + by) % Self::ALL.len()]
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

/// One look, summed up.
#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    added: u64,
    backlog: Option<u64>,
}

/// What is on the screen.
struct Screen {
    overview: Overview,
    samples: VecDeque<Sample>,
    order: Order,
    table: TableState,
    /// An entry that was opened.
    opened: Option<String>,
    /// Why the last look failed.
    problem: Option<String>,
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
enum KeyAction {
    Nothing,
    Quit,
    /// By Ctrl-C.
    Interrupt,
    /// To see this entry.
    Open(EntryRef),
}

pub(crate) async fn run(options: Options, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    if !io::stdout().is_terminal() {
        return Err(CliError::Usage("top needs a terminal: likesctl status does without".to_owned()));
    }
    let context = options.redis.open().await?;
    let first = context.overview(&context.partitions_of(None)?).await?;
    let mut terminal = ratatui::try_init()?;
    let ended = show(&mut terminal, &context, Screen::new(first), options.interval, interrupt).await;
    ratatui::restore();
    ended
}

async fn show(
    terminal: &mut DefaultTerminal,
    context: &Context,
    mut screen: Screen,
    between: Duration,
    interrupt: &CancellationToken,
) -> Result<Exit, CliError> {
    let mut keys = keys();
    let mut ticks = interval(between);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        terminal.draw(|frame| screen.draw(frame))?;
        tokio::select! {
            () = interrupt.cancelled() => return Ok(Exit::Interrupted),
            _ = ticks.tick() => match look(context).await {
                Ok(overview) => screen.look(overview),
                Err(error) => screen.problem = Some(error.to_string()),
            },
            event = keys.recv() => match event {
                Some(Event::Key(key)) => match screen.press(key) {
                    KeyAction::Nothing => {}
                    KeyAction::Quit => return Ok(Exit::Done),
                    KeyAction::Interrupt => return Ok(Exit::Interrupted),
                    KeyAction::Open(entry) => {
                        let described = pending::described(context, entry).await;
                        screen.opened = Some(described.unwrap_or_else(|error| error.to_string()));
                    }
                },
                Some(_) => {}
                None => return Ok(Exit::Done),
            },
        }
    }
}

async fn look(context: &Context) -> Result<Overview, Error> {
    context.overview(&context.partitions_now(None).await?).await
}

/// What is typed, and changes of the terminal's size.
fn keys() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(16);
    // It ends with the program: nothing wakes it from its read.
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                break;
            }
        }
    });
    receiver
}

impl Screen {
    fn new(overview: Overview) -> Self {
        let table = TableState::default().with_selected(Some(0));
        let mut screen = Self {
            overview: overview.clone(),
            samples: VecDeque::new(),
            order: Order::Partition,
            table,
            opened: None,
            problem: None,
        };
        screen.look(overview);
        screen
    }

    fn look(&mut self, overview: Overview) {
        let added = overview.partitions.iter().map(|row| row.entries_added).sum();
        self.samples.push_back(Sample { at: Instant::now(), added, backlog: overview.total.backlog });
        if self.samples.len() > REMEMBERED {
            self.samples.pop_front();
        }
        self.overview = overview;
        self.problem = None;
        self.order.sort(&mut self.overview.partitions);
    }

    fn press(&mut self, key: KeyEvent) -> KeyAction {
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

    /// Entries a second that came in, and that were done, between each look and the one before.
    fn rates(&self) -> (Vec<u64>, Vec<u64>) {
        let pairs = self.samples.iter().zip(self.samples.iter().skip(1));
        let rates = pairs.map(|(before, after)| {
            let seconds = (after.at - before.at).as_secs_f64().max(1e-3);
            let added = after.added.saturating_sub(before.added);
            let done = match (before.backlog, after.backlog) {
                (Some(before), Some(after)) => (before + added).saturating_sub(after),
                _ => 0,
            };
            (per_second(added, seconds), per_second(done, seconds))
        });
        rates.unzip()
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let [head, curves, body, foot] = Layout::vertical([
            Constraint::Length(3),
            Constraint::Length(5),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        self.draw_head(frame, head);
        self.draw_curves(frame, curves);
        self.draw_table(frame, body);
        let keys =
            format!("q quit  s sort ({})  ↑↓ choose  Enter open the oldest pending entry", self.order.name());
        frame.render_widget(Line::from(keys).dim(), foot);
        if let Some(opened) = &self.opened {
            let area = frame.area().inner(ratatui::layout::Margin { horizontal: 4, vertical: 3 });
            let text = Paragraph::new(Text::from(opened.as_str())).wrap(Wrap { trim: false });
            frame.render_widget(Clear, area);
            frame.render_widget(text.block(Block::bordered().title("any key closes")), area);
        }
    }

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect) {
        let Overview { stream, group, redis, total, consumers, .. } = &self.overview;
        let alive = consumers.iter().filter(|consumer| consumer.is_alive()).count();
        let backlog = total.backlog.map_or_else(|| "unknown".to_owned(), count);
        let title = format!("{stream}  {group}  {redis}  {alive} consumers alive");
        let numbers = format!(
            "backlog {backlog}  pending {}  oldest {}  idle {}  dead {}",
            count(total.pending),
            age_or_none(total.oldest_age_ms),
            age_or_none(total.oldest_pending_idle_ms),
            count(total.dead),
        );
        let trouble = match (&self.problem, total.paused, total.unowned) {
            (Some(problem), ..) => Line::from(problem.as_str()).red(),
            (None, 0, 0) => Line::default(),
            (None, paused, unowned) => {
                Line::from(format!("paused {paused}  read by nobody {unowned}")).yellow()
            }
        };
        frame.render_widget(
            Paragraph::new(vec![Line::from(title).bold(), Line::from(numbers), trouble]),
            area,
        );
    }

    fn draw_curves(&self, frame: &mut Frame<'_>, area: Rect) {
        let (added, done) = self.rates();
        let backlog: Vec<u64> = self.samples.iter().filter_map(|sample| sample.backlog).collect();
        let last = |values: &[u64]| values.last().copied().map_or_else(|| "-".to_owned(), count);
        let curves = [
            (format!("backlog {}", last(&backlog)), backlog, Color::Yellow),
            (format!("in {}/s", last(&added)), added, Color::Cyan),
            (format!("out {}/s", last(&done)), done, Color::Green),
        ];
        let areas = Layout::horizontal([Constraint::Fill(1); 3]).split(area);
        for ((title, values, color), area) in curves.into_iter().zip(areas.iter()) {
            let width = usize::from(area.width.saturating_sub(2));
            let values: Vec<u64> = values[values.len().saturating_sub(width)..].to_vec();
            let curve = Sparkline::default().data(&values).style(Style::new().fg(color));
            frame.render_widget(curve.block(Block::bordered().title(title)), *area);
        }
    }

    fn draw_table(&mut self, frame: &mut Frame<'_>, area: Rect) {
        let most = self.overview.partitions.iter().filter_map(|row| row.backlog).max().unwrap_or(0);
        let rows = self.overview.partitions.iter().map(|row| {
            let cells = [
                row.partition.to_string(),
                bar(row.backlog.unwrap_or(0), most),
                row.backlog.map_or_else(|| "unknown".to_owned(), |backlog| backlog.to_string()),
                row.pending.to_string(),
                age_or_none(row.oldest_age_ms),
                row.dead.to_string(),
                row.owner(),
            ];
            let style =
                if row.owners.is_empty() || row.paused { Style::new().yellow() } else { Style::new() };
            Row::new(cells).style(style)
        });
        let widths = [
            Constraint::Length(3),
            Constraint::Length(8),
            Constraint::Length(9),
            Constraint::Length(8),
            Constraint::Length(7),
            Constraint::Length(6),
            Constraint::Fill(1),
        ];
        let header = Row::new(["P", "", "BACKLOG", "PENDING", "OLDEST", "DEAD", "OWNER"]).bold();
        let table = Table::new(rows, widths).header(header).row_highlight_style(Style::new().reversed());
        frame.render_stateful_widget(table, area, &mut self.table);
    }
}

fn per_second(entries: u64, seconds: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate for people to read")]
    let rate = (entries as f64 / seconds).round() as u64;
    rate
}

/// A part of the largest backlog.
fn bar(backlog: u64, most: u64) -> String {
    let full = usize::try_from((backlog * BAR as u64).div_ceil(most.max(1))).unwrap_or(BAR).min(BAR);
    "█".repeat(full)
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

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
            dead: 0,
        }
    }

    fn screen() -> Screen {
        Screen::new(Overview {
            stream: "likes".to_owned(),
            group: "likes-writers".to_owned(),
            redis: "Redis at 127.0.0.1:6379".to_owned(),
            all_paused: false,
            partitions: vec![partition(0, Some(5), 0), partition(1, Some(50), 7), partition(2, None, 0)],
            consumers: Vec::new(),
            total: Total { paused: 1, ..Total::default() },
        })
    }

    fn drawn(screen: &mut Screen, width: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, 20)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let lines = buffer.content().chunks(usize::from(width));
        lines
            .map(|cells| {
                cells.iter().map(ratatui::buffer::Cell::symbol).collect::<String>().trim_end().to_owned()
            })
            .collect()
    }

    fn press(screen: &mut Screen, code: KeyCode) -> KeyAction {
        screen.press(KeyEvent::new(code, KeyModifiers::NONE))
    }

    #[test]
    fn the_screen_shows_what_there_is_at_any_width() {
        for width in [80, 200] {
            let lines = drawn(&mut screen(), width);
            assert!(lines[0].starts_with("likes  likes-writers  Redis at 127.0.0.1:6379"), "{lines:?}");
            assert!(lines[2].starts_with("paused 1"), "{lines:?}");
            let row = lines.iter().find(|line| line.starts_with("1   ████████")).unwrap();
            assert!(row.ends_with("host-1-77-0a1b2c3d (paused)"), "{row}");
            assert!(lines.iter().any(|line| line.starts_with("2 ") && line.contains("unknown")), "{lines:?}");
        }
        drawn(&mut screen(), 3);
    }

    #[test]
    fn keys_sort_choose_open_and_quit() {
        let mut screen = screen();
        assert_eq!(press(&mut screen, KeyCode::Char('s')), KeyAction::Nothing);
        // Nobody knows how much the unknown one has: it comes first.
        let order: Vec<u16> = screen.overview.partitions.iter().map(|row| row.partition).collect();
        assert_eq!(order, [2, 1, 0]);
        press(&mut screen, KeyCode::Down);
        let entry = EntryRef { partition: 1, id: "1700000000000-0".parse().unwrap() };
        assert_eq!(press(&mut screen, KeyCode::Enter), KeyAction::Open(entry));
        screen.opened = Some("likes       1".to_owned());
        assert!(drawn(&mut screen, 80).iter().any(|line| line.contains("likes       1")));
        assert_eq!(
            press(&mut screen, KeyCode::Char('q')),
            KeyAction::Nothing,
            "it closes what is open first"
        );
        assert_eq!(press(&mut screen, KeyCode::Char('q')), KeyAction::Quit);
    }
}
