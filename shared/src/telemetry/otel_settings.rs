//! What the standard variables of OpenTelemetry say, read and checked.

use std::{fs, path::Path, str::FromStr, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use opentelemetry::KeyValue;
use opentelemetry_sdk::{metrics::Temporality, trace::Sampler};
use percent_encoding::percent_decode_str;

use super::otel_args::{OtelArgs, Signal};
use crate::{cli::SettingError, config};

/// All of it.
pub(super) struct OtelSettings {
    pub(super) service_name: Option<String>,
    pub(super) attributes: Vec<KeyValue>,
    /// Whether trace contexts are taken from callers and entries.
    pub(super) takes_contexts: bool,
    /// Nothing where nothing is exported.
    pub(super) traces: Option<TraceSettings>,
    pub(super) metrics: Option<MetricSettings>,
}

pub(super) struct TraceSettings {
    pub(super) exporter: ExporterSettings,
    pub(super) sampler: Sampler,
    pub(super) max_links: u32,
    pub(super) export_interval: Duration,
    pub(super) max_queue_spans: usize,
    pub(super) max_batch_spans: usize,
}

pub(super) struct MetricSettings {
    pub(super) exporter: ExporterSettings,
    pub(super) export_interval: Duration,
    pub(super) temporality: Temporality,
}

/// Where a signal goes, and how.
pub(super) struct ExporterSettings {
    pub(super) protocol: Protocol,
    /// With the path, where it is spoken to by HTTP.
    pub(super) endpoint: Uri,
    pub(super) headers: HeaderMap,
    pub(super) timeout: Duration,
    pub(super) gzip: bool,
    pub(super) tls: TlsFiles,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Grpc,
    HttpProtobuf,
}

/// What PEM files hold.
#[derive(Default)]
pub(super) struct TlsFiles {
    pub(super) authorities: Option<Vec<u8>>,
    /// Certificate and key.
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl OtelSettings {
    /// # Errors
    /// For the first variable that can't be used.
    pub(super) fn read(args: &OtelArgs) -> Result<Self, SettingError> {
        let enabled = !boolean(args, "OTEL_SDK_DISABLED")?;
        let (traces, metrics) = (read_traces(args)?, read_metrics(args)?);
        choice(args, "OTEL_LOGS_EXPORTER", &[("none", ())], ())?;
        Ok(Self {
            service_name: args.get("OTEL_SERVICE_NAME").map(str::to_owned),
            attributes: read_attributes(args)?,
            takes_contexts: read_propagators(args)?,
            traces: traces.filter(|_| enabled),
            metrics: metrics.filter(|_| enabled),
        })
    }
}

fn read_traces(args: &OtelArgs) -> Result<Option<TraceSettings>, SettingError> {
    let is_on = is_exported(args, Signal::Traces, &[("otlp", true), ("none", false)])?;
    let max_queue_spans = number(args, "OTEL_BSP_MAX_QUEUE_SIZE", 2_048, 1, 1_000_000)?;
    let settings = TraceSettings {
        exporter: read_exporter(args, Signal::Traces)?,
        sampler: read_sampler(args)?,
        max_links: u32::try_from(number(args, "OTEL_SPAN_LINK_COUNT_LIMIT", 128, 0, 10_000)?)
            .unwrap_or(u32::MAX),
        export_interval: duration(args, "OTEL_BSP_SCHEDULE_DELAY", Duration::from_secs(5))?,
        max_queue_spans,
        max_batch_spans: number(args, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512, 1, 1_000_000)?
            .min(max_queue_spans),
    };
    Ok(is_on.then_some(settings))
}

fn read_metrics(args: &OtelArgs) -> Result<Option<MetricSettings>, SettingError> {
    let is_on =
        is_exported(args, Signal::Metrics, &[("otlp", true), ("none", false), ("prometheus", false)])?;
    let temporalities = [
        ("cumulative", Temporality::Cumulative),
        ("delta", Temporality::Delta),
        ("lowmemory", Temporality::LowMemory),
    ];
    let preference = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
    let settings = MetricSettings {
        exporter: read_exporter(args, Signal::Metrics)?,
        export_interval: duration(args, "OTEL_METRIC_EXPORT_INTERVAL", Duration::from_mins(1))?,
        temporality: choice(args, preference, &temporalities, Temporality::Cumulative)?,
    };
    Ok(is_on.then_some(settings))
}

fn read_exporter(args: &OtelArgs, signal: Signal) -> Result<ExporterSettings, SettingError> {
    let protocols = [("grpc", Protocol::Grpc), ("http/protobuf", Protocol::HttpProtobuf)];
    let (name, value) = of_exporter(args, signal, "PROTOCOL");
    let protocol = choose(&name, value, &protocols, Protocol::HttpProtobuf)?;
    let (name, value) = of_exporter(args, signal, "COMPRESSION");
    let gzip = choose(&name, value, &[("gzip", true), ("none", false)], false)?;
    let (name, value) = of_exporter(args, signal, "TIMEOUT");
    let timeout = value.map_or(Ok(Duration::from_secs(10)), |value| parse_duration(&name, value))?;
    Ok(ExporterSettings {
        protocol,
        endpoint: read_endpoint(args, signal, protocol)?,
        headers: read_headers(args, signal)?,
        timeout,
        gzip,
        tls: read_tls(args, signal)?,
    })
}

/// The variable that has the word on it, and its value.
fn of_exporter<'a>(args: &'a OtelArgs, signal: Signal, setting: &str) -> (String, Option<&'a str>) {
    match args.of_exporter(signal, setting) {
        Some((name, value)) => (name, Some(value)),
        None => (signal.own(setting), None),
    }
}

/// With HTTP a signal has a path of its own below the endpoint for all, but an endpoint of its own is taken as it is.
fn read_endpoint(args: &OtelArgs, signal: Signal, protocol: Protocol) -> Result<Uri, SettingError> {
    let (name, given) = of_exporter(args, signal, "ENDPOINT");
    let default = match protocol {
        Protocol::Grpc => "http://localhost:4317",
        Protocol::HttpProtobuf => "http://localhost:4318",
    };
    let mut text = given.unwrap_or(default).to_owned();
    if !text.contains("://") && protocol == Protocol::Grpc {
        let (name, value) = of_exporter(args, signal, "INSECURE");
        let insecure = choose(&name, value, &[("true", true), ("false", false)], false)?;
        text = format!("{}://{text}", if insecure { "http" } else { "https" });
    }
    let is_own = given.is_some() && name == signal.own("ENDPOINT");
    if protocol == Protocol::HttpProtobuf && !is_own {
        text = format!("{}/v1/{}", text.trim_end_matches('/'), signal.name().to_lowercase());
    }
    let uri: Option<Uri> = text.parse().ok();
    let is_endpoint = |uri: &Uri| {
        uri.authority().is_some_and(|who| !who.as_str().contains('@'))
            && matches!(uri.scheme_str(), Some("http" | "https"))
    };
    uri.filter(is_endpoint).ok_or_else(|| {
        let problem = format!(
            "'{}' is not valid: allowed is a URL like http://collector:4318 or https://collector:4317, without a password: that goes into OTEL_EXPORTER_OTLP_HEADERS",
            without_password(given.unwrap_or(default))
        );
        SettingError::new(name, problem)
    })
}

fn without_password(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}://…{}", &url[..scheme], &url[at..]),
        (None, Some(at)) => format!("…{}", &url[at..]),
        _ => url.to_owned(),
    }
}

/// As in W3C Baggage: `key=value`, percent-encoded, divided by commas. What is wrong with them is said without them.
fn read_headers(args: &OtelArgs, signal: Signal) -> Result<HeaderMap, SettingError> {
    let (name, value) = of_exporter(args, signal, "HEADERS");
    let mut headers = HeaderMap::new();
    for pair in value.unwrap_or_default().split(',').filter(|pair| !pair.trim().is_empty()) {
        let parsed = pair.split_once('=').and_then(|(key, value)| {
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
            let mut value = HeaderValue::from_str(&value).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::from_str(key.trim()).ok()?, value))
        });
        let Some((key, value)) = parsed else {
            return Err(SettingError::new(
                name,
                "allowed is name=value,name=value with values percent-encoded",
            ));
        };
        headers.append(key, value);
    }
    Ok(headers)
}

fn read_tls(args: &OtelArgs, signal: Signal) -> Result<TlsFiles, SettingError> {
    let read = |setting| {
        let (name, file) = of_exporter(args, signal, setting);
        file.map(|file| {
            let failed = |error| SettingError::new(name.clone(), format!("'{file}' can't be read: {error}"));
            let pem = fs::read(Path::new(file)).map_err(failed)?;
            let is_pem = pem.windows(11).any(|part| part == b"-----BEGIN ");
            let none = || SettingError::new(name.clone(), format!("'{file}' has nothing in PEM"));
            if is_pem { Ok(pem) } else { Err(none()) }
        })
        .transpose()
    };
    let identity = match (read("CLIENT_CERTIFICATE")?, read("CLIENT_KEY")?) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            let problem = "allowed is a certificate with OTEL_EXPORTER_OTLP_CLIENT_KEY, or neither";
            return Err(SettingError::new("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", problem));
        }
    };
    Ok(TlsFiles { authorities: read("CERTIFICATE")?, identity })
}

/// Without a word on it, what has an endpoint is exported.
fn is_exported(args: &OtelArgs, signal: Signal, exporters: &[(&str, bool)]) -> Result<bool, SettingError> {
    let name = format!("OTEL_{}_EXPORTER", signal.name());
    let Some(value) = args.get(&name) else { return Ok(args.of_exporter(signal, "ENDPOINT").is_some()) };
    let each = value.split(',').map(|exporter| choose(&name, Some(exporter.trim()), exporters, false));
    Ok(each.collect::<Result<Vec<bool>, _>>()?.contains(&true))
}

fn read_sampler(args: &OtelArgs) -> Result<Sampler, SettingError> {
    let ratio = args.get("OTEL_TRACES_SAMPLER_ARG").map_or(Ok(1.0), |value| {
        let ratio = value.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        ratio.ok_or_else(|| not_valid("OTEL_TRACES_SAMPLER_ARG", value, "a number from 0 to 1"))
    })?;
    let parent_based = |root| Sampler::ParentBased(Box::new(root));
    let ratio = Sampler::TraceIdRatioBased(ratio);
    let samplers = [
        ("always_on", Sampler::AlwaysOn),
        ("always_off", Sampler::AlwaysOff),
        ("traceidratio", ratio.clone()),
        ("parentbased_always_on", parent_based(Sampler::AlwaysOn)),
        ("parentbased_always_off", parent_based(Sampler::AlwaysOff)),
        ("parentbased_traceidratio", parent_based(ratio)),
    ];
    choice(args, "OTEL_TRACES_SAMPLER", &samplers, parent_based(Sampler::AlwaysOn))
}

fn read_propagators(args: &OtelArgs) -> Result<bool, SettingError> {
    let name = "OTEL_PROPAGATORS";
    let Some(value) = args.get(name) else { return Ok(true) };
    let known = [("tracecontext", true), ("baggage", false), ("none", false)];
    let each = value.split(',').map(|propagator| choose(name, Some(propagator.trim()), &known, false));
    Ok(each.collect::<Result<Vec<bool>, _>>()?.contains(&true))
}

/// `key=value`, percent-encoded, divided by commas.
fn read_attributes(args: &OtelArgs) -> Result<Vec<KeyValue>, SettingError> {
    let name = "OTEL_RESOURCE_ATTRIBUTES";
    let given = args.get(name).unwrap_or_default();
    let attribute = |pair: &str| {
        let (key, value) = pair.split_once('=').filter(|(key, _)| !key.trim().is_empty())?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        Some(KeyValue::new(key.trim().to_owned(), value.into_owned()))
    };
    let pairs = given.split(',').filter(|pair| !pair.trim().is_empty());
    pairs
        .map(|pair| {
            attribute(pair)
                .ok_or_else(|| not_valid(name, pair, "key=value,key=value with values percent-encoded"))
        })
        .collect()
}

fn boolean(args: &OtelArgs, name: &str) -> Result<bool, SettingError> {
    let value = args.get(name).map(str::to_lowercase);
    choose(name, value.as_deref(), &[("true", true), ("false", false)], false)
}

fn duration(args: &OtelArgs, name: &str, default: Duration) -> Result<Duration, SettingError> {
    args.get(name).map_or(Ok(default), |value| parse_duration(name, value))
}

/// The standard has milliseconds, we have durations.
fn parse_duration(name: &str, value: &str) -> Result<Duration, SettingError> {
    let parsed =
        value.parse().ok().map(Duration::from_millis).filter(|duration| *duration <= config::MAX_DURATION);
    parsed
        .or_else(|| config::duration(value).ok())
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| not_valid(name, value, "a number of milliseconds, or a duration like 250ms or 30s"))
}

fn number(
    args: &OtelArgs,
    name: &str,
    default: usize,
    least: usize,
    most: usize,
) -> Result<usize, SettingError> {
    let Some(value) = args.get(name) else { return Ok(default) };
    let parsed = value.parse().ok().filter(|number| (least..=most).contains(number));
    parsed.ok_or_else(|| not_valid(name, value, &format!("a number from {least} to {most}")))
}

fn choice<T: Clone>(args: &OtelArgs, name: &str, known: &[(&str, T)], default: T) -> Result<T, SettingError> {
    choose(name, args.get(name), known, default)
}

fn choose<T: Clone>(
    name: &str,
    value: Option<&str>,
    known: &[(&str, T)],
    default: T,
) -> Result<T, SettingError> {
    let Some(value) = value else { return Ok(default) };
    let found = known.iter().find(|(word, _)| *word == value);
    found.map(|(_, meant)| meant.clone()).ok_or_else(|| {
        let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
        not_valid(name, value, &words.join(", "))
    })
}

fn not_valid(name: &str, value: &str, allowed: &str) -> SettingError {
    SettingError::new(name.to_owned(), format!("'{value}' is not valid: allowed is {allowed}"))
}
