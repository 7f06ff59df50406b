"""Every object against the schemas of several versions of Kubernetes, strictly, and custom resources against their own."""

import functools
import json
import pathlib
import re
import subprocess
import sys

import jsonschema
import kubernetes_validate
import referencing
import yaml

from rendering import CHART, HERE

NODE_TIMEOUT_S = 120
SCHEMAS = pathlib.Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"


def versions():
    """The oldest that the chart takes, and all that there are schemas of from then on."""
    described = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    oldest = re.fullmatch(r">=1\.(\d+)\.0-0", described["kubeVersion"])[1]
    folders = [re.fullmatch(r"v1\.(\d+)\.0-local-strict", folder.name) for folder in SCHEMAS.iterdir()]
    return [f"1.{minor}.0" for minor in sorted(int(found[1]) for found in folders if found) if minor >= int(oldest)]


def group(found):
    version = found["apiVersion"]
    return version.split("/")[0] if "/" in version else ""


def is_custom(found):
    return "." in group(found) and not group(found).endswith(".k8s.io") or group(found) == "gateway.networking.k8s.io"


@functools.cache
def definitions(version):
    contents = json.loads((SCHEMAS / f"v{version}-local-strict" / "_definitions.json").read_text(encoding="utf-8"))
    return referencing.Resource.from_contents(contents)


@functools.cache
def validator(version, kind, api_version):
    name = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    path = SCHEMAS / f"v{version}-local-strict" / f"{kind.lower()}-{name}.json"
    if not path.exists():
        return None
    schema = json.loads(path.read_text(encoding="utf-8"))
    registry = definitions(version) @ (referencing.Resource.from_contents(schema) @ referencing.Registry())
    return jsonschema.Draft202012Validator(schema, registry=registry)


def problems(where, found, version):
    """Where it is not what this version of Kubernetes has."""
    checked = validator(version, found["kind"], found["apiVersion"])
    if checked is None:
        return [f"{where}: there is no schema for {found['apiVersion']} {found['kind']}"]
    return [
        f"{where}: {'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"
        for error in checked.iter_errors(found)
    ]


def problems_of_custom(entries, folder):
    """The same for custom resources: pairs of where and object."""
    file = folder / "custom-resources.json"
    file.write_text(json.dumps([{"where": where, "object": found} for where, found in entries]), encoding="utf-8")
    ended = subprocess.run(
        ["node", HERE / "custom_resources.mjs", folder, file], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=NODE_TIMEOUT_S, check=False)
    if ended.returncode != 0:
        sys.exit(f"custom_resources.mjs: {ended.stderr}")
    return ended.stdout.splitlines()
