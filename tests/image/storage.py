"""Images and containers of buildah in a folder of their own, without a daemon."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess

from tree import Failed

TIMEOUT_S = 300


class Storage:
    """Those in a folder."""

    def __init__(self, folder):
        self.folder = folder
        self.command = ["buildah", "--root", str(folder / "storage"), "--runroot", str(folder / "run"),
                        "--storage-driver", "vfs"]
        scratch = folder / "tmp"
        scratch.mkdir(parents=True, exist_ok=True)
        # Its settings and caches, too.
        self.environment = {**os.environ, "TMPDIR": str(scratch), "BUILDAH_ISOLATION": "chroot"}

    def buildah(self, *arguments):
        return self.run([*self.command, *map(str, arguments)])

    def run(self, command, **environment):
        """What a command that uses buildah prints."""
        ended = subprocess.run(
            command, env={**self.environment, **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=TIMEOUT_S, check=False,
        )
        if ended.returncode:
            # It repeats its errors at the end, as fields of a log.
            lines = [re.sub(r'^.*level=\w+ msg="?|"$', "", line) for line in ended.stderr.splitlines()]
            raise Failed(f"'{' '.join(map(str, command[-3:]))}' ended with {ended.returncode}: {' | '.join(lines[-4:])}")
        return ended.stdout

    @contextlib.contextmanager
    def container(self, image):
        name = self.buildah("from", "--pull-never", image).strip()
        try:
            yield name
        finally:
            self.buildah("rm", name)

    @contextlib.contextmanager
    def mounted(self, image):
        """The folder with an image's files."""
        with self.container(image) as name:
            yield pathlib.Path(self.buildah("mount", name).strip())

    def config(self, image):
        return json.loads(self.buildah("inspect", "--type", "image", image))["Docker"]["config"]

    def remove(self):
        for part in ("storage", "run", "tmp"):
            shutil.rmtree(self.folder / part, ignore_errors=True)
