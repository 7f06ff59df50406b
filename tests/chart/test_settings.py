"""The chart and the programs have the same settings, and programs accept the rendered values."""

import functools
import re

import pytest

from conftest import SERVICES, START_S, UNREACHABLE, admin
from rendering import NAMES, pods, rendered, values_schema
from support import (
    accepts_connections,
    free_port,
    new_certificate,
    output,
    run,
    running,
    wait_until,
)
from test_pods import FILES

# The chart mounts only the files that all signals share.
FILE_OF_ONE_SIGNAL = re.compile(
    r"OTEL_EXPORTER_OTLP_(TRACES|METRICS)_(CERTIFICATE|CLIENT_CERTIFICATE|CLIENT_KEY)"
)


@pytest.mark.parametrize("program", SERVICES)
def test_every_setting_can_be_set_by_a_value(program, programs, settings_of):
    """Each setting is set by a value, allowed in `settings`, or a secret."""
    service = values_schema()["properties"][program]["properties"]["settings"]
    allowed, secrets = set(service["properties"]), programs.secrets(program)
    all_pods = [pod for name in NAMES for pod in pods(rendered(name)) if pod.program == program]
    by_values = {entry["name"] for pod in all_pods for entry in pod.env}
    known = settings_of(program)
    missing = known - allowed - by_values - secrets
    assert not [name for name in missing if not FILE_OF_ONE_SIGNAL.fullmatch(name)]
    assert not allowed & secrets
    assert allowed <= known


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A folder with each file that a pod can mount."""
    folder = tmp_path_factory.mktemp("files")
    key, certificate, public = folder / "key", folder / "certificate", folder / "public"
    new_certificate("localhost", key, certificate)
    output("openssl", "pkey", "-in", key, "-pubout", "-out", public)
    texts = {
        "redis/url": f"redis://{UNREACHABLE}",
        "redis/url-with-tls": f"rediss://{UNREACHABLE}",
        "database/url": f"postgres://likes@{UNREACHABLE}/likes",
        "api-keys/api-keys": f"shop {'0' * 64}\n",
        "jwt-key/jwt-key": public.read_text(),
    }
    for name in ("tls", "redis-tls", "otel-tls", "database-tls", "jwks-ca"):
        texts[f"{name}/ca.crt"] = texts[f"{name}/tls.crt"] = certificate.read_text()
        texts[f"{name}/tls.key"] = key.read_text()
    for path, text in texts.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    return folder


@pytest.fixture(scope="session")
def ended(programs, files, tmp_path_factory):
    """
    Runs a program with settings, without servers, until it exits. A service waits for its servers:
    it is terminated once it listens. Caches exit code and output by settings.
    """

    logs = tmp_path_factory.mktemp("ended")

    def adapted(program, settings, port):
        environment = {
            name: re.sub(r"\$\([^)]*\)", "a-pod", value.replace(FILES, f"{files}/"))
            for name, value in settings
        }
        environment |= admin(program, port)
        if program not in SERVICES:
            environment["STARTUP_TIMEOUT"] = "50ms"
        if "REDIS_TLS_CA" in environment:
            environment["REDIS_URL_FILE"] = f"{files}/redis/url-with-tls"
        if "INGEST_JWT_JWKS" in environment:
            environment["INGEST_JWT_JWKS"] = f"https://{UNREACHABLE}/jwks.json"
        if endpoint := environment.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
            scheme = endpoint.partition("://")[0]
            environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"{scheme}://{UNREACHABLE}"
        # `ordinal` needs a host name that ends in a number.
        partitions = environment.get("CONSUMER_PARTITIONS", "")
        if partitions.startswith("ordinal/"):
            environment["CONSUMER_PARTITIONS"] = partitions.replace("ordinal", "0")
        return environment

    @functools.cache
    def run_once(command, settings):
        program, *arguments = command
        port = free_port()
        environment = adapted(program, settings, port)
        words = programs.folder / program, *arguments
        if program not in SERVICES:
            found = run(*words, env=environment, timeout=START_S)
            return found.returncode, found.stdout + found.stderr
        log = logs / program
        with running(*words, env=environment, log=log) as process:
            wait_until(
                f"{program} listens or exits",
                lambda: accepts_connections(port) or process.poll() is not None,
                START_S,
            )
            process.terminate()
            return process.wait(START_S), log.read_text()

    return run_once


def test_program_accepts_its_settings(ending_pod, ended):
    """
    Invalid settings exit with 2. With valid ones, a service waits for its servers and ends on
    SIGTERM. The key server is not waited for, and neither are the servers of other programs.
    """
    code, text = ended(tuple(ending_pod.command), frozenset(ending_pod.settings.items()))
    assert code in (0, 1), text
