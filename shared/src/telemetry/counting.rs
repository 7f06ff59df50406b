//! Counters that are exported from the start.

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Meter},
};

/// A counter that starts at 0, for each of the labels if there are any: Prometheus sees no increase in a counter that first
/// appears at 1.
pub fn counter(meter: &Meter, name: &'static str, what: &'static str, labels: &[KeyValue]) -> Counter<u64> {
    let counter = meter.u64_counter(name).with_description(what).build();
    for label in labels {
        counter.add(0, std::slice::from_ref(label));
    }
    if labels.is_empty() {
        counter.add(0, &[]);
    }
    counter
}

/// A counter of messages, as the semantic conventions have it, that starts at 0 with the attributes.
pub fn message_counter(
    meter: &Meter,
    name: &'static str,
    what: &'static str,
    attributes: &[KeyValue],
) -> Counter<u64> {
    let counter = meter.u64_counter(name).with_unit("{message}").with_description(what).build();
    counter.add(0, attributes);
    counter
}
