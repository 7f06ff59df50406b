"""Fixtures: storage of buildah, the image, and the output of the service `runbook`."""

import os
import shutil

import pytest

from compose import SERVICES, named_volumes, on_this_machine
from storage import Storage
from support import ROOT, TARGET, output

IMAGE = "localhost/likestream:test"


@pytest.fixture(scope="session")
def storage():
    if os.geteuid() != 0:
        pytest.fail(
            "not root of a user namespace; run buildah unshare python -m pytest tests/image"
        )
    folder = TARGET / "image" / "storage"
    shutil.rmtree(folder, ignore_errors=True)
    yield Storage(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def image(storage, programs):
    """The image as built by `make image`, but with existing programs and `scratch` as base."""
    root = storage.scratch / "rootfs"
    output(ROOT / "deploy/image/rootfs.sh", programs.folder, root)
    options = ["--pull-never", "--build-context", f"rootfs={root}", "--build-arg", "BASE=scratch"]
    engine = {**storage.environment, "ENGINE": " ".join(map(str, storage.command))}
    output(ROOT / "deploy/image/build.sh", IMAGE, *options, env=engine)
    return IMAGE


@pytest.fixture(scope="session")
def volumes(tmp_path_factory):
    """The volumes after a run of the service `runbook` with busybox: folders by name."""
    folder, service = tmp_path_factory.mktemp("runbook"), SERVICES["runbook"]
    made = {name: folder / name for name in named_volumes(service).values()}
    for path in made.values():
        # The service must delete files of an earlier run.
        (path / "dashboards").mkdir(parents=True)
        (path / "dashboards" / "old.json").write_text("RUNBOOK_URL")
    applets = folder / "applets"
    applets.mkdir()
    busybox = shutil.which("busybox")
    output(busybox, "--install", "-s", applets)
    words = [on_this_machine(service, word, made) or word for word in service["command"]]
    output(busybox, *service["entrypoint"], *words, env={**os.environ, "PATH": str(applets)})
    return made
