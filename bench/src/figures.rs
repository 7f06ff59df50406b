//! Measured figures over several runs, and their targets.

use serde::Serialize;

/// One measure of one case over all runs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) row: &'static str,
    pub(crate) case: String,
    pub(crate) measure: &'static str,
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) runs: Vec<f64>,
}

/// All measured figures.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<Figure>);

/// Target of a figure and whether it is met.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Target {
    pub(crate) figure: String,
    pub(crate) bound: Bound,
    pub(crate) measured: f64,
    pub(crate) holds: bool,
}

/// Bound of a figure.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

impl Figures {
    /// Adds a measured value.
    pub(crate) fn add(&mut self, row: &'static str, case: &str, measure: &'static str, value: f64) {
        let same =
            |figure: &&mut Figure| figure.row == row && figure.case == case && figure.measure == measure;
        if let Some(figure) = self.0.iter_mut().find(same) {
            figure.runs.push(value);
            figure.summarise();
        } else {
            let case = case.to_owned();
            let runs = vec![value];
            self.0.push(Figure { row, case, measure, median: value, min: value, max: value, runs });
        }
    }

    pub(crate) fn all(&self) -> &[Figure] {
        &self.0
    }

    /// Median of a measure, if it was measured.
    pub(crate) fn median(&self, row: &str, case: &str, measure: &str) -> Option<f64> {
        let wanted = |figure: &&Figure| figure.row == row && figure.case == case && figure.measure == measure;
        self.0.iter().find(wanted).map(|figure| figure.median)
    }

    /// Targets of all figures that were measured.
    pub(crate) fn targets(&self) -> Vec<Target> {
        use crate::targets::TARGETS;
        let target = |&(row, case, measure, bound): &(&str, &str, &str, Bound)| {
            let measured = self.median(row, case, measure)?;
            let figure = format!("{row}, {case}: {measure}");
            Some(Target { figure, bound, measured, holds: bound.holds(measured) })
        };
        TARGETS.iter().filter_map(target).collect()
    }
}

impl Figure {
    fn summarise(&mut self) {
        let mut sorted = self.runs.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = |at: usize| sorted.get(at).copied().unwrap_or(f64::NAN);
        let low = (sorted.len() - 1) / 2;
        let high = sorted.len() / 2;
        self.median = f64::midpoint(middle(low), middle(high));
        self.min = middle(0);
        self.max = middle(sorted.len() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_the_median_of_its_runs() {
        let mut figures = Figures::default();
        for value in [3.0, 1.0, 10.0, 4.0] {
            figures.add("row", "case", "measure", value);
        }
        figures.add("row", "other case", "measure", 7.0);
        assert_eq!(figures.median("row", "case", "measure"), Some(3.5));
        assert_eq!(figures.median("row", "other case", "measure"), Some(7.0));
        assert_eq!(figures.median("row", "case", "other measure"), None);
        assert_eq!((figures.all()[0].min, figures.all()[0].max), (1.0, 10.0));
    }
}
