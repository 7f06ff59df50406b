"""Every link to the runbook has a section, and each section names the alerts that link to it."""

import json
import re

import pytest

from sources import ALERTS, DASHBOARDS, SECTIONS

for_each_section = pytest.mark.parametrize("section", SECTIONS)


@pytest.mark.parametrize("alert", ALERTS)
def test_alert_links_to_a_section_that_names_it(alert):
    rule = ALERTS[alert]
    section = re.fullmatch(r"RUNBOOK_URL#([a-z0-9-]+)", rule["annotations"]["runbook_url"])[1]
    assert f"`{alert}` ({rule['labels']['severity']}" in SECTIONS[section]


@for_each_section
def test_section_names_only_alerts_that_link_to_it(section):
    for alert in re.findall(r"`(Likestream\w+)` \(", SECTIONS[section]):
        assert ALERTS[alert]["annotations"]["runbook_url"].endswith(f"#{section}")


@for_each_section
def test_section_links_only_to_existing_sections(section):
    assert set(re.findall(r"\]\(#([^)]*)\)", SECTIONS[section])) <= SECTIONS.keys()


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_dashboard_links_only_to_existing_sections(dashboard):
    links = re.findall(r"RUNBOOK_URL#([^\"]*)", json.dumps(DASHBOARDS[dashboard]))
    assert set(links) <= SECTIONS.keys()
