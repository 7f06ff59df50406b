"""Renders the chart with helm, for each file in values/."""

import dataclasses
import functools
import json
import pathlib
import re
import tempfile

import kubernetes_validate.utils
import yaml

from support import ROOT, TOOLS, output

HERE = pathlib.Path(__file__).resolve().parent
CHART = ROOT / "deploy" / "chart"
VALUES = {file.stem: file for file in sorted((HERE / "values").glob("*.yaml"))}
NAMESPACE = "storms"
RELEASE = "storm-of-likes"
WORKLOADS = ("Deployment", "StatefulSet")
# Command of the toolbox, which has no settings and does not exit.
IDLE = ["likesctl", "idle"]
# One character shorter than the longest name that Helm allows.
LONG = "a-release-whose-name-is-as-long-as-helm-lets-it-be-ab"
SUBCHART = "subchart"
SCRATCH = tempfile.TemporaryDirectory(prefix="likestream-chart-")


def load(text):
    return [found for found in yaml.load_all(text, yaml.CSafeLoader) if found]


def helm(*arguments):
    return output(TOOLS / "helm", *arguments)


def template(*arguments, chart=CHART, release=RELEASE):
    return load(helm("template", release, chart, "--namespace", NAMESPACE, *arguments))


def versions():
    """Returns the oldest Kubernetes version that the chart supports, and all later ones."""
    oldest = load((CHART / "Chart.yaml").read_text())[0]["kubeVersion"]
    oldest = int(re.fullmatch(r">=1\.(\d+)\.0-0", oldest)[1])
    known = dict.fromkeys(kubernetes_validate.utils.all_versions())
    return [version for version in known if int(version.split(".")[1]) >= oldest]


VERSIONS = versions()
LONG_NAMES = {f"{name}-with-a-long-name": VALUES[name] for name in ("static", "everything")}
NAMES = [*VALUES, *LONG_NAMES, SUBCHART]


@functools.cache
def rendered(name, version=VERSIONS[-1]):
    """Returns the objects of a set of values."""
    arguments = "--kube-version", version
    if name == SUBCHART:
        return template(*arguments, chart=umbrella())
    if name in LONG_NAMES:
        arguments += "--values", LONG_NAMES[name], "--set", "fullnameOverride="
        return template(*arguments, release=LONG)
    return template(*arguments, "--values", VALUES[name])


@functools.cache
def umbrella():
    """Returns a chart with three subcharts: this chart by its name, by an alias, and disabled."""
    folder = pathlib.Path(SCRATCH.name) / "umbrella"
    folder.mkdir()
    values = {"global": {"anything": {"at": "all"}}}
    dependencies = []
    for alias, file in (("likestream", "everything"), ("dislikes", "default"), ("absent", None)):
        values[alias] = {
            **(load(VALUES[file].read_text())[0] if file else {}),
            "enabled": bool(file),
        }
        dependency = {"name": "likestream", "version": "*", "repository": f"file://{CHART}"}
        dependencies.append({**dependency, "alias": alias, "condition": f"{alias}.enabled"})
    del dependencies[0]["alias"]
    about = {"apiVersion": "v2", "name": "umbrella", "version": "1.0.0"}
    about["dependencies"] = dependencies
    (folder / "Chart.yaml").write_text(yaml.safe_dump(about))
    (folder / "values.yaml").write_text(yaml.safe_dump(values))
    helm("dependency", "update", folder)
    return folder


def name_of(found):
    return f"{found['kind']}/{found['metadata']['name']}"


def of_kind(objects, *kinds):
    return [found for found in objects if found["kind"] in kinds]


@dataclasses.dataclass
class Pod:
    """A pod with one container, and the object that creates the pod."""

    owner: dict
    metadata: dict
    spec: dict

    def __post_init__(self):
        (self.container,) = self.spec["containers"]
        self.command = self.container["command"]
        self.program = self.command[0]
        self.env = self.container["env"]
        self.settings = {entry["name"]: entry["value"] for entry in self.env if "value" in entry}
        self.ports = {
            port["name"]: port["containerPort"] for port in self.container.get("ports", [])
        }

    @property
    def hook(self):
        return annotations(self.owner).get("helm.sh/hook")


def pods(objects):
    found = []
    for owner in objects:
        pod = owner if owner["kind"] == "Pod" else None
        if owner["kind"] in (*WORKLOADS, "Job"):
            pod = owner["spec"]["template"]
        if pod:
            found.append(Pod(owner, pod["metadata"], pod["spec"]))
    return found


def selected(selector, objects):
    """Returns the pods with these labels."""
    return [pod for pod in pods(objects) if selector.items() <= pod.metadata["labels"].items()]


def annotations(found):
    return found["metadata"].get("annotations", {})


def values_schema():
    return json.loads((CHART / "values.schema.json").read_text())
