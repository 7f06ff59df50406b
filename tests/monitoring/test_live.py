"""
Runs every query of rules and panels on a Prometheus that scrapes a real stack: while the stack is
healthy, after several faults, and while Redis does not answer, in this order.
"""

import math
import time

import pytest
from promql_parser import MatchOp

import faults
import promql
import stack
from sources import ALERTS, PANEL_QUERIES, RULE_QUERIES
from support import wait_until

LOAD_S = 30
LOOK_BACK_S = 15
EVALUATED_S = 15
SEEN_S = 30
FAULT_S = 40
# Time that a fault lasts after its first error: one error is not enough for alerts.
HOLD_S = 3

# Counters are exported from 0 on, except this one: its error label appears with the first error.
ABSENT_WHILE_WELL = 'messaging_client_sent_messages_total{error_type!=""}'
# No fault of this suite lasts long enough for an alert to fire.
ALWAYS_ABSENT = "ALERTS"
# Counters, and the faults that increase them.
COUNTED = {
    'likestream_batches_failed_total{class="retry"}': faults.read_only_database,
    'likestream_batches_failed_total{class="halt"}': faults.no_table,
    'likestream_requests_refused_total{code="redis-out-of-memory"}': faults.full_redis,
    'messaging_client_sent_messages_total{error_type!=""}': faults.full_redis,
    "likestream_dead_letters_total": faults.malformed_entry,
}
# Alerts whose expressions match after these faults,
SEEN = [
    "LikestreamDeadLetters",
    "LikestreamLikesRefused",
    "LikestreamLikesRefusedSlowBurn",
    "LikestreamRedisOutOfMemory",
]
# and alerts on the current state of Redis.
SEEN_WITHOUT_REDIS = ["LikestreamConsumersWithoutRedis", "LikestreamRedisUnavailable"]

OPERATORS = {
    str(MatchOp.Equal): "=",
    str(MatchOp.NotEqual): "!=",
    str(MatchOp.Re): "=~",
    str(MatchOp.NotRe): "!~",
}


def compared(matchers):
    return {f'{each.name}{OPERATORS[str(each.op)]}"{each.value}"' for each in matchers}


def selectors(query):
    """Returns the selectors of a query as sets of the name and each comparison."""
    return [{name} | compared(matchers) for name, matchers, _ in promql.selectors(query)]


def may_be_absent(query, *absent):
    """Returns whether a query selects an absent series, or a subset of one."""
    known = [selector for each in absent for selector in selectors(each)]
    return any(each <= selector for selector in selectors(query) for each in known)


def rule_selectors():
    found = set()
    for query in RULE_QUERIES.values():
        for name, matchers, _ in promql.selectors(query):
            found.add(f"{name}{{{', '.join(sorted(compared(matchers)))}}}")
    return sorted(each for each in found if not may_be_absent(each, ALWAYS_ABSENT))


for_each_rule_query = pytest.mark.parametrize("query", RULE_QUERIES.values(), ids=RULE_QUERIES)


for_each_panel_query = pytest.mark.parametrize("query", PANEL_QUERIES.values(), ids=PANEL_QUERIES)


@pytest.fixture(scope="module")
def state(programs, tmp_path_factory):
    with stack.up(programs, tmp_path_factory.mktemp("stack")) as state:
        yield state


@pytest.fixture(scope="module")
def scraped(state, tmp_path_factory):
    with stack.scraped(state, tmp_path_factory.mktemp("prometheus")) as prometheus:
        yield prometheus


@pytest.fixture(scope="module")
def failures(state, scraped):
    """Failed requests of a load that runs until the end of the module."""
    with stack.loaded(state["ingest_url"]) as failures:
        time.sleep(LOAD_S)
        yield failures


@pytest.fixture(scope="module")
def prometheus(scraped, failures):
    """Prometheus under load; healthy unless another fixture has caused faults."""
    return scraped


@pytest.fixture(scope="module")
def uncounted(prometheus, state):
    """Causes all faults. Returns the counters that did not increase."""
    missed = set()
    for selector, cause in COUNTED.items():
        query = f"increase({selector}[10s]) > 0"
        with cause(state):
            try:
                wait_until(query, lambda query=query: prometheus.query(query), FAULT_S)
                time.sleep(HOLD_S)
            except TimeoutError:
                missed.add(selector)
    return missed


@pytest.fixture(scope="module")
def silent_redis(uncounted, state):
    with faults.silent_redis(state):
        yield


def has_data(prometheus, query):
    now = time.time()
    rows = prometheus.query_range(query, now - LOOK_BACK_S, now)
    return any(not math.isnan(float(value)) for row in rows for _, value in row["values"])


def test_prometheus_evaluates_all_rules(prometheus):
    def evaluated():
        return all(rule["health"] != "unknown" for rule in prometheus.rules())

    wait_until("all rules are evaluated", evaluated, EVALUATED_S)
    assert [rule for rule in prometheus.rules() if rule["health"] != "ok"] == []


@for_each_rule_query
def test_prometheus_accepts_the_query(query, prometheus):
    prometheus.query(query)


@for_each_panel_query
def test_panel_has_data_in_normal_operation(query, prometheus):
    is_absent = may_be_absent(query, ABSENT_WHILE_WELL, ALWAYS_ABSENT)
    assert has_data(prometheus, query) or is_absent


@pytest.mark.parametrize("alert", ALERTS)
def test_alert_is_inactive_in_normal_operation(alert, prometheus):
    assert prometheus.query(ALERTS[alert]["expr"]) == []


def test_clients_see_no_failure_in_normal_operation(failures):
    assert failures == []


@pytest.mark.parametrize("counter", COUNTED)
def test_fault_is_counted(counter, uncounted):
    assert counter not in uncounted


@pytest.mark.parametrize("alert", SEEN)
def test_alert_detects_the_faults(alert, uncounted, prometheus):
    wait_until(alert, lambda: prometheus.query(ALERTS[alert]["expr"]), SEEN_S)


@pytest.mark.parametrize("selector", rule_selectors())
def test_rule_selects_existing_series(selector, uncounted, prometheus):
    assert prometheus.query(selector)


@for_each_panel_query
def test_panel_has_data_after_the_faults(query, uncounted, prometheus):
    assert has_data(prometheus, query) or may_be_absent(query, ALWAYS_ABSENT)


@pytest.mark.parametrize("alert", SEEN_WITHOUT_REDIS)
def test_alert_detects_a_silent_redis(alert, silent_redis, prometheus):
    wait_until(alert, lambda: prometheus.query(ALERTS[alert]["expr"]), SEEN_S)
