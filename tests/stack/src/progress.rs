//! Progress of a long operation: a bar on a terminal, periodic lines otherwise.

use std::{
    fmt,
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use shared::stderr::eprint_line;

const LINE_INTERVAL: Duration = Duration::from_secs(5);

pub(crate) struct Progress {
    label: &'static str,
    total: u64,
    bar: Option<ProgressBar>,
    next_line: Instant,
}

impl Progress {
    pub(crate) fn new(label: &'static str, total: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            // Fits into 80 columns for up to 100 million.
            let template = "{prefix:>8} {bar:24} {human_pos}/{human_len} {rate} {elapsed}";
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .with_key("rate", |state: &ProgressState, out: &mut dyn fmt::Write| {
                    let _ = write!(out, "{:.0}/s", state.per_sec());
                });
            ProgressBar::new(total).with_style(style).with_prefix(label)
        });
        Self { label, total, bar, next_line: Instant::now() + LINE_INTERVAL }
    }

    pub(crate) fn update(&mut self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done.min(self.total));
        } else if Instant::now() >= self.next_line {
            self.next_line = Instant::now() + LINE_INTERVAL;
            eprint_line(format_args!("{:>8} {done} of {}", self.label, self.total));
        }
    }

    pub(crate) fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}
