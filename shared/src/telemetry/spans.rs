//! Spans of requests, entries and batches, and the trace contexts that link them.
//!
//! Only sampled spans are created. Unsampled work has no span, and its context is neither kept nor propagated.

use std::{borrow::Cow, error::Error, fmt, time::SystemTime};

use opentelemetry::{
    Context, KeyValue, TraceFlags,
    propagation::{Extractor, TextMapPropagator},
    trace::{
        Link, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceId, TraceState, Tracer,
        TracerProvider,
    },
};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{Sampler, SamplingDecision, SamplingResult, SdkTracer, SdkTracerProvider, ShouldSample},
};

use super::{names, span_queue::SpanQueue};
use crate::error_chain::one_line;

/// The headers of a request, as a carrier of a trace context.
pub use opentelemetry_http::HeaderExtractor;

/// W3C header and entry field with the ids of the trace and the parent span.
///
/// Source: <https://www.w3.org/TR/trace-context/>
pub const TRACEPARENT: &str = "traceparent";
/// W3C header and entry field with vendor-specific data of the context.
pub const TRACESTATE: &str = "tracestate";

/// Maximum length of a trace state. Longer ones are ignored, because each like would carry them. W3C requires support for at
/// least 512 characters.
const MAX_TRACESTATE_BYTES: usize = 512;

/// The scope of spans and metrics.
pub(super) const SCOPE: &str = "likestream";

/// Starts spans; starts none where traces are not exported.
#[derive(Clone, Default)]
pub struct Tracing(Option<Tracers>);

#[derive(Clone)]
struct Tracers {
    tracer: SdkTracer,
    accepts_contexts: bool,
}

/// A started, sampled span. It ends when its last clone is dropped.
#[derive(Clone)]
pub struct Span(Context);

/// Describes a span to be started.
pub struct SpanStart<'a> {
    /// Name, of low cardinality.
    pub name: Cow<'static, str>,
    /// Side of the operation: client, server, producer, consumer or internal.
    pub kind: SpanKind,
    /// Context of the parent span.
    pub parent: Option<&'a SpanContext>,
    /// Links to other spans. A sampled link makes the span sampled.
    pub links: Links,
    /// Start time.
    pub at: SystemTime,
}

/// Links of a span to other sampled spans: the first [`Links::MAX`], and the total number.
#[derive(Clone, Debug, Default)]
pub struct Links {
    contexts: Vec<SpanContext>,
    total: u64,
}

impl Links {
    /// Maximum number of links that are kept. `OTEL_SPAN_LINK_COUNT_LIMIT` limits the exported ones.
    pub(super) const MAX: usize = 1_024;

    /// Adds a link to a sampled span.
    pub fn add(&mut self, context: SpanContext) {
        self.total += 1;
        if self.contexts.len() < Self::MAX {
            self.contexts.push(context);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.total == 0
    }
}

impl Tracing {
    pub(super) fn new(provider: &SdkTracerProvider, accepts_contexts: bool) -> Self {
        Self(Some(Tracers { tracer: provider.tracer(SCOPE), accepts_contexts }))
    }

    /// Whether traces are exported.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Extracts the trace context of a caller or a producer, sampled or not.
    pub fn named_by(&self, fields: &dyn Extractor) -> Option<SpanContext> {
        self.0.as_ref().filter(|tracers| tracers.accepts_contexts)?;
        let [parent] = fields.get_all(TRACEPARENT)?.try_into().ok()?;
        if !is_traceparent(parent) {
            return None;
        }
        let fields = Bounded { state: bounded_state(fields), fields };
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &fields);
        let named = context.span().span_context().clone();
        named.is_valid().then_some(named)
    }

    /// Starts a span if it is sampled; `attributes` is called only then.
    pub fn start(&self, start: SpanStart<'_>, attributes: impl FnOnce() -> Vec<KeyValue>) -> Option<Span> {
        let Tracers { tracer, .. } = self.0.as_ref()?;
        let SpanStart { name, kind, parent, links, at } = start;
        let parent = parent
            .map_or_else(Context::new, |parent| Context::new().with_remote_span_context(parent.clone()));
        let Links { contexts, total } = links;
        let links = contexts.into_iter().map(|context| Link::new(context, Vec::new(), 0)).collect();
        let builder = tracer.span_builder(name).with_kind(kind).with_start_time(at).with_links(links);
        let span = Span(Context::new().with_span(builder.start_with_context(tracer, &parent)));
        if !span.0.span().span_context().is_sampled() {
            return None;
        }
        span.0.span().set_attributes(attributes());
        if total > 0 {
            span.set(names::LINKS_TOTAL, i64::try_from(total).unwrap_or(i64::MAX));
        }
        Some(span)
    }
}

impl Span {
    /// Returns the context to propagate.
    pub fn context(&self) -> SpanContext {
        self.0.span().span_context().clone()
    }

    /// Returns the trace id and the span id.
    pub fn ids(&self) -> (TraceId, SpanId) {
        let span = self.0.span();
        (span.span_context().trace_id(), span.span_context().span_id())
    }

    /// Adds an attribute after the start.
    pub fn set(&self, name: &'static str, value: impl Into<opentelemetry::Value>) {
        self.0.span().set_attribute(KeyValue::new(name, value));
    }

    /// Marks the span as failed. `error_type` is of low cardinality.
    pub fn failed(&self, error_type: impl Into<opentelemetry::Value>, error: &(dyn Error + 'static)) {
        self.set(names::ERROR_TYPE, error_type);
        self.0.span().set_status(Status::error(one_line(error)));
    }

    /// Marks the span as failed, without a description.
    pub fn failed_with(&self, error_type: impl Into<opentelemetry::Value>) {
        self.set(names::ERROR_TYPE, error_type);
        self.0.span().set_status(Status::error(""));
    }

    /// Ends the span at an earlier time than now.
    pub fn end_at(self, at: SystemTime) {
        self.0.span().end_with_timestamp(at);
    }
}

/// Returns the trace id as a field of a log line.
pub fn trace_id(span: Option<&Span>) -> Option<impl tracing::Value + use<>> {
    span.map(|span| tracing::field::display(span.ids().0))
}

/// Returns the span id as a field of a log line.
pub fn span_id(span: Option<&Span>) -> Option<impl tracing::Value + use<>> {
    span.map(|span| tracing::field::display(span.ids().1))
}

/// Returns the fields of an entry that carry a context.
pub fn fields(context: &SpanContext) -> impl Iterator<Item = (&'static str, String)> + use<> {
    let flags = context.trace_flags() & TraceFlags::SAMPLED;
    let parent = format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id());
    let state = context.trace_state().header();
    [(TRACEPARENT, parent), (TRACESTATE, state)].into_iter().filter(|(_, value)| !value.is_empty())
}

/// Whether the text has the form that W3C requires. The SDK accepts more.
fn is_traceparent(text: &str) -> bool {
    let is_hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let mut parts = text.trim().split('-');
    let known =
        [2, 32, 16, 2].map(|length| parts.next().is_some_and(|part| part.len() == length && is_hex(part)));
    // Later versions may have more parts.
    known.iter().all(|known| *known) && (parts.next().is_none() || !text.trim().starts_with("00-"))
}

/// Joins the parts of the trace state. Returns `None` if it is too long.
fn bounded_state(fields: &dyn Extractor) -> Option<String> {
    let parts = fields.get_all(TRACESTATE)?;
    let bytes: usize = parts.iter().map(|part| part.len() + 1).sum();
    (bytes <= MAX_TRACESTATE_BYTES + 1).then(|| parts.join(","))
}

/// Carrier with a replaced trace state.
struct Bounded<'a> {
    fields: &'a dyn Extractor,
    state: Option<String>,
}

impl Extractor for Bounded<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        if key == TRACESTATE { self.state.as_deref() } else { self.fields.get(key) }
    }

    fn keys(&self) -> Vec<&str> {
        self.fields.keys()
    }
}

/// Samples a span if one of its links is sampled: a batch has no parent, but belongs to the traces of its entries. Does not sample
/// a span without a free slot in the queue.
#[derive(Clone, Debug)]
pub(super) struct LinkedSampler {
    pub(super) sampler: Sampler,
    pub(super) queue: SpanQueue,
}

impl ShouldSample for LinkedSampler {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let linked = links.iter().any(|link| link.span_context.is_sampled());
        let mut result = if linked && !matches!(self.sampler, Sampler::AlwaysOff) {
            SamplingResult {
                decision: SamplingDecision::RecordAndSample,
                attributes: Vec::new(),
                trace_state: TraceState::default(),
            }
        } else {
            self.sampler.should_sample(parent, trace_id, name, kind, attributes, links)
        };
        if result.decision == SamplingDecision::RecordAndSample && !self.queue.try_reserve() {
            result.decision = SamplingDecision::Drop;
        }
        result
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace_id, span_id) = self.ids();
        write!(f, "Span({trace_id}, {span_id})")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn with(sampler: Sampler) -> Tracing {
        let sampler = LinkedSampler { sampler, queue: SpanQueue::new(2) };
        Tracing::new(&SdkTracerProvider::builder().with_sampler(sampler).build(), true)
    }

    fn tracing() -> Tracing {
        with(Sampler::AlwaysOn)
    }

    fn named(parent: &str, state: &str) -> Option<SpanContext> {
        let fields = HashMap::from([
            (TRACEPARENT.to_owned(), parent.to_owned()),
            (TRACESTATE.to_owned(), state.to_owned()),
        ]);
        tracing().named_by(&fields)
    }

    #[test]
    fn a_context_survives_a_round_trip_through_fields() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = named(parent, "vendor=value").unwrap();
        let sent: Vec<_> = fields(&context).collect();
        assert_eq!(sent, [(TRACEPARENT, parent.to_owned()), (TRACESTATE, "vendor=value".to_owned())]);
        let plain: Vec<_> = fields(&named(parent, "").unwrap()).collect();
        assert_eq!(plain, [(TRACEPARENT, parent.to_owned())]);
    }

    #[test]
    fn invalid_contexts_and_long_trace_states_are_ignored() {
        assert!(named("00-00000000000000000000000000000000-b7ad6b7169203331-01", "").is_none());
        for invalid in [
            "",
            "invalid",
            "00-af7-b7a-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert!(named(invalid, "").is_none(), "{invalid}");
        }
        assert!(named("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", "").is_some());
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let long = format!("vendor={}", "x".repeat(MAX_TRACESTATE_BYTES));
        assert_eq!(named(parent, &long).unwrap().trace_state().header(), "");
    }

    #[test]
    fn an_unsampled_span_is_started_only_with_a_sampled_link() {
        let start = |tracing: &Tracing, links| {
            let start = SpanStart {
                name: "x".into(),
                kind: SpanKind::Internal,
                parent: None,
                links,
                at: SystemTime::now(),
            };
            tracing.start(start, Vec::new)
        };
        let mut links = Links::default();
        links.add(named("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "").unwrap());
        assert!(start(&Tracing::default(), links.clone()).is_none());
        assert!(start(&with(Sampler::TraceIdRatioBased(0.0)), Links::default()).is_none());
        assert!(start(&with(Sampler::TraceIdRatioBased(0.0)), links.clone()).is_some());
        assert!(start(&with(Sampler::AlwaysOff), links).is_none());
    }

    #[test]
    fn no_span_is_started_when_the_queue_is_full() {
        let tracing = tracing();
        let spans: Vec<bool> = (0..3)
            .map(|_| {
                let start = SpanStart {
                    name: "x".into(),
                    kind: SpanKind::Internal,
                    parent: None,
                    links: Links::default(),
                    at: SystemTime::now(),
                };
                tracing.start(start, Vec::new).is_some()
            })
            .collect();
        assert_eq!(spans, [true, true, false]);
    }
}
