"""A real Prometheus on a free loopback port."""

import contextlib

import requests
import yaml

from support import free_port, running, wait_until

TIMEOUT_S = 30


class QueryError(Exception):
    """An error response of Prometheus."""


class Prometheus:
    """The HTTP API."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path, **parameters):
        return requests.get(self.url + path, params=parameters, timeout=TIMEOUT_S)

    def api(self, path, **parameters):
        answer = self.get(f"/api/v1/{path}", **parameters)
        if not answer.ok:
            raise QueryError(answer.text)
        return answer.json()["data"]

    def is_ready(self):
        with contextlib.suppress(requests.RequestException):
            return self.get("/-/ready").ok
        return False

    def query(self, query):
        return self.api("query", query=query)["result"]

    def query_range(self, query, start, end, step=1):
        return self.api("query_range", query=query, start=start, end=end, step=step)["result"]

    def rules(self):
        return [rule for group in self.api("rules")["groups"] for rule in group["rules"]]

    def targets(self):
        return self.api("targets")["activeTargets"]


@contextlib.contextmanager
def serving(folder, configuration, *options):
    """Yields a Prometheus with its data in the folder, and stops it after the block."""
    port = free_port()
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration), encoding="utf-8")
    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", *options]
    with running(*command, log=folder / "prometheus.log") as process:
        prometheus = Prometheus(port)
        wait_until("Prometheus is ready", prometheus.is_ready, TIMEOUT_S, process)
        yield prometheus
