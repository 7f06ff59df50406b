//! What the standard variables of OpenTelemetry say, read and checked.

use std::{fs, path::Path, str::FromStr, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Uri, uri::Authority};
use opentelemetry::KeyValue;
use opentelemetry_sdk::{metrics::Temporality, trace::Sampler};
use percent_encoding::percent_decode_str;

use super::{
    otel_args::{OtelArgs, Signal},
    spans::Links,
};
use crate::{
    settings::{SettingError, args},
    tls::{self, BadFile, Identity},
};

/// All of it. By default nothing is exported.
#[derive(Default)]
pub(super) struct OtelSettings {
    pub(super) service_name: Option<String>,
    pub(super) attributes: Vec<KeyValue>,
    /// Whether trace contexts are taken from callers and entries.
    pub(super) takes_contexts: bool,
    /// Nothing where nothing is exported.
    pub(super) traces: Option<TraceSettings>,
    pub(super) metrics: Option<MetricSettings>,
    /// What the standard knows and we have not.
    pub(super) ignored: Vec<String>,
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
        let mut ignored = Vec::new();
        // Whoever switches everything off wants programs to start, whatever else is wrong.
        if choice(args, "OTEL_SDK_DISABLED", &BOOLEAN, false)? {
            return Ok(Self::default());
        }
        let traces_are_on = is_exported(args, Signal::Traces, &mut ignored)?;
        let metrics_are_on = is_exported(args, Signal::Metrics, &mut ignored)?;
        let (traces, metrics) = (read_traces(args, traces_are_on)?, read_metrics(args, metrics_are_on)?);
        let (traces, metrics) = (traces_are_on.then_some(traces), metrics_are_on.then_some(metrics));
        list(args, "OTEL_LOGS_EXPORTER", &["none"], &["otlp", "console"], &mut ignored)?;
        let propagators =
            list(args, "OTEL_PROPAGATORS", &KNOWN_PROPAGATORS, &OTHER_PROPAGATORS, &mut ignored)?;
        let takes_contexts = propagators.is_none_or(|names| names.contains(&"tracecontext"));
        let service_name = args.get("OTEL_SERVICE_NAME").map(str::to_owned);
        let attributes = read_attributes(args)?;
        Ok(Self { service_name, attributes, takes_contexts, traces, metrics, ignored })
    }
}

/// The SDK takes the memory of the whole queue at once.
const MAX_QUEUE_SPANS: usize = 1 << 16;

const BOOLEAN: [(&str, bool); 2] = [("true", true), ("false", false)];
const KNOWN_PROPAGATORS: [&str; 3] = ["tracecontext", "baggage", "none"];
const OTHER_PROPAGATORS: [&str; 5] = ["b3", "b3multi", "jaeger", "xray", "ottrace"];

fn read_traces(args: &OtelArgs, is_on: bool) -> Result<TraceSettings, SettingError> {
    let max_queue_spans = number(args, "OTEL_BSP_MAX_QUEUE_SIZE", 2_048, 1, MAX_QUEUE_SPANS)?;
    Ok(TraceSettings {
        exporter: read_exporter(args, Signal::Traces, is_on)?,
        sampler: read_sampler(args)?,
        max_links: u32::try_from(number(args, "OTEL_SPAN_LINK_COUNT_LIMIT", 128, 0, Links::MAX)?)
            .unwrap_or(u32::MAX),
        export_interval: duration(args, "OTEL_BSP_SCHEDULE_DELAY", Duration::from_secs(5))?,
        max_queue_spans,
        max_batch_spans: number(args, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512, 1, MAX_QUEUE_SPANS)?
            .min(max_queue_spans),
    })
}

fn read_metrics(args: &OtelArgs, is_on: bool) -> Result<MetricSettings, SettingError> {
    let temporalities = [
        ("cumulative", Temporality::Cumulative),
        ("delta", Temporality::Delta),
        ("lowmemory", Temporality::LowMemory),
    ];
    let preference = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
    Ok(MetricSettings {
        exporter: read_exporter(args, Signal::Metrics, is_on)?,
        export_interval: duration(args, "OTEL_METRIC_EXPORT_INTERVAL", Duration::from_mins(1))?,
        temporality: choice(args, preference, &temporalities, Temporality::Cumulative)?,
    })
}

/// Files are read only for what is exported.
fn read_exporter(args: &OtelArgs, signal: Signal, is_on: bool) -> Result<ExporterSettings, SettingError> {
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
        tls: if is_on { read_tls(args, signal)? } else { TlsFiles::default() },
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
    let (insecure_name, insecure) = of_exporter(args, signal, "INSECURE");
    let insecure = choose(&insecure_name, insecure, &BOOLEAN, false)?;
    if !text.contains("://") && protocol == Protocol::Grpc {
        text = format!("{}://{text}", if insecure { "http" } else { "https" });
    }
    let is_own = given.is_some() && name == signal.own("ENDPOINT");
    if protocol == Protocol::HttpProtobuf && !is_own {
        text = format!("{}/v1/{}", text.trim_end_matches('/'), signal.name().to_lowercase());
    }
    let is_endpoint = |uri: &Uri| {
        let has_host = uri.host().is_some_and(|host| !host.is_empty());
        // A port that is none is no part of the port, but of the authority.
        let port = uri.authority().map(|authority| authority.as_str().len()) == uri.authority().map(whole);
        let port = port && uri.port_u16() != Some(0);
        has_host && port && uri.query().is_none() && matches!(uri.scheme_str(), Some("http" | "https"))
    };
    let is_plain = !text.contains(['@', '#', ' ']);
    let uri: Option<Uri> = if is_plain { text.parse().ok() } else { None };
    uri.filter(is_endpoint).ok_or_else(|| {
        let shown = given.unwrap_or(default);
        // Before an @ there may be a password.
        let shown = shown.rfind('@').map_or(shown.to_owned(), |at| format!("…{}", &shown[at..]));
        let problem = format!(
            "'{shown}' is not valid: allowed is a URL like http://collector:4318 or https://collector:4317, without a password: that goes into OTEL_EXPORTER_OTLP_HEADERS",
        );
        SettingError::new(name, problem)
    })
}

/// How long an authority is that has nothing but a host and a port.
fn whole(authority: &Authority) -> usize {
    authority.host().len() + authority.port_u16().map_or(0, |port| 1 + port.to_string().len())
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
    let file = |setting| args.of_exporter(signal, setting).map(|(name, file)| (name, Path::new(file)));
    let refused = |bad: BadFile<String>| SettingError::new(bad.setting.clone(), &bad);
    let read = |name: &str, path: &Path| {
        let failed = |error| {
            SettingError::new(name.to_owned(), format!("'{}' can't be read: {error}", path.display()))
        };
        fs::read(path).map_err(failed)
    };
    let authorities = file("CERTIFICATE").map(|(name, path)| {
        tls::roots_of_file(name.clone(), path).map_err(refused)?;
        read(&name, path)
    });
    let identity = match (file("CLIENT_CERTIFICATE"), file("CLIENT_KEY")) {
        (Some((of_chain, chain)), Some((of_key, key))) => {
            Identity::of_files((of_chain.clone(), chain), (of_key.clone(), key)).map_err(refused)?;
            Some((read(&of_chain, chain)?, read(&of_key, key)?))
        }
        (None, None) => None,
        (Some((name, _)), None) | (None, Some((name, _))) => {
            let problem = "is alone: allowed are OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY, or neither";
            return Err(SettingError::new(name, problem));
        }
    };
    Ok(TlsFiles { authorities: authorities.transpose()?, identity })
}

/// Without a word on it, what has an endpoint is exported.
fn is_exported(args: &OtelArgs, signal: Signal, ignored: &mut Vec<String>) -> Result<bool, SettingError> {
    let name = format!("OTEL_{}_EXPORTER", signal.name());
    let (known, others): (&[_], &[_]) = match signal {
        Signal::Traces => (&["otlp", "none"], &["console", "logging", "zipkin", "jaeger"]),
        // What is on the admin port is there in any case.
        Signal::Metrics => (&["otlp", "none", "prometheus"], &["console", "logging"]),
    };
    let exporters = list(args, &name, known, others, ignored)?;
    Ok(exporters
        .map_or_else(|| args.of_exporter(signal, "ENDPOINT").is_some(), |names| names.contains(&"otlp")))
}

/// Names with commas between them: those that we have. Those that the standard has and we have not are ignored, as it asks for.
fn list<'a>(
    args: &OtelArgs,
    name: &str,
    known: &[&'a str],
    others: &[&str],
    ignored: &mut Vec<String>,
) -> Result<Option<Vec<&'a str>>, SettingError> {
    let Some(value) = args.get(name) else { return Ok(None) };
    let mut found = Vec::new();
    for item in value.split(',').map(str::trim) {
        let is_it = |word: &&&str| word.eq_ignore_ascii_case(item);
        if let Some(word) = known.iter().find(is_it) {
            found.push(*word);
        } else if others.iter().any(|word| word.eq_ignore_ascii_case(item)) {
            ignored.push(format!("{name}={item}, of which there is nothing here"));
        } else {
            return Err(not_valid(name, item, &known.join(", ")));
        }
    }
    Ok(Some(found))
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

fn duration(args: &OtelArgs, name: &str, default: Duration) -> Result<Duration, SettingError> {
    args.get(name).map_or(Ok(default), |value| parse_duration(name, value))
}

/// The standard has milliseconds, we have durations.
fn parse_duration(name: &str, value: &str) -> Result<Duration, SettingError> {
    let parsed =
        value.parse().ok().map(Duration::from_millis).filter(|duration| *duration <= args::MAX_DURATION);
    parsed
        .or_else(|| args::duration(value).ok())
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
    let found = known.iter().find(|(word, _)| word.eq_ignore_ascii_case(value));
    found.map(|(_, meant)| meant.clone()).ok_or_else(|| {
        let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
        not_valid(name, value, &words.join(", "))
    })
}

fn not_valid(name: &str, value: &str, allowed: &str) -> SettingError {
    SettingError::new(name.to_owned(), format!("'{value}' is not valid: allowed is {allowed}"))
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command, FromArgMatches};

    use super::*;

    fn args(given: &[(&str, &str)]) -> OtelArgs {
        let flags =
            given.iter().map(|(name, value)| format!("--{}={value}", name.to_lowercase().replace('_', "-")));
        let matches = OtelArgs::augment_args(Command::new("program"))
            .get_matches_from(["program".to_owned()].into_iter().chain(flags));
        OtelArgs::from_arg_matches(&matches).unwrap()
    }

    fn read(given: &[(&str, &str)]) -> OtelSettings {
        OtelSettings::read(&args(given)).unwrap()
    }

    #[test]
    fn endpoints_are_for_all_signals_or_for_one() {
        let for_all = |endpoint| {
            let settings = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)]);
            (settings.traces.unwrap().exporter.endpoint, settings.metrics.unwrap().exporter.endpoint)
        };
        for endpoint in ["http://c:4318", "http://c:4318/"] {
            let (traces, metrics) = for_all(endpoint);
            assert_eq!(
                (traces, metrics),
                ("http://c:4318/v1/traces".parse().unwrap(), "http://c:4318/v1/metrics".parse().unwrap())
            );
        }
        assert_eq!(for_all("http://c/below/").0, "http://c/below/v1/traces");
        let own = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://t/"),
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", " "),
        ]);
        assert_eq!(own.traces.unwrap().exporter.endpoint, "https://t/");
        assert_eq!(own.metrics.unwrap().exporter.endpoint, "http://c:4318/v1/metrics");
        let grpc = |more: &[_]| {
            let given =
                [&[("OTEL_EXPORTER_OTLP_PROTOCOL", "GRPC"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4317")], more];
            read(&given.concat()).traces.unwrap().exporter.endpoint
        };
        assert_eq!(grpc(&[]), "https://c:4317");
        assert_eq!(grpc(&[("OTEL_EXPORTER_OTLP_INSECURE", "True")]), "http://c:4317");
        assert!(read(&[]).traces.is_none() && read(&[]).metrics.is_none());
    }

    #[test]
    fn what_is_no_endpoint_is_refused_without_repeating_a_password() {
        for endpoint in [
            "http://c:99999",
            "http://c:0",
            "http://c:4318/?q=1",
            "http://c/#x",
            "http://",
            "ftp://c",
            "http:/u:hunter2@h",
            "http://u:hunter2@h",
            "u:hunter2@://x",
        ] {
            for protocol in ["grpc", "http/protobuf"] {
                let given =
                    [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint), ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)];
                let error = OtelSettings::read(&args(&given))
                    .err()
                    .unwrap_or_else(|| panic!("{endpoint}"))
                    .to_string();
                assert!(
                    error.starts_with("OTEL_EXPORTER_OTLP_ENDPOINT: ") && !error.contains("hunter2"),
                    "{error}"
                );
            }
        }
        assert_eq!(
            read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1]:4318")]).traces.unwrap().exporter.endpoint,
            "http://[::1]:4318/v1/traces"
        );
    }

    #[test]
    fn times_are_milliseconds_or_durations() {
        for (value, expected) in [("1500", 1_500), ("2s", 2_000)] {
            let settings = read(&[("OTEL_TRACES_EXPORTER", "otlp"), ("OTEL_EXPORTER_OTLP_TIMEOUT", value)]);
            assert_eq!(settings.traces.unwrap().exporter.timeout, Duration::from_millis(expected));
        }
    }

    #[test]
    fn what_is_switched_off_is_not_looked_at() {
        let missing = ("OTEL_EXPORTER_OTLP_CERTIFICATE", "missing.pem");
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318");
        assert!(OtelSettings::read(&args(&[missing, endpoint])).is_err());
        assert!(read(&[missing, endpoint, ("OTEL_SDK_DISABLED", "TRUE")]).traces.is_none());
        let none = [("OTEL_TRACES_EXPORTER", "none"), ("OTEL_METRICS_EXPORTER", "None")];
        assert!(read(&[&[missing, endpoint], &none[..]].concat()).metrics.is_none());
    }

    #[test]
    fn what_the_standard_knows_and_we_have_not_is_ignored() {
        let settings = read(&[
            ("OTEL_PROPAGATORS", "b3,TraceContext"),
            ("OTEL_LOGS_EXPORTER", "otlp"),
            ("OTEL_METRICS_EXPORTER", "console,otlp"),
        ]);
        assert!(settings.takes_contexts && settings.metrics.is_some() && settings.traces.is_none());
        assert_eq!(settings.ignored.len(), 3, "{:?}", settings.ignored);
        assert!(!read(&[("OTEL_PROPAGATORS", "b3")]).takes_contexts);
        assert!(OtelSettings::read(&args(&[("OTEL_PROPAGATORS", "tracecontextt")])).is_err());
    }

    #[test]
    fn headers_are_percent_encoded_and_may_have_equals_signs() {
        let headers = ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20dTpw==, x-a=1");
        let settings = read(&[headers, ("OTEL_TRACES_EXPORTER", "otlp")]);
        let headers = settings.traces.unwrap().exporter.headers;
        assert_eq!(
            (&headers["authorization"], &headers["x-a"]),
            (&"Basic dTpw==".parse().unwrap(), &"1".parse().unwrap())
        );
    }
}
