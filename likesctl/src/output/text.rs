//! Formatting of numbers, times and untrusted text for a terminal.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shared::thousands::group_thousands;

/// Escapes characters that could move the cursor, change colours or reverse the text direction.
pub(crate) fn printable(text: &str) -> String {
    let is_harmful =
        |c: char| c.is_control() || matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
    let mut printed = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmful(c) { printed.extend(c.escape_default()) } else { printed.push(c) }
    }
    printed
}

/// Formats a duration in at most two units, such as `3m12s`.
pub(crate) fn age(ms: u64) -> String {
    let seconds = ms / 1_000;
    let minutes = seconds / 60;
    let hours = minutes / 60;
    let days = hours / 24;
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..60_000 => format!("{seconds}s"),
        60_000..3_600_000 => format!("{minutes}m{}s", seconds % 60),
        3_600_000..86_400_000 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

/// Formats an age, or a hyphen if there is none.
pub(crate) fn age_or_none(ms: Option<u64>) -> String {
    ms.map_or_else(|| "-".to_owned(), age)
}

/// Formats a time as RFC 3339, in UTC.
pub(crate) fn time(unix_ms: u64) -> String {
    // RFC 3339 has no years after 9999.
    let time = UNIX_EPOCH + Duration::from_millis(unix_ms.min(253_402_300_799_999));
    humantime::format_rfc3339_millis(time).to_string()
}

/// Formats the current time for use in a file name.
pub(crate) fn file_time() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace(':', "")
}

/// Formats a number with its noun, such as `1 partition` or `1,000 entries`.
pub(crate) fn many(number: u64, one: &str, more: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { more })
}

/// Formats a number that may be unknown.
pub(crate) fn number_or_unknown(number: Option<u64>) -> String {
    number.map_or_else(|| "unknown".to_owned(), |number| number.to_string())
}

/// Formats a number with thousands separators.
pub(crate) fn count(number: u64) -> String {
    group_thousands(&number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_counts_are_short() {
        assert_eq!([age(0), age(999), age(1_000), age(61_500)], ["0ms", "999ms", "1s", "1m1s"]);
        assert_eq!([age(3_660_000), age(3 * 86_400_000 + 3_600_000 + 5_000)], ["1h1m", "3d1h"]);
        assert_eq!(
            [count(0), count(999), count(1_000), count(1_234_567)],
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(time(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(time(u64::MAX), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(printable("a\x1b[31m\n\u{202E}é"), "a\\u{1b}[31m\\n\\u{202e}é");
    }
}
