//! Spans of requests.
//!
//! Source: OpenTelemetry's semantic conventions for HTTP server spans.

use std::time::SystemTime;

use axum::{
    extract::Request,
    http::{HeaderMap, StatusCode, Version, header},
};
use opentelemetry::{KeyValue, trace::SpanKind};
use shared::telemetry::{
    names,
    spans::{HeaderExtractor, Links, Span, SpanStart, Tracing},
};

use crate::{edge::connections::Peer, metrics::known_method, publish::sink::RequestSpan};

/// Longer values are truncated: clients can send anything.
const MAX_USER_AGENT_CHARS: usize = 256;
const MAX_PATH_CHARS: usize = 256;

/// Returns the route of a path, as its label in metrics and spans.
pub(super) fn known_route(path: &str) -> Option<&'static str> {
    match path {
        "/likes" => Some("/likes"),
        "/likes/batch" => Some("/likes/batch"),
        "/openapi.json" => Some("/openapi.json"),
        _ if path == "/docs" || path.starts_with("/docs/") => Some("/docs/{file}"),
        _ => None,
    }
}

/// Starts the span of a request, if it is sampled: as a child of the client's span, if there is one.
pub(super) fn start(
    tracing: &Tracing,
    request: &Request,
    route: Option<&'static str>,
    scheme: &'static str,
) -> Option<Span> {
    if !tracing.is_on() {
        return None;
    }
    let caller = tracing.named_by(&HeaderExtractor(request.headers()));
    let method = known_method(request.method());
    // By the conventions, the span of an unknown method is named "HTTP".
    let shown = if method.starts_with('_') { "HTTP" } else { method };
    let name = match (shown, route) {
        ("POST", Some("/likes")) => "POST /likes".into(),
        (_, Some(route)) => format!("{shown} {route}").into(),
        (_, None) => shown.into(),
    };
    let start = SpanStart {
        name,
        kind: SpanKind::Server,
        parent: caller.as_ref(),
        links: Links::default(),
        at: SystemTime::now(),
    };
    tracing.start(start, || {
        let mut attributes = vec![
            KeyValue::new(names::HTTP_REQUEST_METHOD, method),
            KeyValue::new(names::URL_SCHEME, scheme),
            KeyValue::new(names::URL_PATH, cut(request.uri().path(), MAX_PATH_CHARS)),
            KeyValue::new(names::NETWORK_PROTOCOL_VERSION, version(request.version())),
        ];
        attributes.extend(route.map(|route| KeyValue::new(names::HTTP_ROUTE, route)));
        attributes.extend(user_agent(request.headers()));
        let peer = request.extensions().get().map(|Peer(address)| address.to_string());
        attributes.extend(peer.map(|address| KeyValue::new(names::CLIENT_ADDRESS, address)));
        attributes
    })
}

/// Ends the span of a request. Only a 5xx status is an error.
pub(super) fn end(span: Option<Span>, status: StatusCode, problem: Option<&'static str>) {
    let Some(span) = span else { return };
    span.set(names::HTTP_RESPONSE_STATUS_CODE, i64::from(status.as_u16()));
    if let Some(code) = problem.filter(|_| status.is_server_error()) {
        span.failed_with(code);
    }
}

/// Returns the span context to publish likes with.
pub(super) fn context(span: Option<&Span>) -> RequestSpan {
    span.map(|span| Box::new(span.context()))
}

fn user_agent(headers: &HeaderMap) -> Option<KeyValue> {
    let agent = headers.get(header::USER_AGENT)?.to_str().ok()?;
    Some(KeyValue::new(names::USER_AGENT_ORIGINAL, cut(agent, MAX_USER_AGENT_CHARS)))
}

fn cut(text: &str, max_chars: usize) -> String {
    text.chars().take(max_chars).collect()
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    }
}
