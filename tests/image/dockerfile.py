"""deploy/Dockerfile, instruction by instruction."""

import dataclasses
import json
import shlex

from dockerfile_parse import DockerfileParser
from tree import ROOT

PATH = "deploy/Dockerfile"


@dataclasses.dataclass
class Instruction:
    name: str
    stage: int  # -1 before the first FROM
    line: int
    value: str
    flags: dict

    def __str__(self):
        return f"{PATH}:{self.line}: {self.name}"

    @property
    def words(self):
        """Of the exec form or of words."""
        return json.loads(self.value) if self.value.startswith("[") else shlex.split(self.value)


def instructions():
    parser = DockerfileParser(str(ROOT / PATH))
    found, stage = [], -1
    for piece in parser.structure:
        if piece["instruction"] == "COMMENT":
            continue
        stage += piece["instruction"] == "FROM"
        flags, words = {}, piece["value"].split(" ")
        while words and words[0].startswith("--"):
            flag, _, value = words.pop(0)[2:].partition("=")
            flags[flag] = value
        found.append(Instruction(piece["instruction"], stage, piece["startline"] + 1, " ".join(words).strip(), flags))
    return found


def arguments():
    """The build arguments that come before all stages, with their defaults."""
    pairs = (i.value.partition("=") for i in instructions() if i.name == "ARG" and i.stage < 0)
    return {name: default for name, _, default in pairs}


def stages():
    """Name to number, of those that have one."""
    froms = [i for i in instructions() if i.name == "FROM"]
    return {i.words[2]: i.stage for i in froms if len(i.words) == 3 and i.words[1].upper() == "AS"}


def of_image(name):
    """The instructions of that name in the last stage."""
    last = max(i.stage for i in instructions())
    return [i for i in instructions() if i.stage == last and i.name == name]


def environment():
    """What the image sets."""
    return dict(word.split("=", 1) for i in of_image("ENV") for word in i.words)


def health_check():
    """The command of the image's health check."""
    [check] = of_image("HEALTHCHECK")
    command = check.value.removeprefix("CMD").strip()
    return json.loads(command)
