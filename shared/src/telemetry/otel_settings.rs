//! The standard variables of OpenTelemetry, `OTEL_*`. All are validated here, because the SDK ignores invalid values.
//!
//! The SDK itself then reads compression, temporality, span limits, batch and queue size. The others are read here, because
//! the SDK
//!
//! - does not support a choice of exporters, propagators, certificates or durations like `10s`,
//! - does not decode resource attributes,
//! - accepts the names of samplers only in lower case,
//! - treats an empty variable of one signal as set (endpoint, headers, insecure),
//! - does not expose the scheme of the endpoint, which decides on TLS.
//!
//! Sources: the OpenTelemetry specification, "Environment Variable Specification" and "OpenTelemetry Protocol Exporter".

use std::{ffi::OsString, fs, ops::RangeInclusive, path::PathBuf, str::FromStr, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use opentelemetry::KeyValue;
use opentelemetry_otlp::Protocol;
use opentelemetry_sdk::trace::Sampler;
use percent_encoding::percent_decode_str;

use super::{names, spans::Links};
use crate::{
    settings::{SettingError, args},
    tls::{self, BadFile, Identity},
};

/// Validated settings. By default nothing is exported.
#[derive(Default)]
pub(super) struct OtelSettings {
    /// Resource attributes, including the service name if it is set.
    pub(super) resource_attributes: Vec<KeyValue>,
    /// Whether the trace contexts of clients and entries are used.
    pub(super) accepts_contexts: bool,
    /// `None` where the signal is not exported.
    pub(super) traces: Option<TraceSettings>,
    pub(super) metrics: Option<ExporterSettings>,
    /// Values of the specification that are not implemented.
    pub(super) ignored: Vec<String>,
}

pub(super) struct TraceSettings {
    pub(super) exporter: ExporterSettings,
    pub(super) sampler: Sampler,
    pub(super) max_queue_spans: usize,
}

/// Exporter settings of one signal.
pub(super) struct ExporterSettings {
    pub(super) protocol: Protocol,
    /// Endpoint, with the signal's path if the protocol is HTTP.
    pub(super) endpoint: Uri,
    pub(super) headers: HeaderMap,
    pub(super) timeout: Duration,
    pub(super) interval: Duration,
    /// PEM of the trusted authorities. `None` for those of the system.
    pub(super) authorities: Option<Vec<u8>>,
    /// PEM of the client certificate and of its key.
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Traces,
    Metrics,
}

impl Signal {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
        }
    }

    /// Returns the exporter's variable for this signal.
    pub(super) fn variable(self, setting: &str) -> String {
        format!("OTEL_EXPORTER_OTLP_{}_{setting}", self.name().to_uppercase())
    }
}

const BOOLEAN: [(&str, bool); 2] = [("true", true), ("false", false)];
const PROTOCOLS: [(&str, Protocol); 2] = [("grpc", Protocol::Grpc), ("http/protobuf", Protocol::HttpBinary)];
const COMPRESSIONS: [(&str, ()); 2] = [("gzip", ()), ("none", ())];
const TEMPORALITIES: [(&str, ()); 3] = [("cumulative", ()), ("delta", ()), ("lowmemory", ())];
/// The SDK allocates the whole queue at once.
const MAX_QUEUE_SPANS: usize = 1 << 16;
const ALONE: &str = "the client certificate and its key require each other; set both OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY, or neither";
const URLS: &str = "a URL such as http://collector:4318 or https://collector:4317, without a password (credentials belong in OTEL_EXPORTER_OTLP_HEADERS)";

impl OtelSettings {
    /// Reads the variables that `lookup` finds.
    ///
    /// # Errors
    /// For the first invalid variable.
    pub(super) fn read(lookup: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, SettingError> {
        let mut variables = Variables { lookup, ignored: Vec::new() };
        // With exports disabled, invalid variables must not prevent a start.
        if variables.word("OTEL_SDK_DISABLED", &BOOLEAN)? == Some(true) {
            return Ok(Self::default());
        }
        // The SDK reads these.
        variables.word("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", &TEMPORALITIES)?;
        variables.integer("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 1..=MAX_QUEUE_SPANS)?;
        variables.integer("OTEL_SPAN_LINK_COUNT_LIMIT", 0..=Links::MAX)?;
        variables.integer("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", 0..=u32::MAX as usize)?;
        variables.integer("OTEL_SPAN_EVENT_COUNT_LIMIT", 0..=u32::MAX as usize)?;
        let sampler = variables.sampler()?;
        let max_queue_spans = variables.integer("OTEL_BSP_MAX_QUEUE_SIZE", 1..=MAX_QUEUE_SPANS)?;
        let max_queue_spans = max_queue_spans.unwrap_or(2_048);
        let traces = variables.exporter(Signal::Traces, "OTEL_BSP_SCHEDULE_DELAY", Duration::from_secs(5))?;
        let metrics =
            variables.exporter(Signal::Metrics, "OTEL_METRIC_EXPORT_INTERVAL", Duration::from_mins(1))?;
        variables.names("OTEL_LOGS_EXPORTER", &["none"], &["otlp", "console"])?;
        let propagators = variables.names(
            "OTEL_PROPAGATORS",
            &["tracecontext", "baggage", "none"],
            &["b3", "b3multi", "jaeger", "xray", "ottrace"],
        )?;
        Ok(Self {
            resource_attributes: variables.resource_attributes()?,
            accepts_contexts: propagators.is_none_or(|names| names.contains(&"tracecontext")),
            traces: traces.map(|exporter| TraceSettings { exporter, sampler, max_queue_spans }),
            metrics,
            ignored: variables.ignored,
        })
    }
}

struct Variables<'a> {
    lookup: &'a dyn Fn(&str) -> Option<OsString>,
    ignored: Vec<String>,
}

impl Variables<'_> {
    /// Returns the value of a variable. By the specification an empty value counts as unset.
    fn get(&self, name: &str) -> Result<Option<String>, SettingError> {
        let value = (self.lookup)(name).map(OsString::into_string).transpose();
        let value = value
            .map_err(|_| SettingError::new(name.to_owned(), "the value is not valid UTF-8; expected text"))?;
        Ok(value.filter(|value| !value.trim().is_empty()))
    }

    fn parsed<T>(
        &self,
        name: &str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, SettingError> {
        let parse = |value: String| parse(&value).ok_or_else(|| invalid(name, &value, expected));
        self.get(name)?.map(parse).transpose()
    }

    fn word<T: Clone>(&self, name: &str, known: &[(&str, T)]) -> Result<Option<T>, SettingError> {
        let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
        self.parsed(name, &words.join(", "), |value| {
            let found = known.iter().find(|(word, _)| word.eq_ignore_ascii_case(value));
            found.map(|(_, meaning)| meaning.clone())
        })
    }

    fn integer(&self, name: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, SettingError> {
        let expected = format!("an integer from {} to {}", range.start(), range.end());
        self.parsed(name, &expected, |value| value.parse().ok().filter(|number| range.contains(number)))
    }

    /// Accepts milliseconds, as in the specification, and units, as in the other settings of the program.
    fn duration(&self, name: &str, default: Duration) -> Result<Duration, SettingError> {
        let expected = "a number of milliseconds, or a duration such as 250ms or 30s";
        let parse = |value: &str| {
            let plain = value.parse().ok().map(Duration::from_millis).filter(|d| *d <= args::MAX_DURATION);
            plain.or_else(|| args::duration(value).ok()).filter(|duration| !duration.is_zero())
        };
        Ok(self.parsed(name, expected, parse)?.unwrap_or(default))
    }

    /// Reads a list of names. Names of the specification that are not implemented are ignored, as it requires.
    fn names(
        &mut self,
        name: &str,
        known: &[&'static str],
        others: &[&str],
    ) -> Result<Option<Vec<&'static str>>, SettingError> {
        let Some(value) = self.get(name)? else { return Ok(None) };
        let mut found = Vec::new();
        for item in value.split(',').map(str::trim) {
            if let Some(word) = known.iter().find(|word| word.eq_ignore_ascii_case(item)) {
                found.push(*word);
            } else if others.iter().any(|word| word.eq_ignore_ascii_case(item)) {
                self.ignored.push(format!("{name}={item}, which is not implemented"));
            } else {
                return Err(invalid(name, item, &known.join(", ")));
            }
        }
        Ok(Some(found))
    }

    fn sampler(&self) -> Result<Sampler, SettingError> {
        let ratio = self.parsed("OTEL_TRACES_SAMPLER_ARG", "a number from 0 to 1", |value| {
            value.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio))
        })?;
        let ratio = Sampler::TraceIdRatioBased(ratio.unwrap_or(1.0));
        let parent_based = |root| Sampler::ParentBased(Box::new(root));
        let samplers = [
            ("always_on", Sampler::AlwaysOn),
            ("always_off", Sampler::AlwaysOff),
            ("traceidratio", ratio.clone()),
            ("parentbased_always_on", parent_based(Sampler::AlwaysOn)),
            ("parentbased_always_off", parent_based(Sampler::AlwaysOff)),
            ("parentbased_traceidratio", parent_based(ratio)),
        ];
        let sampler = self.word("OTEL_TRACES_SAMPLER", &samplers)?;
        Ok(sampler.unwrap_or_else(|| parent_based(Sampler::AlwaysOn)))
    }

    /// Reads `key=value` pairs, percent-encoded, as in W3C Baggage.
    fn resource_attributes(&self) -> Result<Vec<KeyValue>, SettingError> {
        let expected = "key=value,key=value with values percent-encoded";
        let attributes = self.parsed("OTEL_RESOURCE_ATTRIBUTES", expected, |value| {
            let attribute = |(key, value): (&str, String)| KeyValue::new(key.to_owned(), value);
            pairs(value).map(|pair| pair.map(attribute)).collect::<Option<Vec<_>>>()
        });
        let name = self.get("OTEL_SERVICE_NAME")?.map(|name| KeyValue::new(names::SERVICE_NAME, name));
        Ok(attributes?.unwrap_or_default().into_iter().chain(name).collect())
    }

    /// Validates all variables of a signal, but reads files only if the signal is exported.
    fn exporter(
        &mut self,
        signal: Signal,
        interval: &str,
        default_interval: Duration,
    ) -> Result<Option<ExporterSettings>, SettingError> {
        let protocol = self.word(&self.exporter_variable(signal, "PROTOCOL")?, &PROTOCOLS)?;
        let protocol = protocol.unwrap_or(Protocol::HttpBinary);
        self.word(&self.exporter_variable(signal, "COMPRESSION")?, &COMPRESSIONS)?;
        let timeout = self.exporter_variable(signal, "TIMEOUT")?;
        let mut settings = ExporterSettings {
            protocol,
            endpoint: self.endpoint(signal, protocol)?,
            headers: self.headers(signal)?,
            timeout: self.duration(&timeout, Duration::from_secs(10))?,
            interval: self.duration(interval, default_interval)?,
            authorities: None,
            identity: None,
        };
        if !self.is_exported(signal)? {
            return Ok(None);
        }
        self.read_files(signal, &mut settings)?;
        Ok(Some(settings))
    }

    /// Without an explicit choice of exporters, a signal with an endpoint is exported.
    fn is_exported(&mut self, signal: Signal) -> Result<bool, SettingError> {
        let name = format!("OTEL_{}_EXPORTER", signal.name().to_uppercase());
        let exporters = match signal {
            Signal::Traces => {
                self.names(&name, &["otlp", "none"], &["console", "logging", "zipkin", "jaeger"])
            }
            // The admin port serves Prometheus metrics in any case.
            Signal::Metrics => self.names(&name, &["otlp", "none", "prometheus"], &["console", "logging"]),
        };
        Ok(match exporters? {
            Some(exporters) => exporters.contains(&"otlp"),
            None => self.get(&self.exporter_variable(signal, "ENDPOINT")?)?.is_some(),
        })
    }

    /// Returns the variable that applies to a signal: its own if that is set, else the one for all signals.
    fn exporter_variable(&self, signal: Signal, setting: &str) -> Result<String, SettingError> {
        let own = signal.variable(setting);
        Ok(if self.get(&own)?.is_some() { own } else { format!("OTEL_EXPORTER_OTLP_{setting}") })
    }

    /// With HTTP the signal's path is appended to the endpoint for all signals. An endpoint of the signal is used unchanged.
    fn endpoint(&self, signal: Signal, protocol: Protocol) -> Result<Uri, SettingError> {
        let name = self.exporter_variable(signal, "ENDPOINT")?;
        let insecure = self.word(&self.exporter_variable(signal, "INSECURE")?, &BOOLEAN)?;
        let is_grpc = protocol == Protocol::Grpc;
        let default = if is_grpc { "http://localhost:4317" } else { "http://localhost:4318" };
        let value = self.get(&name)?.map_or_else(|| default.to_owned(), |value| value.trim().to_owned());
        let url = if is_grpc && !value.contains("://") {
            format!("{}://{value}", if insecure == Some(true) { "http" } else { "https" })
        } else if is_grpc || name == signal.variable("ENDPOINT") {
            value.clone()
        } else {
            format!("{}/v1/{}", value.trim_end_matches('/'), signal.name())
        };
        let uri = url.parse().ok().filter(|uri| !url.contains(['@', '#', ' ']) && is_endpoint(uri));
        // The part before an @ may contain a password.
        let shown = value.rfind('@').map_or(value.clone(), |at| format!("…{}", &value[at..]));
        uri.ok_or_else(|| invalid(&name, &shown, URLS))
    }

    /// Reads the headers. An error does not show them, because they may contain secrets.
    fn headers(&self, signal: Signal) -> Result<HeaderMap, SettingError> {
        let name = self.exporter_variable(signal, "HEADERS")?;
        let header = |pair: Option<(&str, String)>| {
            let (key, value) = pair?;
            let mut value = HeaderValue::from_str(&value).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::from_str(key).ok()?, value))
        };
        let headers: Option<_> = pairs(&self.get(&name)?.unwrap_or_default()).map(header).collect();
        headers.ok_or_else(|| invalid(&name, "…", "name=value,name=value with values percent-encoded"))
    }

    fn read_files(&self, signal: Signal, settings: &mut ExporterSettings) -> Result<(), SettingError> {
        let file = |setting| {
            let name = self.exporter_variable(signal, setting)?;
            Ok(self.get(&name)?.map(|path| (name, PathBuf::from(path))))
        };
        let refused = |bad: BadFile<String>| SettingError::new(bad.setting.clone(), &bad);
        let read = |(name, path): (String, PathBuf)| {
            let failed = |error| format!("cannot read {}: {error}", path.display());
            fs::read(&path).map_err(|error| SettingError::new(name, failed(error)))
        };
        if let Some((name, path)) = file("CERTIFICATE")? {
            tls::roots_of_file(name.clone(), &path).map_err(refused)?;
            settings.authorities = Some(read((name, path))?);
        }
        match (file("CLIENT_CERTIFICATE")?, file("CLIENT_KEY")?) {
            (None, None) => {}
            (Some(chain), Some(key)) => {
                let files = ((chain.0.clone(), &*chain.1), (key.0.clone(), &*key.1));
                Identity::of_files(files.0, files.1).map_err(refused)?;
                settings.identity = Some((read(chain)?, read(key)?));
            }
            (Some((name, _)), None) | (None, Some((name, _))) => return Err(SettingError::new(name, ALONE)),
        }
        Ok(())
    }
}

fn invalid(name: &str, value: &str, expected: &str) -> SettingError {
    SettingError::new(name.to_owned(), format!("'{value}' is not valid; expected {expected}"))
}

/// Returns the decoded pairs of `key=value,key=value`; `None` for an invalid one.
fn pairs(value: &str) -> impl Iterator<Item = Option<(&str, String)>> {
    value.split(',').filter(|pair| !pair.trim().is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').filter(|(key, _)| !key.trim().is_empty())?;
        Some((key.trim(), percent_decode_str(value.trim()).decode_utf8().ok()?.into_owned()))
    })
}

/// Whether a URL consists only of a scheme, a host, a port and a path.
fn is_endpoint(uri: &Uri) -> bool {
    let Some(authority) = uri.authority() else { return false };
    let host = authority.host();
    // The authority may contain an invalid port, which `port_u16` does not return.
    let whole = authority.port_u16().map_or(host.to_owned(), |port| format!("{host}:{port}"));
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    let has_server = !host.is_empty() && authority.port_u16() != Some(0) && authority.as_str() == whole;
    is_http && has_server && uri.query().is_none()
}

#[cfg(test)]
mod tests;
