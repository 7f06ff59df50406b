//! Counters that are exported with the value 0 from the start.

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Meter},
};

/// Returns a counter that is exported as 0 for each of the labels: Prometheus sees no increase in a counter that first
/// appears at 1.
pub fn counter(
    meter: &Meter,
    name: &'static str,
    description: &'static str,
    labels: &[KeyValue],
) -> Counter<u64> {
    let counter = meter.u64_counter(name).with_description(description).build();
    for label in labels {
        counter.add(0, std::slice::from_ref(label));
    }
    if labels.is_empty() {
        counter.add(0, &[]);
    }
    counter
}

/// Returns a counter of messages, with the unit of the semantic conventions, that is exported as 0 with the attributes.
pub fn message_counter(
    meter: &Meter,
    name: &'static str,
    description: &'static str,
    attributes: &[KeyValue],
) -> Counter<u64> {
    let counter = meter.u64_counter(name).with_unit("{message}").with_description(description).build();
    counter.add(0, attributes);
    counter
}
