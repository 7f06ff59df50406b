//! Export to a collector by OTLP, from threads of its own: whatever the collector does, nobody else waits.

use std::{collections::HashMap, future::Future, pin::Pin, time::Duration};

use http::{Request, Response};
use opentelemetry_http::{Bytes, HttpClient, HttpError};
use opentelemetry_otlp::{
    Compression, MetricExporter, Protocol as OtlpProtocol, SpanExporter, WithExportConfig, WithHttpConfig,
    WithTonicConfig,
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
    otel_args::Signal,
    otel_settings::{ExporterSettings, MetricSettings, Protocol, TraceSettings},
    span_queue::SpanQueue,
    watched::{Failures, Watched},
};
use crate::{error_chain::one_line, settings::SettingError};

/// The threads that export.
pub(super) struct Exporting(Runtime);

impl Exporting {
    pub(super) fn new() -> Result<Self, SettingError> {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("otlp").enable_all().build();
        runtime.map(Self).map_err(|error| SettingError::new("OTEL_EXPORTER_OTLP_ENDPOINT", one_line(&error)))
    }

    /// Spans wait in a queue, as many as have a place in it.
    pub(super) fn spans(
        &self,
        settings: &TraceSettings,
        failures: Failures,
        queue: SpanQueue,
    ) -> Result<BatchSpanProcessor, SettingError> {
        let _on_its_threads = self.0.enter();
        let exporter = &settings.exporter;
        let built = match exporter.protocol {
            Protocol::Grpc => with_grpc(SpanExporter::builder().with_tonic(), exporter).build(),
            Protocol::HttpProtobuf => {
                with_http(SpanExporter::builder().with_http(), exporter, self.0.handle(), Signal::Traces)?
                    .build()
            }
        };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(settings.max_queue_spans)
            .with_max_export_batch_size(settings.max_batch_spans)
            .with_scheduled_delay(settings.export_interval)
            .build();
        let exporter = built.map_err(|error| cannot_export(Signal::Traces, &error))?;
        let exporter = Watched::new(exporter, Signal::Traces, failures).emptying(queue);
        Ok(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
    }

    pub(super) fn metrics(
        &self,
        settings: &MetricSettings,
        failures: Failures,
    ) -> Result<PeriodicReader<Watched<MetricExporter>>, SettingError> {
        let _on_its_threads = self.0.enter();
        let exporter = &settings.exporter;
        let built = match exporter.protocol {
            Protocol::Grpc => {
                let builder = MetricExporter::builder().with_tonic().with_temporality(settings.temporality);
                with_grpc(builder, exporter).build()
            }
            Protocol::HttpProtobuf => {
                let builder = MetricExporter::builder().with_http().with_temporality(settings.temporality);
                with_http(builder, exporter, self.0.handle(), Signal::Metrics)?.build()
            }
        };
        let exporter = built.map_err(|error| cannot_export(Signal::Metrics, &error))?;
        let exporter = Watched::new(exporter, Signal::Metrics, failures);
        Ok(PeriodicReader::builder(exporter).with_interval(settings.export_interval).build())
    }

    /// Ends the threads, whatever they are in the middle of.
    pub(super) fn end(self) {
        self.0.shutdown_background();
    }
}

fn cannot_export(signal: Signal, error: &dyn std::error::Error) -> SettingError {
    SettingError::new(signal.own("ENDPOINT"), one_line(error))
}

fn with_grpc<B: WithExportConfig + WithTonicConfig>(builder: B, settings: &ExporterSettings) -> B {
    let mut builder = builder
        .with_endpoint(settings.endpoint.to_string())
        .with_timeout(settings.timeout)
        .with_metadata(MetadataMap::from_headers(settings.headers.clone()));
    if settings.endpoint.scheme_str() == Some("https") {
        let mut tls = match &settings.tls.authorities {
            Some(authorities) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authorities)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some((certificate, key)) = &settings.tls.identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        // The other timeout begins when there is a connection.
        builder = builder.with_tls_config(tls.timeout(settings.timeout));
    }
    if settings.gzip { builder.with_compression(Compression::Gzip) } else { builder }
}

fn with_http<B: WithExportConfig + WithHttpConfig>(
    builder: B,
    settings: &ExporterSettings,
    threads: &Handle,
    signal: Signal,
) -> Result<B, SettingError> {
    let text = |value: &http::HeaderValue| value.to_str().map(str::to_owned).unwrap_or_default();
    let headers: HashMap<String, String> =
        settings.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let builder = builder
        .with_protocol(OtlpProtocol::HttpBinary)
        .with_endpoint(settings.endpoint.to_string())
        .with_timeout(settings.timeout)
        .with_headers(headers)
        .with_http_client(OnThreads { client: http_client(settings, signal)?, threads: threads.clone() });
    Ok(if settings.gzip { builder.with_compression(Compression::Gzip) } else { builder })
}

fn http_client(settings: &ExporterSettings, signal: Signal) -> Result<reqwest::Client, SettingError> {
    let not_good =
        |setting: &str, error: &reqwest::Error| SettingError::new(signal.own(setting), one_line(error));
    let mut client =
        reqwest::Client::builder().timeout(settings.timeout).redirect(reqwest::redirect::Policy::none());
    if let Some(authorities) = &settings.tls.authorities {
        let authorities = reqwest::Certificate::from_pem_bundle(authorities);
        client = client.tls_certs_only(authorities.map_err(|error| not_good("CERTIFICATE", &error))?);
    }
    if let Some((certificate, key)) = &settings.tls.identity {
        let identity = reqwest::Identity::from_pem(&[certificate.as_slice(), b"\n", key].concat());
        client = client.identity(identity.map_err(|error| not_good("CLIENT_CERTIFICATE", &error))?);
    }
    client.build().map_err(|error| not_good("ENDPOINT", &error))
}

/// Sends on our threads: those that ask know nothing of tokio.
#[derive(Debug)]
struct OnThreads {
    client: reqwest::Client,
    threads: Handle,
}

/// An answer says little, and nothing that is needed.
const MAX_ANSWER_BYTES: usize = 1 << 20;

impl HttpClient for OnThreads {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        let client = self.client.clone();
        let sent = self.threads.spawn(async move { send(&client, request).await });
        Box::pin(async move { sent.await? })
    }
}

async fn send(client: &reqwest::Client, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let mut answer = client.execute(request.try_into()?).await?;
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await? {
        if body.len() + part.len() > MAX_ANSWER_BYTES {
            return Err("the collector's answer is too long".into());
        }
        body.extend_from_slice(&part);
    }
    let mut response = Response::builder().status(answer.status());
    if let Some(headers) = response.headers_mut() {
        *headers = std::mem::take(answer.headers_mut());
    }
    Ok(response.body(body.into())?)
}

/// How long what is still to be exported may take at the end of a program.
pub(super) const LAST_EXPORT: Duration = Duration::from_secs(3);
