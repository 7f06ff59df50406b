"""Checks the image and compose.yaml, a concern after the other. Arguments: a folder to work in, that of the programs, and the
concerns to look at (all of them when there is none)."""

import importlib
import os
import pathlib
import sys
import traceback

import programs
import storage
import tree

# The last two need what is before them.
CONCERNS = ("sources", "settings", "bounds", "schema", "watchers", "build", "runs")


def problems(concern, folder, all_programs):
    try:
        yield from importlib.import_module(concern).problems(folder, all_programs)
    except tree.Failed as failed:
        yield str(failed)
    except Exception as error:  # A file lacks what a check takes for granted: the others are still worth a look.
        place = traceback.extract_tb(error.__traceback__)[-1]
        yield f"{concern} ends at '{place.line}': {type(error).__name__}: {error}"


def main():
    folder, built, *wanted = sys.argv[1:]
    folder = pathlib.Path(folder).resolve()
    if os.geteuid() != 0:
        # Root of a user namespace may do all that is done here.
        os.execvp("buildah", ["buildah", "unshare", sys.executable, *sys.argv])
    all_programs = programs.Programs(pathlib.Path(built).resolve())
    bad = 0
    storage.Storage(folder).remove()
    try:
        for concern in wanted or CONCERNS:
            found = sorted(problems(concern, folder, all_programs))
            for problem in found:
                print(f"error: {problem}", file=sys.stderr, flush=True)
            print(f"{concern}: {len(found)} problems" if found else f"{concern}: passed", flush=True)
            bad += len(found)
    finally:
        storage.Storage(folder).remove()
    sys.exit(min(bad, 1))


if __name__ == "__main__":
    main()
