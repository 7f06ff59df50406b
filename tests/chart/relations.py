"""What must hold between objects: who selects whom, who scales whom, who may reach whom, and what comes first."""

import json
import re

import yaml

from pods import container_of, name_of, plain_settings, pod_of, pods
from rendering import CHART, NAMESPACE

SELECTOR = {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component"}
LABELS = {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/version", "app.kubernetes.io/managed-by",
          "app.kubernetes.io/part-of", "helm.sh/chart"}
WORKLOADS = ("Deployment", "StatefulSet")
# Lengths that names may have; pods of a StatefulSet have its name and a hash of eleven characters in a label.
LONGEST_NAME, LONGEST_STATEFUL_SET = 63, 52
CONFIG_MAP_BYTES = 1 << 20
REDIS, DATABASE = "REDIS_URL_FILE", "DATABASE_URL_FILE"


def of_kind(objects, *kinds):
    return [found for found in objects if found["kind"] in kinds]


def selected(selector, objects):
    """The objects whose pods have these labels."""
    return [found for found, pod in pods(objects) if selector.items() <= pod["metadata"]["labels"].items()]


def is_hook(found):
    return "helm.sh/hook" in found["metadata"].get("annotations", {})


def names_and_labels(objects):
    seen = set()
    for found in objects:
        name, labels = found["metadata"]["name"], found["metadata"].get("labels", {})
        longest = LONGEST_STATEFUL_SET if found["kind"] == "StatefulSet" else LONGEST_NAME
        if len(name) > longest or not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name):
            yield f"{name_of(found)}: a name of {len(name)} characters, up to {longest} are allowed"
        if not labels.keys() >= LABELS:
            yield f"{name_of(found)}: the labels {sorted(LABELS - labels.keys())} are missing"
        if found["metadata"].get("namespace") != NAMESPACE:
            yield f"{name_of(found)}: it is in the namespace {found['metadata'].get('namespace')}"
        for label, value in labels.items():
            if not re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", value):
                yield f"{name_of(found)}: the label {label} can't be {value}"
        key = (found["apiVersion"], found["kind"], name)
        if key in seen:
            yield f"{name_of(found)}: it is there twice"
        seen.add(key)


def workloads_select_their_pods(objects):
    for found in of_kind(objects, *WORKLOADS):
        selector = found["spec"]["selector"]["matchLabels"]
        if set(selector) != SELECTOR:
            yield f"{name_of(found)}: it can't be upgraded if its selector changes, which has {sorted(selector)}"
        if selected(selector, objects) != [found]:
            yield f"{name_of(found)}: its selector finds {list(map(name_of, selected(selector, objects)))}"


def services_lead_somewhere(objects):
    for service in of_kind(objects, "Service"):
        found = selected(service["spec"]["selector"], objects)
        if len(found) != 1:
            yield f"{name_of(service)}: its selector finds {list(map(name_of, found))}"
            continue
        container = container_of(pod_of(found[0]))
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in ports:
                yield f"{name_of(service)}: {name_of(found[0])} has no port {port['targetPort']}"
            elif service["spec"].get("clusterIP") == "None" and port["port"] != ports[port["targetPort"]]:
                # Callers of a headless Service go to the pod.
                yield f"{name_of(service)}: it says {port['port']}, and {port['targetPort']} is {ports[port['targetPort']]}"
            if port["targetPort"] == "admin" and service["spec"].get("clusterIP") != "None":
                yield f"{name_of(service)}: the admin port has no credentials, and must not be in a Service with an address"
    for found in of_kind(objects, "StatefulSet"):
        names = [service["metadata"]["name"] for service in of_kind(objects, "Service") if service["spec"].get("clusterIP") == "None"]
        if found["spec"]["serviceName"] not in names:
            yield f"{name_of(found)}: there is no headless Service {found['spec']['serviceName']}"


def routes_lead_to_a_service(objects):
    services = {service["metadata"]["name"]: service["spec"]["ports"] for service in of_kind(objects, "Service")}
    backends = []
    for route in of_kind(objects, "Ingress"):
        for rule in route["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                backends.append((route, backend["name"], backend["port"]["name"]))
    for route in of_kind(objects, "HTTPRoute"):
        backends += [(route, backend["name"], backend["port"]) for rule in route["spec"]["rules"] for backend in rule["backendRefs"]]
    for route, name, port in backends:
        ports = [(each["name"], each["port"]) for each in services.get(name, [])]
        if not any(port in each and each[0] == "http" for each in ports):
            yield f"{name_of(route)}: there is no port {port} in a Service {name} for callers"


def scalers_have_their_workload(objects):
    """One at most each; who has one leaves the number of pods to it; and there are no more consumers than partitions."""
    scaled = {}
    for scaler in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
        target, spec = scaler["spec"]["scaleTargetRef"], scaler["spec"]
        workloads = [found for found in objects if (found["kind"], found["metadata"]["name"]) == (target["kind"], target["name"])]
        if len(workloads) != 1 or target["apiVersion"] != workloads[0]["apiVersion"]:
            yield f"{name_of(scaler)}: there is no {target['kind']} {target['name']}"
            continue
        name = name_of(workloads[0])
        if name in scaled:
            yield f"{name}: both {name_of(scaled[name])} and {name_of(scaler)} scale it"
        scaled[name] = scaler
        container = container_of(pod_of(workloads[0]))
        least, most = (spec.get("minReplicas", spec.get("minReplicaCount")), spec.get("maxReplicas", spec.get("maxReplicaCount")))
        if not 1 <= least <= most:
            yield f"{name_of(scaler)}: from {least} to {most}"
        partitions = int(plain_settings(container).get("LIKES_PARTITIONS", 0))
        if container["command"][0] == "consumer" and most > partitions:
            yield f"{name_of(scaler)}: up to {most} consumers for {partitions} partitions"
    for found in of_kind(objects, *WORKLOADS):
        if (name_of(found) in scaled) == ("replicas" in found["spec"]):
            yield f"{name_of(found)}: replicas must be there or be left to an autoscaler, not both and not neither"


def keda_asks_for_the_backlog(objects):
    for scaled in of_kind(objects, "ScaledObject"):
        (target,) = [found for found in objects if found["metadata"]["name"] == scaled["spec"]["scaleTargetRef"]["name"]
                     and found["kind"] in WORKLOADS]
        group = plain_settings(container_of(pod_of(target))).get("LIKES_GROUP")
        (trigger,) = scaled["spec"]["triggers"]
        query = trigger["metadata"]["query"]
        if not re.fullmatch(r"max\(likestream_backlog_entries\{.*\}\)", query) or f"messaging_consumer_group_name={json.dumps(group)}" not in query:
            yield f"{name_of(scaled)}: it asks for {query}"
        if trigger["metadata"]["ignoreNullValues"] != "false" or "fallback" not in scaled["spec"]:
            yield f"{name_of(scaled)}: a backlog that nobody knows would count as none"


def budgets_are_about_one_workload(objects):
    for budget in of_kind(objects, "PodDisruptionBudget"):
        found = selected(budget["spec"]["selector"]["matchLabels"], objects)
        if len(found) != 1 or found[0]["kind"] not in WORKLOADS:
            yield f"{name_of(budget)}: its selector finds {list(map(name_of, found))}"


def monitors_find_the_admin_port(objects, answers):
    for monitor in of_kind(objects, "ServiceMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"]
        services = [service for service in of_kind(objects, "Service") if selector.items() <= service["metadata"]["labels"].items()]
        if len(services) != 1:
            yield f"{name_of(monitor)}: its selector finds {list(map(name_of, services))}"
            continue
        ports = {port["name"]: port["targetPort"] for port in services[0]["spec"]["ports"]}
        (found,) = selected(services[0]["spec"]["selector"], objects)
        for endpoint in monitor["spec"]["endpoints"]:
            yield from scraped(monitor, ports.get(endpoint["port"]), endpoint["path"], found, answers)
    for monitor in of_kind(objects, "PodMonitor"):
        found = selected(monitor["spec"]["selector"]["matchLabels"], objects)
        if len(found) != 1:
            yield f"{name_of(monitor)}: its selector finds {list(map(name_of, found))}"
            continue
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            yield from scraped(monitor, endpoint["port"], endpoint["path"], found[0], answers)


def scraped(monitor, port, path, found, answers):
    program = container_of(pod_of(found))["command"][0]
    if port != "admin":
        yield f"{name_of(monitor)}: it is at the port {port}, not at admin"
    if answers[program][path] != 200:
        yield f"{name_of(monitor)}: GET {path} of the real {program} is {answers[program][path]}"


def network_policies_fit(objects):
    """Each is about one workload's pods, every pod has one, and it lets through what the pod's settings need and nothing else."""
    policies = of_kind(objects, "NetworkPolicy")
    covered = []
    for policy in policies:
        found = selected(policy["spec"]["podSelector"]["matchLabels"], objects)
        covered += found
        if len(found) != 1:
            yield f"{name_of(policy)}: its selector finds {list(map(name_of, found))}"
            continue
        if sorted(policy["spec"]["policyTypes"]) != ["Egress", "Ingress"]:
            yield f"{name_of(policy)}: it is about {policy['spec']['policyTypes']} only"
        if is_hook(found[0]) and "test" not in found[0]["metadata"]["annotations"]["helm.sh/hook"] and not is_earlier(policy, found[0]):
            yield f"{name_of(policy)}: it must be there before {name_of(found[0])}"
        yield from ways_in(policy, found[0])
        yield from ways_out(policy, found[0])
    guarded = {policy["metadata"]["labels"]["app.kubernetes.io/name"] for policy in policies}
    for found, _ in pods(objects):
        if found["metadata"]["labels"]["app.kubernetes.io/name"] in guarded and covered.count(found) != 1:
            yield f"{name_of(found)}: {covered.count(found)} NetworkPolicies are about it"


def is_earlier(one, other):
    hooks = [found["metadata"].get("annotations", {}) for found in (one, other)]
    same = hooks[0].get("helm.sh/hook") == hooks[1].get("helm.sh/hook")
    return same and int(hooks[0]["helm.sh/hook-weight"]) < int(hooks[1]["helm.sh/hook-weight"])


def ways_in(policy, found):
    ports = {port["name"] for port in container_of(pod_of(found)).get("ports", [])}
    let_in = set()
    for rule in policy["spec"].get("ingress", []):
        for port in rule["ports"]:
            let_in.add(port["port"])
            if port["port"] not in ports:
                yield f"{name_of(policy)}: {name_of(found)} has no port {port['port']}"
            if port["port"] == "admin" and not rule.get("from"):
                yield f"{name_of(policy)}: everybody may reach the admin port"
    if "http" in ports and "http" not in let_in:
        yield f"{name_of(policy)}: nobody may call"


def ways_out(policy, found):
    settings = plain_settings(container_of(pod_of(found)))
    let_out = {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
    names = {(port["port"], port.get("protocol", "TCP")) for rule in policy["spec"]["egress"] for port in rule["ports"]}
    if not {(53, "TCP"), (53, "UDP")} <= names:
        yield f"{name_of(policy)}: names can't be looked up"
    collector = re.search(r":(\d+)$", settings.get("OTEL_EXPORTER_OTLP_ENDPOINT", ""))
    needed = {
        6379: REDIS in settings, 5432: DATABASE in settings, 443: "INGEST_JWT_JWKS" in settings,
        **{port: bool(collector) for port in (4317, 4318)},
    }
    for port, is_needed in needed.items():
        if (port in let_out) != is_needed:
            yield f"{name_of(policy)}: port {port} must be {'open' if is_needed else 'closed'} for {name_of(found)}"


def hooks_need_nothing_of_the_chart(objects):
    """On a first install there are only Secrets and ServiceAccounts that existed before, and earlier hooks."""
    accounts = {found["metadata"]["name"] for found in of_kind(objects, "ServiceAccount")}
    for found, pod in pods(objects):
        command = container_of(pod)["command"]
        hook = found["metadata"].get("annotations", {}).get("helm.sh/hook")
        wanted = {("likesctl", "migrate"): "pre-install,pre-upgrade", ("likesctl", "doctor"): "test"}.get(tuple(command))
        if hook != wanted:
            yield f"{name_of(found)}: as a hook it is {hook}, not {wanted}"
        if wanted and "before-hook-creation" not in found["metadata"]["annotations"]["helm.sh/hook-delete-policy"]:
            yield f"{name_of(found)}: it could not be made a second time"
        account = pod["spec"].get("serviceAccountName")
        if wanted == "pre-install,pre-upgrade" and account in accounts:
            yield f"{name_of(found)}: the ServiceAccount {account} is not there yet when it runs"
        if wanted != "pre-install,pre-upgrade" and account not in accounts | {"default"}:
            yield f"{name_of(found)}: there is no ServiceAccount {account}"


def files_are_all_there(objects):
    """Alerts and dashboards, as many as the chart has."""
    dashboards = sorted((CHART / "files" / "dashboards").glob("*.json"))
    maps = of_kind(objects, "ConfigMap")
    for found in maps:
        for name, text in found["data"].items():
            if len(text.encode()) > CONFIG_MAP_BYTES:
                yield f"{name_of(found)}: {name} is longer than a ConfigMap may be"
            link = re.search(r'"url": "(https?://[^"#]+)"', text)
            written = (CHART / "files" / "dashboards" / name).read_text(encoding="utf-8")
            if not link or json.loads(text) != json.loads(written.replace("RUNBOOK_URL", link[1])):
                yield f"{name_of(found)}: {name} is not what the file is, with the runbook's URL"
    if maps and (not dashboards or {name for found in maps for name in found["data"]} != {path.name for path in dashboards}):
        yield f"ConfigMaps: {len(maps)} for {len(dashboards)} dashboards"
    for rules in of_kind(objects, "PrometheusRule"):
        alerts = [rule for group in rules["spec"]["groups"] for rule in group["rules"] if "alert" in rule]
        for rule in alerts:
            if not re.match(r"https?://\S+#\S+$", rule["annotations"].get("runbook_url", "")):
                yield f"{name_of(rules)}: runbook_url of {rule['alert']} is {rule['annotations'].get('runbook_url')}"
        written = (CHART / "files" / "alerts.yaml").read_text(encoding="utf-8")
        runbook = alerts[0]["annotations"].get("runbook_url", "").partition("#")[0] if alerts else ""
        if not alerts or rules["spec"] != yaml.safe_load(written.replace("RUNBOOK_URL", runbook)):
            yield f"{name_of(rules)}: it is not what files/alerts.yaml is, with the runbook's URL"


def between_objects(objects, answers):
    yield from names_and_labels(objects)
    yield from workloads_select_their_pods(objects)
    yield from services_lead_somewhere(objects)
    yield from routes_lead_to_a_service(objects)
    yield from scalers_have_their_workload(objects)
    yield from keda_asks_for_the_backlog(objects)
    yield from budgets_are_about_one_workload(objects)
    yield from monitors_find_the_admin_port(objects, answers)
    yield from network_policies_fit(objects)
    yield from hooks_need_nothing_of_the_chart(objects)
    yield from files_are_all_there(objects)
