"""Runs the examples of docs/examples against ingest and looks for their likes, then schemathesis.

`devstack run` gives the environment: LIKES_URL and REDIS_URL. Arguments: a folder for reports, and what to run
("examples", "schemathesis", or both when there is none).
"""

import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
from typing import ClassVar

import msgpack
import redis

HERE = pathlib.Path(__file__).resolve().parent
EXAMPLES = HERE.parent.parent / "docs" / "examples"
LIKES_URL = os.environ["LIKES_URL"]
REDIS = redis.Redis.from_url(os.environ["REDIS_URL"])
EXAMPLE_TIMEOUT_S = 120
SCHEMATHESIS_TIMEOUT_S = 1200
FEWEST_CASES = 1000

# What each example sends.
LIKES = {(7, 42), (8, 42), (9, 42), (10, 42)}


def commands(folder):
    """How each example is run. Go compiles first."""
    go = folder / "go-example"
    environment = {**os.environ, "GOCACHE": str(folder / "go-cache"), "GO111MODULE": "off"}
    subprocess.run(["go", "build", "-o", go, EXAMPLES / "go" / "main.go"], env=environment, check=True, timeout=600)
    return {
        "curl": ["bash", EXAMPLES / "curl.sh"],
        "python": [sys.executable, EXAMPLES / "python.py"],
        "javascript": ["node", EXAMPLES / "javascript.mjs"],
        "go": [go],
    }


def run(command, url, **environment):
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return subprocess.run(
        command, env={**inherited, "LIKES_URL": url, **environment}, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=EXAMPLE_TIMEOUT_S, check=False,
    )


def likes_in_streams():
    """The likes of all partitions, as often as they are there."""
    found = []
    for key in REDIS.scan_iter(match="likes:{*}", _type="stream"):
        for _, fields in REDIS.xrange(key):
            _, *likes = msgpack.unpackb(fields[b"l"])
            found += [(user, post) for user, post, *_ in likes]
    return found


def fail(example, why, ended):
    sys.exit(f"{example}: {why}\nexit code {ended.returncode}\n{ended.stdout}{ended.stderr}")


def its_likes_are_in_redis(example, command):
    for key in list(REDIS.scan_iter(match="likes:{*}", _type="stream")):
        REDIS.delete(key)
    ended = run(command, LIKES_URL)
    if ended.returncode != 0:
        fail(example, "it failed", ended)
    found = likes_in_streams()
    if sorted(found) != sorted(LIKES):
        fail(example, f"in the streams are {found}", ended)
    if "accepted" not in ended.stdout or "partition" not in ended.stdout:
        fail(example, "it does not print the answers", ended)


class Moody(http.server.BaseHTTPRequestHandler):
    """Says "later" twice before it takes a request, and notes what came."""

    answers: ClassVar[list] = []
    requests: ClassVar[list] = []
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        body = b"" if chunked else self.rfile.read(int(self.headers["Content-Length"]))
        self.requests.append((self.path, dict(self.headers), body))
        status = self.answers.pop(0) if self.answers else 202
        answer = {"id": "1-0", "partition": 1, "accepted": 3, "rejected": 0, "errors": [], "detail": "why not"}
        answer = json.dumps(answer).encode()
        self.send_response(status)
        if status in (429, 503):
            self.send_header("Retry-After", "1")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


def it_can_wait(example, command, url):
    Moody.answers, Moody.requests[:] = [503, 429], []
    ended = run(command, url, LIKES_TOKEN="a-token")
    paths = [path for path, _, _ in Moody.requests]
    if ended.returncode != 0 or paths != ["/likes"] * 3 + ["/likes/batch"]:
        fail(example, f"told to come again it sent {paths}", ended)
    if len({body for path, _, body in Moody.requests if path == "/likes"}) != 1:
        fail(example, "it sent another like when told to come again", ended)
    if any(headers.get("Authorization") != "Bearer a-token" for _, headers, _ in Moody.requests):
        fail(example, "it does not send LIKES_TOKEN", ended)


def it_takes_no_for_an_answer(example, command, url):
    Moody.answers, Moody.requests[:] = [422], []
    ended = run(command, url, LIKES_API_KEY="a-key")
    if ended.returncode == 0 or len(Moody.requests) != 1:
        fail(example, f"told no it sent {len(Moody.requests)} requests", ended)
    if "why not" not in ended.stderr:
        fail(example, "it does not say why", ended)
    headers = {name.lower(): value for name, value in Moody.requests[0][1].items()}
    if headers.get("x-api-key") != "a-key":
        fail(example, "it does not send LIKES_API_KEY", ended)


def run_examples(folder):
    moody = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Moody)
    threading.Thread(target=moody.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{moody.server_address[1]}"
    examples = commands(folder)
    for example, command in examples.items():
        its_likes_are_in_redis(example, command)
        it_can_wait(example, command, url)
        it_takes_no_for_an_answer(example, command, url)
        print(f"{example}: its likes are in Redis", flush=True)
    print(f"{len(examples)} examples passed", flush=True)


def run_schemathesis(folder):
    program = pathlib.Path(sys.executable).parent / "schemathesis"
    schema = os.environ.get("OPENAPI", f"{LIKES_URL}/openapi.json")
    command = [
        program, "--config-file", HERE / "schemathesis.toml", "run", schema, "--url", LIKES_URL,
        "--report", "json,junit", "--report-json-path", folder / "schemathesis.json",
        "--report-junit-path", folder / "schemathesis.xml",
    ]
    environment = {**os.environ, "PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1"}
    log = folder / "schemathesis.log"
    with open(log, "w", encoding="utf-8") as output:
        ended = subprocess.run(command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=output,
                               stderr=subprocess.STDOUT, timeout=SCHEMATHESIS_TIMEOUT_S, check=False)
    lines = log.read_text(encoding="utf-8").splitlines()
    summary = next((at for at, line in enumerate(lines) if " SUMMARY " in line), 0)
    print("\n".join(line[:2000] for line in (lines if ended.returncode else lines[summary:])), flush=True)
    if ended.returncode:
        sys.exit(ended.returncode)
    report = json.loads((folder / "schemathesis.json").read_text(encoding="utf-8"))
    if report["test_cases"]["generated"] < FEWEST_CASES:
        sys.exit(f"only {report['test_cases']['generated']} cases were tried")


def main():
    folder = pathlib.Path(sys.argv[1]).resolve()
    wanted = sys.argv[2:] or ["examples", "schemathesis"]
    if "examples" in wanted:
        run_examples(folder)
    if "schemathesis" in wanted:
        run_schemathesis(folder)


if __name__ == "__main__":
    main()
