"""The dashboards match deploy/dashboards.py and are valid for Grafana."""

import json
import sys

import pytest
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from sources import DASHBOARDS, FILES, PANELS
from support import ROOT, output

COLUMNS = 24
# Size limit of a ConfigMap, less room for its metadata.
MAX_BYTES = 900_000
# A field of the Prometheus plugin, which Grafana's types lack.
OF_PLUGINS = "].titleFormat"

for_each_dashboard = pytest.mark.parametrize("file", DASHBOARDS)
for_each_panel = pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS)


def test_files_match_the_output_of_the_generator(tmp_path):
    output(sys.executable, ROOT / "deploy" / "dashboards.py", tmp_path)
    written = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert {file.name: file.read_text() for file in (FILES / "dashboards").iterdir()} == written


def lost(ours, grafanas, where=""):
    """Yields the fields that a round trip through Grafana's types loses."""
    if isinstance(ours, dict) and isinstance(grafanas, dict):
        for key, value in ours.items():
            yield from lost(value, grafanas.get(key, KeyError), f"{where}.{key}")
    elif isinstance(ours, list) and isinstance(grafanas, list) and len(ours) == len(grafanas):
        for at, (value, grafanas_value) in enumerate(zip(ours, grafanas, strict=True)):
            yield from lost(value, grafanas_value, f"{where}[{at}]")
    elif ours != grafanas:
        yield where


@for_each_dashboard
def test_grafana_knows_every_field(file):
    plugins.register_default_plugins()
    parsed = Dashboard.from_json(DASHBOARDS[file])
    fields = lost(DASHBOARDS[file], json.loads(json.dumps(parsed, cls=JSONEncoder)))
    assert [field for field in fields if not field.endswith(OF_PLUGINS)] == []


@for_each_dashboard
def test_fits_into_a_config_map(file):
    assert (FILES / "dashboards" / file).stat().st_size <= MAX_BYTES


def test_no_two_dashboards_have_the_same_uid():
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS)


@for_each_dashboard
def test_panels_have_unique_ids_and_positions(file):
    panels = DASHBOARDS[file]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for place in (panel["gridPos"] for panel in panels):
        columns = range(place["x"], place["x"] + place["w"])
        cells = {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}
        assert columns.stop <= COLUMNS
        assert not cells & taken
        taken |= cells


@for_each_dashboard
def test_no_two_panels_of_a_kind_have_the_same_title(file):
    panels = [panel for panel in DASHBOARDS[file]["panels"] if panel["type"] != "row"]
    assert len({(panel["title"], panel["type"]) for panel in panels}) == len(panels)


@for_each_panel
def test_panel_has_a_description_and_a_unit(panel):
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]


@for_each_panel
def test_panel_queries_the_selected_datasource_and_namespace(panel):
    for asked in (panel, *panel["targets"]):
        assert asked["datasource"]["uid"] == "${datasource}"
    assert all("$namespace" in target["expr"] for target in panel["targets"])


@for_each_dashboard
def test_datasource_is_a_variable(file):
    assert "datasource" in [each["name"] for each in DASHBOARDS[file]["templating"]["list"]]
