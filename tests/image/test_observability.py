"""Collector, Prometheus, Grafana and runbook are wired correctly in compose.yaml."""

import re
import urllib.parse

import pytest
import yaml

import compose
import prometheus
from compose import (
    FOLDER,
    LIKESTREAM_SERVICES,
    SERVICES,
    bind_mounts,
    config,
    on_this_machine,
    port_of,
)
from support import ROOT, output

FILES = ROOT / "deploy/chart/files"
PLACEHOLDER = "RUNBOOK_URL"
ASSETS = "--web.user-assets="
PROMETHEUS = config("prometheus.yaml")
URL = SERVICES["runbook"]["command"][-1]


def test_collector_pipelines_use_exactly_the_defined_components():
    collector = config("collector.yaml")
    pipelines = collector["service"]["pipelines"].values()
    for kind in ("receivers", "processors", "exporters"):
        used = {name for pipeline in pipelines for name in pipeline.get(kind, [])}
        assert used == collector[kind].keys()


def test_memory_limiter_is_below_the_memory_of_the_container():
    limiter = config("collector.yaml")["processors"]["memory_limiter"]
    assert limiter["limit_mib"] < compose.memory_limit("collector")


@compose.for_each_likestream_service
def test_spans_go_to_the_collector(service):
    environment = service.get("environment", {})
    if "OTEL_EXPORTER_OTLP_ENDPOINT" not in environment:
        return
    url = urllib.parse.urlsplit(environment["OTEL_EXPORTER_OTLP_ENDPOINT"])
    protocol = environment["OTEL_EXPORTER_OTLP_PROTOCOL"].partition("/")[0]
    receivers = config("collector.yaml")["receivers"]["otlp"]["protocols"]
    assert (url.hostname, url.port) == ("collector", port_of(receivers[protocol]["endpoint"]))


def test_prometheus_accepts_its_configuration_and_rules(volumes, tmp_path):
    service = SERVICES["prometheus"]
    rules = [on_this_machine(service, path, volumes) for path in PROMETHEUS["rule_files"]]
    assert all(path.is_file() for path in rules)
    seen = tmp_path / "prometheus.yaml"
    seen.write_text(yaml.safe_dump({**PROMETHEUS, "rule_files": list(map(str, rules))}))
    output("promtool", "check", "config", seen)


def targets():
    for job in PROMETHEUS["scrape_configs"]:
        static = [target for each in job.get("static_configs", []) for target in each["targets"]]
        yield from (
            (host, int(port)) for host, _, port in (each.rpartition(":") for each in static)
        )
        for each in job.get("dns_sd_configs", []):
            yield from ((name, each["port"]) for name in each["names"])


@pytest.mark.parametrize(("host", "port"), [*targets()])
def test_prometheus_scrapes_ports_with_metrics(host, port, programs):
    if host == "collector":
        [reader] = config("collector.yaml")["service"]["telemetry"]["metrics"]["readers"]
        assert port == reader["pull"]["exporter"]["prometheus"]["port"]
        return
    service = SERVICES["prometheus" if host == "localhost" else host]
    assert port in compose.ports(service, programs)
    assert host not in LIKESTREAM_SERVICES or port in compose.admin_ports(service, programs)


def test_prometheus_scrapes_both_services():
    assert {"ingest", "consumer"} <= {host for host, _ in targets()}


@pytest.mark.parametrize("folder", ["datasources", "dashboards"])
def test_grafana_finds_its_configuration(folder):
    mounted = bind_mounts(SERVICES["grafana"])[f"/etc/grafana/provisioning/{folder}"]
    assert mounted == FOLDER / "compose" / "grafana" / folder


def test_grafana_interval_equals_the_scrape_interval(programs):
    for source in config("grafana/datasources/prometheus.yaml")["datasources"]:
        url = urllib.parse.urlsplit(source["url"])
        assert url.port in compose.ports(SERVICES[url.hostname], programs)
        assert source["jsonData"]["timeInterval"] == PROMETHEUS["global"]["scrape_interval"]


def test_grafana_finds_dashboards(volumes):
    for provider in config("grafana/dashboards/likestream.yaml")["providers"]:
        path = provider["options"]["path"]
        folder = on_this_machine(SERVICES["grafana"], path, volumes)
        assert list(folder.glob("*.json"))


def test_runbook_service_copies_chart_files_with_its_url(volumes):
    [folder] = volumes.values()
    written = {path.relative_to(FILES): path for path in FILES.rglob("*") if path.is_file()}
    wanted = {name: path.read_text().replace(PLACEHOLDER, URL) for name, path in written.items()}
    copied = {path for path in folder.rglob("*") if path.is_file() and path.suffix != ".html"}
    assert {path.relative_to(folder): path.read_text() for path in copied} == wanted


def test_runbook_url_is_the_published_address_of_prometheus():
    where = urllib.parse.urlsplit(URL)
    [(_, published, _)] = [port.split(":") for port in SERVICES["prometheus"]["ports"]]
    assert (where.hostname, str(where.port)) == ("localhost", published)


def test_prometheus_serves_every_linked_section_of_the_runbook(volumes, tmp_path):
    [folder] = volumes.values()
    service = SERVICES["prometheus"]
    [assets] = [word for word in service["command"] if word.startswith(ASSETS)]
    assets = on_this_machine(service, assets.removeprefix(ASSETS), volumes)
    with prometheus.serving(tmp_path, {}, f"{ASSETS}{assets}") as server:
        page = server.get(urllib.parse.urlsplit(URL).path)
    assert page.ok
    assert page.headers["Content-Type"].startswith("text/html")
    texts = [path.read_text() for path in folder.rglob("*") if path.suffix in (".json", ".yaml")]
    links = {link for text in texts for link in re.findall(rf"{re.escape(URL)}#([a-z-]+)", text)}
    assert links
    links |= set(re.findall(r'<a href="#([^"]+)">', page.text))
    assert links <= set(re.findall(r'<b id="([^"]+)">', page.text))
