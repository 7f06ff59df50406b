//! The environment variables of OpenTelemetry that the services read. They have no flags.
//!
//! The documentation is generated from this list. A test of `otel_settings` compares it with the variables that are read.

/// An environment variable, with its default and its meaning.
pub struct OtelVariable {
    pub name: String,
    /// `None` if the default is not a constant. It then stands at the end of `help`, as in the help of options.
    pub default: Option<&'static str>,
    pub help: String,
}

/// Name, default and meaning.
type Row = (&'static str, Option<&'static str>, &'static str);

const GENERAL: [Row; 17] = [
    (
        "OTEL_SDK_DISABLED",
        Some("false"),
        "Disables all exports, even if other variables enable them: true or false",
    ),
    (
        "OTEL_TRACES_EXPORTER",
        None,
        "Exporters of traces: otlp or none [default: otlp if an endpoint is set, else none]",
    ),
    (
        "OTEL_METRICS_EXPORTER",
        None,
        "Exporters of metrics: otlp, none or prometheus (/metrics, which is always served) [default: otlp if an endpoint is \
         set, else none]",
    ),
    ("OTEL_LOGS_EXPORTER", Some("none"), "Exporters of logs: none"),
    (
        "OTEL_PROPAGATORS",
        Some("tracecontext,baggage"),
        "Propagators: tracecontext (trace contexts of clients and of entries are accepted), baggage (has no effect) or none",
    ),
    ("OTEL_SERVICE_NAME", None, "Value of service.name in traces and metrics [default: name of the program]"),
    (
        "OTEL_RESOURCE_ATTRIBUTES",
        None,
        "Attributes of the program as key=value,key=value with values percent-encoded, such as \
         deployment.environment.name=production",
    ),
    (
        "OTEL_TRACES_SAMPLER",
        Some("parentbased_always_on"),
        "Sampler: always_on, always_off or traceidratio; with the prefix parentbased_, the sampling decision of the client wins",
    ),
    ("OTEL_TRACES_SAMPLER_ARG", Some("1"), "Ratio of traceidratio, from 0 to 1"),
    ("OTEL_SPAN_LINK_COUNT_LIMIT", Some("128"), "Maximum number of links of a span, up to 1024"),
    ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", Some("128"), "Maximum number of attributes of a span"),
    ("OTEL_SPAN_EVENT_COUNT_LIMIT", Some("128"), "Maximum number of events of a span"),
    ("OTEL_BSP_SCHEDULE_DELAY", Some("5s"), "Interval between exports of spans"),
    (
        "OTEL_BSP_MAX_QUEUE_SIZE",
        Some("2048"),
        "Maximum number of spans that wait for export, up to 65536; more are dropped",
    ),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", Some("512"), "Maximum number of spans per export, up to 65536"),
    ("OTEL_METRIC_EXPORT_INTERVAL", Some("1m"), "Interval between exports of metrics"),
    (
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
        Some("cumulative"),
        "Temporality of exported metrics: cumulative, delta or lowmemory",
    ),
];

/// Each setting exists for all signals, and for traces and for metrics alone.
const EXPORTER: [Row; 9] = [
    (
        "ENDPOINT",
        None,
        "URL of the collector. Over HTTP, /v1/traces or /v1/metrics is appended; an endpoint for traces \
         or metrics only is used unchanged [default: none; if an exporter is otlp, http://localhost:4318, with grpc http://localhost:4317]",
    ),
    ("PROTOCOL", Some("http/protobuf"), "Protocol: grpc or http/protobuf"),
    (
        "HEADERS",
        None,
        "Headers as name=value,name=value with values percent-encoded, such as authorization=Bearer%20…; never logged",
    ),
    ("TIMEOUT", Some("10s"), "Maximum time of an export"),
    ("COMPRESSION", Some("none"), "Compression: gzip or none"),
    (
        "CERTIFICATE",
        None,
        "Path of a PEM file with the trusted certificate authorities [default: those of the system]",
    ),
    ("CLIENT_CERTIFICATE", None, "Path of a PEM file with the client certificate"),
    ("CLIENT_KEY", None, "Path of a PEM file with the private key of the client certificate"),
    (
        "INSECURE",
        Some("false"),
        "No TLS if the protocol is grpc and the endpoint has no scheme: true or false",
    ),
];

/// Returns all variables: those for all signals first, then those for one signal.
pub fn otel_variables() -> Vec<OtelVariable> {
    let general =
        GENERAL.into_iter().map(|(name, default, help)| (name.to_owned(), default, help.to_owned()));
    let exporter = EXPORTER
        .into_iter()
        .map(|(setting, default, help)| (format!("OTEL_EXPORTER_OTLP_{setting}"), default, help.to_owned()));
    let of_signals = ["traces", "metrics"].into_iter().flat_map(|signal| {
        EXPORTER.into_iter().map(move |(setting, _, _)| {
            let name = format!("OTEL_EXPORTER_OTLP_{}_{setting}", signal.to_uppercase());
            (name, None, format!("OTEL_EXPORTER_OTLP_{setting} for {signal} only"))
        })
    });
    let all = general.chain(exporter).chain(of_signals);
    all.map(|(name, default, help)| OtelVariable { name, default, help }).collect()
}
