"""The build context, as filtered by .dockerignore, has all needed files and no others."""

import json
import pathlib
import re
import tomllib

import pytest

from support import ROOT, output

INCLUDED = re.compile(r"""(?:include_(?:str|bytes)!|embed_migrations!)\(\s*"([^"]+)""")
MEMBERS = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["members"]
# Crates that the image contains.
CRATES = [name for name in MEMBERS if name.split("/")[0] not in ("bench", "tests")]


@pytest.fixture(scope="module")
def context(storage):
    recipe = storage.scratch / "context.Dockerfile"
    recipe.write_text("FROM scratch\nCOPY . /\n")
    storage.buildah("build", "--file", recipe, "--tag", "context", ROOT)
    with storage.mounted("context") as folder:
        yield folder


def test_build_context_has_no_ignored_file(context):
    listed = "git", "ls-files", "--cached", "--others", "--exclude-standard"
    known = set(output(*listed, cwd=ROOT).splitlines())
    files = {str(path.relative_to(context)) for path in context.rglob("*") if not path.is_dir()}
    assert files <= known


@pytest.mark.parametrize("crate", CRATES)
def test_build_context_has_every_included_file(context, crate):
    folder = ROOT / crate
    for source in (folder / "src").rglob("*.rs"):
        for included in INCLUDED.findall(source.read_text()):
            # Paths of files are relative to the source file, the path of migrations to the crate.
            bases = [base for base in (source.parent, folder) if (base / included).exists()]
            assert bases, f"{source} includes {included}"
            assert (context / (bases[0] / included).resolve().relative_to(ROOT)).exists()


def test_cargo_can_read_the_build_context(context):
    command = "cargo metadata --locked --offline --no-deps --format-version 1"
    packages = json.loads(output(*command.split(), cwd=context))["packages"]
    sources = [target["src_path"] for package in packages for target in package["targets"]]
    assert [path for path in sources if not pathlib.Path(path).exists()] == []
