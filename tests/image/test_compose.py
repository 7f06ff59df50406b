"""compose.yaml is valid, limits resources, and refers only to existing files and settings."""

import os
import pathlib
import re

import pytest

from compose import (
    FILE,
    FOLDER,
    PATH,
    SERVICES,
    admin_ports,
    bind_mounts,
    for_each_likestream_service,
    for_each_service,
    health_command,
    listens,
    mebibytes,
    memory_limit,
    named_volumes,
    port_of,
    ports,
)
from support import ROOT, TOOLS, output, run, seconds

SECRETS = FOLDER / "compose" / "secrets"


def test_follows_the_compose_specification():
    schema = "--builtin-schema", "vendor.compose-spec"
    ended = run(TOOLS / "check-jsonschema", *schema, ROOT / PATH)
    assert ended.returncode == 0, ended.stdout


@for_each_service
def test_third_party_service_has_an_exact_version(service):
    assert "build" in service or re.match(r"v?\d+\.\d+", service["image"].partition(":")[2])


@for_each_service
def test_service_has_resource_and_log_limits(service):
    deploy = service["deploy"]
    assert {"cpus", "memory", "pids"} <= deploy["resources"]["limits"].keys()
    assert isinstance(deploy.get("replicas", 1), int)
    assert "max-size" in service["logging"]["options"]


@for_each_service
def test_service_cannot_gain_privileges(service):
    assert "no-new-privileges:true" in service["security_opt"]


@for_each_likestream_service
def test_our_service_is_read_only_without_capabilities(service):
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]


@for_each_likestream_service
def test_our_service_is_built_from_the_dockerfile(service):
    build = service["build"]
    recipe = FOLDER / build["context"] / build["dockerfile"]
    assert recipe.resolve() == ROOT / "deploy" / "Dockerfile"


@for_each_service
def test_service_waits_only_for_conditions_that_can_be_met(service):
    for name, wait in service.get("depends_on", {}).items():
        other = SERVICES[name]
        if wait["condition"] == "service_healthy":
            assert health_command(other)
        if wait["condition"] == "service_completed_successfully":
            assert other.get("restart") not in ("always", "unless-stopped")


@for_each_service
def test_service_uses_only_declared_secrets_and_volumes(service):
    assert set(service.get("secrets", [])) <= FILE["secrets"].keys()
    assert set(named_volumes(service).values()) <= FILE["volumes"].keys()


@for_each_service
def test_durations_are_valid(service):
    check = service.get("healthcheck", {})
    durations = [check[key] for key in ("interval", "timeout", "start_period") if key in check]
    assert all(seconds(each) for each in [*durations, service.get("stop_grace_period", "10s")])


@for_each_service
def test_files_in_a_command_are_mounted(service):
    """Each file in a command is mounted or in a volume."""
    words = [word.partition("=")[2] or word for word in service.get("command", [])]
    for path in (word for word in words if word.startswith("/")):
        folders = {path, *map(str, pathlib.PurePosixPath(path).parents)}
        assert path in bind_mounts(service) or folders & named_volumes(service).keys()


@for_each_service
def test_mounted_files_exist(service):
    for source in bind_mounts(service).values():
        assert source.is_file() or any(source.iterdir())


def test_redis_maxmemory_is_at_most_half_of_the_container_limit():
    """A rewrite of the append-only file can double the memory usage."""
    text = (FOLDER / "compose" / "redis.conf").read_text()
    [maxmemory] = re.findall(r"^maxmemory (\S+)$", text, re.MULTILINE)
    assert 2 * mebibytes(maxmemory) <= memory_limit("redis")


def test_secrets_match_the_files_that_the_script_creates(tmp_path):
    output(FOLDER / "compose" / "secrets.sh", tmp_path)
    wanted = {(FOLDER / secret["file"]).resolve() for secret in FILE["secrets"].values()}
    assert wanted == {SECRETS / name for name in os.listdir(tmp_path)}


@pytest.mark.parametrize("secret", FILE["secrets"])
def test_secret_is_ignored_by_git(secret):
    output("git", "check-ignore", FOLDER / FILE["secrets"][secret]["file"], cwd=ROOT)


@for_each_service
def test_service_has_exactly_the_secrets_that_it_uses(service):
    texts = [*map(str, service.get("environment", {}).values()), *health_command(service)]
    texts += [path.read_text() for path in bind_mounts(service).values() if path.is_file()]
    words = [word for text in texts for word in text.split() if word.startswith("/run/secrets/")]
    used = {word.removeprefix("/run/secrets/") for word in words}
    assert used == set(service.get("secrets", []))


@for_each_likestream_service
def test_command_and_its_variables_exist(service, programs):
    known = programs.settings(*service["command"])
    assert service.get("environment", {}).keys() <= known.keys()


@for_each_likestream_service
def test_health_check_requests_an_admin_port(service, programs):
    """A service without a health check would inherit the one of the image."""
    check = health_command(service)
    if check:
        assert programs.help(*check)
        assert port_of(check[-1]) in admin_ports(service, programs)
    else:
        assert service["healthcheck"]["disable"]
        assert not listens(service, programs)


@for_each_likestream_service
def test_grace_period_exceeds_the_drain_timeout(service, programs):
    known = programs.settings(*service["command"])
    if "DRAIN_TIMEOUT" in known:
        drain = service["environment"].get("DRAIN_TIMEOUT", known["DRAIN_TIMEOUT"])
        assert seconds(service.get("stop_grace_period", "10s")) > seconds(drain)


@for_each_service
def test_publishes_only_listened_ports_on_loopback(service, programs):
    published = service.get("ports", [])
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert {port_of(port) for port in published} <= ports(service, programs)
