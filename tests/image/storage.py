"""Runs buildah with images and containers in a private folder."""

import contextlib
import json
import os
import pathlib

from support import output

TIMEOUT_S = 300


class Storage:
    def __init__(self, folder):
        self.command = ["buildah", "--root", folder / "storage", "--runroot", folder / "run"]
        self.command += ["--storage-driver", "vfs"]
        self.scratch = folder / "tmp"
        self.scratch.mkdir(parents=True)
        isolated = {"TMPDIR": str(self.scratch), "BUILDAH_ISOLATION": "chroot"}
        self.environment = {**os.environ, **isolated}

    def buildah(self, *arguments):
        return output(*self.command, *arguments, env=self.environment, timeout=TIMEOUT_S)

    @contextlib.contextmanager
    def container(self, image):
        name = self.buildah("from", "--pull-never", image).strip()
        try:
            yield name
        finally:
            self.buildah("rm", name)

    @contextlib.contextmanager
    def mounted(self, image):
        """Mounts the file system of an image and yields its folder."""
        with self.container(image) as name:
            yield pathlib.Path(self.buildah("mount", name).strip())

    def config(self, image):
        inspected = self.buildah("inspect", "--type", "image", image)
        return json.loads(inspected)["Docker"]["config"]
