//! `likesctl top`: shows a live view of the pipeline.
//!
//! Purpose: collect an overview per interval and handle keys; `screen` is the state, `draw` renders it. May depend on
//! `overview` and `pending_detail`. Must not change anything. This is the only module that uses ratatui.

mod draw;
mod screen;

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use clap::Args;
use fred::prelude::Error;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event},
};
use shared::settings::args::positive_duration;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use self::screen::{KeyAction, Screen};
use crate::{
    context::{Context, RedisAccess},
    exit::{CliError, Exit},
    overview::Overview,
    pending_detail::PendingDetail,
};

#[derive(Args)]
pub(crate) struct Options {
    /// Time between two updates
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = positive_duration)]
    interval: Duration,

    #[command(flatten)]
    redis: RedisAccess,
}

pub(crate) async fn run(options: Options, interrupt: &CancellationToken) -> Result<Exit, CliError> {
    if !io::stdout().is_terminal() {
        let line = "top requires a terminal; without one, use likesctl status --watch";
        return Err(CliError::Usage(line.to_owned()));
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
    period: Duration,
    interrupt: &CancellationToken,
) -> Result<Exit, CliError> {
    let mut events = events();
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        terminal.draw(|frame| screen.draw(frame))?;
        tokio::select! {
            () = interrupt.cancelled() => return Ok(Exit::Interrupted),
            _ = ticks.tick() => match overview(context).await {
                Ok(overview) => screen.update(overview),
                Err(error) => screen.problem = Some(CliError::from(error).to_string()),
            },
            event = events.recv() => match event {
                Some(Event::Key(key)) => match screen.press(key) {
                    KeyAction::Nothing => {}
                    KeyAction::Quit => return Ok(Exit::Done),
                    KeyAction::Interrupt => return Ok(Exit::Interrupted),
                    KeyAction::Open(entry) => {
                        let detail = PendingDetail::read(context, entry).await;
                        let text = detail.map_or_else(|error| error.to_string(), |detail| detail.text());
                        screen.opened = Some(text);
                    }
                },
                Some(_) => {}
                None => return Ok(Exit::Done),
            },
        }
    }
}

async fn overview(context: &Context) -> Result<Overview, Error> {
    context.overview(&context.partitions_now(None).await?).await
}

/// Returns a channel of terminal events: key presses and resizes.
fn events() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(16);
    // The thread ends with the process, because its blocking read cannot be interrupted.
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                break;
            }
        }
    });
    receiver
}
