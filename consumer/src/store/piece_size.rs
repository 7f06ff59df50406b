//! Number of rows that Postgres stores in one statement within the time limit. It is learned, because triggers and indexes
//! of the table decide how long a row takes.

use std::time::Duration;

/// Maximum number of rows of a piece: halved by a timeout, doubled while pieces of that size are quick.
#[derive(Clone, Copy, Debug)]
pub(super) struct PieceSize {
    rows: usize,
    /// A piece that takes no longer is quick.
    quick: Duration,
}

impl PieceSize {
    /// Starts without a limit, for transactions of this duration.
    pub(super) fn new(limit: Duration) -> Self {
        Self { rows: usize::MAX, quick: limit / 8 }
    }

    pub(super) fn rows(self) -> usize {
        self.rows
    }

    /// Records that a piece of `rows` rows was stored.
    pub(super) fn stored(&mut self, rows: usize, took: Duration) {
        if rows >= self.rows && took <= self.quick {
            self.rows = self.rows.saturating_mul(2);
        }
    }

    /// Records that a piece of `rows` rows was not stored within the time limit.
    pub(super) fn timed_out(&mut self, rows: usize) {
        self.rows = (rows / 2).max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the sizes of the pieces in which a backlog is stored if each row takes this long.
    fn sizes(size: &mut PieceSize, mut backlog: usize, per_row: Duration) -> Vec<usize> {
        let mut sizes = Vec::new();
        while backlog > 0 {
            let rows = size.rows().min(5_000).min(backlog);
            let took = per_row * u32::try_from(rows).unwrap();
            if took > Duration::from_millis(2_500) {
                size.timed_out(rows);
            } else {
                size.stored(rows, took);
                backlog -= rows;
                sizes.push(rows);
            }
        }
        sizes
    }

    #[test]
    fn slow_rows_are_stored_in_pieces_whose_size_is_remembered_and_grows_again() {
        let mut size = PieceSize::new(Duration::from_secs(10));
        assert_eq!(sizes(&mut size, 5_000, Duration::from_millis(3)), [625; 8]);
        assert_eq!(size.rows(), 625);
        assert_eq!(sizes(&mut size, 10_000, Duration::from_micros(3)), [625, 1_250, 2_500, 5_000, 625]);
    }

    #[test]
    fn a_row_that_times_out_alone_leaves_a_size_of_one() {
        let mut size = PieceSize::new(Duration::from_secs(10));
        size.timed_out(1);
        assert_eq!(size.rows(), 1);
        size.stored(1, Duration::ZERO);
        assert_eq!(size.rows(), 2);
    }
}
