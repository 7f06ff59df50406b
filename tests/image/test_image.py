"""The image has labels, contains all dependencies of the programs, and runs them."""

import os
import shutil
import stat
import tomllib

import pytest

import dockerfile
from support import HELP, ROOT, output, run

USER = "65532:65532"
PACKAGE = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]
PROGRAMS = ("ingest", "consumer", "likesctl")
BUNDLE = "etc/ssl/certs/ca-certificates.crt"
# The image has about 70 MiB; with line tables it would have 330 MiB.
MAX_MIB = 120
# Debian has about 140.
MIN_AUTHORITIES = 50


@pytest.fixture(scope="module")
def config(storage, image):
    return storage.config(image)


@pytest.fixture(scope="module")
def root(storage, image):
    """The folder with the files of the image."""
    with storage.mounted(image) as folder:
        yield folder


@pytest.fixture(scope="module")
def files(root):
    return [path for path in root.rglob("*") if path.is_file()]


def test_labels_describe_version_licence_and_revision(config):
    label = {name.rpartition(".")[2]: value for name, value in config["Labels"].items()}
    assert label["version"] == PACKAGE["version"]
    assert label["licenses"] == PACKAGE["license"]
    revision = output("git", "rev-parse", "HEAD", cwd=ROOT).strip()
    assert label["revision"].removesuffix("-modified") == revision
    assert all(label[name] not in ("", "unknown") for name in ("title", "description", "created"))


def test_configuration_matches_the_dockerfile(config):
    [expose], [command] = dockerfile.of_image("EXPOSE"), dockerfile.of_image("CMD")
    assert config["User"] == USER
    assert config["Healthcheck"]["Test"] == ["CMD", *dockerfile.health_check()]
    assert dict(entry.split("=", 1) for entry in config["Env"]) == dockerfile.environment()
    assert set(config["ExposedPorts"]) == {f"{port}/tcp" for port in expose.words}
    assert config["Cmd"] == command.words
    assert not config.get("Entrypoint")
    assert config["StopSignal"] == "SIGTERM"
    assert [each.value for each in dockerfile.of_image("STOPSIGNAL")] == ["SIGTERM"]


def test_has_the_programs_and_no_other_executable(root, files):
    assert {path.name for path in (root / "usr/local/bin").iterdir()} == set(PROGRAMS)
    executable = [path for path in files if os.access(path, os.X_OK) and ".so" not in path.name]
    assert {path.name for path in executable} <= set(PROGRAMS)


def test_no_file_is_setuid_or_writable_by_all(files):
    dangerous = stat.S_ISUID | stat.S_ISGID | stat.S_IWOTH
    assert [path for path in files if path.stat().st_mode & dangerous] == []


def test_has_certificate_authorities(root):
    assert (root / BUNDLE).read_text().count("BEGIN CERTIFICATE") >= MIN_AUTHORITIES


def test_has_no_line_tables(files):
    assert sum(path.stat().st_size for path in files) >> 20 <= MAX_MIB


def test_scanners_find_the_libraries(root):
    described = {path.name for path in (root / "var/lib/dpkg/status.d").iterdir()}
    assert {"libc6", "libgcc-s1"} <= described


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_program_starts_as_the_user_of_the_image(name, argument, root, programs):
    """Uses chroot, because buildah sometimes loses the output of programs that exit immediately."""
    chroot = shutil.which("chroot"), f"--userspec={USER}", "--groups=", root
    ended = run(*chroot, name, argument, env={**dockerfile.environment(), **HELP})
    assert ended.returncode == 0, ended.stderr
    # The help also shows values of the environment, so only its first line is constant.
    line = {
        "--version": f"{name} {PACKAGE['version']}",
        "--help": programs.help(name).splitlines()[0],
    }
    assert ended.stdout.splitlines()[0] == line[argument]
