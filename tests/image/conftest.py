"""Storage of buildah, the image in it, and the files that compose.yaml's `runbook` makes."""

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
            "run it as root of a user namespace: buildah unshare python -m pytest tests/image"
        )
    folder = TARGET / "image" / "storage"
    shutil.rmtree(folder, ignore_errors=True)
    yield Storage(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def image(storage, programs):
    """The image as `make image` builds it, of programs that are built already, on `scratch`."""
    root = storage.scratch / "rootfs"
    output(ROOT / "deploy/image/rootfs.sh", programs.folder, root)
    options = ["--pull-never", "--build-context", f"rootfs={root}", "--build-arg", "BASE=scratch"]
    engine = {**storage.environment, "ENGINE": " ".join(map(str, storage.command))}
    output(ROOT / "deploy/image/build.sh", IMAGE, *options, env=engine)
    return IMAGE


@pytest.fixture(scope="session")
def volumes(tmp_path_factory):
    """The volumes that `runbook` fills, by name; its command runs as in its container."""
    folder, service = tmp_path_factory.mktemp("runbook"), SERVICES["runbook"]
    made = {name: folder / name for name in named_volumes(service).values()}
    for path in made.values():
        # Files of an earlier run must be gone afterwards.
        (path / "dashboards").mkdir(parents=True)
        (path / "dashboards" / "old.json").write_text("RUNBOOK_URL")
    applets = folder / "applets"
    applets.mkdir()
    busybox = shutil.which("busybox")
    output(busybox, "--install", "-s", applets)
    words = [on_this_machine(service, word, made) or word for word in service["command"]]
    output(busybox, *service["entrypoint"], *words, env={**os.environ, "PATH": str(applets)})
    return made
