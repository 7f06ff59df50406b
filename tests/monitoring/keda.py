"""The query of the chart's ScaledObject, asked of a real Prometheus: it is the backlog of the group, and nothing where that isn't known."""

import contextlib
import http.server
import json
import pathlib
import subprocess
import sys
import threading

import prometheus_server
import sources
import yaml

CHART = sources.ROOT / "deploy" / "chart"
NAMESPACE = "storms"
BACKLOG = 12_345
HELM_TIMEOUT_S = 60
SCRAPED_S = 30

# Of a group whose name could end a string.
QUOTED, QUOTED_BACKLOG = 'one-"of"-\\many', 30_000

VALUES = {
    "redis.existingSecret": "redis",
    "database.existingSecret": "database",
    "consumer.keda.enabled": True,
    "consumer.keda.serverAddress": "http://prometheus.monitoring:9090",
}


def trigger(**more_values):
    """That of the ScaledObject, as helm renders it."""
    settings = {**VALUES, **{name.replace("__", "."): value for name, value in more_values.items()}}
    helm = pathlib.Path(sys.executable).parent / "helm"
    command = [helm, "template", "likestream", CHART, "--namespace", NAMESPACE]
    for name, value in settings.items():
        command += ["--set-json", f"{name}={json.dumps(value)}"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HELM_TIMEOUT_S, check=False)
    if ended.returncode:
        raise RuntimeError(f"helm: {ended.stderr.strip()}")
    scaled = [document for document in yaml.safe_load_all(ended.stdout) if document and document["kind"] == "ScaledObject"]
    triggers = [trigger for document in scaled for trigger in document["spec"]["triggers"]]
    if len(triggers) != 1:
        raise RuntimeError(f"{len(triggers)} triggers in the chart's ScaledObjects: several would be the largest, not their sum")
    return triggers[0]["metadata"]


def queries():
    return [sources.Query("the chart's ScaledObject", trigger()["query"])]


def sample(value, group=None):
    """The metric as ingest and consumers write it."""
    labels = f"{{messaging_consumer_group_name={json.dumps(group)}}}" if group else ""
    return (
        "# HELP likestream_backlog_entries Entries that are not stored yet, undelivered and pending, over all partitions\n"
        "# TYPE likestream_backlog_entries gauge\n"
        f"likestream_backlog_entries{labels} {value}\n"
        "# HELP target_info Target metadata\n# TYPE target_info gauge\ntarget_info 1\n"
    )


# What is scraped: (job, namespace, the page). Ingest's backlog is that of the slowest group.
PAGES = {
    "consumer-1": ("consumer", NAMESPACE, sample(BACKLOG, "likes-writers")),
    "consumer-2": ("consumer", NAMESPACE, sample(BACKLOG, "likes-writers")),
    "consumer-3": ("consumer", NAMESPACE, sample(BACKLOG, "likes-writers")),
    "consumer-gone": ("consumer", NAMESPACE, sample(50_000, "likes-writers")),
    "consumer-elsewhere": ("consumer", "elsewhere", sample(99_999, "likes-writers")),
    "archivist": ("archivist", NAMESPACE, sample(20_000, "archive")),
    "quoted": ("quoted", NAMESPACE, sample(QUOTED_BACKLOG, QUOTED)),
    "ingest": ("ingest", NAMESPACE, sample(20_000)),
}


class Pages(http.server.BaseHTTPRequestHandler):
    pages: dict = {}

    def do_GET(self):
        page = self.pages.get(self.path.strip("/"))
        self.send_response(200 if page else 503)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.end_headers()
        self.wfile.write((page or "").encode())

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def scraped():
    """Prometheus, and the pages that it scrapes."""
    Pages.pages = {name: page for name, (_, _, page) in PAGES.items()}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_address[1]}"
    jobs = [
        {
            "job_name": name, "metrics_path": f"/{name}", "scrape_interval": "1s",
            "static_configs": [{"targets": [address], "labels": {"job": job, "namespace": namespace, "instance": name}}],
        }
        for name, (job, namespace, _) in PAGES.items()
    ]
    try:
        with prometheus_server.running({"scrape_configs": jobs}) as prometheus:
            yield prometheus
    finally:
        server.shutdown()
        server.server_close()


def answer(prometheus, query):
    """The one number of a query, or none."""
    rows = prometheus.now(query)
    if len(rows) > 1:
        raise RuntimeError(f"{query}: {len(rows)} numbers, KEDA takes one")
    return float(rows[0]["value"][1]) if rows else None


def becomes(prometheus, query, expected):
    """Nothing where it does, and what it was in the end where it doesn't."""
    try:
        prometheus_server.wait_for(query, lambda: answer(prometheus, query) == expected, SCRAPED_S)
    except TimeoutError:
        return answer(prometheus, query)
    return expected


def problems():
    metadata = trigger()
    query = metadata["query"]
    if metadata.get("ignoreNullValues") != "false":
        yield "the chart's ScaledObject: without ignoreNullValues: \"false\" KEDA takes a backlog that nobody knows for 0"
    with scraped() as prometheus:
        # What is gone was there.
        everywhere = "count(likestream_backlog_entries)"
        if becomes(prometheus, everywhere, len(PAGES)) != len(PAGES):
            yield f"only {answer(prometheus, everywhere)} of {len(PAGES)} pages were scraped"
        Pages.pages["consumer-gone"] = None
        is_now = becomes(prometheus, query, BACKLOG)
        if is_now != BACKLOG:
            yield f"{query}: {is_now}, and the backlog is {BACKLOG}"
        for group, backlog in ("archive", 20_000), (QUOTED, QUOTED_BACKLOG):
            of_group = trigger(likes__group=group)["query"]
            is_now = becomes(prometheus, of_group, backlog)
            if is_now != backlog:
                yield f"{of_group}: {is_now}, and the backlog of that group is {backlog}"
        # Redis doesn't answer: consumers live and leave it out.
        for name in PAGES:
            if name.startswith("consumer"):
                Pages.pages[name] = "target_info 1\n"
        is_now = becomes(prometheus, query, None)
        if is_now is not None:
            yield f"{query}: {is_now}, though nobody knows the backlog"
