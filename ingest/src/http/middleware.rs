//! Middleware of every request: admission, request id, problem rendering, metrics and span.

use std::{mem, sync::Arc, time::Instant};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode},
    middleware::Next,
    response::{IntoResponse, Response},
};
use shared::telemetry::spans::{self, Span};
use uuid::Uuid;

use super::{
    problem::{Kind, Problem},
    service::Service,
    trace::{self, known_route},
};
use crate::{
    metrics::{Answered, Metrics},
    publish::sink::LikeSink,
};

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_REQUEST_ID_BYTES: usize = 128;

/// Admits a request, renders its problem if there is one, adds the request id to the response, and records metrics and the span.
pub(super) async fn handle<S: LikeSink>(
    State(service): State<Arc<Service<S>>>,
    mut request: Request,
    next: Next,
) -> Response {
    let began = Instant::now();
    let _in_flight = service.requests.token();
    let id = request_id(request.headers());
    let route = known_route(request.uri().path());
    let active = Active::new(&service.metrics, request.method());
    let span = trace::start(&service.tracing, &request, route, service.metrics.scheme());
    if let Some(span) = &span {
        request.extensions_mut().insert(span.clone());
    }
    let (permit, response) = match service.admit(&request) {
        Ok(permit) => (Some(permit), next.run(request).await),
        Err(problem) => (None, problem.into_response()),
    };
    let (mut response, problem) = render_problem(response, &id, span.as_ref());
    response.headers_mut().insert(REQUEST_ID, id);
    // Held until the response is sent.
    response.extensions_mut().insert(Arc::new(permit));
    let status = response.status();
    service.metrics.answered(&Answered {
        method: active.method(),
        route: route.filter(|_| status != StatusCode::NOT_FOUND),
        status,
        problem,
        took: began.elapsed(),
    });
    trace::end(span, status, problem);
    response
}

/// Renders the problem of a response, if it has one, and returns its code.
fn render_problem(
    mut response: Response,
    id: &HeaderValue,
    span: Option<&Span>,
) -> (Response, Option<&'static str>) {
    let Some(problem) = response.extensions_mut().remove::<Problem>() else { return (response, None) };
    let code = problem.code();
    let trace_id = spans::trace_id(span);
    let request_id = String::from_utf8_lossy(id.as_bytes());
    let request_id = request_id.as_ref();
    if code == Kind::Internal.code() {
        tracing::error!(request_id, trace_id, "request failed because of a bug");
    } else {
        tracing::debug!(request_id, code, trace_id, "request refused");
    }
    let headers = mem::take(response.headers_mut());
    let mut rendered = problem.render(id.to_str().unwrap_or_default(), headers);
    *rendered.extensions_mut() = mem::take(response.extensions_mut());
    (rendered, Some(code))
}

/// A request without a response. Counted by a guard, because the client can disconnect at any time.
struct Active {
    metrics: Arc<Metrics>,
    method: Method,
}

impl Active {
    fn new(metrics: &Arc<Metrics>, method: &Method) -> Self {
        metrics.request_began(method);
        Self { metrics: Arc::clone(metrics), method: method.clone() }
    }

    fn method(&self) -> &Method {
        &self.method
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.metrics.request_ended(&self.method);
    }
}

/// Returns the client's request id if it is short visible ASCII, otherwise a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let is_harmless = |id: &&HeaderValue| {
        (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    headers.get(REQUEST_ID).filter(is_harmless).cloned().unwrap_or_else(|| {
        let mut text = Uuid::encode_buffer();
        let text = Uuid::new_v4().simple().encode_lower(&mut text);
        HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_valid_request_ids_are_echoed() {
        let id = |value: &[u8]| {
            request_id(&HeaderMap::from_iter([(REQUEST_ID, HeaderValue::from_bytes(value).unwrap())]))
        };
        assert_eq!(id(b"order-7"), "order-7");
        for other in [&b""[..], b"two words", "\u{e9}".as_bytes(), &[b'x'; MAX_REQUEST_ID_BYTES + 1]] {
            let new = id(other);
            assert!(new.len() == 32 && new.as_bytes() != other, "{other:?}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
