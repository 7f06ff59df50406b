"""Where everything is, and every query that it has."""

import json
import pathlib
import re
from typing import NamedTuple

import yaml

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RULES = ROOT / "deploy" / "chart" / "files" / "alerts.yaml"
DASHBOARDS = ROOT / "deploy" / "chart" / "files" / "dashboards"
RUNBOOK = ROOT / "docs" / "runbook.md"
METRICS = ROOT / "docs" / "metrics.md"
README = ROOT / "README.md"
OPENAPI = ROOT / "docs" / "openapi.json"
RULE_TESTS = sorted((HERE / "rules").glob("*.yaml"))

# What Grafana puts in for them. The interval is four scrapes at least.
VARIABLES = {"$__rate_interval": "20s", "$namespace": ".*", "$ingest": "ingest", "$consumer": "consumer"}

# A query in the text of an annotation, and what it is filled up with.
TEMPLATE_QUERY = re.compile(r"printf `([^`]*)`")


class Query(NamedTuple):
    where: str
    promql: str


def rules():
    """Every rule of the file."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts():
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def recorded():
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def dashboards():
    """By the name of the file."""
    return {file.name: json.loads(file.read_text(encoding="utf-8")) for file in sorted(DASHBOARDS.glob("*.json"))}


def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def substituted(promql):
    for name, value in VARIABLES.items():
        promql = promql.replace(name, value)
    return promql


def rule_queries():
    found = []
    for rule in rules():
        name = rule.get("alert") or rule["record"]
        found.append(Query(name, rule["expr"]))
        for annotation, text in rule.get("annotations", {}).items():
            queries = TEMPLATE_QUERY.findall(text)
            found += [Query(f"{name}, {annotation}", query.replace("%s", ".*").replace('="', '=~"')) for query in queries]
    return found


def panel_queries():
    found = []
    for file, dashboard in dashboards().items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                found.append(Query(f"{file}, {panel['title']}, {target['refId']}", substituted(target["expr"])))
        for annotation in dashboard["annotations"]["list"]:
            found.append(Query(f"{file}, annotation {annotation['name']}", substituted(annotation["expr"])))
    return found


def anchors():
    """The sections of the runbook by their anchors, as GitHub makes them."""
    sections = re.split(r"^## ", RUNBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    named = (section.partition("\n") for section in sections)
    return {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-"): body for title, _, body in named}
