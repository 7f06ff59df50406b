//! Accepted and rejected values of the variables.

use std::{cell::RefCell, collections::BTreeSet};

use super::*;
use crate::telemetry::otel_variables::otel_variables;

fn tried(given: &[(&str, &str)]) -> Result<OtelSettings, SettingError> {
    OtelSettings::read(&|name| given.iter().find(|(given, _)| *given == name).map(|(_, value)| value.into()))
}

fn read(given: &[(&str, &str)]) -> OtelSettings {
    tried(given).unwrap()
}

#[test]
fn endpoints_apply_to_all_signals_or_to_one() {
    let for_all = |endpoint| {
        let settings = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)]);
        (settings.traces.unwrap().exporter.endpoint, settings.metrics.unwrap().endpoint)
    };
    for endpoint in ["http://c:4318", "http://c:4318/", " http://c:4318\n"] {
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
    assert_eq!(own.metrics.unwrap().endpoint, "http://c:4318/v1/metrics");
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
fn invalid_endpoints_are_refused_without_showing_a_password() {
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
            let error = tried(&given).err().unwrap_or_else(|| panic!("{endpoint}")).to_string();
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
fn files_of_disabled_signals_are_not_read() {
    let missing = ("OTEL_EXPORTER_OTLP_CERTIFICATE", "missing.pem");
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318");
    assert!(tried(&[missing, endpoint]).is_err());
    assert!(read(&[missing, endpoint, ("OTEL_SDK_DISABLED", "TRUE")]).traces.is_none());
    let none = [("OTEL_TRACES_EXPORTER", "none"), ("OTEL_METRICS_EXPORTER", "None")];
    assert!(read(&[&[missing, endpoint], &none[..]].concat()).metrics.is_none());
}

#[test]
fn unsupported_names_are_ignored() {
    let settings = read(&[
        ("OTEL_PROPAGATORS", "b3,TraceContext"),
        ("OTEL_LOGS_EXPORTER", "otlp"),
        ("OTEL_METRICS_EXPORTER", "console,otlp"),
    ]);
    assert!(settings.accepts_contexts && settings.metrics.is_some() && settings.traces.is_none());
    assert_eq!(settings.ignored.len(), 3, "{:?}", settings.ignored);
    assert!(!read(&[("OTEL_PROPAGATORS", "b3")]).accepts_contexts);
    assert!(tried(&[("OTEL_PROPAGATORS", "tracecontextt")]).is_err());
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

#[test]
fn empty_signal_variables_fall_back_to_the_general_ones() {
    for empty in ["", " "] {
        let settings = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4317"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_INSECURE", "true"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-a=1"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", empty),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", empty),
            ("OTEL_EXPORTER_OTLP_TRACES_INSECURE", empty),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", empty),
        ]);
        let exporter = settings.traces.unwrap().exporter;
        assert_eq!(
            (exporter.endpoint, &exporter.headers["x-a"]),
            ("http://c:4317".parse().unwrap(), &"1".parse().unwrap())
        );
    }
}

/// The SDK reads these variables itself, and ignores values with surrounding spaces and unknown ones.
#[test]
fn values_that_the_sdk_does_not_support_are_refused() {
    let zstd = [("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd")];
    let spaced = [("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip ")];
    let negative = [("OTEL_SPAN_LINK_COUNT_LIMIT", "-1")];
    for given in [zstd, spaced, negative] {
        assert!(tried(&given).is_err(), "{given:?}");
    }
    read(&[("OTEL_EXPORTER_OTLP_COMPRESSION", "GZIP"), ("OTEL_SPAN_LINK_COUNT_LIMIT", "0")]);
}

/// The documentation is generated from this list.
#[test]
fn every_variable_is_listed() {
    let listed: BTreeSet<String> = otel_variables().into_iter().map(|variable| variable.name).collect();
    let read = RefCell::new(BTreeSet::new());
    let exported = |name: &str| {
        read.borrow_mut().insert(name.to_owned());
        ["OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER"].contains(&name).then(|| "otlp".into())
    };
    OtelSettings::read(&exported).unwrap();
    assert_eq!(listed, read.into_inner());
}

#[test]
fn documented_defaults_have_the_effect_of_unset_variables() {
    let described = |settings: OtelSettings| {
        let TraceSettings { exporter, sampler, max_queue_spans } = settings.traces.unwrap();
        let exporter_text = |exporter: ExporterSettings| {
            let ExporterSettings { protocol, endpoint, headers, timeout, interval, .. } = exporter;
            format!("{protocol:?} {endpoint} {headers:?} {timeout:?} {interval:?}")
        };
        let signals = (exporter_text(exporter), exporter_text(settings.metrics.unwrap()));
        format!(
            "{signals:?} {sampler:?} {max_queue_spans} {} {:?}",
            settings.accepts_contexts, settings.ignored
        )
    };
    let exported = |name: &str| name.ends_with("S_EXPORTER") && !name.contains("LOGS");
    let unset = OtelSettings::read(&|name| exported(name).then(|| "otlp".into())).unwrap();
    let variables = otel_variables();
    let default = |name: &str| variables.iter().find(|variable| variable.name == name)?.default;
    let set = OtelSettings::read(&|name| {
        if exported(name) { Some("otlp".into()) } else { default(name).map(Into::into) }
    });
    assert!(variables.iter().filter(|variable| variable.default.is_some()).count() >= 15);
    assert_eq!(described(set.unwrap()), described(unset));
}
