"""The rules, dashboards and runbook, and all their queries."""

import json
import pathlib
import re

import yaml

from support import ROOT

HERE = pathlib.Path(__file__).resolve().parent
FILES = ROOT / "deploy" / "chart" / "files"
RULES = FILES / "alerts.yaml"
RULE_TESTS = sorted((HERE / "rules").glob("*.yaml"))
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")

# Grafana substitutes these. The interval is at least four scrapes.
VARIABLES = {
    "$__rate_interval": "20s",
    "$namespace": ".*",
    "$ingest": "ingest",
    "$consumer": "consumer",
}
# A query in the text of an annotation.
TEMPLATE_QUERY = re.compile(r"printf `([^`]*)`")

GROUPS = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
RULE_LIST = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULE_LIST if "alert" in rule}
RECORDED = {rule["record"]: rule["expr"] for rule in RULE_LIST if "record" in rule}
DASHBOARDS = {
    file.name: json.loads(file.read_text(encoding="utf-8"))
    for file in sorted((FILES / "dashboards").glob("*.json"))
}


def anchor(title):
    """Returns the anchor that GitHub creates for a title."""
    return re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")


SECTIONS = {
    anchor(title): body
    for title, body in re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", RUNBOOK, re.MULTILINE)
}


PANELS = {
    f"{file}-{panel['title']}-{panel['type']}": panel
    for file, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    if panel["type"] != "row"
}


def substituted(promql):
    for name, value in VARIABLES.items():
        promql = promql.replace(name, value)
    return promql


def rule_queries():
    """Returns the queries of all rules and of their annotations."""
    queries = {}
    for rule in RULE_LIST:
        name = rule.get("alert") or rule["record"]
        queries[name] = rule["expr"]
        for annotation, text in rule.get("annotations", {}).items():
            for at, query in enumerate(TEMPLATE_QUERY.findall(text)):
                filled = query.replace("%s", ".*").replace('="', '=~"')
                queries[f"{name}-{annotation}-{at}"] = filled
    return queries


def panel_queries():
    """Returns the queries of panels and dashboard annotations, with variables substituted."""
    queries = {
        f"{name}-{target['refId']}": substituted(target["expr"])
        for name, panel in PANELS.items()
        for target in panel["targets"]
    }
    for file, dashboard in DASHBOARDS.items():
        for annotation in dashboard["annotations"]["list"]:
            queries[f"{file}-{annotation['name']}"] = substituted(annotation["expr"])
    return queries


RULE_QUERIES, PANEL_QUERIES = rule_queries(), panel_queries()
