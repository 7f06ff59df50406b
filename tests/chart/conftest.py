"""Parametrizes tests: an argument named in EACH runs the test for each object of that kind."""

import re

import pytest
import requests

from rendering import IDLE, NAMES, WORKLOADS, Pod, name_of, of_kind, pods, rendered
from support import accepts_connections, free_port, running, wait_until

# No server listens here.
UNREACHABLE = "127.0.0.1:1"
START_S = 20
SERVICES = ("ingest", "consumer")


def kind(*kinds):
    return lambda objects: of_kind(objects, *kinds)


def pods_of(*programs):
    return lambda objects: [pod for pod in pods(objects) if pod.program in programs]


# Test arguments, with a function that selects their values from a list of objects.
EACH = {
    "alert_rules": kind("PrometheusRule"),
    "budget": kind("PodDisruptionBudget"),
    "config_map": kind("ConfigMap"),
    "consumer_pod": pods_of("consumer"),
    "each": lambda objects: objects,
    "monitor": kind("ServiceMonitor", "PodMonitor"),
    "pod": pods,
    "policy": kind("NetworkPolicy"),
    "route": kind("Ingress", "HTTPRoute"),
    "scaled_object": kind("ScaledObject"),
    "scaler": kind("HorizontalPodAutoscaler", "ScaledObject"),
    "service": kind("Service"),
    "service_pod": pods_of(*SERVICES),
    "stateful_set": kind("StatefulSet"),
    "ending_pod": lambda objects: [pod for pod in pods(objects) if pod.command != IDLE],
    "toolbox": lambda objects: [pod for pod in pods(objects) if pod.command == IDLE],
    "workload": kind(*WORKLOADS),
}


def pytest_generate_tests(metafunc):
    """Sets `objects` to all objects that one set of values renders."""
    names = metafunc.fixturenames
    for argument in EACH.keys() & set(names):
        cases = []
        for values in NAMES:
            objects = rendered(values)
            for found in EACH[argument](objects):
                name = f"{values}-{name_of(found.owner if isinstance(found, Pod) else found)}"
                both = [found, objects] if "objects" in names else [found]
                cases.append(pytest.param(*both, id=name))
        metafunc.parametrize([argument, "objects"] if "objects" in names else [argument], cases)
        return
    if "objects" in names:
        metafunc.parametrize("objects", [rendered(values) for values in NAMES], ids=NAMES)


def admin(program, port):
    """Returns the settings with which a program listens on free ports."""
    if program == "ingest":
        return {"INGEST_LISTEN": "127.0.0.1:0", "INGEST_ADMIN_LISTEN": f"127.0.0.1:{port}"}
    return {"CONSUMER_ADMIN_LISTEN": f"127.0.0.1:{port}"} if program == "consumer" else {}


@pytest.fixture(scope="session")
def admin_status(programs, tmp_path_factory):
    """Returns the status code of a path on an admin port while Redis is down."""
    known, logs = {}, tmp_path_factory.mktemp("programs")

    def ask(program, path):
        if (program, path) not in known:
            port = free_port()
            environment = {**admin(program, port), "REDIS_URL": f"redis://{UNREACHABLE}"}
            command, log = programs.folder / program, logs / program
            with running(command, env=environment, log=log) as process:
                wait_until(
                    f"{program} listens", lambda: accepts_connections(port), START_S, process
                )
                answer = requests.get(f"http://127.0.0.1:{port}{path}", timeout=START_S)
                known[program, path] = answer.status_code
        return known[program, path]

    return ask


@pytest.fixture(scope="session")
def settings_of(programs):
    """Returns the settings of a program, for likesctl those of all commands."""

    def known(program):
        if program != "likesctl":
            return set(programs.settings(program))
        usage = programs.help(program).split("Options:")[0]
        commands = set(re.findall(r"^  ([a-z]+)  ", usage, re.MULTILINE)) - {"help"}
        return {name for command in commands for name in programs.settings(program, command)}

    return known
