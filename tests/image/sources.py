"""Every path that the Dockerfile and compose.yaml name is there, and the build gets what it needs and nothing else."""

import json
import os
import re
import subprocess
import tempfile
import tomllib

import compose
import dockerfile
import storage
from tree import CARGO, ROOT

TIMEOUT_S = 120
INCLUDED = re.compile(r"""(?:include_(?:str|bytes)!|embed_migrations!)\(\s*"([^"]+)""")


def problems(folder, _programs):
    yield from copied()
    yield from run()
    yield from built_packages()
    yield from mounted()
    yield from secrets()
    yield from context(folder)


def copied():
    stages, all_of = dockerfile.stages(), dockerfile.instructions()
    for copy in (i for i in all_of if i.name == "COPY"):
        source, stage = copy.words[0], copy.flags.get("from")
        if stage is None:
            if not (ROOT / source).exists():
                yield f"{copy}: there is no '{source}' in the tree"
        elif stage not in stages:
            yield f"{copy}: there is no stage '{stage}'"
        elif source != "/":
            made = [i.value for i in all_of if i.name == "RUN" and i.stage == stages[stage]]
            if not any(os.path.basename(source) in line for line in made):
                yield f"{copy}: nothing in the stage '{stage}' makes '{source}'"


def run():
    """Scripts that are run are there."""
    here = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"target"}
    for line in (i for i in dockerfile.instructions() if i.name == "RUN"):
        for word in line.words:
            if word.split("/")[0] in here and not os.access(ROOT / word, os.X_OK):
                yield f"{line}: there is no '{word}' in the tree that can be run"


def built_packages():
    members = {tomllib.loads((ROOT / member / "Cargo.toml").read_text())["package"]["name"]
               for member in CARGO["workspace"]["members"]}
    for line in (i for i in dockerfile.instructions() if i.name == "RUN"):
        for package in re.findall(r"--package (\S+)", line.value):
            if package not in members:
                yield f"{line}: there is no package '{package}' in the workspace"
        if re.search(r"\bcargo (chef cook|build|install)\b", line.value) and "--locked" not in line.value:
            yield f"{line}: cargo does not keep to the lock: '{line.value}'"


def mounted():
    for name, service in compose.SERVICES.items():
        for source in compose.bind_mounts(service).values():
            where = source.relative_to(ROOT)
            if not source.exists():
                yield f"{compose.PATH}: {name}: there is no '{where}' in the tree"
            elif source.is_dir() and not any(source.iterdir()):
                yield f"{compose.PATH}: {name}: '{where}' is empty"
    for name, service in compose.ours().items():
        build = service["build"]
        recipe = (compose.FOLDER / build["context"] / build["dockerfile"]).resolve()
        if recipe != ROOT / dockerfile.PATH:
            yield f"{compose.PATH}: {name}: builds '{recipe}', which is not {dockerfile.PATH}"


def secrets():
    """Those that compose.yaml wants are those that secrets.sh makes, where git does not see them."""
    with tempfile.TemporaryDirectory() as made:
        subprocess.run([ROOT / "deploy/compose/secrets.sh", made], check=True, timeout=TIMEOUT_S)
        names = set(os.listdir(made))
    wanted = {(compose.FOLDER / secret["file"]).resolve() for secret in compose.FILE["secrets"].values()}
    for path in wanted:
        if path.parent != ROOT / "deploy/compose/secrets" or path.name not in names:
            yield f"{compose.PATH}: deploy/compose/secrets.sh does not make '{path.relative_to(ROOT)}'"
        ignored = subprocess.run(["git", "check-ignore", "--quiet", path], cwd=ROOT, timeout=TIMEOUT_S, check=False)
        if ignored.returncode:
            yield f".gitignore: '{path.relative_to(ROOT)}' would get into a commit"
    for name in names - {path.name for path in wanted}:
        yield f"deploy/compose/secrets.sh: nobody wants '{name}'"


def context(folder):
    """What the build gets, by the engine's own reading of .dockerignore."""
    image = storage.Storage(folder)
    recipe = folder / "tmp" / "context.Dockerfile"
    recipe.write_text("FROM scratch\nCOPY . /\n", encoding="utf-8")
    image.buildah("build", "--file", recipe, "--tag", "context", ROOT)
    with image.mounted("context") as got:
        yield from only_what_git_knows(got)
        yield from what_is_included(got)
        yield from what_cargo_wants(got)


def only_what_git_knows(got):
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
                            capture_output=True, text=True, timeout=TIMEOUT_S).stdout.splitlines()
    known = set(listed)
    for path in (path for path in got.rglob("*") if not path.is_dir()):
        if str(path.relative_to(got)) not in known:
            yield f".dockerignore: '{path.relative_to(got)}' gets into the build, and git does not know it"


def what_is_included(got):
    for crate in ("shared", "ingest", "consumer"):
        for file in (ROOT / crate / "src").rglob("*.rs"):
            # The migrations' folder is seen from the crate, files are seen from the file.
            for included in INCLUDED.findall(file.read_text(encoding="utf-8")):
                places = [(base / included).resolve().relative_to(ROOT) for base in (file.parent, ROOT / crate)
                          if (base / included).exists()]
                if not places or not (got / places[0]).exists():
                    yield f".dockerignore: the build lacks '{included}', which {file.relative_to(ROOT)} includes"


def what_cargo_wants(got):
    ended = subprocess.run(
        ["cargo", "metadata", "--locked", "--offline", "--no-deps", "--format-version", "1"], cwd=got,
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )
    if ended.returncode:
        yield f".dockerignore: cargo can't read what the build gets: {' '.join(ended.stderr.split())}"
        return
    for package in json.loads(ended.stdout)["packages"]:
        for target in package["targets"]:
            if not os.path.exists(target["src_path"]):
                yield f".dockerignore: the build lacks '{os.path.relpath(target['src_path'], got)}'"
