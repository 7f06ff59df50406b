"""Every variable, command, port and secret that the Dockerfile and compose.yaml name is known to who gets it."""

import compose
import dockerfile
from tree import Failed

# Of the system, and of Rust's standard library.
OF_NO_PROGRAM = {"PATH", "RUST_BACKTRACE"}
# Where images of others listen.
OF_OTHERS = {"redis": 6379, "postgres": 5432, "prom/prometheus": 9090, "grafana/grafana": 3000}
PROGRAMS = ("ingest", "consumer", "likesctl")


def problems(_folder, programs):
    yield from image(programs)
    for name, service in compose.ours().items():
        where = f"{compose.PATH}: {name}"
        try:
            programs.help(*service["command"])
        except Failed as failed:
            yield f"{where}: {failed}"
            continue
        yield from variables(where, service, programs)
        yield from health(where, service, programs)
        yield from drain(where, service, programs)
    for name, service in compose.SERVICES.items():
        yield from published(f"{compose.PATH}: {name}", service, programs)
        yield from secrets(f"{compose.PATH}: {name}", service)


def port_of(address):
    return int(address.rpartition(":")[2])


def listens(service, programs):
    """The settings with an address on which one of ours listens, and the addresses."""
    environment = {**dockerfile.environment(), **service.get("environment", {})}
    command = service["command"]
    return {name: environment.get(name, programs.settings(*command)[name]) for name in programs.listens(*command)}


def ports(service, programs):
    """Those that others can reach."""
    if "build" in service:
        addresses = listens(service, programs).values()
        return {port_of(address) for address in addresses if not address.startswith("127.")}
    repository = service["image"].rpartition(":")[0]
    return {OF_OTHERS[repository]} if repository in OF_OTHERS else set()


def image(programs):
    known = {name for program in ("ingest", "consumer") for name in programs.settings(program)}
    environment = dockerfile.environment()
    for name in environment.keys() - known - OF_NO_PROGRAM:
        yield f"{dockerfile.PATH}: ENV: no program knows {name}"
    wanted = {name for program in PROGRAMS for name in programs.listens(program)}
    for name in wanted - environment.keys():
        yield f"{dockerfile.PATH}: ENV: {name} is not set, and its default is of no use in a container"
    [expose] = dockerfile.of_image("EXPOSE")
    exposed = {int(word) for word in expose.words}
    bound = {port_of(environment[name]) for name in wanted & environment.keys()}
    if exposed != bound:
        yield f"{expose}: {sorted(exposed)} is exposed, and the programs listen on {sorted(bound)}"
    [command] = dockerfile.of_image("CMD")
    service = {"command": command.words, "healthcheck": {"test": ["CMD", *dockerfile.health_check()]}}
    yield from health(f"{dockerfile.PATH}: HEALTHCHECK", service, programs)


def variables(where, service, programs):
    known = programs.settings(*service["command"])
    for name in service.get("environment", {}).keys() - known.keys():
        yield f"{where}: '{' '.join(service['command'])}' does not know {name}"


def health(where, service, programs):
    """It is a command that there is, and asks an admin port of the program."""
    command = compose.health_command(service)
    if command is None:
        if not service.get("healthcheck", {}).get("disable") or programs.listens(*service["command"]):
            yield f"{where}: it has no health check of its own, and gets that of the image"
        return
    try:
        programs.help(*command)
    except Failed as failed:
        yield f"{where}: health check: {failed}"
    admin = {name: port_of(address) for name, address in listens(service, programs).items() if "_ADMIN_" in name}
    if port_of(command[-1]) not in admin.values():
        yield f"{where}: health check: it asks {command[-1]}, and {service['command'][0]} has {admin}"


def drain(where, service, programs):
    known = programs.settings(*service["command"])
    if "DRAIN_TIMEOUT" not in known:
        return
    drain = service["environment"].get("DRAIN_TIMEOUT", known["DRAIN_TIMEOUT"])
    grace = service.get("stop_grace_period", "10s")
    if compose.seconds(grace) <= compose.seconds(drain):
        yield f"{where}: stop_grace_period is {grace}, which is not more than DRAIN_TIMEOUT, {drain}"


def published(where, service, programs):
    for port in service.get("ports", []):
        if not port.startswith("127.0.0.1:"):
            yield f"{where}: port '{port}' is published beyond 127.0.0.1"
        if port_of(port) not in ports(service, programs):
            yield f"{where}: port '{port}' is published, and it listens on {sorted(ports(service, programs))}"


def secrets(where, service):
    """Each one that it gets it uses, and the other way round."""
    has = set(service.get("secrets", []))
    places = [*map(str, service.get("environment", {}).values()), *(compose.health_command(service) or [])]
    places += [path.read_text() for path in compose.bind_mounts(service).values() if path.is_file()]
    used = {word for place in places for word in place.replace("\n", " ").split() if word.startswith("/run/secrets/")}
    used = {path.removeprefix("/run/secrets/") for path in used}
    for name in used - has:
        yield f"{where}: it uses the secret '{name}', which it does not get"
    for name in has - used:
        yield f"{where}: it gets the secret '{name}' and does not use it"
