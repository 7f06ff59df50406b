"""Runs the real helm: what the chart makes of values, and what it says to values that it refuses."""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import yaml

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CHART = ROOT / "deploy" / "chart"
VALUES = HERE / "values"
NAMESPACE = "storms"
TIMEOUT_S = 60


class Refused(Exception):
    """Helm ended with an error."""


def helm(*arguments):
    program = pathlib.Path(sys.executable).parent / "helm"
    ended = subprocess.run(
        [program, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if ended.returncode != 0:
        raise Refused(" ".join((ended.stdout + ended.stderr).split()))
    return ended.stdout


def lint(values):
    helm("lint", "--strict", CHART, "--values", values)


def template(chart, *arguments, release="storm-of-likes"):
    return helm("template", release, chart, "--namespace", NAMESPACE, *arguments)


def objects(text):
    return [document for document in yaml.safe_load_all(text) if document]


def rendered(chart, *arguments, release="storm-of-likes"):
    return objects(template(chart, *arguments, release=release))


def refusal(values):
    """What helm says to these values, or nothing where it takes them."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(values, file)
        file.flush()
        try:
            template(CHART, "--values", file.name)
        except Refused as refused:
            return str(refused)
    return None


def default_values():
    return yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))


def values_schema():
    return json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))


def make_umbrella(folder):
    """A chart that has this one as a subchart, twice: once under its name and once under another, and switched off by a condition."""
    chart = folder / "umbrella"
    chart.mkdir()
    dependency = {"name": "likestream", "version": "*", "repository": f"file://{CHART}"}
    dependencies = [
        {**dependency, "condition": "likestream.enabled"},
        {**dependency, "alias": "dislikes", "condition": "dislikes.enabled"},
        {**dependency, "alias": "absent", "condition": "absent.enabled"},
    ]
    everything = yaml.safe_load((VALUES / "everything.yaml").read_text(encoding="utf-8"))
    default = yaml.safe_load((VALUES / "default.yaml").read_text(encoding="utf-8"))
    values = {
        "global": {"anything": {"at": "all"}},
        "likestream": {**everything, "enabled": True},
        "dislikes": {**default, "enabled": True},
        "absent": {"enabled": False},
    }
    described = {"apiVersion": "v2", "name": "umbrella", "version": "1.0.0", "dependencies": dependencies}
    (chart / "Chart.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")
    (chart / "values.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    helm("dependency", "update", chart)
    return chart


def make_chart_of_notes(folder):
    """The chart with its notes in an object, because `helm template` prints none."""
    chart = shutil.copytree(CHART, folder / "notes")
    notes = (CHART / "templates" / "NOTES.txt").read_text(encoding="utf-8")
    wrapped = '{{- define "notes" }}' + notes + '{{ end }}text: |\n  {{- include "notes" . | nindent 2 }}\n'
    (chart / "templates" / "notes.yaml").write_text(wrapped, encoding="utf-8")
    return chart
