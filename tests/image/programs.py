"""The programs, and what they say of themselves."""

import functools
import re
import subprocess

from tree import Failed

HELP_TIMEOUT_S = 30


class Programs:
    """Those of a folder."""

    def __init__(self, folder):
        self.folder = folder

    @functools.cache  # noqa: B019 - there is one, and it lives as long as the process
    def help(self, *command):
        """What it says of a command. Raises Failed where there is no such command."""
        program = self.folder / command[0]
        if not program.is_file():
            raise Failed(f"there is no program '{command[0]}'")
        ended = subprocess.run(
            [program, *command[1:], "--help"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=HELP_TIMEOUT_S, check=False,
        )
        if ended.returncode:
            why = next(iter(ended.stderr.splitlines()), "it says nothing")
            raise Failed(f"'{' '.join(command)}' is no command: {why}")
        return ended.stdout

    def settings(self, *command):
        """The environment variables of a command, with their defaults or None."""
        found = {}
        for option in re.split(r"\n +(?=-)", self.help(*command)):
            name = re.search(r"\[env:\s+(\w+)", option)
            default = re.search(r"\[default:\s+([^\]]+)\]", option)
            if name:
                found[name[1]] = default and default[1]
        return found

    def listens(self, *command):
        """The settings of a command that are an address to listen on."""
        return [name for name in self.settings(*command) if name.endswith("_LISTEN")]
