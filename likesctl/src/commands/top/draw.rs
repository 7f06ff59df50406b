//! Rendering of the screen.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Margin, Rect},
    style::{Color, Style, Stylize},
    text::{Line, Text},
    widgets::{Block, Clear, Paragraph, Row, Sparkline, Table, Wrap},
};

use super::screen::Screen;
use crate::{
    output::{age_or_none, count},
    overview::Overview,
};

/// Width of a backlog bar, in characters.
const BAR: usize = 8;

impl Screen {
    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
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
            format!("q quit  s sort ({})  ↑↓ select  Enter show oldest pending entry", self.order.name());
        frame.render_widget(Line::from(keys).dim(), foot);
        if let Some(opened) = &self.opened {
            let area = frame.area().inner(Margin { horizontal: 4, vertical: 3 });
            let text = Paragraph::new(Text::from(opened.as_str())).wrap(Wrap { trim: false });
            frame.render_widget(Clear, area);
            frame.render_widget(text.block(Block::bordered().title("press any key to close")), area);
        }
    }

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect) {
        let Overview { stream, group, redis, total, consumers, .. } = &self.overview;
        let alive = consumers.iter().filter(|consumer| consumer.is_alive()).count();
        let backlog = total.backlog.map_or_else(|| "unknown".to_owned(), count);
        let title = format!("{stream}  {group}  {redis}  {alive} live consumers");
        let numbers = format!(
            "backlog {backlog}  pending {}  oldest {}  idle {}  dead {}",
            count(total.pending),
            age_or_none(total.oldest_age_ms),
            age_or_none(total.oldest_pending_idle_ms),
            count(total.dead),
        );
        let warning = match (&self.problem, total.paused, total.unowned) {
            (Some(problem), ..) => Line::from(problem.as_str()).red(),
            (None, 0, 0) => Line::default(),
            (None, paused, unowned) => Line::from(format!("paused {paused}  no owner {unowned}")).yellow(),
        };
        frame.render_widget(
            Paragraph::new(vec![Line::from(title).bold(), Line::from(numbers), warning]),
            area,
        );
    }

    fn draw_curves(&self, frame: &mut Frame<'_>, area: Rect) {
        let (added, settled) = self.rates();
        let backlog: Vec<u64> = self.samples.iter().filter_map(|sample| sample.backlog).collect();
        let last = |values: &[u64]| values.last().copied().map_or_else(|| "-".to_owned(), count);
        let curves = [
            (format!("backlog {}", last(&backlog)), backlog, Color::Yellow),
            (format!("in {}/s", last(&added)), added, Color::Cyan),
            (format!("out {}/s", last(&settled)), settled, Color::Green),
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
        let largest = self.overview.partitions.iter().filter_map(|row| row.backlog).max().unwrap_or(0);
        let rows = self.overview.partitions.iter().map(|row| {
            let cells = [
                row.partition.to_string(),
                bar(row.backlog.unwrap_or(0), largest),
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

/// Returns a bar whose length is proportional to the largest backlog.
fn bar(backlog: u64, largest: u64) -> String {
    let full = usize::try_from((backlog * BAR as u64).div_ceil(largest.max(1))).unwrap_or(BAR).min(BAR);
    "█".repeat(full)
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::{super::screen::tests::screen, *};

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

    #[test]
    fn the_screen_renders_at_any_width() {
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
    fn an_opened_entry_covers_the_screen() {
        let mut screen = screen();
        screen.opened = Some("likes       1".to_owned());
        assert!(drawn(&mut screen, 80).iter().any(|line| line.contains("likes       1")));
    }
}
