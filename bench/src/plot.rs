//! Chart of the figures that are relative to a limit.

use std::{error::Error, path::Path};

use plotters::{
    prelude::{
        BLACK, ChartBuilder, Color, EmptyElement, IntoDrawingArea, IntoFont, IntoSegmentedCoord, PathElement,
        RGBColor, Rectangle, SVGBackend, SegmentValue, Text, WHITE,
    },
    style::TextStyle,
};

use crate::{
    BenchError,
    figures::{Figure, Figures},
    machine::Machine,
};

/// Measures relative to a limit of the machine.
const RATIOS: [&str; 3] = ["of the copy limit", "of the HTTP limit", "of the rate into an empty table"];

const WIDTH: u32 = 960;
const BAR_HEIGHT: usize = 26;
const HEAD_AND_FOOT: usize = 110;
const FONT: &str = "sans-serif";
const BAR: RGBColor = RGBColor(66, 133, 190);

/// Draws a bar with minimum and maximum for each measured ratio.
pub(crate) fn draw(file: &Path, machine: &Machine, figures: &Figures) -> Result<(), BenchError> {
    let is_ratio = |figure: &&Figure| RATIOS.contains(&figure.measure);
    let ratios: Vec<&Figure> = figures.all().iter().filter(is_ratio).collect();
    if ratios.is_empty() {
        return Ok(());
    }
    draw_bars(file, machine, &ratios).map_err(|error| BenchError::Plot(error.to_string()))
}

fn draw_bars(file: &Path, machine: &Machine, ratios: &[&Figure]) -> Result<(), Box<dyn Error>> {
    let height = u32::try_from(HEAD_AND_FOOT + ratios.len() * BAR_HEIGHT)?;
    let area = SVGBackend::new(file, (WIDTH, height)).into_drawing_area();
    area.fill(&WHITE)?;
    let right_edge = ratios.iter().map(|ratio| ratio.max).fold(1.0, f64::max) * 1.08;
    let mut chart = ChartBuilder::on(&area)
        .caption("likestream relative to the limits of the machine", (FONT, 20))
        .margin(10)
        .x_label_area_size(50)
        .y_label_area_size(430)
        .build_cartesian_2d(0.0..right_edge, (0..ratios.len()).into_segmented())?;
    // The first ratio is at the top.
    let ratio_at = |at: usize| ratios.len().checked_sub(at + 1).and_then(|at| ratios.get(at));
    let name = |segment: &SegmentValue<usize>| match segment {
        SegmentValue::CenterOf(at) => ratio_at(*at)
            .map_or_else(String::new, |ratio| format!("{}, {} {}", ratio.row, ratio.case, ratio.measure)),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(ratios.len())
        .y_label_formatter(&name)
        .x_desc(machine.summary())
        .label_style((FONT, 13))
        .draw()?;
    let style: TextStyle<'_> = (FONT, 13).into_font().color(&BLACK);
    for at in 0..ratios.len() {
        let Some(ratio) = ratio_at(at) else { continue };
        let bottom = SegmentValue::Exact(at);
        let middle = SegmentValue::CenterOf(at);
        let top = SegmentValue::Exact(at + 1);
        let mut bar = Rectangle::new([(0.0, bottom), (ratio.median, top)], BAR.filled());
        bar.set_margin(4, 4, 0, 0);
        chart.draw_series([bar])?;
        let spread = vec![(ratio.min, middle.clone()), (ratio.max, middle.clone())];
        chart.draw_series([PathElement::new(spread, BLACK.stroke_width(1))])?;
        let label = Text::new(format!("{:.2}", ratio.median), (6, -7), style.clone());
        chart.draw_series([EmptyElement::at((ratio.max, middle)) + label])?;
    }
    let limit = vec![(1.0, SegmentValue::Exact(0)), (1.0, SegmentValue::Exact(ratios.len()))];
    chart.draw_series([PathElement::new(limit, BLACK.stroke_width(2))])?;
    area.present()?;
    Ok(())
}
