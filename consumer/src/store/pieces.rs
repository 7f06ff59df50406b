//! Pieces of a batch: ranges of rows that are tried together. A piece that Postgres does not take is replaced by its halves,
//! down to single rows.

use std::ops::Range;

/// Rows that are not tried yet.
///
/// With k rows among n that are not taken, about 2 k log2(n / k) pieces are tried, and at most 2 n.
#[derive(Clone, Debug)]
pub(super) struct Pieces {
    /// Stack of ranges, none of them empty. The last one is tried next.
    untried: Vec<Range<usize>>,
}

impl Pieces {
    /// Starts with two runs of rows, each in one piece.
    pub(super) fn new([first, second]: [Range<usize>; 2]) -> Self {
        let untried = [second, first].into_iter().filter(|run| !run.is_empty());
        Self { untried: untried.collect() }
    }

    /// Adds rows that are tried alone, before the others.
    pub(super) fn try_alone(&mut self, rows: impl IntoIterator<Item = usize, IntoIter: DoubleEndedIterator>) {
        self.untried.extend(rows.into_iter().rev().map(|row| row..row + 1));
    }

    /// Returns the next piece, of at most `max` rows; `None` if every row was tried.
    pub(super) fn next(&self, max: usize) -> Option<Range<usize>> {
        let next = self.untried.last()?;
        Some(next.start..next.end.min(next.start.saturating_add(max.max(1))))
    }

    /// Removes the next piece of `rows` rows, which was stored.
    pub(super) fn stored(&mut self, rows: usize) {
        self.take(rows);
    }

    /// Replaces the next piece of `rows` rows, which was not stored, by its halves. Returns the row if the piece is a single
    /// row.
    pub(super) fn failed(&mut self, rows: usize) -> Option<usize> {
        let piece = self.take(rows)?;
        if piece.len() == 1 {
            return Some(piece.start);
        }
        let middle = piece.start + piece.len() / 2;
        self.untried.push(middle..piece.end);
        self.untried.push(piece.start..middle);
        None
    }

    /// Returns the untried rows.
    pub(super) fn rows(&self) -> impl Iterator<Item = usize> + '_ {
        self.untried.iter().rev().flat_map(Clone::clone)
    }

    fn take(&mut self, rows: usize) -> Option<Range<usize>> {
        let next = self.untried.pop()?;
        let middle = next.end.min(next.start.saturating_add(rows.max(1)));
        if middle < next.end {
            self.untried.push(middle..next.end);
        }
        Some(next.start..middle)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn only_bad_rows_fail_alone_and_all_others_are_stored_once(
            bad in prop::collection::vec(prop::bool::weighted(0.1), 0..500),
            max in 1_usize..600,
        ) {
            let mut pieces = Pieces::new([0..bad.len() / 3, bad.len() / 3..bad.len()]);
            let (mut stored, mut alone, mut tries) = (Vec::new(), Vec::new(), 0);
            while let Some(piece) = pieces.next(max) {
                tries += 1;
                prop_assert!(piece.len() <= max);
                if bad[piece.clone()].contains(&true) {
                    alone.extend(pieces.failed(piece.len()));
                } else {
                    pieces.stored(piece.len());
                    stored.extend(piece);
                }
            }
            let with = |is_bad| (0..bad.len()).filter(|row| bad[*row] == is_bad).collect::<Vec<_>>();
            prop_assert_eq!(stored, with(false));
            prop_assert_eq!(alone, with(true));
            prop_assert!(tries <= 2 * bad.len());
        }
    }

    #[test]
    fn one_bad_row_among_many_is_found_in_few_tries() {
        let mut pieces = Pieces::new([0..5_000, 0..0]);
        let (mut tries, mut found) = (0, None);
        while let Some(piece) = pieces.next(usize::MAX) {
            tries += 1;
            if piece.contains(&1_234) {
                found = found.or(pieces.failed(piece.len()));
            } else {
                pieces.stored(piece.len());
            }
        }
        assert_eq!(found, Some(1_234));
        assert!(tries <= 2 * 13 + 1, "{tries}");
    }
}
