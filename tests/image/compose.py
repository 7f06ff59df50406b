"""deploy/compose.yaml, service by service."""

import re

import yaml
from tree import ROOT

PATH = "deploy/compose.yaml"
FOLDER = ROOT / "deploy"
FILE = yaml.safe_load((ROOT / PATH).read_text(encoding="utf-8"))
SERVICES = FILE["services"]


def ours():
    """The services that run the image."""
    return {name: service for name, service in SERVICES.items() if "build" in service}


def health_command(service):
    """The words of a health check, or a shell's line as the only one; None without."""
    test = service.get("healthcheck", {}).get("test")
    return test[1:] if test else None


def bind_mounts(service):
    """The path in the container to that on this machine."""
    mounts = (volume.split(":") for volume in service.get("volumes", []))
    return {target: (FOLDER / source).resolve() for source, target, *_ in mounts if source.startswith(".")}


def named_volumes(service):
    """The path in the container to the volume's name."""
    mounts = (volume.split(":") for volume in service.get("volumes", []))
    return {target: source for source, target, *_ in mounts if not source.startswith(".")}


def on_this_machine(service, path, volumes):
    """Where a path in the container is here, with the folders that stand for volumes; None where nothing is mounted."""
    named = {target: volumes[name] for target, name in named_volumes(service).items() if name in volumes}
    for target, source in {**bind_mounts(service), **named}.items():
        if path == target or path.startswith(f"{target}/"):
            return source / path.removeprefix(target).lstrip("/")
    return None


def seconds(duration):
    """Of 1m30s."""
    parts = re.findall(r"(\d+)(ms|s|m|h)", duration)
    if not parts or "".join(number + unit for number, unit in parts) != duration:
        raise ValueError(f"'{duration}' is no duration")
    return sum(int(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit] for number, unit in parts)


def mebibytes(size):
    """Of 512M, 1G or 512mb."""
    number, unit = re.fullmatch(r"(\d+)([mMgG])[bB]?", size).groups()
    return int(number) * (1024 if unit in "gG" else 1)
