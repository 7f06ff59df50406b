"""Where things are in the tree."""

import pathlib
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
CARGO = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))


class Failed(Exception):
    """What can't be checked further. Says what is wrong, and where."""
