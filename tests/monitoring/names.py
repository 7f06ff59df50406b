"""Every metric, label and value that a rule, a panel or KEDA asks for is one that there is: by docs/metrics.md."""

import json
import re
from typing import NamedTuple

import promql
import sources

# Prometheus and Kubernetes put these on whatever they scrape.
OF_TARGETS = {"namespace", "job", "instance", "pod"}
OF_PROMETHEUS = {"up": set(), "ALERTS": {"alertname", "alertstate", "severity"}}
ON_COUNTERS = {"rate", "increase", "irate", "resets"}
ON_GAUGES = {"deriv", "predict_linear", "delta", "changes"}
# Those of which docs/metrics.md doesn't say all values: `live` looks for them in what runs.
ANY_VALUE = {"check", "messaging_consumer_group_name", "error_type", "alertstate"}

ROW = re.compile(r"^\| `([a-z_]+)` [^|]*\| (\w+) \| ([^|]*)\| (.*)\|$", re.MULTILINE)
LEGEND = re.compile(r"{{\s*(\w+)\s*}}")


class Metric(NamedTuple):
    kind: str
    labels: set
    says: str


def documented():
    """The table's metrics as Prometheus has them."""
    found = {}
    for name, kind, labels, says in ROW.findall(sources.METRICS.read_text(encoding="utf-8")):
        metric = Metric(kind, set(re.findall(r"`([a-z_]+)`", labels)), says)
        if kind == "histogram":
            counted = metric._replace(kind="counter")
            found[f"{name}_bucket"] = counted._replace(labels=metric.labels | {"le"})
            found[f"{name}_sum"] = found[f"{name}_count"] = counted
        else:
            found[name] = metric
    return found


def known():
    """Those, and what rules record of them."""
    found = documented()
    found.update({name: Metric("gauge", labels, "") for name, labels in OF_PROMETHEUS.items()})
    for name, query in sources.recorded().items():
        labels = {label for grouping, _ in promql.groupings(query) for label in grouping}
        found[name] = Metric("gauge", labels - {"le"}, "")
    return found


def allowed_values():
    """Of each label that a query may compare, where it isn't free."""
    readme = sources.README.read_text(encoding="utf-8")
    problems = readme.partition("| code | status |")[2].partition("\n\n")[0]
    paths = json.loads(sources.OPENAPI.read_text(encoding="utf-8"))["paths"]
    values = {
        "code": set(re.findall(r"`([a-z-]+)`", problems)),
        "http_route": set(paths),
        "http_request_method": {method.upper() for operations in paths.values() for method in operations},
    }
    for metric in documented().values():
        for label in metric.labels & {"class", "flush", "reason"}:
            values.setdefault(label, set()).update(re.findall(r"`([a-z_]+)`", metric.says))
    return values


def of_selectors(query, metrics):
    for name, matchers, calls in promql.selectors(query.promql):
        if name not in metrics:
            yield f"{query.where}: {name} is not in docs/metrics.md"
            continue
        metric = metrics[name]
        for label in {matcher.name for matcher in matchers} - metric.labels - OF_TARGETS:
            yield f"{query.where}: {name} has no label {label}, says docs/metrics.md"
        wrong = ON_COUNTERS if metric.kind == "gauge" else ON_GAUGES
        for call in wrong & set(calls):
            yield f"{query.where}: {call}() of {name}, which is a {metric.kind}"


def of_groupings(query, metrics):
    for labels, names in promql.groupings(query.promql):
        there = set().union(OF_TARGETS, *(metrics[name].labels for name in names if name in metrics))
        for label in set(labels) - there:
            yield f"{query.where}: by {label}, which none of {', '.join(sorted(names))} has"


def of_values(query, allowed):
    for name, label, value in promql.literals(query.promql):
        if label in OF_TARGETS | ANY_VALUE:
            continue
        if value not in allowed.get(label, set()):
            yield f'{query.where}: {name} never has {label}="{value}"'


def of_legends():
    """A legend shows labels that its query keeps."""
    for file, dashboard in sources.dashboards().items():
        for panel in sources.panels(dashboard):
            for target in panel["targets"]:
                kept = {label for labels, _ in promql.groupings(sources.substituted(target["expr"])) for label in labels}
                for label in set(LEGEND.findall(target["legendFormat"])) - kept:
                    yield f"{file}, {panel['title']}, {target['refId']}: its legend shows {label}, which its query doesn't keep"


def problems(more_queries=()):
    metrics, allowed = known(), allowed_values()
    queries = [*sources.rule_queries(), *sources.panel_queries(), *more_queries]
    for query in queries:
        yield from of_selectors(query, metrics)
        yield from of_groupings(query, metrics)
        yield from of_values(query, allowed)
    yield from of_legends()
    used = {name for query in queries for name, _, _ in promql.selectors(query.promql)}
    for name in sources.recorded().keys() - used:
        yield f"{name} is recorded and nobody reads it"
