"""Rules, panels and KEDA use only metrics, labels and values that docs/metrics.md documents."""

import functools
import json
import re
from typing import NamedTuple

import pytest

import promql
from sources import PANEL_QUERIES, PANELS, RECORDED, RULE_QUERIES, substituted
from support import ROOT

# Prometheus and Kubernetes add these labels to all series.
OF_TARGETS = {"namespace", "job", "instance", "pod"}
OF_PROMETHEUS = {"up": set(), "ALERTS": {"alertname", "alertstate", "severity"}}
ON_COUNTERS = {"rate", "increase", "irate", "resets"}
ON_GAUGES = {"deriv", "predict_linear", "delta", "changes"}
# Not all of their values are documented. test_live checks them on a running stack.
ANY_VALUE = {"check", "messaging_consumer_group_name", "error_type", "alertstate"}

ROW = re.compile(r"^\| `([a-z_]+)` [^|]*\| (\w+) \| ([^|]*)\| (.*)\|$", re.MULTILINE)
LEGEND = re.compile(r"{{\s*(\w+)\s*}}")


class Metric(NamedTuple):
    kind: str
    labels: set
    description: str = ""


def documented():
    """Returns the metrics of docs/metrics.md as Prometheus stores them."""
    metrics = {}
    for name, kind, labels, description in ROW.findall((ROOT / "docs/metrics.md").read_text()):
        metric = Metric(kind, set(re.findall(r"`([a-z_]+)`", labels)), description)
        if kind == "histogram":
            counted = metric._replace(kind="counter")
            metrics[f"{name}_bucket"] = counted._replace(labels=metric.labels | {"le"})
            metrics[f"{name}_sum"] = metrics[f"{name}_count"] = counted
        else:
            metrics[name] = metric
    return metrics


@functools.cache
def known():
    """Returns the documented metrics, those of Prometheus, and the recorded ones."""
    metrics = documented()
    metrics |= {name: Metric("gauge", labels) for name, labels in OF_PROMETHEUS.items()}
    for name, query in RECORDED.items():
        labels = {label for grouping, _ in promql.groupings(query) for label in grouping}
        metrics[name] = Metric("gauge", labels - {"le"})
    return metrics


@functools.cache
def allowed_values():
    """Returns the documented values of the labels that queries compare."""
    page = (ROOT / "docs/http-api.md").read_text(encoding="utf-8")
    rows = page.partition("| code | status |")[2].partition("\n\n")[0].splitlines()[1:]
    codes = " ".join(row.split("|")[1] for row in rows if row.startswith("|"))
    paths = json.loads((ROOT / "docs/openapi.json").read_text())["paths"]
    values = {
        "code": set(re.findall(r"`([a-z-]+)`", codes)),
        "http_route": set(paths),
        "http_request_method": {method.upper() for each in paths.values() for method in each},
    }
    for metric in documented().values():
        for label in metric.labels & {"class", "flush", "reason"}:
            values.setdefault(label, set()).update(re.findall(r"`([a-z_]+)`", metric.description))
    return values


QUERIES = {**RULE_QUERIES, **PANEL_QUERIES}


@pytest.fixture(params=[*QUERIES, "keda"])
def query(request):
    if request.param == "keda":
        return request.getfixturevalue("keda_trigger")()["query"]
    return QUERIES[request.param]


def test_query_uses_documented_metrics_and_labels(query):
    for name, matchers, calls in promql.selectors(query):
        metric = known()[name]
        assert {matcher.name for matcher in matchers} <= metric.labels | OF_TARGETS
        assert not set(calls) & (ON_COUNTERS if metric.kind == "gauge" else ON_GAUGES)


def test_query_groups_by_labels_of_its_metrics(query):
    for labels, names in promql.groupings(query):
        assert set(labels) <= OF_TARGETS.union(*(known()[name].labels for name in names))


def test_query_compares_with_existing_values(query):
    for _, label, value in promql.literals(query):
        assert label in OF_TARGETS | ANY_VALUE or value in allowed_values()[label]


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS)
def test_legend_uses_labels_that_its_query_keeps(panel):
    for target in panel["targets"]:
        groupings = promql.groupings(substituted(target["expr"]))
        kept = {label for labels, _ in groupings for label in labels}
        assert set(LEGEND.findall(target["legendFormat"])) <= kept


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_series_is_used(name):
    read = {found for query in QUERIES.values() for found, _, _ in promql.selectors(query)}
    assert name in read
