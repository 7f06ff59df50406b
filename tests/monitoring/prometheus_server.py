"""A real Prometheus on a free port of loopback, with a folder of its own, that ends with the block it is used in."""

import contextlib
import json
import pathlib
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

import yaml

from free_port import free_port

READY_S = 30
ANSWER_S = 30
END_S = 20


class QueryFailed(Exception):
    """Prometheus says what is wrong with a query."""


class Prometheus:
    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path, **parameters):
        url = f"{self.url}{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=ANSWER_S) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as refused:
            raise QueryFailed(refused.read().decode(errors="replace")) from refused

    def now(self, query):
        """The rows of an instant query."""
        return self.get("/api/v1/query", query=query)["result"]

    def over(self, query, start, end, step):
        """The rows of a range query."""
        return self.get("/api/v1/query_range", query=query, start=start, end=end, step=step)["result"]

    def rules(self):
        return [rule for group in self.get("/api/v1/rules")["groups"] for rule in group["rules"]]

    def targets(self):
        return self.get("/api/v1/targets")["activeTargets"]


def wait_for(what, is_so, limit_s, every_s=0.2):
    """Until it is so. It has to be within the limit."""
    end = time.monotonic() + limit_s
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {limit_s} s")
        time.sleep(every_s)


def is_ready(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=1):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def running(configuration):
    """It scrapes what the configuration says."""
    with tempfile.TemporaryDirectory(prefix="likestream-prometheus-") as folder:
        folder, port = pathlib.Path(folder), free_port()
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
        log = folder / "log"
        with log.open("w") as output:
            process = subprocess.Popen(
                ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
                 f"--web.listen-address=127.0.0.1:{port}"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            def up_or_ended():
                if process.poll() is not None:
                    raise RuntimeError("Prometheus ended: " + log.read_text(errors="replace")[-800:])
                return is_ready(port)

            wait_for("Prometheus is ready", up_or_ended, READY_S)
            yield Prometheus(port)
        finally:
            process.terminate()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
