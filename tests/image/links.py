"""Where alerts and dashboards lead to: compose.yaml's `runbook` is run as its container would, and its page is asked of a Prometheus."""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request

import compose
import servers
from free_port import free_port
from tree import ROOT, Failed

TIMEOUT_S = 60
NAME = "runbook"
WHERE = f"{compose.PATH}: {NAME}"
FILES = ROOT / "deploy/chart/files"
PLACEHOLDER = "RUNBOOK_URL"
ASSETS = "--web.user-assets="


@contextlib.contextmanager
def made():
    """The volumes that it fills, by name."""
    service = compose.SERVICES[NAME]
    with tempfile.TemporaryDirectory(prefix="likestream-links-") as folder:
        folder = pathlib.Path(folder)
        volumes = {name: folder / name for name in compose.named_volumes(service).values()}
        applets = folder / "applets"
        for path in (applets, *volumes.values()):
            path.mkdir()
        # Of what an earlier run left there must be nothing.
        for path in volumes.values():
            (path / "dashboards").mkdir()
            (path / "dashboards" / "old.json").write_text(PLACEHOLDER, encoding="utf-8")
        busybox("--install", "-s", applets)
        words = [compose.on_this_machine(service, word, volumes) or word for word in service["command"]]
        busybox(*service["entrypoint"], *words, environment={"PATH": str(applets)})
        yield volumes


def busybox(*words, environment=None):
    ended = subprocess.run([shutil.which("busybox"), *words], env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                           timeout=TIMEOUT_S, check=False)
    if ended.returncode:
        raise Failed(f"{WHERE}: {words[0]} ends with {ended.returncode}: {' '.join(ended.stderr.split())}")


def problems(volumes):
    url = compose.SERVICES[NAME]["command"][-1]
    [folder] = volumes.values()
    yield from copies(folder, url)
    yield from page(folder, url)


def copies(folder, url):
    """The chart's files, with the URL in them."""
    wanted = {path.relative_to(FILES) for path in FILES.rglob("*") if path.is_file()}
    there = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".html"}
    for path in sorted(wanted ^ there):
        yield f"{WHERE}: '{path}' is {'missing' if path in wanted else 'of no use'}"
    for path in sorted(wanted & there):
        if (folder / path).read_text(encoding="utf-8") != (FILES / path).read_text(encoding="utf-8").replace(PLACEHOLDER, url):
            yield f"{WHERE}: '{path}' is not that of the chart with {url} in it"


def page(folder, url):
    """It is where the URL says, and has every section that something leads to."""
    where = urllib.parse.urlsplit(url)
    [published] = [port.split(":") for port in compose.SERVICES["prometheus"]["ports"]]
    if (where.hostname, str(where.port)) != ("localhost", published[1]):
        yield f"{WHERE}: {url} is not where Prometheus is, which is localhost:{published[1]}"
    text = served(folder, where.path)
    if text is None:
        yield f"{WHERE}: Prometheus has no page at {where.path}"
        return
    sections = set(re.findall(r'<b id="([^"]+)">', text))
    links = {link for path in folder.rglob("*") if path.suffix in (".json", ".yaml")
             for link in re.findall(rf"{re.escape(url)}#([a-z-]+)", path.read_text(encoding="utf-8"))}
    links |= set(re.findall(r'<a href="#([^"]+)">', text))
    if not links:
        yield f"{WHERE}: nothing leads to {url}"
    for link in sorted(links - sections):
        yield f"{WHERE}: the page has no section #{link}"


def served(folder, path):
    """What a Prometheus with the options of compose.yaml answers, None where that is no page."""
    service = compose.SERVICES["prometheus"]
    [assets] = [word.removeprefix(ASSETS) for word in service["command"] if word.startswith(ASSETS)]
    assets = compose.on_this_machine(service, assets, {name: folder for name in compose.named_volumes(compose.SERVICES[NAME]).values()})
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="likestream-prometheus-") as own:
        config, log = pathlib.Path(own) / "prometheus.yaml", pathlib.Path(own) / "log"
        config.write_text("{}", encoding="utf-8")
        command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={own}/data", f"--web.listen-address=127.0.0.1:{port}",
                   f"{ASSETS}{assets}"]
        with servers.running(command, log) as process:
            servers.listening(port, process, log)
            servers.wait_for("Prometheus is ready", lambda: asked(port, "/-/ready") is not None)
            return asked(port, path, "text/html")


def asked(port, path, kind="text/plain"):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=TIMEOUT_S) as answer:
            return answer.read().decode() if answer.headers.get_content_type() == kind else None
    except urllib.error.HTTPError:
        return None
