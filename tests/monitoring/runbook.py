"""Every link to the runbook leads to a section, which knows the alert that leads there."""

import json
import re

import sources

LINK = re.compile(r"^RUNBOOK_URL#([a-z0-9-]+)$")


def of_alerts(sections):
    for name, rule in sources.alerts().items():
        link = LINK.match(rule["annotations"]["runbook_url"])
        if not link:
            yield f"{name}: its runbook_url isn't RUNBOOK_URL#section"
        elif link[1] not in sections:
            yield f"{name}: docs/runbook.md has no section #{link[1]}"
        elif f"`{name}` ({rule['labels']['severity']}" not in sections[link[1]]:
            yield f"{name}: section #{link[1]} of docs/runbook.md doesn't begin with `{name}` ({rule['labels']['severity']})"


def of_sections(sections):
    alerts = sources.alerts()
    for anchor, body in sections.items():
        for name in re.findall(r"`(Likestream\w+)` \(", body):
            if name not in alerts:
                yield f"docs/runbook.md #{anchor}: {name} is no alert"
            elif not alerts[name]["annotations"]["runbook_url"].endswith(f"#{anchor}"):
                yield f"docs/runbook.md #{anchor}: {name} leads elsewhere"
        for link in re.findall(r"\]\(#([^)]*)\)", body):
            if link not in sections:
                yield f"docs/runbook.md #{anchor}: a link to #{link}, which isn't there"


def of_dashboards(sections):
    for file, dashboard in sources.dashboards().items():
        for anchor in re.findall(r"RUNBOOK_URL#([^\"]*)", json.dumps(dashboard)):
            if anchor not in sections:
                yield f"{file}: docs/runbook.md has no section #{anchor}"


def problems():
    sections = sources.anchors()
    yield from of_alerts(sections)
    yield from of_sections(sections)
    yield from of_dashboards(sections)
