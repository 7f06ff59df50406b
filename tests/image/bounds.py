"""What compose.yaml promises: pinned images, bounded services, and names that lead somewhere."""

import pathlib
import re

import compose
import dockerfile
from tree import CARGO


def problems(_folder, _programs):
    yield from pins()
    for name, service in compose.SERVICES.items():
        where = f"{compose.PATH}: {name}"
        yield from bounded(where, service)
        yield from references(where, service)
    yield from memory()


def pins():
    for name, service in compose.SERVICES.items():
        tag = service["image"].partition(":")[2]
        if "build" not in service and not re.match(r"v?\d+\.\d+", tag):
            yield f"{compose.PATH}: {name}: '{service['image']}' has no exact version"
    builder = dockerfile.arguments()["RUST"]
    version = CARGO["workspace"]["package"]["rust-version"]
    if f"/rust:{version}-" not in builder:
        yield f"{dockerfile.PATH}: it builds with '{builder}', and rust-version in Cargo.toml is {version}"


def bounded(where, service):
    limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
    for name in {"cpus", "memory", "pids"} - limits.keys():
        yield f"{where}: its {name} have no limit"
    if not isinstance(replicas := service.get("deploy", {}).get("replicas", 1), int):
        yield f"{where}: '{replicas}' replicas are no number"
    if "max-size" not in service.get("logging", {}).get("options", {}):
        yield f"{where}: its log has no limit"
    if "no-new-privileges:true" not in service.get("security_opt", []):
        yield f"{where}: it may gain privileges"
    if "build" in service and not (service.get("read_only") and service.get("cap_drop") == ["ALL"]):
        yield f"{where}: it is not read-only, or keeps capabilities"


def references(where, service):
    for name, wait in service.get("depends_on", {}).items():
        other = compose.SERVICES.get(name)
        if other is None:
            yield f"{where}: it waits for '{name}', which is no service"
        elif wait["condition"] == "service_healthy" and not compose.health_command(other):
            yield f"{where}: it waits for '{name}' to be healthy, which has no health check"
        elif wait["condition"] == "service_completed_successfully" and other.get("restart") in ("always", "unless-stopped"):
            yield f"{where}: it waits for '{name}' to end, which is started again and again"
    for name in set(service.get("secrets", [])) - compose.FILE["secrets"].keys():
        yield f"{where}: the secret '{name}' is not declared"
    for name in set(compose.named_volumes(service).values()) - compose.FILE["volumes"].keys():
        yield f"{where}: the volume '{name}' is not declared"
    durations = {key: value for key, value in service.get("healthcheck", {}).items() if key in ("interval", "timeout", "start_period")}
    for key, value in {"stop_grace_period": service.get("stop_grace_period", "10s"), **durations}.items():
        try:
            compose.seconds(value)
        except ValueError as error:
            yield f"{where}: {key}: {error}"
    # A file that a command names is mounted, or in a volume.
    mounts, volumes = compose.bind_mounts(service), set(compose.named_volumes(service))
    for word in service.get("command", []):
        path = word.partition("=")[2] or word
        if path.startswith("/") and path not in mounts and not volumes & {path, *map(str, pathlib.PurePosixPath(path).parents)}:
            yield f"{where}: the command names '{path}', which nothing is mounted at"


def memory():
    """What servers are told to keep to is less than what their containers may have."""
    redis = dict(re.findall(r"^(\S+) (\S+)$", (compose.FOLDER / "compose/redis.conf").read_text(), re.MULTILINE))
    limits = {name: service["deploy"]["resources"]["limits"]["memory"] for name, service in compose.SERVICES.items()}
    if 2 * compose.mebibytes(redis["maxmemory"]) > compose.mebibytes(limits["redis"]):
        yield f"deploy/compose/redis.conf: maxmemory {redis['maxmemory']} is over half of the container's {limits['redis']}"
