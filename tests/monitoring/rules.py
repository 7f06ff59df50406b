"""The rules are well formed and behave as their tests say. Each alert has a test in which it fires, and not before its time, and one in
which it doesn't."""

import subprocess
from typing import NamedTuple

import promql
import sources
import yaml

SEVERITIES = {"page", "ticket"}
TIMEOUT_S = 120


def promtool(what, file):
    """What it says of a file that isn't well."""
    ended = subprocess.run(
        ["promtool", what, "rules", file], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if ended.returncode == 0:
        return []
    return [(ended.stdout + ended.stderr).replace(f"{sources.ROOT}/", "").strip()]


def forms():
    """What each alert must say."""
    for name, rule in sources.alerts().items():
        if not name.startswith("Likestream"):
            yield f"{name}: its name doesn't begin with Likestream"
        if "for" not in rule:
            yield f"{name}: no `for`"
        severity = rule.get("labels", {}).get("severity")
        if severity not in SEVERITIES:
            yield f"{name}: severity {severity}, allowed are {', '.join(sorted(SEVERITIES))}"
        for annotation in ("summary", "description", "runbook_url"):
            if not rule.get("annotations", {}).get(annotation):
                yield f"{name}: no {annotation}"


class Look(NamedTuple):
    """A test looks at an alert."""
    alert: str
    fires: bool
    # It fires later in the same test.
    too_early: bool
    # What the test has.
    metrics: set


def looks():
    for file in sources.RULE_TESTS:
        for test in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]:
            metrics = {series["series"].partition("{")[0] for series in test["input_series"]}
            later = [look["alertname"] for look in test["alert_rule_test"] if look.get("exp_alerts")]
            for look in test["alert_rule_test"]:
                fires = bool(look.get("exp_alerts"))
                yield Look(look["alertname"], fires, not fires and look["alertname"] in later, metrics)


def read_by(query):
    """The metrics that are scraped for it, through what is recorded."""
    recorded = sources.recorded()
    for name, _, _ in promql.selectors(query):
        yield from read_by(recorded[name]) if name in recorded else [name]


def each_is_tested():
    tested = list(looks())
    alerts = sources.alerts()
    for name, rule in alerts.items():
        of_it = [look for look in tested if look.alert == name]
        if not any(look.fires for look in of_it):
            yield f"{name}: no test in which it fires"
        if rule["for"] != "0m" and not any(look.too_early for look in of_it):
            yield f"{name}: no test looks before it has lasted {rule['for']}"
        # A test without its metrics would be quiet whatever the rule says.
        metrics = set(read_by(rule["expr"]))
        if not any(metrics & look.metrics for look in of_it if not look.fires and not look.too_early):
            yield f"{name}: no test in which it has its metrics and doesn't fire"
    for name in {look.alert for look in tested} - alerts.keys():
        yield f"{name}: tested, and not there"


def problems():
    malformed = promtool("check", sources.RULES)
    if malformed:
        yield from malformed
        return
    yield from forms()
    yield from each_is_tested()
    for file in sources.RULE_TESTS:
        yield from promtool("test", file)
