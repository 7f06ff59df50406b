"""
Generates files from the chart: the table of values in its README, and the plain manifests for
installations without Helm.
"""

import pathlib
import re
import sys

import yaml

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from rendering import CHART, VALUES, helm
from support import ROOT

README = CHART / "README.md"
MARK = "<!-- The rest of this file is generated from values.yaml by `make chart-files`. -->\n"
MANIFESTS = ROOT / "deploy" / "manifests"
PLAIN_HEAD = "# Generated from deploy/chart by `make chart-files`. See README.md in this folder.\n"
FOR_HELM = re.compile(
    r"^(# Source: .*|\s+(helm\.sh/|app\.kubernetes\.io/managed-by).*|\s+namespace: default)$"
)
# WHOLE: groups with one row for all their values. BY_GROUP: values that need no comment.
WHOLE = {"resources", "labels"}
BY_GROUP = {"runAsUser", "runAsGroup", "minReplicas", "maxReplicas", "to", "ports"}
COMMENT_ABOVE = re.compile(r"(?:^ *#.*\n)*\Z", re.MULTILINE)


def documented_values():
    """Yields path, comment and default of each value and group in values.yaml, in order."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")

    def walk(node, defaults, path):
        for key, value in node.value:
            comment = COMMENT_ABOVE.search(text[: key.start_mark.index - key.start_mark.column])[0]
            here, default = (*path, key.value), defaults[key.value]
            lines = (line.strip().removeprefix("#").strip() for line in comment.splitlines())
            yield here, " ".join(lines), default
            if isinstance(value, yaml.MappingNode):
                yield from walk(value, default, here)

    return walk(yaml.compose(text), yaml.safe_load(text), ())


def is_group(default):
    return isinstance(default, dict) and bool(default)


def values_as_markdown():
    sections = {"": []}
    for path, comment, default in documented_values():
        if len(path) == 1 and is_group(default):
            sections[path[0]] = (
                [f"### {path[0]}\n", f"{comment}\n"] if comment else [f"### {path[0]}\n"]
            )
            sections[path[0]] += HEAD
            continue
        if WHOLE & set(path[:-1]) or (is_group(default) and not comment):
            continue
        shown = "" if is_group(default) and path[-1] not in WHOLE else f"`{inline(default)}`"
        row = f"| `{'.'.join(path)}` | {shown} | {comment.replace('|', chr(92) + '|')} |"
        sections[path[0] if path[0] in sections else ""].append(row)
    sections[""] = [*HEAD, *sections[""]]
    return "\n\n".join("\n".join(lines) for lines in sections.values()) + "\n"


HEAD = ["| Value | Default | Description |", "|---|---|---|"]


def inline(value):
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def undocumented():
    return [
        ".".join(path)
        for path, comment, default in documented_values()
        if not (is_group(default) or comment or path[-1] in BY_GROUP or WHOLE & set(path))
    ]


def indent(line):
    return len(line) - len(line.lstrip())


def plain(*arguments):
    """Returns the rendered objects without the lines that only Helm uses."""
    text = helm("template", "likestream", CHART, "--values", VALUES["default"], *arguments)
    documents = []
    for document in text.split("\n---\n"):
        lines = document.removeprefix("---\n").splitlines()
        lines = [line for line in lines if not FOR_HELM.match(line)]
        # Annotations without any left.
        lines = [
            line
            for at, line in enumerate(lines)
            if line.strip() != "annotations:" or indent(lines[at + 1]) > indent(line)
        ]
        if any(line.startswith("kind:") for line in lines):
            documents.append("\n".join(lines).strip())
    return PLAIN_HEAD + "".join(f"---\n{document}\n" for document in documents)


def generated():
    """Returns the expected text of each generated file."""
    by_hand, mark, _ = README.read_text(encoding="utf-8").partition(MARK)
    assert mark, f"{README}: the line {MARK.strip()} is missing"
    return {
        README: f"{by_hand}{MARK}\n{values_as_markdown()}",
        MANIFESTS / "migration.yaml": plain("--show-only", "templates/migration.yaml"),
        MANIFESTS / "likestream.yaml": plain("--no-hooks"),
    }


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
