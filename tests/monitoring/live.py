"""What runs has all that rules and panels ask for: every query is asked of a Prometheus that scrapes the stack under load."""

import math
import time

import prometheus_server
import promql
import sources
import stack as stacks

LOAD_S = 30
LOOK_BACK_S = 15
EVALUATED_S = 15

# Of these a stack that is well has nothing, as counters are not there before they have counted something.
NOTHING_WHILE_ALL_IS_WELL = {
    "likestream_batches_failed_total": "every transaction succeeds",
    "likestream_dead_letters_total": "every like can be stored",
    "likestream_entries_lost_total": "nobody deletes entries",
    "likestream_trim_failures_total": "every stream can be trimmed",
    'messaging_client_sent_messages_total{error_type!=""}': "every append is taken",
    "ALERTS": "nothing fires",
}
# Their values are of what goes wrong, and checked by `names`.
FREE_VALUES = {"code", "http_response_status_code"}

OPERATORS = {"MatchOp.Equal": "=", "MatchOp.NotEqual": "!=", "MatchOp.Re": "=~", "MatchOp.NotRe": "!~"}


def selector_text(name, matchers):
    compared = [f'{matcher.name}{OPERATORS[str(matcher.op)]}"{matcher.value}"' for matcher in matchers]
    return f"{name}{{{', '.join(compared)}}}" if compared else name


def may_be_nothing(promql_text):
    """Whether a metric of it is one of those."""
    for name, matchers, _ in promql.selectors(promql_text):
        failures = [matcher for matcher in matchers if matcher.name == "error_type"]
        if {name, selector_text(name, failures)} & NOTHING_WHILE_ALL_IS_WELL.keys():
            return True
    return False


def has_data(rows):
    return any(not math.isnan(float(value)) for row in rows for _, value in row["values"])


def of_panels(prometheus):
    now = time.time()
    for query in sources.panel_queries():
        try:
            rows = prometheus.over(query.promql, now - LOOK_BACK_S, now, 1)
        except prometheus_server.QueryFailed as failed:
            yield f"{query.where}: {failed}"
            continue
        if not has_data(rows) and not may_be_nothing(query.promql):
            yield f"{query.where}: no data: {query.promql}"


def of_rules(prometheus):
    """Prometheus could evaluate each."""
    def all_evaluated():
        return all(rule["health"] != "unknown" for rule in prometheus.rules())

    prometheus_server.wait_for("all rules are evaluated", all_evaluated, EVALUATED_S)
    for rule in prometheus.rules():
        if rule["health"] != "ok":
            yield f"{rule['name']}: {rule['health']}: {rule.get('lastError')}"
    for query in sources.rule_queries():
        try:
            prometheus.now(query.promql)
        except prometheus_server.QueryFailed as failed:
            yield f"{query.where}: {failed}"


def of_alerts(prometheus):
    """While all is well none of them is on its way."""
    for name, rule in sources.alerts().items():
        for row in prometheus.now(rule["expr"]):
            yield f"{name}: it would fire for {row['metric']}, at {row['value'][1]}, though all is well"


def of_selectors(prometheus):
    """What rules look at is there."""
    for query in sources.rule_queries():
        asked = {
            selector_text(name, [matcher for matcher in matchers if matcher.name not in FREE_VALUES])
            for name, matchers, _ in promql.selectors(query.promql)
        }
        for selector in sorted(asked):
            if not may_be_nothing(selector) and not prometheus.now(selector):
                yield f"{query.where}: nothing is {selector}"


def problems(programs):
    with stacks.up(programs) as stack, stacks.scraped(stack) as prometheus, stacks.loaded(stack) as failures:
        time.sleep(LOAD_S)
        yield from of_rules(prometheus)
        yield from of_selectors(prometheus)
        yield from of_panels(prometheus)
        yield from of_alerts(prometheus)
        yield from failures[:3]
