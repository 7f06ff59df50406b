"""Parses deploy/compose.yaml: mounts, ports and settings of its services."""

import re

import pytest
import yaml

import dockerfile
from support import ROOT

PATH = "deploy/compose.yaml"
FOLDER = ROOT / "deploy"
FILE = yaml.safe_load((ROOT / PATH).read_text(encoding="utf-8"))
SERVICES = FILE["services"]
# Services that run the likestream image.
LIKESTREAM_SERVICES = {name: service for name, service in SERVICES.items() if "build" in service}
# Ports of third-party images.
PORTS = {"redis": 6379, "postgres": 5432, "prom/prometheus": 9090, "grafana/grafana": 3000}

for_each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
for_each_likestream_service = pytest.mark.parametrize(
    "service", LIKESTREAM_SERVICES.values(), ids=LIKESTREAM_SERVICES
)


def config(name):
    """Returns a configuration file of deploy/compose."""
    return yaml.safe_load((FOLDER / "compose" / name).read_text(encoding="utf-8"))


def health_command(service):
    """Returns the words of a health check, or its shell command as a single word."""
    return service.get("healthcheck", {}).get("test", [])[1:]


def mounts(service):
    """Returns the mounts of a service: path in the container and source."""
    return {
        target: source for source, target, *_ in (v.split(":") for v in service.get("volumes", []))
    }


def bind_mounts(service):
    return {
        target: (FOLDER / source).resolve()
        for target, source in mounts(service).items()
        if source.startswith(".")
    }


def named_volumes(service):
    return {target: name for target, name in mounts(service).items() if not name.startswith(".")}


def on_this_machine(service, path, volumes):
    """Converts a container path to a path on this machine. `volumes` maps names to folders."""
    named = {
        target: volumes[name] for target, name in named_volumes(service).items() if name in volumes
    }
    for target, source in {**bind_mounts(service), **named}.items():
        if path == target or path.startswith(f"{target}/"):
            return source / path.removeprefix(target).lstrip("/")
    return None


def mebibytes(size):
    """Converts 512M, 1G or 512mb."""
    number, unit = re.fullmatch(r"(\d+)([mMgG])[bB]?", size).groups()
    return int(number) * (1024 if unit in "gG" else 1)


def memory_limit(name):
    return mebibytes(SERVICES[name]["deploy"]["resources"]["limits"]["memory"])


def port_of(address):
    return int(address.rpartition(":")[2])


def listens(service, programs):
    """Returns the listen settings of a likestream service, and their addresses."""
    environment = {**dockerfile.environment(), **service.get("environment", {})}
    defaults = programs.settings(*service["command"])
    names = programs.listens(*service["command"])
    return {name: environment.get(name, defaults[name]) for name in names}


def admin_ports(service, programs):
    """Returns the ports with metrics and health."""
    addresses = listens(service, programs)
    return {port_of(address) for name, address in addresses.items() if "_ADMIN_" in name}


def ports(service, programs):
    """Returns the ports that other containers can connect to."""
    if "build" in service:
        addresses = listens(service, programs).values()
        return {port_of(address) for address in addresses if not address.startswith("127.")}
    repository = service["image"].rpartition(":")[0]
    return {PORTS[repository]} if repository in PORTS else set()
