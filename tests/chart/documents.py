"""
The files that are made from the chart: the table of values in its README, and plain manifests for those without Helm. As a program it writes
them anew.
"""

import re

import yaml

from rendering import CHART, HERE, ROOT, helm

README = CHART / "README.md"
MARK = "<!-- From here on made of values.yaml by `make chart-files`. -->\n"
MANIFESTS = ROOT / "deploy" / "manifests"
PLAIN_VALUES = HERE / "values" / "default.yaml"
PLAIN_HEAD = "# Made of deploy/chart by `make chart-files`; README.md beside it says how it is used.\n"
# What is of use to Helm alone.
FOR_HELM = re.compile(r"^(# Source: .*|\s+(helm\.sh/|app\.kubernetes\.io/managed-by).*|\s+namespace: default)$")


def commented(text):
    """(path, comment, node) of everything in values.yaml, in order."""
    lines = text.splitlines()

    def comment_above(line):
        found = []
        while line > 0 and lines[line - 1].strip().startswith("#"):
            line -= 1
            found.insert(0, lines[line].strip().removeprefix("#").strip())
        return " ".join(found)

    def walk(node, path):
        for key, value in node.value:
            here = [*path, key.value]
            yield here, comment_above(key.start_mark.line), value
            if isinstance(value, yaml.MappingNode):
                yield from walk(value, here)

    yield from walk(yaml.compose(text), [])


def values_table():
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    defaults = yaml.safe_load(text)
    sections = {"": []}
    for path, comment, node in commented(text):
        is_group = isinstance(node, yaml.MappingNode) and node.value
        if len(path) == 1 and is_group:
            sections[path[0]] = [comment]
            continue
        section = sections[path[0] if path[0] in sections else ""]
        default = defaults
        for name in path:
            default = default[name]
        # Groups of what Kubernetes has are told as a whole.
        if any(".".join(path).startswith(above) for above in whole(section)):
            continue
        if is_group and not comment:
            continue
        shown = "" if is_group and path[-1] not in WHOLE else f"`{yaml_inline(default)}`"
        section.append((".".join(path), shown, comment))
    return sections


WHOLE = {"resources", "labels"}


def whole(section):
    return [f"{row[0]}." for row in section if isinstance(row, tuple) and row[0].rpartition(".")[2] in WHOLE]


def yaml_inline(value):
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).removesuffix("\n").removesuffix("\n...")


def values_as_markdown():
    parts = []
    for section, rows in values_table().items():
        comment = rows.pop(0) if section else ""
        parts.append(f"### {section}\n\n{comment}\n" if comment else f"### {section}\n" if section else "")
        parts.append("| value | default | |\n|---|---|---|")
        parts += [f"| `{path}` | {default} | {about.replace('|', chr(92) + '|')} |" for path, default, about in rows]
        parts.append("")
    return "\n".join(parts).strip() + "\n"


def readme():
    by_hand, mark, _ = README.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise SystemExit(f"{README}: the line {MARK.strip()} is missing")
    return f"{by_hand}{MARK}\n{values_as_markdown()}"


def plain(*arguments):
    text = helm("template", "likestream", CHART, "--values", PLAIN_VALUES, *arguments)
    documents = []
    for document in text.split("\n---\n"):
        lines = [line for line in document.removeprefix("---\n").splitlines() if not FOR_HELM.match(line)]
        # Annotations of which only Helm's were there.
        lines = [line for at, line in enumerate(lines)
                 if line.strip() != "annotations:" or indent(lines[at + 1]) > indent(line)]
        if any(line.startswith("kind:") for line in lines):
            documents.append("\n".join(lines).strip())
    return PLAIN_HEAD + "".join(f"---\n{document}\n" for document in documents)


def indent(line):
    return len(line) - len(line.lstrip())


def made():
    """Each file and what should be in it."""
    return {
        README: readme(),
        MANIFESTS / "migration.yaml": plain("--show-only", "templates/migration.yaml"),
        MANIFESTS / "likestream.yaml": plain("--no-hooks"),
    }


def undocumented():
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    for path, comment, node in commented(text):
        is_group = isinstance(node, yaml.MappingNode) and node.value
        is_told_by_its_group = path[-1] in ("runAsUser", "runAsGroup", "minReplicas", "maxReplicas", "to", "ports") or "resources" in path or "labels" in path
        if not is_group and not comment and not is_told_by_its_group:
            yield f"values.yaml: {'.'.join(path)} has no comment"


def problems():
    yield from undocumented()
    for path, text in made().items():
        there = path.read_text(encoding="utf-8") if path.exists() else ""
        if there != text:
            at = next((at for at, (one, other) in enumerate(zip(there.splitlines(), text.splitlines(), strict=False)) if one != other), 0)
            yield f"{path.relative_to(ROOT)}: not as the chart is now, from line {at + 1} on: run `make chart-files`"


if __name__ == "__main__":
    for path, text in made().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
