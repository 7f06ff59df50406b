//! Metrics of ingest. docs/metrics.md describes them.

use std::{sync::Arc, time::Duration};

use axum::http::{Method, StatusCode};
use opentelemetry::{
    KeyValue,
    metrics::{
        AsyncInstrument, BoundHistogram, BoundUpDownCounter, Counter, Histogram, Meter, UpDownCounter,
    },
};
use shared::{
    telemetry::{
        counting,
        names::{self, metric},
    },
    wire::partition::KeyPrefix,
};

use crate::backlog::Backlog;

/// Histogram boundaries in seconds: those of the semantic conventions, and more in the range of most responses.
const REQUEST_BOUNDARIES: [f64; 17] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// Histogram boundaries in seconds.
const APPEND_BOUNDARIES: [f64; 12] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// Label of unknown methods, by the semantic conventions, so that clients cannot create label values.
const OTHER_METHOD: &str = "_OTHER";

/// Instruments of ingest.
pub(crate) struct Metrics {
    request_duration: Histogram<f64>,
    /// Bound to the attributes of accepted likes, which are nearly all requests.
    like_duration: BoundHistogram<f64>,
    active_requests: UpDownCounter<i64>,
    active_posts: BoundUpDownCounter<i64>,
    scheme: &'static str,
    accepted: Counter<u64>,
    refused: Counter<u64>,
    sent: Counter<u64>,
    append_retries: Counter<u64>,
    append_duration: Histogram<f64>,
    append: [KeyValue; 4],
    connections: UpDownCounter<i64>,
}

/// A request and its response.
pub(crate) struct Answered<'a> {
    pub(crate) method: &'a Method,
    /// `None` if the path is unknown.
    pub(crate) route: Option<&'static str>,
    pub(crate) status: StatusCode,
    /// Code of the problem, if there is one.
    pub(crate) problem: Option<&'static str>,
    pub(crate) took: Duration,
}

impl Metrics {
    /// Creates the instruments. `scheme` is http or https; `codes` are the codes of all problems.
    pub(crate) fn new(
        meter: &Meter,
        scheme: &'static str,
        keys: &KeyPrefix,
        codes: impl Iterator<Item = &'static str>,
    ) -> Self {
        let counter = |name, what| counting::counter(meter, name, what, &[]);
        let codes: Vec<_> = codes.map(|code| KeyValue::new(names::CODE, code)).collect();
        let request_duration = seconds(
            meter,
            names::HTTP_SERVER_REQUEST_DURATION,
            "Duration of requests, from the head of the request to the head of the response",
            &REQUEST_BOUNDARIES,
        );
        let active_requests = meter
            .i64_up_down_counter(names::HTTP_SERVER_ACTIVE_REQUESTS)
            .with_unit("{request}")
            .with_description("Requests in flight")
            .build();
        let append = append_attributes(keys);
        let sent = counting::message_counter(
            meter,
            names::MESSAGING_CLIENT_SENT_MESSAGES,
            "Entries sent to Redis; those with an error_type were not confirmed",
            &append[..3],
        );
        let accepted = answer_attributes(scheme, "POST", Some("/likes"), StatusCode::ACCEPTED, None);
        Self {
            like_duration: request_duration.bind(&accepted),
            request_duration,
            active_posts: active_requests.bind(&active_attributes("POST", scheme)),
            active_requests,
            scheme,
            accepted: counter(metric::LIKES_ACCEPTED, "Likes accepted by Redis"),
            refused: counting::counter(
                meter,
                metric::REQUESTS_REFUSED,
                "Requests refused, by problem code",
                &codes,
            ),
            sent,
            append_retries: counter(
                metric::APPEND_RETRIES,
                "Retries of appends; after a lost reply the entry may be in the stream twice",
            ),
            append_duration: seconds(
                meter,
                names::MESSAGING_CLIENT_OPERATION_DURATION,
                "Duration of Redis commands",
                &APPEND_BOUNDARIES,
            ),
            append,
            connections: meter
                .i64_up_down_counter(metric::CONNECTIONS_OPEN)
                .with_description("Open client connections")
                .build(),
        }
    }

    /// Registers gauges of the backlog. The backlog has no value while it is unknown.
    pub(crate) fn observe_backlog(meter: &Meter, backlog: &Arc<Backlog>) {
        let gauge =
            |name: &'static str, what: &'static str| meter.u64_observable_gauge(name).with_description(what);
        let entries = Arc::clone(backlog);
        let full = Arc::clone(backlog);
        let lost = Arc::clone(backlog);
        let limit = backlog.limit();
        gauge(metric::BACKLOG, "Entries not stored yet, of the slowest of all groups")
            .with_callback(move |observer: &dyn AsyncInstrument<u64>| {
                if let Some(entries) = entries.entries() {
                    observer.observe(entries, &[]);
                }
            })
            .build();
        gauge(metric::BACKLOG_FULL, "1 while likes are refused because of INGEST_BACKLOG_LIMIT, otherwise 0")
            .with_callback(move |observer: &dyn AsyncInstrument<u64>| {
                observer.observe(full.is_full().into(), &[]);
            })
            .build();
        meter
            .u64_observable_counter(metric::STREAMS_LOST)
            .with_description("Streams that vanished from Redis or went back to an earlier state: data loss")
            .with_callback(move |observer: &dyn AsyncInstrument<u64>| {
                observer.observe(lost.lost_streams(), &[]);
            })
            .build();
        gauge(metric::BACKLOG_LIMIT, "Value of INGEST_BACKLOG_LIMIT")
            .with_callback(move |observer: &dyn AsyncInstrument<u64>| observer.observe(limit, &[]))
            .build();
    }

    pub(crate) fn scheme(&self) -> &'static str {
        self.scheme
    }

    pub(crate) fn request_began(&self, method: &Method) {
        self.active(method, 1);
    }

    pub(crate) fn request_ended(&self, method: &Method) {
        self.active(method, -1);
    }

    fn active(&self, method: &Method, change: i64) {
        if method == Method::POST {
            self.active_posts.add(change);
        } else {
            self.active_requests.add(change, &active_attributes(known_method(method), self.scheme));
        }
    }

    pub(crate) fn answered(&self, answered: &Answered<'_>) {
        let Answered { method, route, status, problem, took } = *answered;
        let seconds = took.as_secs_f64();
        if status == StatusCode::ACCEPTED && route == Some("/likes") {
            self.like_duration.record(seconds);
            return;
        }
        let attributes = answer_attributes(self.scheme, known_method(method), route, status, problem);
        self.request_duration.record(seconds, &attributes);
        if let Some(code) = problem {
            self.refused.add(1, &[KeyValue::new(names::CODE, code)]);
        }
    }

    pub(crate) fn entry_appended(&self, likes: u64, took: Duration) {
        self.accepted.add(likes, &[]);
        self.sent.add(1, &self.append[..3]);
        self.append_duration.record(took.as_secs_f64(), &self.append);
    }

    pub(crate) fn append_retried(&self, times: u64) {
        self.append_retries.add(times, &[]);
    }

    /// Records a failed append. `error_type` is a label value, so it must be one of a small set.
    pub(crate) fn append_failed(&self, error_type: &'static str, took: Duration) {
        let error = KeyValue::new(names::ERROR_TYPE, error_type);
        let with_error = |attributes: &[KeyValue]| [attributes, std::slice::from_ref(&error)].concat();
        self.sent.add(1, &with_error(&self.append[..3]));
        self.append_duration.record(took.as_secs_f64(), &with_error(&self.append));
    }

    pub(crate) fn connection_opened(&self) {
        self.connections.add(1, &[]);
    }

    pub(crate) fn connection_closed(&self) {
        self.connections.add(-1, &[]);
    }
}

/// Returns the label value of a method.
pub(crate) fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        Method::TRACE => "TRACE",
        Method::CONNECT => "CONNECT",
        _ => OTHER_METHOD,
    }
}

fn seconds(meter: &Meter, name: &'static str, what: &'static str, boundaries: &[f64]) -> Histogram<f64> {
    let histogram = meter.f64_histogram(name).with_unit("s").with_description(what);
    histogram.with_boundaries(boundaries.into()).build()
}

fn append_attributes(keys: &KeyPrefix) -> [KeyValue; 4] {
    [
        KeyValue::new(names::MESSAGING_SYSTEM, names::REDIS),
        KeyValue::new(names::MESSAGING_DESTINATION_TEMPLATE, keys.stream_template()),
        KeyValue::new(names::MESSAGING_OPERATION_NAME, "XADD"),
        KeyValue::new(names::MESSAGING_OPERATION_TYPE, "send"),
    ]
}

fn active_attributes(method: &'static str, scheme: &'static str) -> [KeyValue; 2] {
    [KeyValue::new(names::HTTP_REQUEST_METHOD, method), KeyValue::new(names::URL_SCHEME, scheme)]
}

fn answer_attributes(
    scheme: &'static str,
    method: &'static str,
    route: Option<&'static str>,
    status: StatusCode,
    problem: Option<&'static str>,
) -> Vec<KeyValue> {
    let mut attributes = active_attributes(method, scheme).to_vec();
    attributes.extend(route.map(|route| KeyValue::new(names::HTTP_ROUTE, route)));
    attributes.push(KeyValue::new(names::HTTP_RESPONSE_STATUS_CODE, i64::from(status.as_u16())));
    let failed = problem.filter(|_| status.is_server_error());
    attributes.extend(failed.map(|code| KeyValue::new(names::ERROR_TYPE, code)));
    attributes
}
