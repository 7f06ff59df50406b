//! `likesctl status --check`: one line and an exit code for a monitoring system.
//!
//! Source: Monitoring Plugins, "Development Guidelines": exit codes, and performance data after a bar.

use std::{
    io::{self, Write},
    str::FromStr,
    time::Duration,
};

use clap::Args;
use consumer::group::static_assignment::StaticAssignment;
use shared::settings::args::duration;

use crate::{
    context::RedisAccess,
    exit::{CliError, Exit},
    output::age,
    overview::Overview,
};

/// Lower bounds of the warning range and of the critical range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Threshold<T> {
    warning: T,
    critical: T,
}

#[derive(Debug, thiserror::Error)]
#[error("expected WARN,CRIT, two values in ascending order")]
pub(crate) struct InvalidThreshold;

fn threshold<T: PartialOrd>(
    text: &str,
    value: impl Fn(&str) -> Option<T>,
) -> Result<Threshold<T>, InvalidThreshold> {
    let (warning, critical) = text.split_once(',').ok_or(InvalidThreshold)?;
    let both = value(warning).zip(value(critical)).filter(|(warning, critical)| warning <= critical);
    both.map(|(warning, critical)| Threshold { warning, critical }).ok_or(InvalidThreshold)
}

impl FromStr for Threshold<u64> {
    type Err = InvalidThreshold;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        threshold(text, |text| text.parse().ok())
    }
}

impl FromStr for Threshold<Duration> {
    type Err = InvalidThreshold;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        threshold(text, |text| duration(text).ok())
    }
}

/// Thresholds of all measured values.
#[derive(Args)]
#[command(next_help_heading = "Thresholds of --check")]
pub(super) struct Thresholds {
    /// Backlog: undelivered and pending entries
    #[arg(long, value_name = "WARN,CRIT", default_value = "100000,1000000", requires = "check")]
    backlog: Threshold<u64>,

    /// Age of the oldest entry in the backlog
    #[arg(long, value_name = "WARN,CRIT", default_value = "1m,10m", requires = "check")]
    oldest_age: Threshold<Duration>,

    /// Time since the last delivery of the oldest pending entry
    #[arg(long, value_name = "WARN,CRIT", default_value = "2m,10m", requires = "check")]
    pending_idle: Threshold<Duration>,

    /// Number of dead letters
    #[arg(long, value_name = "WARN,CRIT", default_value = "1,1000", requires = "check")]
    dead: Threshold<u64>,

    /// Number of partitions that are not read: paused, or without an owner
    #[arg(long, value_name = "WARN,CRIT", default_value = "1,1", requires = "check")]
    unread: Threshold<u64>,

    /// Number of incidents that are not acknowledged
    #[arg(long, value_name = "WARN,CRIT", default_value = "1,1", requires = "check")]
    incidents: Threshold<u64>,
}

/// A measured value with its threshold.
struct Measured {
    name: &'static str,
    value: Option<u64>,
    threshold: Threshold<u64>,
    /// Whether the value is a time in milliseconds.
    is_time: bool,
}

impl Measured {
    /// Returns 0 ok, 1 warning, 2 critical, 3 unknown.
    fn code(&self) -> u8 {
        match self.value {
            None => 3,
            Some(value) if value >= self.threshold.critical => 2,
            Some(value) if value >= self.threshold.warning => 1,
            Some(_) => 0,
        }
    }

    fn text(&self) -> String {
        let Self { name, value, is_time, .. } = self;
        match value {
            None => format!("{name} unknown"),
            Some(value) if *is_time => format!("{name} {}", age(*value)),
            Some(value) => format!("{name} {value}"),
        }
    }

    fn performance(&self) -> String {
        let Threshold { warning, critical } = self.threshold;
        let value = self.value.map_or_else(|| "U".to_owned(), |value| value.to_string());
        let unit = if self.is_time { "ms" } else { "" };
        format!("{}={value}{unit};{warning};{critical};0", self.name.replace(' ', "_"))
    }
}

pub(super) async fn run(
    redis: &RedisAccess,
    partitions: Option<&StaticAssignment>,
    thresholds: &Thresholds,
) -> Result<Exit, CliError> {
    let overview = async {
        let context = redis.open().await?;
        Ok::<_, CliError>(context.overview(&context.partitions_of(partitions)?).await?)
    };
    let (line, code) = match overview.await {
        Ok(overview) => evaluate(&overview, thresholds),
        Err(error) => (format!("LIKESTREAM UNKNOWN - {}", error.line_and_code().0.unwrap_or_default()), 3),
    };
    writeln!(io::stdout(), "{line}")?;
    Ok(Exit::Check(code))
}

fn evaluate(overview: &Overview, thresholds: &Thresholds) -> (String, u8) {
    let total = &overview.total;
    let number = |name, value, threshold: Threshold<u64>| Measured { name, value, threshold, is_time: false };
    let time = |name, value: Option<u64>, threshold: Threshold<Duration>| {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let threshold = Threshold { warning: ms(threshold.warning), critical: ms(threshold.critical) };
        // An empty backlog has no oldest entry: its age counts as 0.
        Measured { name, value: Some(value.unwrap_or(0)), threshold, is_time: true }
    };
    let measured = [
        number("backlog", total.backlog, thresholds.backlog),
        time("oldest age", total.oldest_age_ms, thresholds.oldest_age),
        time("pending idle", total.oldest_pending_idle_ms, thresholds.pending_idle),
        number("dead", Some(total.dead), thresholds.dead),
        number("unread", Some(total.unowned + total.paused), thresholds.unread),
        // Unknown until the first consumer has started.
        number("incidents", Some(overview.open_incidents.unwrap_or(0)), thresholds.incidents),
    ];
    // Ascending: ok, warning, unknown, critical.
    let severity = |code: &u8| [0, 1, 3, 2].iter().position(|known| known == code);
    let problems = overview.redis_problems.iter().map(|problem| format!("Redis at {problem}"));
    let of_redis = if overview.redis_problems.is_empty() { 0 } else { 2 };
    let code = measured.iter().map(Measured::code).chain([of_redis]).max_by_key(severity).unwrap_or(3);
    let word = ["OK", "WARNING", "CRITICAL", "UNKNOWN"].get(usize::from(code)).copied().unwrap_or("UNKNOWN");
    let bad = measured.iter().filter(|measured| code == 0 || measured.code() > 0).map(Measured::text);
    // A bar would begin the performance data.
    let bad: Vec<String> = problems.map(|problem| problem.replace('|', "/")).chain(bad).collect();
    let performance: Vec<String> = measured.iter().map(Measured::performance).collect();
    (format!("LIKESTREAM {word} - {} | {}", bad.join(", "), performance.join(" ")), code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_is_two_ascending_values() {
        assert_eq!("1,2".parse::<Threshold<u64>>().unwrap(), Threshold { warning: 1, critical: 2 });
        let times = Threshold { warning: Duration::from_secs(1), critical: Duration::from_mins(1) };
        assert_eq!("1s,1m".parse::<Threshold<Duration>>().unwrap(), times);
        for bad in ["", "1", "2,1", "1,2,3", "a,b", "-1,2"] {
            assert!(bad.parse::<Threshold<u64>>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_measured_value_has_an_exit_code() {
        let measured =
            |value| Measured { name: "backlog", value, threshold: "10,20".parse().unwrap(), is_time: false };
        let codes = [None, Some(9), Some(10), Some(19), Some(20)].map(|value| measured(value).code());
        assert_eq!(codes, [3, 0, 1, 1, 2]);
        assert_eq!(measured(Some(3)).performance(), "backlog=3;10;20;0");
        assert_eq!(measured(None).performance(), "backlog=U;10;20;0");
    }
}
