//! Spans of entries.

use std::time::SystemTime;

use opentelemetry::{
    KeyValue,
    trace::{SpanContext, SpanKind},
};
use shared::telemetry::{
    names,
    spans::{Links, Span, SpanStart, Tracing},
};

/// Starts the span of an entry, if any of its requests is sampled: as a child of the first sampled request, linked to the others.
pub(super) fn start<'a>(
    tracing: &Tracing,
    stream: &str,
    template: &str,
    mut sampled: impl Iterator<Item = &'a SpanContext>,
    likes: impl FnOnce() -> usize,
) -> Option<Span> {
    let parent = sampled.next()?;
    let mut links = Links::default();
    // Parts of one batch can share an entry.
    sampled.filter(|context| *context != parent).for_each(|context| links.add(context.clone()));
    let start = SpanStart {
        name: format!("XADD {template}").into(),
        kind: SpanKind::Producer,
        parent: Some(parent),
        links,
        at: SystemTime::now(),
    };
    tracing.start(start, || {
        vec![
            KeyValue::new(names::MESSAGING_SYSTEM, names::REDIS),
            KeyValue::new(names::MESSAGING_DESTINATION_NAME, stream.to_owned()),
            KeyValue::new(names::MESSAGING_DESTINATION_TEMPLATE, template.to_owned()),
            KeyValue::new(names::MESSAGING_OPERATION_NAME, "XADD"),
            KeyValue::new(names::MESSAGING_OPERATION_TYPE, "send"),
            KeyValue::new(names::LIKES, i64::try_from(likes()).unwrap_or(i64::MAX)),
        ]
    })
}
