"""compose.yaml by the schema of the compose specification, the Dockerfile by hadolint."""

import json
import pathlib
import subprocess
import sys

import compose
import dockerfile
from tree import ROOT, Failed

TIMEOUT_S = 120


def problems(_folder, _programs):
    schema = tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "--output-format", "json", compose.PATH)
    for error in json.loads(schema)["errors"]:
        deepest = error.get("best_deep_match") or error
        yield f"{compose.PATH}: {deepest['path']}: {deepest['message']}"
    for finding in json.loads(tool("hadolint", "--no-color", "--format", "json", dockerfile.PATH)):
        yield f"{dockerfile.PATH}:{finding['line']}: {finding['code']} {finding['message']}"


def tool(name, *arguments):
    program = pathlib.Path(sys.executable).parent / name
    ended = subprocess.run([program, *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                           timeout=TIMEOUT_S, check=False)
    if not ended.stdout:
        raise Failed(f"{name} says nothing: {' '.join(ended.stderr.split())}")
    return ended.stdout
