//! Preview of the entries that an action matches.

use std::collections::BTreeMap;

use super::Action;
use crate::{
    exit::CliError,
    output::count,
    scan::{Item, Scan, ScanBound},
    selection::EntryRef,
};

/// Maximum number of entries that are shown.
const SAMPLES: usize = 5;

#[derive(Default)]
pub(super) struct Preview {
    pub(super) count: u64,
    pub(super) bound: ScanBound,
    partitions: BTreeMap<u16, u64>,
    first: Option<EntryRef>,
    last: Option<EntryRef>,
    samples: Vec<String>,
}

pub(super) async fn preview<T: Item>(mut scan: Box<dyn Scan<Item = T> + '_>) -> Result<Preview, CliError> {
    let mut preview = Preview::default();
    while let Some(page) = scan.next_page().await? {
        for item in &page {
            preview.add(item);
        }
    }
    Ok(preview)
}

impl Preview {
    fn add(&mut self, item: &impl Item) {
        let entry = item.entry();
        self.count += 1;
        *self.partitions.entry(entry.partition).or_default() += 1;
        self.bound.insert(entry.partition, entry.id);
        self.first.get_or_insert(entry);
        self.last = Some(entry);
        if self.samples.len() < SAMPLES {
            self.samples.push(item.line());
        }
    }

    pub(super) fn text(&self, action: &Action<'_>) -> String {
        let Action { command, effect, .. } = action;
        if self.count == 0 {
            return format!("{command}: no {} match", action.items.0);
        }
        let partitions =
            self.partitions.iter().map(|(partition, entries)| format!("{partition} ({})", count(*entries)));
        let mut lines = vec![
            format!("{command}: {} will be {effect}", action.items(self.count)),
            format!("  partitions  {}", partitions.collect::<Vec<_>>().join(", ")),
        ];
        if let (Some(first), Some(last)) = (self.first, self.last) {
            lines.push(format!("  ids         {first} to {last}"));
        }
        for (index, sample) in self.samples.iter().enumerate() {
            let title = if index == 0 { "samples" } else { "" };
            lines.push(format!("  {title:<10}  {sample}"));
        }
        lines.join("\n")
    }
}
