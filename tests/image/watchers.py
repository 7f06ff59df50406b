"""The configurations of the collector, of Prometheus and of Grafana, whether they find one another, and what they lead to."""

import subprocess
import tempfile
import urllib.parse

import compose
import links
import settings
import yaml
from tree import ROOT

TIMEOUT_S = 60
FOLDER = "deploy/compose"


def problems(_folder, programs):
    yield from collector()
    with links.made() as volumes:
        yield from prometheus(programs, volumes)
        yield from grafana(programs, volumes)
        yield from links.problems(volumes)


def read(name):
    return yaml.safe_load((ROOT / FOLDER / name).read_text(encoding="utf-8"))


def port_is(where, host, port, programs):
    """Somebody listens there, by compose.yaml."""
    if host not in compose.SERVICES:
        yield f"{where}: '{host}' is no service of {compose.PATH}"
    elif port not in (found := settings.ports(compose.SERVICES[host], programs)):
        yield f"{where}: '{host}' listens on {sorted(found)}, not on {port}"


def collector():
    where, config = f"{FOLDER}/collector.yaml", read("collector.yaml")
    used = {"receivers": set(), "processors": set(), "exporters": set()}
    for pipeline in config["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            used[kind] |= set(names)
    for kind, names in used.items():
        for name in names ^ config.get(kind, {}).keys():
            yield f"{where}: {kind}: '{name}' is declared and used by no pipeline, or the other way round"
    limit = config["processors"]["memory_limiter"]["limit_mib"]
    container = compose.SERVICES["collector"]["deploy"]["resources"]["limits"]["memory"]
    if limit >= compose.mebibytes(container):
        yield f"{where}: memory_limiter has {limit} MiB, and the container {container}"

    protocols = config["receivers"]["otlp"]["protocols"]
    for name, service in compose.ours().items():
        environment = service["environment"]
        endpoint = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        if endpoint is None:
            continue
        url = urllib.parse.urlsplit(endpoint)
        protocol = environment["OTEL_EXPORTER_OTLP_PROTOCOL"].partition("/")[0]
        receives = settings.port_of(protocols[protocol]["endpoint"])
        if (url.hostname, url.port) != ("collector", receives):
            yield f"{compose.PATH}: {name}: OTEL_EXPORTER_OTLP_ENDPOINT is {endpoint}, and the collector takes {protocol} on {receives}"


def own_metrics():
    """The port of the collector's own metrics."""
    [reader] = read("collector.yaml")["service"]["telemetry"]["metrics"]["readers"]
    return reader["pull"]["exporter"]["prometheus"]["port"]


def prometheus(programs, volumes):
    where = f"{FOLDER}/prometheus.yaml"
    config = read("prometheus.yaml")
    rules = []
    for path in config["rule_files"]:
        here = compose.on_this_machine(compose.SERVICES["prometheus"], path, volumes)
        if here and here.is_file():
            rules.append(str(here))
        else:
            yield f"{where}: nothing is at '{path}'"
    # As the container sees it, with its files where they are here.
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as seen:
        yaml.safe_dump({**config, "rule_files": rules}, seen)
        ended = subprocess.run(["promtool", "check", "config", seen.name], capture_output=True, text=True,
                               timeout=TIMEOUT_S, check=False)
        if ended.returncode:
            yield f"{where}: promtool: {' '.join((ended.stdout + ended.stderr).split()).replace(seen.name, where)}"

    scraped = set()
    for job in config["scrape_configs"]:
        targets = [target.rpartition(":") for found in job.get("static_configs", []) for target in found["targets"]]
        targets = [(host, int(port)) for host, _, port in targets]
        targets += [(name, found["port"]) for found in job.get("dns_sd_configs", []) for name in found["names"]]
        for host, port in targets:
            scraped.add(host)
            here = f"{where}: {job['job_name']}"
            if host == "collector":
                if port != own_metrics():
                    yield f"{here}: the collector has its metrics on {own_metrics()}, not on {port}"
            else:
                yield from port_is(here, "prometheus" if host == "localhost" else host, port, programs)
            yield from admin_port(here, host, port, programs)
    for name in ("ingest", "consumer"):
        if name not in scraped:
            yield f"{where}: nobody scrapes '{name}'"


def admin_port(where, host, port, programs):
    """Metrics of ours are on the admin port."""
    if host in compose.ours():
        listens = settings.listens(compose.SERVICES[host], programs)
        admin = [settings.port_of(address) for name, address in listens.items() if "_ADMIN_" in name]
        if port not in admin:
            yield f"{where}: '{host}' has its metrics on {admin}, not on {port}"


def grafana(programs, volumes):
    mounts = compose.bind_mounts(compose.SERVICES["grafana"])
    for folder in ("datasources", "dashboards"):
        if mounts.get(f"/etc/grafana/provisioning/{folder}") != ROOT / FOLDER / "grafana" / folder:
            yield f"{compose.PATH}: grafana: {FOLDER}/grafana/{folder} is not mounted where Grafana looks"
    where = f"{FOLDER}/grafana/datasources/prometheus.yaml"
    for source in read("grafana/datasources/prometheus.yaml")["datasources"]:
        url = urllib.parse.urlsplit(source["url"])
        yield from port_is(where, url.hostname, url.port, programs)
        scrapes = read("prometheus.yaml")["global"]["scrape_interval"]
        if source["jsonData"]["timeInterval"] != scrapes:
            yield f"{where}: timeInterval is {source['jsonData']['timeInterval']}, and Prometheus scrapes every {scrapes}"
    for provider in read("grafana/dashboards/likestream.yaml")["providers"]:
        path = provider["options"]["path"]
        here = compose.on_this_machine(compose.SERVICES["grafana"], path, volumes)
        if not here or not list(here.glob("*.json")):
            yield f"{FOLDER}/grafana/dashboards/likestream.yaml: no dashboard is at '{path}'"
