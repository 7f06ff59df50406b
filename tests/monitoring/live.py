"""What runs has all that rules and panels ask for: every query is asked of a Prometheus that scrapes the stack under load."""

import math
import time

import prometheus_server
import promql
import sources
import stack as stacks
import trouble

LOAD_S = 30
LOOK_BACK_S = 15
EVALUATED_S = 15
SEEN_S = 30

# Counters are there from 0 on, but one by the error comes with its first error. Of these a stack that is well has nothing,
WHILE_WELL = {
    'messaging_client_sent_messages_total{error_type!=""}': "every append is taken",
}
# and of these nothing even in the trouble that is made here.
NEVER = {
    "ALERTS": "nothing lasts for long enough",
}
# What makes these counters count.
COUNTED = {
    'likestream_batches_failed_total{class="retry"}': trouble.read_only_database,
    'likestream_batches_failed_total{class="halt"}': trouble.no_table,
    'likestream_requests_refused_total{code="redis-out-of-memory"}': trouble.full_redis,
    'messaging_client_sent_messages_total{error_type!=""}': trouble.full_redis,
    "likestream_dead_letters_total": trouble.nonsense,
}
# Of these alerts some of that is trouble enough, should it last.
SEEN = {"LikestreamLikesRefused", "LikestreamLikesRefusedSlowly", "LikestreamRedisOutOfMemory", "LikestreamDeadLetters"}
# These look at how it is.
SEEN_WITHOUT_REDIS = {"LikestreamRedisUnavailable", "LikestreamConsumersWithoutRedis"}
TROUBLE_S = 40
# Alerts want more of it than the first.
HOLD_S = 3

OPERATORS = {"MatchOp.Equal": "=", "MatchOp.NotEqual": "!=", "MatchOp.Re": "=~", "MatchOp.NotRe": "!~"}


def compared(matchers):
    return [f'{matcher.name}{OPERATORS[str(matcher.op)]}"{matcher.value}"' for matcher in matchers]


def selector_text(name, matchers):
    return f"{name}{{{', '.join(compared(matchers))}}}" if matchers else name


def may_be_nothing(query, absent):
    """Whether it looks for something that is absent, or for some of that."""
    known = [(name, set(compared(matchers))) for selector in absent for name, matchers, _ in promql.selectors(selector)]
    return any((name == known_name and those <= set(compared(matchers)))
               for name, matchers, _ in promql.selectors(query) for known_name, those in known)


def has_data(rows):
    return any(not math.isnan(float(value)) for row in rows for _, value in row["values"])


def of_panels(prometheus, absent):
    now = time.time()
    for query in sources.panel_queries():
        try:
            rows = prometheus.over(query.promql, now - LOOK_BACK_S, now, 1)
        except prometheus_server.QueryFailed as failed:
            yield f"{query.where}: {failed}"
            continue
        if not has_data(rows) and not may_be_nothing(query.promql, absent):
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


def of_selectors(prometheus, absent):
    """What rules look at is there."""
    for query in sources.rule_queries():
        for selector in sorted({selector_text(name, matchers) for name, matchers, _ in promql.selectors(query.promql)}):
            if not may_be_nothing(selector, absent) and not prometheus.now(selector):
                yield f"{query.where}: nothing is {selector}"


def in_trouble(prometheus, stack):
    for selector, cause in COUNTED.items():
        query = f"increase({selector}[10s]) > 0"
        with cause(stack):
            try:
                prometheus_server.wait_for(query, lambda: prometheus.now(query), TROUBLE_S)
                time.sleep(HOLD_S)
            except TimeoutError:
                yield f"{cause.__name__.replace('_', ' ')}: nothing is {query}"


def of_seen_alerts(prometheus, names):
    for name in sorted(names):
        query = sources.alerts()[name]["expr"]
        try:
            prometheus_server.wait_for(name, lambda: prometheus.now(query), SEEN_S)
        except TimeoutError:
            yield f"{name}: it would not fire, though there was trouble"


def problems(programs):
    with stacks.up(programs) as stack, stacks.scraped(stack) as prometheus, stacks.loaded(stack) as failures:
        time.sleep(LOAD_S)
        yield from of_rules(prometheus)
        yield from of_panels(prometheus, {**WHILE_WELL, **NEVER})
        yield from of_alerts(prometheus)
        yield from failures[:3]
        yield from in_trouble(prometheus, stack)
        yield from of_seen_alerts(prometheus, SEEN)
        yield from of_selectors(prometheus, NEVER)
        yield from of_panels(prometheus, NEVER)
        # Last, because what is looked up in Redis is gone for a while.
        with trouble.silent_redis(stack):
            yield from of_seen_alerts(prometheus, SEEN_WITHOUT_REDIS)
