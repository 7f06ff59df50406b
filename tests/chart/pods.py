"""What must hold for each pod by itself: secrets, settings, ports, probes, security, and its end."""

import re

from programs import FILES, PROGRAMS

# What a text with a secret looks like.
LOOKS_SECRET = re.compile(r"://[^/\s\"]*:[^/\s\"]*@|-----BEGIN|[Pp]assword\s*[:=]|[Bb]earer [A-Za-z0-9]")
# What a container's ports are called, and which setting opens them.
LISTENING = {
    ("ingest", "http"): "INGEST_LISTEN",
    ("ingest", "admin"): "INGEST_ADMIN_LISTEN",
    ("consumer", "admin"): "CONSUMER_ADMIN_LISTEN",
}
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
SERVICES = ("ingest", "consumer")
DEFAULT_DRAINING = "20s"
UNITS_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}


def name_of(found):
    return f"{found['kind']} {found['metadata']['name']}"


def pod_of(found):
    """The pod that an object makes, or nothing: labels and spec."""
    if found["kind"] == "Pod":
        return found
    return found["spec"]["template"] if found["kind"] in ("Deployment", "StatefulSet", "Job") else None


def pods(objects):
    return [(found, pod_of(found)) for found in objects if pod_of(found)]


def container_of(pod):
    (container,) = pod["spec"]["containers"]
    return container


def plain_settings(container):
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}


def seconds(duration):
    return sum(int(number) * UNITS_S[unit] for number, unit in re.findall(r"(\d+)(ms|s|m|h)", duration))


def no_plain_secrets(objects, programs):
    for found in objects:
        if found["kind"] == "Secret":
            yield f"{name_of(found)}: the chart must make no Secret"
        seen = LOOKS_SECRET.search(str(found))
        if seen and found["kind"] != "PrometheusRule":
            yield f"{name_of(found)}: this looks like a secret: {seen[0]}"
    for found, pod in pods(objects):
        container = container_of(pod)
        secrets = programs.secrets("consumer") | programs.secrets("ingest")
        for entry in container["env"]:
            if entry["name"] in secrets and "secretKeyRef" not in entry.get("valueFrom", {}):
                yield f"{name_of(found)}: {entry['name']} is not from a Secret"


def files_are_mounted(objects):
    """Each file that a setting names is in a Secret's volume."""
    for found, pod in pods(objects):
        container = container_of(pod)
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        there, folders = set(), set()
        for mount in container["volumeMounts"]:
            volume = volumes.pop(mount["name"], None)
            if volume is None:
                yield f"{name_of(found)}: there is no volume {mount['name']}"
            elif "secret" in volume:
                folders.add(mount["mountPath"] + "/")
                there |= {f"{mount['mountPath']}/{item['path']}" for item in volume["secret"].get("items", [])}
        for name in volumes:
            yield f"{name_of(found)}: the volume {name} is mounted nowhere"
        named = {name: value for name, value in plain_settings(container).items() if value.startswith("/")}
        for name, path in named.items():
            if path not in there:
                yield f"{name_of(found)}: {name} is {path}, and no Secret is mounted there"
        unused = {path for path in there if path not in named.values()}
        for path in sorted(unused):
            yield f"{name_of(found)}: {path} is mounted, and no setting names it"
        if any(not folder.startswith(FILES) for folder in folders):
            yield f"{name_of(found)}: Secrets are mounted beyond {FILES}"


def settings_exist(objects, programs):
    """Each variable is a setting of its program, or is there for another that names it."""
    for found, pod in pods(objects):
        container = container_of(pod)
        program = container["command"][0]
        names = [entry["name"] for entry in container["env"]]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"{name_of(found)}: {name} is there twice"
        texts = {entry["name"]: entry.get("value", "") for entry in container["env"]}
        for at, entry in enumerate(container["env"]):
            later = "".join(texts[name] for name in names[at + 1:])
            is_for_another = "fieldRef" in entry.get("valueFrom", {}) and f"$({entry['name']})" in later
            if not is_for_another and entry["name"] not in programs.settings(program):
                yield f"{name_of(found)}: {program} has no setting {entry['name']}, by its --help"
            for name in re.findall(r"\$\(([^)]*)\)", entry.get("value", "")):
                if name not in names[:at]:
                    yield f"{name_of(found)}: {entry['name']} has $({name}), which doesn't stand before it"


def commands_exist(objects, programs):
    for found, pod in pods(objects):
        command = container_of(pod)["command"] + container_of(pod).get("args", [])
        if command[0] not in PROGRAMS:
            yield f"{name_of(found)}: the image has no {command[0]}"
        elif programs.help(*command) is None:
            yield f"{name_of(found)}: `{' '.join(command)} --help` fails"


def ports_are_listened_on(objects):
    for found, pod in pods(objects):
        container = container_of(pod)
        program = container["command"][0]
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        settings = plain_settings(container)
        wanted = {name: setting for (of, name), setting in LISTENING.items() if of == program}
        if set(ports) != set(wanted):
            yield f"{name_of(found)}: its ports are {sorted(ports)}, and {program} has {sorted(wanted)}"
        for name in set(ports) & set(wanted):
            address, _, port = settings.get(wanted[name], "nowhere").rpartition(":")
            if port != str(ports[name]):
                yield f"{name_of(found)}: the port {name} is {ports[name]}, and {wanted[name]} is {address}:{port}"
            if address not in ("0.0.0.0", "[::]"):
                yield f"{name_of(found)}: {wanted[name]} can't be reached from outside of the pod: {address}"


def probes(objects):
    """(where, program, path, port) of all probes."""
    for found, pod in pods(objects):
        container = container_of(pod)
        for kind in PROBES:
            if kind in container:
                get = container[kind]["httpGet"]
                yield f"{name_of(found)}: {kind}", container["command"][0], get["path"], get["port"]


def probes_are_right(objects, answers):
    """On the admin port, at paths that the real program answers: `answers` are those while its servers are away."""
    wanted = {"startupProbe": 200, "livenessProbe": 200, "readinessProbe": 503}
    for where, program, path, port in probes(objects):
        if port != "admin":
            yield f"{where} is at the port {port}, not at admin"
        status, kind = answers[program][path], where.rpartition(" ")[2]
        if status != wanted[kind]:
            yield f"{where}: GET {path} of the real {program} is {status} while its servers are away, not {wanted[kind]}"
    for found, pod in pods(objects):
        container = container_of(pod)
        if container["command"][0] in SERVICES:
            for kind in PROBES:
                if kind not in container:
                    yield f"{name_of(found)}: there is no {kind}"


def endings_are_long_enough(objects):
    for found, pod in pods(objects):
        container = container_of(pod)
        if container["command"][0] not in SERVICES:
            continue
        sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        draining = seconds(plain_settings(container).get("DRAIN_TIMEOUT", DEFAULT_DRAINING)) + sleep
        grace = pod["spec"]["terminationGracePeriodSeconds"]
        if grace <= draining:
            yield f"{name_of(found)}: its end may take {grace} s, and draining takes {draining:g} s"


def security_is_restricted(objects):
    """As the restricted Pod Security Standard wants it, and without a token."""
    for found, pod in pods(objects):
        spec, container = pod["spec"], container_of(pod)
        wanted = {
            "automountServiceAccountToken": (spec.get("automountServiceAccountToken"), False),
            "runAsNonRoot": (spec["securityContext"].get("runAsNonRoot"), True),
            "seccompProfile": (spec["securityContext"].get("seccompProfile"), {"type": "RuntimeDefault"}),
            "allowPrivilegeEscalation": (container["securityContext"].get("allowPrivilegeEscalation"), False),
            "readOnlyRootFilesystem": (container["securityContext"].get("readOnlyRootFilesystem"), True),
            "capabilities": (container["securityContext"].get("capabilities"), {"drop": ["ALL"]}),
            "runAsUser": (spec["securityContext"].get("runAsUser") == 0, False),
            "host": ([key for key in spec if key.startswith("host")], []),
        }
        for name, (seen, right) in wanted.items():
            if seen != right:
                yield f"{name_of(found)}: {name} is {seen}, not {right}"
        writable = [volume["name"] for volume in spec["volumes"] if "secret" not in volume and "emptyDir" not in volume]
        if writable:
            yield f"{name_of(found)}: volumes of other kinds: {writable}"


def resources_are_set(objects):
    for found, pod in pods(objects):
        resources = container_of(pod)["resources"]
        if not {"cpu", "memory"} <= set(resources.get("requests", {})) or "memory" not in resources.get("limits", {}):
            yield f"{name_of(found)}: requests of cpu and memory and a limit of memory must be set"
        if "cpu" in resources.get("limits", {}):
            yield f"{name_of(found)}: there is a limit of cpu"


def toolboxes_can_write(objects):
    """likesctl writes to the folder that it is in."""
    for found, pod in pods(objects):
        container = container_of(pod)
        if container["command"] == ["likesctl", "idle"]:
            volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
            mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
            if "emptyDir" not in mounts.get(container.get("workingDir"), {}):
                yield f"{name_of(found)}: its working directory is no emptyDir"


def names_are_unique_in_the_group(objects):
    """A consumer's name is its pod's where that stays, and else made up by the program."""
    for found, pod in pods(objects):
        settings = plain_settings(container_of(pod))
        if container_of(pod)["command"][0] != "consumer":
            continue
        wanted = "$(POD_NAME)" if found["kind"] == "StatefulSet" else None
        if settings.get("CONSUMER_NAME") != wanted:
            yield f"{name_of(found)}: CONSUMER_NAME is {settings.get('CONSUMER_NAME')}, not {wanted}"
        partitions = f"ordinal/{found['spec']['replicas']}" if found["kind"] == "StatefulSet" else "auto"
        if settings.get("CONSUMER_PARTITIONS") != partitions:
            yield f"{name_of(found)}: CONSUMER_PARTITIONS is {settings.get('CONSUMER_PARTITIONS')}, not {partitions}"


def of_each_pod(objects, programs, answers):
    yield from no_plain_secrets(objects, programs)
    yield from files_are_mounted(objects)
    yield from commands_exist(objects, programs)
    yield from settings_exist(objects, programs)
    yield from ports_are_listened_on(objects)
    yield from probes_are_right(objects, answers)
    yield from endings_are_long_enough(objects)
    yield from security_is_restricted(objects)
    yield from resources_are_set(objects)
    yield from toolboxes_can_write(objects)
    yield from names_are_unique_in_the_group(objects)
