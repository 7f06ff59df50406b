"""Analysis of PromQL queries."""

import promql_parser
from promql_parser import MatchOp

PARTS = ("lhs", "rhs", "expr", "vector_selector", "param")


def parts(node):
    found = [getattr(node, name, None) for name in PARTS]
    found += getattr(node, "args", None) or []
    return [part for part in found if part is not None and not isinstance(part, (str, float))]


def walk(node, calls=()):
    """Yields every node with the names of the enclosing functions."""
    yield node, calls
    if isinstance(node, promql_parser.Call):
        calls = (*calls, node.func.name)
    for part in parts(node):
        yield from walk(part, calls)


def parse(query):
    return promql_parser.parse(query)


def selectors(query):
    """Returns the metrics that a query reads: (name, matchers, enclosing functions)."""
    return [
        (node.name, node.matchers.matchers, calls)
        for node, calls in walk(parse(query))
        if isinstance(node, promql_parser.VectorSelector)
    ]


def literals(query):
    """Returns the label values that a query compares with: (metric, label, value)."""
    return [
        (name, matcher.name, matcher.value)
        for name, matchers, _ in selectors(query)
        for matcher in matchers
        if matcher.op in (MatchOp.Equal, MatchOp.NotEqual) and matcher.value
    ]


def groupings(query):
    """Returns the labels of each `by`, `on`, `group_left` or similar, and its metrics."""
    found = []
    for node, _ in walk(parse(query)):
        labels = grouped_by(node)
        if labels:
            found.append(
                (
                    labels,
                    {
                        part.name
                        for part, _ in walk(node)
                        if isinstance(part, promql_parser.VectorSelector)
                    },
                )
            )
    return found


def grouped_by(node):
    modifier = getattr(node, "modifier", None)
    if isinstance(node, promql_parser.AggregateExpr):
        return list(modifier.labels) if modifier else []
    if isinstance(node, promql_parser.BinaryExpr) and modifier:
        labels = list(modifier.matching.labels) if modifier.matching else []
        return labels + list(modifier.group_labels or [])
    return []
