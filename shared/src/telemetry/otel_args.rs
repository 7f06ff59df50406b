//! The standard variables of OpenTelemetry, each a flag, too.
//!
//! Sources: the OpenTelemetry specification, "Environment Variable Specification" and "OpenTelemetry Protocol Exporter".
//! By these an empty value is the same as none.

use std::{collections::HashMap, fmt};

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, error::Error};

/// What one variable is about.
struct Setting {
    name: &'static str,
    value: &'static str,
    help: &'static str,
}

const fn setting(name: &'static str, value: &'static str, help: &'static str) -> Setting {
    Setting { name, value, help }
}

const GENERAL: [Setting; 15] = [
    setting(
        "OTEL_SDK_DISABLED",
        "BOOL",
        "Whether nothing is exported, whatever else is set [default: false]",
    ),
    setting(
        "OTEL_SERVICE_NAME",
        "NAME",
        "What the program is called in traces and metrics [default: its name]",
    ),
    setting(
        "OTEL_RESOURCE_ATTRIBUTES",
        "ATTRIBUTES",
        "What else is said of it there, like deployment.environment.name=production,k8s.pod.name=ingest-1",
    ),
    setting(
        "OTEL_PROPAGATORS",
        "PROPAGATORS",
        "Whose trace contexts are taken: tracecontext (of callers, and of entries), or none [default: tracecontext,baggage; there is nothing to do with baggage]",
    ),
    setting(
        "OTEL_TRACES_EXPORTER",
        "EXPORTER",
        "Where traces go: otlp, or none [default: otlp where an endpoint is set, else none]",
    ),
    setting(
        "OTEL_METRICS_EXPORTER",
        "EXPORTER",
        "Where metrics go beside /metrics: otlp, or none [default: otlp where an endpoint is set, else none]",
    ),
    setting("OTEL_LOGS_EXPORTER", "EXPORTER", "Where logs go beside stderr: none [default: none]"),
    setting(
        "OTEL_TRACES_SAMPLER",
        "SAMPLER",
        "What is traced: always_on, always_off, traceidratio, or, where a traced caller did not decide it, parentbased_always_on, parentbased_always_off, parentbased_traceidratio [default: parentbased_always_on]",
    ),
    setting(
        "OTEL_TRACES_SAMPLER_ARG",
        "RATIO",
        "How much of it, from 0 to 1, with traceidratio [default: 1]",
    ),
    setting("OTEL_SPAN_LINK_COUNT_LIMIT", "LINKS", "How many links a span may have [default: 128]"),
    setting("OTEL_BSP_SCHEDULE_DELAY", "DURATION", "Between two exports of spans [default: 5s]"),
    setting(
        "OTEL_BSP_MAX_QUEUE_SIZE",
        "SPANS",
        "How many spans may wait for that; more are dropped [default: 2048]",
    ),
    setting("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "SPANS", "How many are exported at once [default: 512]"),
    setting("OTEL_METRIC_EXPORT_INTERVAL", "DURATION", "Between two exports of metrics [default: 1m]"),
    setting(
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
        "TEMPORALITY",
        "What is exported of a sum: cumulative (all of it), delta (what is new), lowmemory [default: cumulative]",
    ),
];

/// Of the exporter there are these, for all signals or for one.
const EXPORTER: [Setting; 9] = [
    setting(
        "ENDPOINT",
        "URL",
        "The collector [default: http://localhost:4318, or http://localhost:4317 with grpc]",
    ),
    setting("PROTOCOL", "PROTOCOL", "How it is spoken to: grpc, http/protobuf [default: http/protobuf]"),
    setting("HEADERS", "HEADERS", "What is sent along, like authorization=Bearer%20…"),
    setting("TIMEOUT", "DURATION", "How long it may take [default: 10s]"),
    setting("COMPRESSION", "COMPRESSION", "gzip, none [default: none]"),
    setting(
        "CERTIFICATE",
        "FILE",
        "A file, in PEM, of the authorities whose certificates it may have, in place of those that the system trusts",
    ),
    setting("CLIENT_CERTIFICATE", "FILE", "A file, in PEM, of the certificate that it is shown"),
    setting("CLIENT_KEY", "FILE", "A file, in PEM, of the private key of that"),
    setting(
        "INSECURE",
        "BOOL",
        "Whether grpc to an endpoint without http:// or https:// is without TLS [default: false]",
    ),
];

const EXPORTER_PREFIX: &str = "OTEL_EXPORTER_OTLP_";

/// What is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Traces,
    Metrics,
}

impl Signal {
    pub(super) const ALL: [Self; 2] = [Self::Traces, Self::Metrics];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
        }
    }

    /// The variable of this signal alone.
    pub(super) fn own(self, setting: &str) -> String {
        format!("{EXPORTER_PREFIX}{}_{setting}", self.name())
    }
}

/// What is set of it, by variable.
#[derive(Clone, Default)]
pub(super) struct OtelArgs(HashMap<String, String>);

impl OtelArgs {
    /// What a variable is set to.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// What a variable of the exporter is set to for a signal, and which one says so: the signal's own before that for all.
    pub(super) fn of_exporter(&self, signal: Signal, setting: &str) -> Option<(String, &str)> {
        [signal.own(setting), format!("{EXPORTER_PREFIX}{setting}")]
            .into_iter()
            .find_map(|name| self.get(&name).map(|value| (name, value)))
    }

    fn arguments() -> impl Iterator<Item = Arg> {
        let general = GENERAL.iter().map(|setting| argument(setting.name.to_owned(), setting, ""));
        let exporter = EXPORTER.iter().flat_map(|setting| {
            let for_all = argument(format!("{EXPORTER_PREFIX}{}", setting.name), setting, "");
            let own = Signal::ALL.map(|signal| match signal {
                Signal::Traces => argument(signal.own(setting.name), setting, "For traces alone: "),
                Signal::Metrics => argument(signal.own(setting.name), setting, "For metrics alone: "),
            });
            [for_all].into_iter().chain(own)
        });
        general.chain(exporter)
    }
}

fn argument(name: String, setting: &Setting, whose: &str) -> Arg {
    let argument = Arg::new(name.clone())
        .long(name.to_lowercase().replace('_', "-"))
        .env(name)
        .value_name(setting.value)
        .help(format!("{whose}{}", setting.help))
        .help_heading("OpenTelemetry");
    // They may be secrets.
    if setting.name == "HEADERS" { argument.hide_env_values(true) } else { argument }
}

impl Args for OtelArgs {
    fn augment_args(command: Command) -> Command {
        command.args(Self::arguments())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for OtelArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let given = Self::arguments().filter_map(|argument| {
            let name = argument.get_id().as_str();
            Some((name.to_owned(), matches.get_one::<String>(name)?.clone()))
        });
        Ok(Self(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Without the values: some are secrets.
impl fmt::Debug for OtelArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OtelArgs").field(&self.0.keys()).finish()
    }
}
