"""
The chart, rendered by a real helm from all that is in values/, against the schemas of Kubernetes, the real programs, and what must hold.
Arguments: the folder that install.sh has filled, and the one of the release binaries.
"""

import pathlib
import re
import sys
import tempfile

import documents
import pods
import refusals
import relations
import rendering
import schemas
from programs import FILES_OF_A_SIGNAL, Programs, make_files
from rendering import CHART, VALUES

# It has nothing to be told, and doesn't end.
IDLE = ["likesctl", "idle"]
LONG = "a-release-whose-name-is-as-long-as-helm-lets-it-be-ab"


def renderings(folder):
    """(name, objects by version of Kubernetes) of the whole matrix."""
    matrix = {path.stem: (CHART, ["--values", path], "storm-of-likes") for path in sorted(VALUES.glob("*.yaml"))}
    for name in ("static", "everything"):
        matrix[f"{name}, a long name"] = (CHART, ["--values", VALUES / f"{name}.yaml", "--set", "fullnameOverride="], LONG)
    matrix["as a subchart"] = (rendering.make_umbrella(folder), [], "storm-of-likes")
    for name, (chart, arguments, release) in matrix.items():
        try:
            yield name, {
                version: rendering.rendered(chart, *arguments, "--kube-version", version, release=release)
                for version in schemas.versions()
            }
        except rendering.Refused as refused:
            sys.exit(f"{name}: helm does not render it: {refused}")


def settings_are_all_reachable(seen, programs):
    """Each setting of a service is made of some value or is among those that `settings` takes, but for secrets, which come from Secrets."""
    for program in pods.SERVICES:
        allowed = set(rendering.values_schema()["properties"][program]["properties"]["settings"]["properties"])
        secrets = programs.secrets(program)
        missing = programs.settings(program) - allowed - seen[program] - secrets
        for name in sorted(name for name in missing if not FILES_OF_A_SIGNAL.fullmatch(name)):
            yield f"{program} has a setting {name}, for which there is no value: make one, or allow it in {program}.settings (values.schema.json)"
        for name in sorted(allowed & secrets):
            yield f"values.schema.json: {program}.settings allows {name}, which is a secret"
        for name in sorted(allowed - programs.settings(program)):
            yield f"values.schema.json: {program}.settings allows {name}, which {program} doesn't have, by its --help"


def settings_by_values(matrix):
    """The names of settings that values lead to, beside those of `settings`."""
    seen = {program: set() for program in pods.SERVICES}
    for objects in matrix.values():
        for _, pod in pods.pods(objects):
            container = pods.container_of(pod)
            if container["command"][0] in seen:
                seen[container["command"][0]] |= {entry["name"] for entry in container["env"]}
    return seen


def settings_are_taken(matrix, programs, folder):
    """The real programs take what pods give them: names and values."""
    tried = set()
    for name, objects in matrix.items():
        for found, pod in pods.pods(objects):
            container = pods.container_of(pod)
            command, settings = container["command"], pods.plain_settings(container)
            key = (*command, frozenset(settings.items()))
            if command != IDLE and key not in tried:
                tried.add(key)
                if said := programs.refusal(command, settings, folder):
                    yield f"{name}: {pods.name_of(found)}: the real {command[0]} does not take its settings: {said}"


def admin_answers(matrix, programs):
    """What the real programs answer on each path that is asked for on their admin ports."""
    paths = {program: {"/metrics"} for program in pods.SERVICES}
    for objects in matrix.values():
        for _, program, path, _ in pods.probes(objects):
            paths[program].add(path)
        for monitor in relations.of_kind(objects, "ServiceMonitor", "PodMonitor"):
            for endpoint in monitor["spec"].get("endpoints", monitor["spec"].get("podMetricsEndpoints")):
                for program in paths:
                    paths[program].add(endpoint["path"])
    return {program: programs.admin_answers(program, sorted(paths[program])) for program in paths}


def what_is_off_is_not_there(matrix):
    for found in matrix["as a subchart"]:
        if "absent" in found["metadata"]["name"]:
            yield f"as a subchart: {pods.name_of(found)}: it is there though its condition is false"


def plain_manifests_are_valid():
    for path in sorted(documents.MANIFESTS.glob("*.yaml")):
        for found in rendering.objects(path.read_text(encoding="utf-8")):
            if "helm" in str(found).lower():
                yield f"{path.name}: {pods.name_of(found)}: there is something for Helm in it"
            for version in schemas.versions():
                yield from schemas.problems(f"{path.name}, Kubernetes {version}: {pods.name_of(found)}", found, version)


def old_versions_are_refused():
    oldest = int(schemas.versions()[0].split(".")[1])
    try:
        rendering.template(CHART, "--values", VALUES / "default.yaml", "--kube-version", f"1.{oldest - 1}.0")
    except rendering.Refused as refused:
        if "incompatible with Kubernetes" not in str(refused):
            yield f"Kubernetes that is too old: {refused}"
    else:
        yield "Kubernetes that is too old: it is not refused"


def templates_look_nothing_up():
    """What `lookup` finds is not what GitOps tools render with."""
    for path in sorted((CHART / "templates").rglob("*.*")):
        if "lookup" in path.read_text(encoding="utf-8"):
            yield f"{path.relative_to(CHART)}: it uses lookup"


def notes_name_what_is_there(folder, matrix):
    """The commands of NOTES.txt are about objects that are rendered."""
    chart = rendering.make_chart_of_notes(folder)
    for values in sorted(VALUES.glob("*.yaml")):
        (notes,) = rendering.rendered(chart, "--values", values, "--show-only", "templates/notes.yaml")
        there = {f"{found['kind'].lower()}/{found['metadata']['name']}" for found in matrix[values.stem]}
        named = set(re.findall(r"\b(?:deployment|statefulset|service)/[-a-z0-9]+", notes["text"]))
        if not named or not named <= there:
            yield f"{values.stem}: NOTES.txt: {sorted(named - there)} is not there"


def names_of_long_releases_differ():
    args = ["--values", VALUES / "default.yaml"]
    one, other = ({pods.name_of(found) for found in rendering.rendered(CHART, *args, release=LONG[:-1] + end)} for end in "ab")
    for name in sorted(one & other):
        yield f"{name}: two releases with long names have it both"


def fallbacks_are_what_is_said():
    """While nobody knows the backlog there are as many consumers as there may be, or as many as somebody wants."""
    for arguments, wanted in ((), 64), (("--set", "consumer.keda.fallbackReplicas=5"), 5):
        (scaled,) = rendering.rendered(CHART, "--values", VALUES / "keda.yaml", "--show-only", "templates/autoscaling.yaml", *arguments)
        if scaled["spec"]["fallback"]["replicas"] != wanted:
            yield f"keda, {' '.join(arguments) or 'no more'}: the fallback is {scaled['spec']['fallback']['replicas']} consumers, not {wanted}"


def once(found, matrix):
    """The same of many objects and sets of values is told once. Those problems are `values: object: what is wrong`."""
    firsts, more = {}, {}
    for problem in found:
        is_of_many = problem.split(": ")[0].split(", Kubernetes")[0] in matrix
        what = problem.split(": ", 2)[-1] if is_of_many else problem
        more[what] = more.get(what, -1) + 1
        firsts.setdefault(what, problem)
    return [f"{problem}{f' (and {more[what]} more)' if more[what] else ''}" for what, problem in firsts.items()]


def main():
    folder, binaries = (pathlib.Path(argument).resolve() for argument in sys.argv[1:])
    programs = Programs(binaries)
    found, counted = [], 0

    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        for values in sorted(VALUES.glob("*.yaml")):
            try:
                rendering.lint(values)
            except rendering.Refused as refused:
                sys.exit(f"{values.stem}: helm lint: {refused}")
        by_version = dict(renderings(scratch))
        matrix = {name: next(reversed(versions.values())) for name, versions in by_version.items()}

        custom = {}
        for name, versions in by_version.items():
            for version, objects in versions.items():
                for each in objects:
                    counted += 1
                    where = f"{name}, Kubernetes {version}: {pods.name_of(each)}"
                    if schemas.is_custom(each):
                        custom[repr(each)] = (where, each)
                    else:
                        found += schemas.problems(where, each, version)
        found += schemas.problems_of_custom(list(custom.values()), folder)

        answers = admin_answers(matrix, programs)
        for name, objects in matrix.items():
            found += [f"{name}: {problem}" for problem in pods.of_each_pod(objects, programs, answers)]
            found += [f"{name}: {problem}" for problem in relations.between_objects(objects, answers)]
        found += notes_name_what_is_there(scratch, matrix)
        found += settings_are_all_reachable(settings_by_values(matrix), programs)
        make_files(scratch / "files")
        found += settings_are_taken(matrix, programs, scratch / "files")

    found += what_is_off_is_not_there(matrix)
    found += plain_manifests_are_valid()
    found += old_versions_are_refused()
    found += fallbacks_are_what_is_said()
    found += templates_look_nothing_up()
    found += names_of_long_releases_differ()
    found += refusals.problems(rendering.refusal)
    found += documents.problems()

    for problem in once(found, matrix):
        print(problem)
    if found:
        sys.exit(f"{len(found)} problems")
    print(f"{len(matrix)} sets of values, {len(schemas.versions())} versions of Kubernetes ({', '.join(schemas.versions())}): {counted} objects, "
          f"{len(custom)} custom resources, {len(refusals.REFUSED)} refusals")


if __name__ == "__main__":
    main()
