//! Collector that stores the received telemetry: OTLP over gRPC and HTTP on one port, with or without TLS.

use std::{
    collections::BTreeMap,
    io::Read,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use opentelemetry_proto::tonic::{
    collector::{
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::{KeyValue, any_value},
    metrics::v1::Metric,
    trace::v1::Span,
};
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response as Answer, Status, codec::CompressionEncoding, service::Routes};

/// Collector that runs until it is dropped.
pub(crate) struct Collector {
    address: SocketAddr,
    scheme: &'static str,
    received: Received,
    _serving: AbortOnDropHandle<()>,
}

/// Received telemetry.
#[derive(Clone, Default)]
struct Received(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    spans: Vec<Seen>,
    metrics: Vec<Metric>,
    headers: Vec<HeaderMap>,
    resources: Vec<Attributes>,
}

pub(crate) type Attributes = BTreeMap<String, String>;

/// Span with the name of its service.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) service: String,
    pub(crate) span: Span,
}

impl Seen {
    pub(crate) fn attributes(&self) -> Attributes {
        attributes(&self.span.attributes)
    }
}

impl Collector {
    pub(crate) async fn start() -> Self {
        Self::serve("http", None).await
    }

    pub(crate) async fn with_tls(acceptor: TlsAcceptor) -> Self {
        Self::serve("https", Some(acceptor)).await
    }

    async fn serve(scheme: &'static str, tls: Option<TlsAcceptor>) -> Self {
        let received = Received::default();
        let traces = TraceServiceServer::new(received.clone()).accept_compressed(CompressionEncoding::Gzip);
        let metrics =
            MetricsServiceServer::new(received.clone()).accept_compressed(CompressionEncoding::Gzip);
        let http = Router::new()
            .route("/v1/traces", post(http_traces))
            .route("/v1/metrics", post(http_metrics))
            .with_state(received.clone());
        let router = Routes::new(traces).add_service(metrics).into_axum_router().merge(http);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accept = async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve_connection(stream, tls.clone(), router.clone()));
            }
        };
        Self { address, scheme, received, _serving: AbortOnDropHandle::new(tokio::spawn(accept)) }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://localhost:{}", self.scheme, self.address.port())
    }

    pub(crate) fn spans(&self) -> Vec<Seen> {
        self.received.lock().spans.clone()
    }

    /// Spans of a service with this name.
    pub(crate) fn spans_named(&self, service: &str, name: &str) -> Vec<Seen> {
        let spans = self.spans().into_iter();
        spans.filter(|seen| seen.service == service && seen.span.name == name).collect()
    }

    pub(crate) fn metrics(&self) -> Vec<Metric> {
        self.received.lock().metrics.clone()
    }

    pub(crate) fn headers(&self) -> Vec<HeaderMap> {
        self.received.lock().headers.clone()
    }

    pub(crate) fn resources(&self) -> Vec<Attributes> {
        self.received.lock().resources.clone()
    }
}

async fn serve_connection(stream: TcpStream, tls: Option<TlsAcceptor>, router: Router) {
    let server = auto::Builder::new(TokioExecutor::new());
    let service = TowerToHyperService::new(router);
    match tls {
        None => drop(server.serve_connection(TokioIo::new(stream), service).await),
        Some(acceptor) => {
            if let Ok(stream) = acceptor.accept(stream).await {
                drop(server.serve_connection(TokioIo::new(stream), service).await);
            }
        }
    }
}

impl Received {
    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_traces(&self, headers: HeaderMap, request: ExportTraceServiceRequest) {
        let mut state = self.lock();
        state.headers.push(headers);
        for of_resource in request.resource_spans {
            let resource = of_resource.resource.unwrap_or_default();
            let resource = attributes(&resource.attributes);
            let service = resource.get("service.name").cloned().unwrap_or_default();
            state.resources.push(resource);
            let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            state.spans.extend(spans.map(|span| Seen { service: service.clone(), span }));
        }
    }

    fn take_metrics(&self, headers: HeaderMap, request: ExportMetricsServiceRequest) {
        let mut state = self.lock();
        state.headers.push(headers);
        for of_resource in request.resource_metrics {
            let resource = of_resource.resource.unwrap_or_default();
            state.resources.push(attributes(&resource.attributes));
            state.metrics.extend(of_resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics));
        }
    }
}

pub(crate) fn attributes(attributes: &[KeyValue]) -> Attributes {
    let text = |value: &KeyValue| match value.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::BoolValue(is_so)) => is_so.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), text(attribute))).collect()
}

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Answer<ExportTraceServiceResponse>, Status> {
        let headers = request.metadata().clone().into_headers();
        self.take_traces(headers, request.into_inner());
        Ok(Answer::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Received {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Answer<ExportMetricsServiceResponse>, Status> {
        let headers = request.metadata().clone().into_headers();
        self.take_metrics(headers, request.into_inner());
        Ok(Answer::new(ExportMetricsServiceResponse::default()))
    }
}

async fn http_traces(State(received): State<Received>, headers: HeaderMap, body: Bytes) -> Response {
    let Some(request) = decode(&headers, &body) else { return StatusCode::BAD_REQUEST.into_response() };
    received.take_traces(headers, request);
    ExportTraceServiceResponse::default().encode_to_vec().into_response()
}

async fn http_metrics(State(received): State<Received>, headers: HeaderMap, body: Bytes) -> Response {
    let Some(request) = decode(&headers, &body) else { return StatusCode::BAD_REQUEST.into_response() };
    received.take_metrics(headers, request);
    ExportMetricsServiceResponse::default().encode_to_vec().into_response()
}

fn decode<M: Message + Default>(headers: &HeaderMap, body: &[u8]) -> Option<M> {
    if headers.get(header::CONTENT_TYPE)? != "application/x-protobuf" {
        return None;
    }
    let is_gzip = headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding == "gzip");
    let mut plain = Vec::new();
    if is_gzip {
        flate2::read::GzDecoder::new(body).read_to_end(&mut plain).ok()?;
    } else {
        plain.extend_from_slice(body);
    }
    M::decode(plain.as_slice()).ok()
}
