"""Properties of each pod: secrets, settings, ports, probes, security and shutdown."""

import re

import pytest

from rendering import annotations
from support import seconds

FILES = "/etc/likestream/"
SECRET = re.compile(r"://[^/\s\"]*:[^/\s\"]*@|-----BEGIN|[Pp]assword\s*[:=]|[Bb]earer [A-Za-z0-9]")
PORTS = {
    "ingest": {"http": "INGEST_LISTEN", "admin": "INGEST_ADMIN_LISTEN"},
    "consumer": {"admin": "CONSUMER_ADMIN_LISTEN"},
    "likesctl": {},
}
# Status code of each probe while Redis is down.
PROBES = {"startupProbe": 200, "livenessProbe": 200, "readinessProbe": 503}
DEFAULT_DRAIN_TIMEOUT = "20s"


def test_chart_creates_no_secret(each):
    assert each["kind"] != "Secret"


def test_no_object_contains_a_credential(each):
    assert each["kind"] == "PrometheusRule" or not SECRET.search(str(each))


def test_secret_settings_come_from_secrets(pod, programs):
    secrets = programs.secrets("ingest") | programs.secrets("consumer")
    plain = [entry for entry in pod.env if "secretKeyRef" not in entry.get("valueFrom", {})]
    assert not secrets & {entry["name"] for entry in plain}


def test_mounted_files_match_the_settings(pod):
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in pod.container["volumeMounts"]}
    assert set(mounts.values()) == set(volumes)
    assert len(mounts) == len(volumes)
    secrets = {
        path: volumes[name]["secret"] for path, name in mounts.items() if "secret" in volumes[name]
    }
    assert all(f"{path}/".startswith(FILES) for path in secrets)
    mounted = {
        f"{path}/{item['path']}" for path in secrets for item in secrets[path].get("items", [])
    }
    assert mounted == {value for value in pod.settings.values() if value.startswith("/")}


def test_command_exists(pod, programs):
    assert pod.program in PORTS
    assert programs.help(*pod.command, *pod.container.get("args", []))


def test_settings_exist_in_the_program(pod, settings_of):
    names = [entry["name"] for entry in pod.env]
    assert len(set(names)) == len(names)
    known = settings_of(pod.program)
    for at, entry in enumerate(pod.env):
        references = set(re.findall(r"\$\(([^)]*)\)", entry.get("value", "")))
        assert references <= set(names[:at]), f"{entry['name']} refers to a later variable"
        later = "".join(other.get("value", "") for other in pod.env[at + 1 :])
        is_for_another = "fieldRef" in entry.get("valueFrom", {}) and f"$({entry['name']})" in later
        assert is_for_another or entry["name"] in known


def test_ports_match_the_listen_addresses(pod):
    listens = {name: pod.settings.get(setting) for name, setting in PORTS[pod.program].items()}
    assert set(pod.ports) == set(listens)
    for name, port in pod.ports.items():
        assert listens[name] in (f"0.0.0.0:{port}", f"[::]:{port}")


@pytest.mark.parametrize("kind", PROBES)
def test_probe_requests_an_existing_path_of_the_admin_port(service_pod, kind, admin_status):
    get = service_pod.container[kind]["httpGet"]
    assert get["port"] == "admin"
    assert admin_status(service_pod.program, get["path"]) == PROBES[kind]


def test_only_services_have_probes(pod):
    assert pod.program in ("ingest", "consumer") or not PROBES.keys() & pod.container.keys()


def test_grace_period_exceeds_the_drain_timeout(service_pod):
    sleep = service_pod.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {})
    drain = seconds(service_pod.settings.get("DRAIN_TIMEOUT", DEFAULT_DRAIN_TIMEOUT))
    grace = service_pod.spec["terminationGracePeriodSeconds"]
    assert grace > drain + sleep.get("seconds", 0)


def test_pod_meets_the_restricted_security_standard(pod):
    """The restricted Pod Security Standard of Kubernetes, and no service account token."""
    security, container = pod.spec["securityContext"], pod.container["securityContext"]
    assert pod.spec["automountServiceAccountToken"] is False
    assert security["runAsNonRoot"] is True
    assert security.get("runAsUser") != 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["allowPrivilegeEscalation"] is False
    assert container["readOnlyRootFilesystem"] is True
    assert container["capabilities"] == {"drop": ["ALL"]}
    assert not [key for key in pod.spec if key.startswith("host")]
    assert all("secret" in volume or "emptyDir" in volume for volume in pod.spec["volumes"])


def test_memory_is_limited_and_cpu_is_not(pod):
    resources = pod.container["resources"]
    assert {"cpu", "memory"} <= resources["requests"].keys()
    assert "memory" in resources["limits"]
    assert "cpu" not in resources["limits"]


def test_toolbox_can_write_to_its_working_directory(toolbox):
    volumes = {volume["name"]: volume for volume in toolbox.spec["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in toolbox.container["volumeMounts"]}
    assert "emptyDir" in volumes[mounts[toolbox.container["workingDir"]]]


def test_consumer_has_a_unique_name_and_its_own_partitions(consumer_pod):
    name, partitions = None, "auto"
    if consumer_pod.owner["kind"] == "StatefulSet":
        name, partitions = "$(POD_NAME)", f"ordinal/{consumer_pod.owner['spec']['replicas']}"
    assert consumer_pod.settings.get("CONSUMER_NAME") == name
    assert consumer_pod.settings.get("CONSUMER_PARTITIONS") == partitions


def test_hook_depends_on_nothing_installed_after_it(pod, accounts):
    """In a first installation, only Secrets, other ServiceAccounts and earlier hooks exist."""
    migration, test = "pre-install,pre-upgrade", "test"
    hooks = {"likesctl migrate": migration, "likesctl doctor": test}
    hook = hooks.get(" ".join(pod.command))
    assert pod.hook == hook
    if hook:
        policy = annotations(pod.owner)["helm.sh/hook-delete-policy"]
        assert "before-hook-creation" in policy
    account = pod.spec.get("serviceAccountName")
    if hook == migration:
        assert account not in accounts
    else:
        assert account in accounts | {"default"}


@pytest.fixture
def accounts(objects):
    return {found["metadata"]["name"] for found in objects if found["kind"] == "ServiceAccount"}
