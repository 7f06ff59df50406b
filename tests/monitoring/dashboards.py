"""The dashboards are as deploy/dashboards.py writes them, and such that Grafana can show them."""

import json
import pathlib
import subprocess
import sys
import tempfile

import sources
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

PROGRAM = sources.ROOT / "deploy" / "dashboards.py"
COLUMNS = 24
# What a Kubernetes object, and so a ConfigMap, may have at most, with room for its metadata.
LARGEST = 900_000
# An annotation's, of the plugin for Prometheus, and not among the types.
OF_PLUGINS = "].titleFormat"


def drift():
    with tempfile.TemporaryDirectory(prefix="likestream-dashboards-") as folder:
        subprocess.run([sys.executable, PROGRAM, folder], check=True, timeout=60)
        made = {file.name: file.read_text(encoding="utf-8") for file in pathlib.Path(folder).iterdir()}
    there = {file.name: file.read_text(encoding="utf-8") for file in sources.DASHBOARDS.iterdir()}
    for name in sorted(made.keys() | there.keys()):
        if made.get(name) != there.get(name):
            yield f"{name}: not as deploy/dashboards.py writes it: run python3 deploy/dashboards.py"


def lost(ours, grafanas, where):
    """What Grafana's own types make of it keeps what they know."""
    if isinstance(ours, dict) and isinstance(grafanas, dict):
        for key, value in ours.items():
            if key not in grafanas:
                yield f"{where}.{key}"
            else:
                yield from lost(value, grafanas[key], f"{where}.{key}")
    elif isinstance(ours, list) and isinstance(grafanas, list) and len(ours) == len(grafanas):
        for at, (value, of_grafana) in enumerate(zip(ours, grafanas)):
            yield from lost(value, of_grafana, f"{where}[{at}]")
    elif ours != grafanas:
        yield where


def of_types(file, dashboard):
    parsed = json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))
    for where in lost(dashboard, parsed, ""):
        if not where.endswith(OF_PLUGINS):
            yield f"{file}: Grafana knows no {where.lstrip('.')}"


def cells(panel):
    place = panel["gridPos"]
    return {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}


def of_layout(file, dashboard):
    ids = [panel["id"] for panel in dashboard["panels"]]
    if len(set(ids)) != len(ids):
        yield f"{file}: two panels have one id"
    taken = set()
    for panel in dashboard["panels"]:
        place = cells(panel)
        if place & taken or any(x >= COLUMNS for x, _ in place):
            yield f"{file}, {panel['title']}: it has no place of its own"
        taken |= place


def of_panels(file, dashboard):
    titles = [panel["title"] for panel in sources.panels(dashboard)]
    for title in {title for title in titles if titles.count(title) > 1}:
        if len({panel["type"] for panel in sources.panels(dashboard) if panel["title"] == title}) == 1:
            yield f"{file}: two panels are called {title}"
    variables = {f"${{{variable['name']}}}" for variable in dashboard["templating"]["list"]}
    for panel in sources.panels(dashboard):
        if not panel["description"].endswith("."):
            yield f"{file}, {panel['title']}: no description"
        if not panel["fieldConfig"]["defaults"]["unit"]:
            yield f"{file}, {panel['title']}: no unit"
        for asked in (panel, *panel["targets"]):
            if asked["datasource"]["uid"] not in variables:
                yield f"{file}, {panel['title']}: its datasource is not the variable"
        for target in panel["targets"]:
            if "$namespace" not in target["expr"]:
                yield f"{file}, {panel['title']}, {target['refId']}: it shows other namespaces' figures, too"


def problems():
    yield from drift()
    plugins.register_default_plugins()
    found = sources.dashboards()
    uids = [dashboard["uid"] for dashboard in found.values()]
    if len(set(uids)) != len(uids):
        yield "two dashboards have one uid"
    for file, dashboard in found.items():
        if (sources.DASHBOARDS / file).stat().st_size > LARGEST:
            yield f"{file}: too large for a ConfigMap"
        yield from of_types(file, dashboard)
        yield from of_layout(file, dashboard)
        yield from of_panels(file, dashboard)
