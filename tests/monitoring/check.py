"""Checks alerts, dashboards, the runbook and what KEDA asks. Arguments: the folder of the programs, and what to check (all, when there
is none)."""

import sys

import dashboards
import keda
import live
import names
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


def main():
    programs, wanted = sys.argv[1], sys.argv[2:] or list(CHECKS)
    failed = 0
    for name in wanted:
        problems = list(CHECKS[name](programs))
        for problem in problems:
            print(f"error: {name}: {problem}", file=sys.stderr)
        failed += bool(problems)
        print(f"{name}: {len(problems) or 'no'} problems", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
