"""KEDA's query on a real Prometheus returns the backlog of the consumer group, or no result."""

import json
import re

import pytest
from werkzeug import Response

import prometheus
from conftest import NAMESPACE
from support import wait_until

BACKLOG, ARCHIVED, QUOTED = 12_345, 20_000, 30_000
# A group name with characters that need escaping.
QUOTED_GROUP = 'one-"of"-\\many'
SCRAPED_S = 30


def page(value, group=None):
    """Returns the metric in the format of ingest and consumers."""
    labels = f"{{messaging_consumer_group_name={json.dumps(group)}}}" if group else ""
    return (
        "# HELP likestream_backlog_entries Backlog\n"
        "# TYPE likestream_backlog_entries gauge\n"
        f"likestream_backlog_entries{labels} {value}\n"
        "# HELP target_info Target metadata\n# TYPE target_info gauge\ntarget_info 1\n"
    )


@pytest.fixture(scope="module")
def pages():
    """The scraped pages: job, namespace, text. Ingest exports the backlog of the slowest group."""
    return {
        "consumer-1": ["consumer", NAMESPACE, page(BACKLOG, "likes-writers")],
        "consumer-2": ["consumer", NAMESPACE, page(BACKLOG, "likes-writers")],
        "consumer-3": ["consumer", NAMESPACE, page(BACKLOG, "likes-writers")],
        "consumer-gone": ["consumer", NAMESPACE, page(50_000, "likes-writers")],
        "consumer-elsewhere": ["consumer", "elsewhere", page(99_999, "likes-writers")],
        "archivist": ["archivist", NAMESPACE, page(ARCHIVED, "archive")],
        "quoted": ["quoted", NAMESPACE, page(QUOTED, QUOTED_GROUP)],
        "ingest": ["ingest", NAMESPACE, page(20_000)],
    }


@pytest.fixture(scope="module")
def becomes(pages, make_httpserver, tmp_path_factory):
    """Waits until a query returns only the given value. The scrape of `consumer-gone` fails."""

    def answer(request):
        text = pages[request.path.strip("/")][2]
        return Response(text, 200 if text else 503, mimetype="text/plain")

    server = make_httpserver
    server.expect_request(re.compile("")).respond_with_handler(answer)
    jobs = []
    for name, (job, namespace, _) in pages.items():
        labels = {"job": job, "namespace": namespace, "instance": name}
        target = {"targets": [f"{server.host}:{server.port}"], "labels": labels}
        jobs.append({"job_name": name, "metrics_path": f"/{name}", "static_configs": [target]})
    configuration = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}
    with prometheus.serving(tmp_path_factory.mktemp("prometheus"), configuration) as asked:

        def wait(query, value):
            wanted = [] if value is None else [float(value)]

            def is_so():
                return [float(row["value"][1]) for row in asked.query(query)] == wanted

            wait_until(f"{query} is {value}", is_so, SCRAPED_S)

        wait("count(likestream_backlog_entries)", len(pages))
        pages["consumer-gone"][2] = ""
        wait("count(likestream_backlog_entries)", len(pages) - 1)
        yield wait


def test_unknown_backlog_does_not_count_as_zero(keda_trigger):
    assert keda_trigger()["ignoreNullValues"] == "false"


def test_query_returns_the_backlog_of_the_group_in_the_namespace(keda_trigger, becomes):
    becomes(keda_trigger()["query"], BACKLOG)


@pytest.mark.parametrize(
    ("group", "backlog"), [("archive", ARCHIVED), (QUOTED_GROUP, QUOTED)], ids=["plain", "quoted"]
)
def test_query_returns_the_backlog_of_another_group(group, backlog, keda_trigger, becomes):
    becomes(keda_trigger(group=group)["query"], backlog)


def test_query_is_empty_if_no_consumer_reports_the_backlog(keda_trigger, becomes, pages):
    """Consumers export no backlog while Redis does not answer."""
    for name, found in pages.items():
        if name.startswith("consumer"):
            found[2] = "target_info 1\n"
    becomes(keda_trigger()["query"], None)
