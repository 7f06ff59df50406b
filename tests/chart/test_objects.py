"""Consistency between objects: selectors, ports, scalers, network policies, shipped files."""

import json
import re
import shutil

import pytest
from yaml import safe_load

from rendering import (
    CHART,
    LONG,
    NAMESPACE,
    VALUES,
    WORKLOADS,
    annotations,
    name_of,
    of_kind,
    pods,
    rendered,
    selected,
    template,
)

SELECTOR = {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component"}
LABELS = SELECTOR - {"app.kubernetes.io/component"} | {
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/part-of",
    "helm.sh/chart",
}
LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
# A label of StatefulSet pods contains the name and a hash of eleven characters.
LONGEST_NAME, LONGEST_STATEFUL_SET = 63, 52
CONFIG_MAP_BYTES = 1 << 20
DASHBOARDS = {file.name: file for file in (CHART / "files" / "dashboards").glob("*.json")}


def test_object_has_an_allowed_name_and_all_labels(each):
    name, labels = each["metadata"]["name"], each["metadata"]["labels"]
    longest = LONGEST_STATEFUL_SET if each["kind"] == "StatefulSet" else LONGEST_NAME
    assert len(name) <= longest
    assert NAME.fullmatch(name)
    assert labels.keys() >= LABELS
    assert all(LABEL.fullmatch(value) for value in labels.values())
    assert each["metadata"]["namespace"] == NAMESPACE


def test_no_object_is_rendered_twice(objects):
    names = [(found["apiVersion"], name_of(found)) for found in objects]
    assert len(set(names)) == len(names)


def test_workload_selects_only_its_own_pods(workload, objects):
    selector = workload["spec"]["selector"]["matchLabels"]
    # Selectors are immutable, so a different one would make upgrades fail.
    assert set(selector) == SELECTOR
    assert [pod.owner for pod in selected(selector, objects)] == [workload]


def test_service_targets_ports_of_one_workload(service, objects):
    (pod,) = selected(service["spec"]["selector"], objects)
    is_headless = service["spec"].get("clusterIP") == "None"
    for port in service["spec"]["ports"]:
        assert port["targetPort"] in pod.ports
        # Clients of a headless Service connect to the pod itself.
        assert not is_headless or port["port"] == pod.ports[port["targetPort"]]
        # The admin port requires no authentication.
        assert is_headless or port["targetPort"] != "admin"


def test_stateful_set_has_its_headless_service(stateful_set, objects):
    services = [
        each for each in of_kind(objects, "Service") if each["spec"].get("clusterIP") == "None"
    ]
    assert stateful_set["spec"]["serviceName"] in [each["metadata"]["name"] for each in services]


def test_route_targets_the_http_port_of_a_service(route, objects):
    if route["kind"] == "Ingress":
        paths = [path for rule in route["spec"]["rules"] for path in rule["http"]["paths"]]
        backends = [path["backend"]["service"] for path in paths]
        backends = [(backend["name"], backend["port"]["name"]) for backend in backends]
    else:
        references = [each for rule in route["spec"]["rules"] for each in rule["backendRefs"]]
        backends = [(backend["name"], backend["port"]) for backend in references]
    services = {each["metadata"]["name"]: each["spec"] for each in of_kind(objects, "Service")}
    for service, port in backends:
        (http,) = [each for each in services[service]["ports"] if each["name"] == "http"]
        assert port in (http["name"], http["port"])


def target_of(scaler, objects):
    target = scaler["spec"]["scaleTargetRef"]
    wanted = target["apiVersion"], f"{target['kind']}/{target['name']}"
    (pod,) = [
        pod for pod in pods(objects) if (pod.owner["apiVersion"], name_of(pod.owner)) == wanted
    ]
    return pod


def test_scaler_stays_within_the_number_of_partitions(scaler, objects):
    spec, pod = scaler["spec"], target_of(scaler, objects)
    least = spec.get("minReplicas", spec.get("minReplicaCount"))
    most = spec.get("maxReplicas", spec.get("maxReplicaCount"))
    assert 1 <= least <= most
    assert pod.program != "consumer" or most <= int(pod.settings["LIKES_PARTITIONS"])


def test_workload_has_either_replicas_or_one_scaler(workload, objects):
    scalers = of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject")
    scaled = [target_of(scaler, objects).owner for scaler in scalers]
    assert scaled.count(workload) + ("replicas" in workload["spec"]) == 1


def test_keda_queries_the_backlog_of_the_consumer_group(scaled_object, objects):
    (trigger,) = scaled_object["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    group = target_of(scaled_object, objects).settings["LIKES_GROUP"]
    assert re.fullmatch(r"max\(likestream_backlog_entries\{.*\}\)", query)
    assert f"messaging_consumer_group_name={json.dumps(group)}" in query
    # Otherwise an unknown backlog would count as 0.
    assert trigger["metadata"]["ignoreNullValues"] == "false"
    assert "fallback" in scaled_object["spec"]


@pytest.mark.parametrize(
    ("arguments", "replicas"),
    [([], 64), (["--set", "consumer.keda.fallbackReplicas=5"], 5)],
    ids=["maximum", "value"],
)
def test_fallback_for_an_unknown_backlog_is_the_maximum_or_the_value(arguments, replicas):
    (scaled,) = of_kind(template("--values", VALUES["keda"], *arguments), "ScaledObject")
    assert scaled["spec"]["fallback"]["replicas"] == replicas


def test_disruption_budget_selects_one_workload(budget, objects):
    (pod,) = selected(budget["spec"]["selector"]["matchLabels"], objects)
    assert pod.owner["kind"] in WORKLOADS


def test_monitor_finds_metrics_on_the_admin_port(monitor, objects, admin_status):
    spec, labels = monitor["spec"], monitor["spec"]["selector"]["matchLabels"]
    if monitor["kind"] == "ServiceMonitor":
        services = of_kind(objects, "Service")
        (service,) = [
            each for each in services if labels.items() <= each["metadata"]["labels"].items()
        ]
        (pod,) = selected(service["spec"]["selector"], objects)
        ports = {port["name"]: port["targetPort"] for port in service["spec"]["ports"]}
        endpoints = [(ports[each["port"]], each["path"]) for each in spec["endpoints"]]
    else:
        (pod,) = selected(labels, objects)
        endpoints = [(each["port"], each["path"]) for each in spec["podMetricsEndpoints"]]
    for port, path in endpoints:
        assert port == "admin"
        assert admin_status(pod.program, path) == 200


def test_network_policy_selects_one_workload_in_both_directions(policy, objects):
    (pod,) = selected(policy["spec"]["podSelector"]["matchLabels"], objects)
    assert sorted(policy["spec"]["policyTypes"]) == ["Egress", "Ingress"]
    if pod.hook and "test" not in pod.hook:
        # The policy must exist before the pod.
        assert annotations(policy)["helm.sh/hook"] == pod.hook
        weights = [int(annotations(each)["helm.sh/hook-weight"]) for each in (policy, pod.owner)]
        assert weights[0] < weights[1]


def test_every_pod_has_one_network_policy_if_they_are_enabled(objects):
    policies = of_kind(objects, "NetworkPolicy")
    name = "app.kubernetes.io/name"
    guarded = {policy["metadata"]["labels"][name] for policy in policies}
    covered = [
        pod.owner
        for policy in policies
        for pod in selected(policy["spec"]["podSelector"]["matchLabels"], objects)
    ]
    for pod in pods(objects):
        if pod.owner["metadata"]["labels"][name] in guarded:
            assert covered.count(pod.owner) == 1, name_of(pod.owner)


def test_network_policy_admits_clients_but_not_to_the_admin_port(policy, objects):
    (pod,) = selected(policy["spec"]["podSelector"]["matchLabels"], objects)
    rules = [
        (rule, port["port"]) for rule in policy["spec"].get("ingress", []) for port in rule["ports"]
    ]
    assert {port for _, port in rules} <= set(pod.ports)
    assert all(rule.get("from") for rule, port in rules if port == "admin")
    assert "http" not in pod.ports or "http" in {port for _, port in rules}


def test_network_policy_allows_only_the_egress_that_settings_need(policy, objects):
    (pod,) = selected(policy["spec"]["podSelector"]["matchLabels"], objects)
    ports = [port for rule in policy["spec"]["egress"] for port in rule["ports"]]
    assert {(53, "TCP"), (53, "UDP")} <= {
        (port["port"], port.get("protocol", "TCP")) for port in ports
    }
    endpoint = pod.settings.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    has_collector = bool(re.search(r":\d+$", endpoint))
    needed = {
        6379: "REDIS_URL_FILE" in pod.settings,
        5432: "DATABASE_URL_FILE" in pod.settings,
        443: "INGEST_JWT_JWKS" in pod.settings,
        4317: has_collector,
        4318: has_collector,
    }
    allowed = {port["port"] for port in ports}
    assert {port: port in allowed for port in needed} == needed


def test_dashboards_are_shipped_with_the_url_of_the_runbook(config_map):
    for name, text in config_map["data"].items():
        assert len(text.encode()) <= CONFIG_MAP_BYTES
        url = re.search(r'"url": "(https?://[^"#]+)"', text)[1]
        written = DASHBOARDS[name].read_text().replace("RUNBOOK_URL", url)
        assert json.loads(text) == json.loads(written)


def test_dashboards_are_shipped_all_or_none(objects):
    shipped = {name for found in of_kind(objects, "ConfigMap") for name in found["data"]}
    assert DASHBOARDS
    assert shipped in (set(), set(DASHBOARDS))


def test_alerts_are_shipped_with_the_url_of_the_runbook(alert_rules):
    alerts = [
        rule
        for group in alert_rules["spec"]["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    urls = [rule["annotations"]["runbook_url"] for rule in alerts]
    assert all(re.match(r"https?://\S+#\S+$", url) for url in urls)
    written = (CHART / "files" / "alerts.yaml").read_text()
    assert alert_rules["spec"] == safe_load(
        written.replace("RUNBOOK_URL", urls[0].partition("#")[0])
    )


def test_disabled_subchart_renders_nothing():
    assert not [name_of(found) for found in rendered("subchart") if "absent" in name_of(found)]


def test_releases_with_long_names_share_no_name():
    values = "--values", VALUES["default"]
    one, other = (template(*values, release=LONG[:-1] + end) for end in "ab")
    assert not set(map(name_of, one)) & set(map(name_of, other))


def test_templates_do_not_use_lookup():
    """GitOps tools render without a cluster, so `lookup` would return nothing."""
    files = [file for file in (CHART / "templates").rglob("*.*") if "lookup" in file.read_text()]
    assert not files


@pytest.fixture(scope="session")
def chart_with_notes(tmp_path_factory):
    """A copy of the chart that renders its notes as an object: `helm template` omits notes."""
    folder = tmp_path_factory.mktemp("notes") / "chart"
    shutil.copytree(CHART, folder)
    notes = (CHART / "templates" / "NOTES.txt").read_text()
    object_ = '{{ end }}text: |\n  {{- include "notes" . | nindent 2 }}\n'
    (folder / "templates" / "notes.yaml").write_text(f'{{{{- define "notes" }}}}{notes}{object_}')
    return folder


@pytest.mark.parametrize("values", VALUES)
def test_notes_name_objects_that_are_rendered(values, chart_with_notes):
    show = "--values", VALUES[values], "--show-only", "templates/notes.yaml"
    (notes,) = template(*show, chart=chart_with_notes)
    named = set(re.findall(r"\b(?:deployment|statefulset|service)/[-a-z0-9]+", notes["text"]))
    there = {f"{found['kind'].lower()}/{found['metadata']['name']}" for found in rendered(values)}
    assert named
    assert named <= there
