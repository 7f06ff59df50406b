"""The Dockerfile refers only to existing files, stages, packages and settings."""

import os
import re
import tomllib

import pytest

import dockerfile
from support import ROOT, TOOLS, output

CARGO = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]
# Variables that are not settings of the programs.
OF_NO_PROGRAM = {"PATH", "RUST_BACKTRACE"}
PROGRAMS = ("ingest", "consumer", "likesctl")
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"target"}


def for_each(name):
    found = dockerfile.named(name)
    return pytest.mark.parametrize("instruction", found, ids=[each.value for each in found])


def test_hadolint_finds_nothing():
    output(TOOLS / "hadolint", "--no-color", dockerfile.PATH, cwd=ROOT)


@for_each("COPY")
def test_copies_only_existing_files(instruction):
    source, stage = instruction.words[0], instruction.flags.get("from")
    if stage is None:
        assert (ROOT / source).exists()
        return
    stages = {
        each.words[2]: each.stage
        for each in dockerfile.named("FROM")
        if len(each.words) == 3 and each.words[1].upper() == "AS"
    }
    made = [run.value for run in dockerfile.named("RUN") if run.stage == stages[stage]]
    assert source == "/" or any(os.path.basename(source) in line for line in made)


@for_each("RUN")
def test_runs_only_existing_scripts(instruction):
    scripts = [word for word in instruction.words if word.split("/")[0] in FOLDERS]
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts), scripts


@for_each("RUN")
def test_builds_packages_of_the_workspace_from_the_lock(instruction):
    manifests = [(ROOT / member / "Cargo.toml").read_text() for member in CARGO["members"]]
    packages = {tomllib.loads(manifest)["package"]["name"] for manifest in manifests}
    assert set(re.findall(r"--package (\S+)", instruction.value)) <= packages
    builds = re.search(r"\bcargo (chef cook|build|install)\b", instruction.value)
    assert not builds or "--locked" in instruction.value


def test_builds_with_the_rust_version_of_the_workspace():
    arguments = [each.value.partition("=") for each in dockerfile.named("ARG") if each.stage < 0]
    [builder] = [default for name, _, default in arguments if name == "RUST"]
    assert f"/rust:{CARGO['package']['rust-version']}-" in builder


def test_sets_only_variables_of_the_programs(programs):
    known = {*programs.settings("ingest"), *programs.settings("consumer")}
    assert dockerfile.environment().keys() <= known | OF_NO_PROGRAM


def test_sets_every_listen_address_and_exposes_its_port(programs):
    """The programs listen on loopback by default, which is unreachable in a container."""
    environment = dockerfile.environment()
    names = {name for program in PROGRAMS for name in programs.listens(program)}
    ports = {environment[name].rpartition(":")[2] for name in names}
    [expose] = dockerfile.of_image("EXPOSE")
    assert set(expose.words) == ports


def test_health_check_requests_the_admin_port_of_its_program(programs):
    check, [command] = dockerfile.health_check(), dockerfile.of_image("CMD")
    assert programs.help(*check)
    names = [name for name in programs.listens(*command.words) if "_ADMIN_" in name]
    ports = {dockerfile.environment()[name].rpartition(":")[2] for name in names}
    assert check[-1].rpartition(":")[2] in ports
