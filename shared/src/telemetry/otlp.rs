//! Export to a collector by OTLP, on a dedicated runtime, so that a slow collector delays nothing else.

use std::{collections::HashMap, future::Future, pin::Pin, time::Duration};

use http::{Request, Response};
use opentelemetry_http::{Bytes, HttpClient, HttpError};
use opentelemetry_otlp::{
    MetricExporter, Protocol, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
    tonic_types::{
        metadata::MetadataMap,
        transport::{Certificate, ClientTlsConfig, Identity},
    },
};
use opentelemetry_sdk::{
    metrics::PeriodicReader,
    trace::{BatchConfigBuilder, BatchSpanProcessor},
};
use tokio::runtime::{Builder, Handle, Runtime};

use super::{
    exporter_health::{ExportFailures, MonitoredExporter},
    otel_settings::{ExporterSettings, Signal},
    span_queue::SpanQueue,
};
use crate::{error_chain::one_line, settings::SettingError};

/// Time limit for the final exports at the end of a program.
pub(super) const FINAL_EXPORT_TIMEOUT: Duration = Duration::from_secs(3);

/// Maximum size of a response. Its contents are not needed.
const MAX_RESPONSE_BYTES: usize = 1 << 20;

/// The runtime of the exporters.
pub(super) struct ExportRuntime(Runtime);

impl ExportRuntime {
    pub(super) fn new() -> Result<Self, SettingError> {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("otlp").enable_all().build();
        runtime.map(Self).map_err(|error| SettingError::new("OTEL_EXPORTER_OTLP_ENDPOINT", one_line(&error)))
    }

    /// Returns a processor that exports spans in batches from the SDK's queue.
    pub(super) fn span_processor(
        &self,
        settings: &ExporterSettings,
        failures: ExportFailures,
        queue: SpanQueue,
    ) -> Result<BatchSpanProcessor, SettingError> {
        let _on_its_threads = self.0.enter();
        let built = if settings.protocol == Protocol::Grpc {
            with_grpc(SpanExporter::builder().with_tonic(), settings).build()
        } else {
            with_http(SpanExporter::builder().with_http(), settings, self.0.handle(), Signal::Traces)?.build()
        };
        let exporter = built.map_err(|error| refused(Signal::Traces, "ENDPOINT", &error))?;
        let exporter = MonitoredExporter::new(exporter, Signal::Traces, failures).draining(queue);
        let batches = BatchConfigBuilder::default().with_scheduled_delay(settings.interval).build();
        Ok(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
    }

    pub(super) fn metric_reader(
        &self,
        settings: &ExporterSettings,
        failures: ExportFailures,
    ) -> Result<PeriodicReader<MonitoredExporter<MetricExporter>>, SettingError> {
        let _on_its_threads = self.0.enter();
        let built = if settings.protocol == Protocol::Grpc {
            with_grpc(MetricExporter::builder().with_tonic(), settings).build()
        } else {
            with_http(MetricExporter::builder().with_http(), settings, self.0.handle(), Signal::Metrics)?
                .build()
        };
        let exporter = built.map_err(|error| refused(Signal::Metrics, "ENDPOINT", &error))?;
        let exporter = MonitoredExporter::new(exporter, Signal::Metrics, failures);
        Ok(PeriodicReader::builder(exporter).with_interval(settings.interval).build())
    }

    /// Stops the threads without waiting for exports in flight.
    pub(super) fn shut_down(self) {
        self.0.shutdown_background();
    }
}

fn refused(signal: Signal, setting: &str, error: &(dyn std::error::Error + 'static)) -> SettingError {
    SettingError::new(signal.variable(setting), one_line(error))
}

fn with_grpc<B: WithExportConfig + WithTonicConfig>(builder: B, settings: &ExporterSettings) -> B {
    let builder = builder
        .with_endpoint(settings.endpoint.to_string())
        .with_timeout(settings.timeout)
        .with_metadata(MetadataMap::from_headers(settings.headers.clone()));
    if settings.endpoint.scheme_str() != Some("https") {
        return builder;
    }
    let mut tls = match &settings.authorities {
        Some(authorities) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authorities)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    if let Some((certificate, key)) = &settings.identity {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    // The exporter's timeout starts only after the connection is made.
    builder.with_tls_config(tls.timeout(settings.timeout))
}

fn with_http<B: WithExportConfig + WithHttpConfig>(
    builder: B,
    settings: &ExporterSettings,
    runtime: &Handle,
    signal: Signal,
) -> Result<B, SettingError> {
    let text = |value: &http::HeaderValue| value.to_str().map(str::to_owned).unwrap_or_default();
    let headers: HashMap<String, String> =
        settings.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    Ok(builder
        .with_protocol(settings.protocol)
        .with_endpoint(settings.endpoint.to_string())
        .with_timeout(settings.timeout)
        .with_headers(headers)
        .with_http_client(RuntimeClient { client: http_client(settings, signal)?, runtime: runtime.clone() }))
}

fn http_client(settings: &ExporterSettings, signal: Signal) -> Result<reqwest::Client, SettingError> {
    let mut client =
        reqwest::Client::builder().timeout(settings.timeout).redirect(reqwest::redirect::Policy::none());
    if let Some(authorities) = &settings.authorities {
        let authorities = reqwest::Certificate::from_pem_bundle(authorities);
        client = client.tls_certs_only(authorities.map_err(|error| refused(signal, "CERTIFICATE", &error))?);
    }
    if let Some((certificate, key)) = &settings.identity {
        let identity = reqwest::Identity::from_pem(&[certificate.as_slice(), b"\n", key].concat());
        client = client.identity(identity.map_err(|error| refused(signal, "CLIENT_CERTIFICATE", &error))?);
    }
    client.build().map_err(|error| refused(signal, "ENDPOINT", &error))
}

/// Sends requests on the export runtime, because the SDK calls it on threads without tokio.
#[derive(Debug)]
struct RuntimeClient {
    client: reqwest::Client,
    runtime: Handle,
}

impl HttpClient for RuntimeClient {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        let client = self.client.clone();
        let sent = self.runtime.spawn(async move { send(&client, request).await });
        Box::pin(async move { sent.await? })
    }
}

async fn send(client: &reqwest::Client, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let mut received = client.execute(request.try_into()?).await?;
    let mut body = Vec::new();
    while let Some(part) = received.chunk().await? {
        if body.len() + part.len() > MAX_RESPONSE_BYTES {
            return Err("the collector's response is too long".into());
        }
        body.extend_from_slice(&part);
    }
    let mut response = Response::builder().status(received.status());
    if let Some(headers) = response.headers_mut() {
        *headers = std::mem::take(received.headers_mut());
    }
    Ok(response.body(body.into())?)
}
