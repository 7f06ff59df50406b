"""Checks alerts, dashboards, the runbook and what KEDA asks. Arguments: the folder of the programs, and what to check (all, when there
is none)."""

import subprocess
import sys

import dashboards
import keda
import live
import names
import prometheus_server
import rules
import runbook

CHECKS = {
    "rules": lambda _: rules.problems(),
    "runbook": lambda _: runbook.problems(),
    "dashboards": lambda _: dashboards.problems(),
    "names": lambda _: names.problems(keda.queries()),
    "keda": lambda _: keda.problems(),
    "live": live.problems,
}


def problems_of(check, programs):
    """What it finds, up to where it can't go on."""
    try:
        yield from check(programs)
    except (OSError, RuntimeError, subprocess.SubprocessError, prometheus_server.QueryFailed) as error:
        yield str(error)


def main():
    programs, wanted = sys.argv[1], sys.argv[2:] or list(CHECKS)
    failed = 0
    for name in wanted:
        problems = list(problems_of(CHECKS[name], programs))
        for problem in problems:
            print(f"error: {name}: {problem}", file=sys.stderr)
        failed += bool(problems)
        print(f"{name}: {len(problems) or 'no'} problems", flush=True)
    print(f"{len(wanted) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
