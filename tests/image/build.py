"""The image's last stage, really built by buildah of the programs that are built already, on `scratch`; and what it says of
itself. On other bases it is the same but for what they have."""

import os
import subprocess

import dockerfile
import storage
from tree import CARGO, ROOT, Failed

IMAGE = "localhost/likestream:test"
USER = "65532:65532"
TIMEOUT_S = 120
# It has some 70, and would have 330 with line tables.
LARGEST_MIB = 120
# Debian has some 140.
FEWEST_AUTHORITIES = 50


def problems(folder, programs):
    image = storage.Storage(folder)
    build(image, folder, programs)
    yield from config(image.config(IMAGE))
    with image.mounted(IMAGE) as files:
        yield from contents(files)


def build(image, folder, programs):
    """The way that `make image` goes, but for the compiler."""
    root = folder / "tmp" / "rootfs"
    ended = subprocess.run([ROOT / "deploy/image/rootfs.sh", programs.folder, root], capture_output=True, text=True,
                           timeout=TIMEOUT_S, check=False)
    if ended.returncode:
        raise Failed(f"deploy/image/rootfs.sh: {' '.join((ended.stdout + ended.stderr).split())}")
    image.run(
        [ROOT / "deploy/image/build.sh", IMAGE, "--pull-never", "--build-context", f"rootfs={root}",
         "--build-arg", "BASE=scratch"],
        ENGINE=" ".join(image.command),
    )


def config(got):
    package = CARGO["workspace"]["package"]
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True,
                              timeout=TIMEOUT_S).stdout.strip()
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in got["Labels"].items()}
    [stop] = dockerfile.of_image("STOPSIGNAL")
    expected = {
        "user": (got["User"], USER),
        "version": (labels["version"], package["version"]),
        "revision": (labels["revision"].removesuffix("-modified"), revision),
        "licences": (labels["licenses"], package["license"]),
        "health check": (got.get("Healthcheck", {}).get("Test"), ["CMD", *dockerfile.health_check()]),
        "environment": (dict(entry.split("=", 1) for entry in got["Env"]), dockerfile.environment()),
        "ports": (sorted(got["ExposedPorts"]), [f"{port}/tcp" for port in sorted(dockerfile.of_image("EXPOSE")[0].words)]),
        "command": (got["Cmd"], dockerfile.of_image("CMD")[0].words),
        "entrypoint": (got.get("Entrypoint") or [], []),
        "stop signal": (got["StopSignal"], "SIGTERM"),
        "STOPSIGNAL": (stop.value, "SIGTERM"),
    }
    for what, (is_, should_be) in expected.items():
        if is_ != should_be:
            yield f"the image: {what} is {is_}, and should be {should_be}"
    for name in ("title", "description", "created"):
        if labels.get(name, "unknown") in ("", "unknown"):
            yield f"the image: the label {name} is not set"


def contents(files):
    """Programs and what they need, and nothing that they don't."""
    programs = {path.name for path in (files / "usr/local/bin").iterdir()}
    if programs != {"ingest", "consumer", "likesctl"}:
        yield f"the image: its programs are {sorted(programs)}"
    everything = [path for path in files.rglob("*") if path.is_file()]
    for path in everything:
        if os.access(path, os.X_OK) and path.name not in programs and ".so" not in path.name:
            yield f"the image: '{path.relative_to(files)}' can be run"
        if path.stat().st_mode & 0o6002:
            yield f"the image: '{path.relative_to(files)}' can be written by all, or is setuid"
    bundle = files / "etc/ssl/certs/ca-certificates.crt"
    authorities = bundle.read_text().count("BEGIN CERTIFICATE") if bundle.is_file() else 0
    if authorities < FEWEST_AUTHORITIES:
        yield f"the image: TLS trusts {authorities} authorities, should be at least {FEWEST_AUTHORITIES}, in {bundle.relative_to(files)}"
    size = sum(path.stat().st_size for path in everything) >> 20
    if size > LARGEST_MIB:
        yield f"the image: it has {size} MiB, and should have {LARGEST_MIB} at the most: are the line tables still there?"
    described = {path.name for path in (files / "var/lib/dpkg/status.d").iterdir()}
    if not {"libc6", "libgcc-s1"} <= described:
        yield f"the image: scanners find only {sorted(described)} of its libraries"
    print(f"image: {size} MiB in {len(everything)} files", flush=True)
