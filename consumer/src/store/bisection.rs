//! Bisection: halving of a batch to find rejected rows.

use std::ops::Range;

/// Remaining pieces of a list of rows. A rejected piece is replaced by its halves, down to single rows.
///
/// With k bad rows among n, about 2 k log2(n / k) pieces are tried, and at most 2 n.
#[derive(Clone, Debug)]
pub(crate) struct Bisection {
    /// Stack of pieces, none of them empty. The last one is tried next.
    pieces: Vec<Range<usize>>,
}

impl Bisection {
    /// Starts with all rows as one piece.
    pub(crate) fn new(rows: usize) -> Self {
        let all = 0..rows;
        Self { pieces: if all.is_empty() { Vec::new() } else { vec![all] } }
    }

    /// Returns the next piece to try; `None` if every row is stored or rejected.
    pub(crate) fn next_piece(&self) -> Option<Range<usize>> {
        self.pieces.last().cloned()
    }

    /// Records that the next piece is stored.
    pub(crate) fn stored(&mut self) {
        self.pieces.pop();
    }

    /// Records that the next piece was rejected. Returns the row if the piece is a single row.
    pub(crate) fn rejected(&mut self) -> Option<usize> {
        let piece = self.pieces.pop()?;
        if piece.len() == 1 {
            return Some(piece.start);
        }
        let middle = piece.start + piece.len() / 2;
        self.pieces.push(middle..piece.end);
        self.pieces.push(piece.start..middle);
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn only_bad_rows_are_rejected_and_all_others_are_stored_once(
            bad in prop::collection::vec(prop::bool::weighted(0.1), 0..500),
        ) {
            let mut bisection = Bisection::new(bad.len());
            let (mut stored, mut rejected, mut tries) = (Vec::new(), Vec::new(), 0);
            while let Some(piece) = bisection.next_piece() {
                tries += 1;
                if bad[piece.clone()].contains(&true) {
                    rejected.extend(bisection.rejected());
                } else {
                    stored.extend(piece);
                    bisection.stored();
                }
            }
            let with = |is_bad| (0..bad.len()).filter(|row| bad[*row] == is_bad).collect::<Vec<_>>();
            prop_assert_eq!(stored, with(false));
            prop_assert_eq!(rejected, with(true));
            prop_assert!(tries <= 2 * bad.len());
        }
    }

    #[test]
    fn one_bad_row_among_many_is_found_in_few_tries() {
        let mut bisection = Bisection::new(5_000);
        let (mut tries, mut found) = (0, None);
        while let Some(piece) = bisection.next_piece() {
            tries += 1;
            if piece.contains(&1_234) {
                found = found.or(bisection.rejected());
            } else {
                bisection.stored();
            }
        }
        assert_eq!(found, Some(1_234));
        assert!(tries <= 2 * 13 + 1, "{tries}");
    }
}
