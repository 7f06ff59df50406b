"""The rules are valid and pass their promtool tests, and every alert is tested."""

import pytest
import yaml

from promql import selectors
from sources import ALERTS, RECORDED, RULE_TESTS, RULES
from support import output

for_each_alert = pytest.mark.parametrize("alert", ALERTS)


def test_rules_are_valid():
    output("promtool", "check", "rules", RULES)


@pytest.mark.parametrize("file", RULE_TESTS, ids=lambda file: file.stem)
def test_rules_pass_their_promtool_tests(file):
    output("promtool", "test", "rules", file)


@for_each_alert
def test_alert_has_all_fields(alert):
    rule = ALERTS[alert]
    assert alert.startswith("Likestream")
    assert "for" in rule
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert all(rule["annotations"].get(name) for name in ("summary", "description", "runbook_url"))


@pytest.fixture(scope="session")
def rule_tests():
    return [test for file in RULE_TESTS for test in yaml.safe_load(file.read_text())["tests"]]


def looks_at(alert, test):
    """Returns, for each check of the alert in a test, whether the alert fires."""
    looks = [look for look in test["alert_rule_test"] if look["alertname"] == alert]
    return [bool(look.get("exp_alerts")) for look in looks]


@for_each_alert
def test_alert_has_a_test_in_which_it_fires(alert, rule_tests):
    assert any(any(looks_at(alert, test)) for test in rule_tests)


@for_each_alert
def test_alert_has_a_test_before_its_duration_has_passed(alert, rule_tests):
    """In one test the alert does not fire at first and fires later."""
    looks = [looks_at(alert, test) for test in rule_tests]
    assert ALERTS[alert]["for"] == "0m" or any({True, False} <= set(fires) for fires in looks)


def scraped_for(query):
    """Yields the metrics that a query reads, directly or through recorded series."""
    for name, _, _ in selectors(query):
        yield from scraped_for(RECORDED[name]) if name in RECORDED else [name]


@for_each_alert
def test_alert_has_a_test_with_its_metrics_in_which_it_is_inactive(alert, rule_tests):
    """Without its metrics the alert could not fire, so the test would prove nothing."""
    needed = set(scraped_for(ALERTS[alert]["expr"]))
    quiet = [
        test for test in rule_tests if looks_at(alert, test) and not any(looks_at(alert, test))
    ]
    there = [
        series["series"].partition("{")[0] for test in quiet for series in test["input_series"]
    ]
    assert needed & set(there)


def test_tests_name_only_existing_alerts(rule_tests):
    tested = {look["alertname"] for test in rule_tests for look in test["alert_rule_test"]}
    assert tested <= ALERTS.keys()
