"""Parses deploy/Dockerfile into instructions."""

import dataclasses
import functools
import json
import shlex

from dockerfile_parse import DockerfileParser

from support import ROOT

PATH = "deploy/Dockerfile"


@dataclasses.dataclass
class Instruction:
    name: str
    stage: int  # -1 before the first FROM
    value: str
    flags: dict

    @property
    def words(self):
        """The words of the exec form or of the shell form."""
        return json.loads(self.value) if self.value.startswith("[") else shlex.split(self.value)


@functools.cache
def instructions():
    found, stage = [], -1
    for piece in DockerfileParser(str(ROOT / PATH)).structure:
        if piece["instruction"] == "COMMENT":
            continue
        stage += piece["instruction"] == "FROM"
        flags, words = {}, piece["value"].split(" ")
        while words and words[0].startswith("--"):
            flag, _, value = words.pop(0)[2:].partition("=")
            flags[flag] = value
        found.append(Instruction(piece["instruction"], stage, " ".join(words).strip(), flags))
    return found


def named(name):
    return [each for each in instructions() if each.name == name]


def of_image(name):
    """Returns the instructions of that name in the last stage."""
    last = instructions()[-1].stage
    return [each for each in named(name) if each.stage == last]


def environment():
    """Returns the variables of the image."""
    return dict(word.split("=", 1) for each in of_image("ENV") for word in each.words)


def health_check():
    """Returns the words of the image's health check."""
    [check] = of_image("HEALTHCHECK")
    return json.loads(check.value.removeprefix("CMD").strip())
