"""Runs the programs in docs/examples against ingest, and against a server that rejects requests."""

import json
import os
import re
import sys

import msgpack
import pytest
from werkzeug import Response

from support import ROOT, output, run

EXAMPLES = ROOT / "docs" / "examples"
COMPILE_TIMEOUT_S = 600
# Likes that each example sends.
LIKES = [(7, 42), (8, 42), (9, 42), (10, 42)]
ANSWER = {"id": "1-0", "partition": 1, "accepted": 3, "rejected": 0, "errors": []}
ANSWER["detail"] = "reason of the rejection"


@pytest.fixture(scope="session")
def go_example(tmp_path_factory, pytestconfig):
    program = tmp_path_factory.mktemp("go") / "example"
    cache = pytestconfig.cache.mkdir("go-build")
    environment = {**os.environ, "GOCACHE": str(cache), "GO111MODULE": "off"}
    source = EXAMPLES / "go" / "main.go"
    output("go", "build", "-o", program, source, env=environment, timeout=COMPILE_TIMEOUT_S)
    return program


@pytest.fixture(params=["curl", "python", "javascript", "go"])
def example(request):
    """A function that runs an example with a URL and environment variables."""
    command = {
        "curl": lambda: ["bash", EXAMPLES / "curl.sh"],
        "python": lambda: [sys.executable, EXAMPLES / "python.py"],
        "javascript": lambda: ["node", EXAMPLES / "javascript.mjs"],
        "go": lambda: [request.getfixturevalue("go_example")],
    }[request.param]()
    inherited = {
        name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ
    }
    return lambda url, **more: run(*command, env={**inherited, "LIKES_URL": url, **more})


@pytest.fixture
def refusing(httpserver):
    """A server that responds with the given statuses, then with 202."""

    def start(*statuses):
        left = list(statuses)

        def answer(_request):
            status = left.pop(0) if left else 202
            headers = {"Retry-After": "1"} if status in (429, 503) else {}
            return Response(json.dumps(ANSWER), status, headers)

        httpserver.expect_request(re.compile(""), method="POST").respond_with_handler(answer)
        return httpserver.url_for("")

    return start


def requests_to(server):
    return [request for request, _ in server.log]


def test_sends_its_likes_and_prints_the_responses(example, streams, likes_url):
    ended = example(likes_url)
    assert ended.returncode == 0, ended
    stored = []
    for key in streams.scan_iter(match="likes:{*}", _type="stream"):
        for _, fields in streams.xrange(key):
            _, *likes = msgpack.unpackb(fields[b"l"])
            stored += [(user, post) for user, post, *_ in likes]
    assert sorted(stored) == LIKES
    assert "accepted" in ended.stdout
    assert "partition" in ended.stdout


def test_retries_the_same_request_after_503_and_429(example, refusing, httpserver):
    ended = example(refusing(503, 429), LIKES_TOKEN="a-token")
    sent = requests_to(httpserver)
    assert ended.returncode == 0, ended
    assert [request.path for request in sent] == ["/likes"] * 3 + ["/likes/batch"]
    assert len({request.get_data() for request in sent[:3]}) == 1
    assert {request.headers["Authorization"] for request in sent} == {"Bearer a-token"}


def test_prints_the_reason_of_a_refusal_without_retrying(example, refusing, httpserver):
    ended = example(refusing(422), LIKES_API_KEY="a-key")
    assert ended.returncode != 0
    assert "reason of the rejection" in ended.stderr
    assert [request.headers["X-Api-Key"] for request in requests_to(httpserver)] == ["a-key"]
