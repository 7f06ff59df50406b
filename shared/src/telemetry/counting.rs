//! Counters that are there from the beginning.

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Meter},
};

/// A counter at 0, for each of these labels where there are some: what is first seen at 1 has not increased, for whoever
/// watches.
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

/// The same of messages, by the conventions, with all of these attributes.
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
