"""Fixtures: the trigger of the ScaledObject that the chart renders."""

import json

import pytest
import yaml

from sources import FILES
from support import TOOLS, output

NAMESPACE = "storms"
VALUES = {
    "redis.existingSecret": "redis",
    "database.existingSecret": "database",
    "consumer.keda.enabled": True,
    "consumer.keda.serverAddress": "http://prometheus.monitoring:9090",
}


@pytest.fixture(scope="session")
def keda_trigger():
    def metadata(**likes):
        values = {**VALUES, **{f"likes.{name}": value for name, value in likes.items()}}
        command = [TOOLS / "helm", "template", "x", FILES.parent, "--namespace", NAMESPACE]
        for name, value in values.items():
            command += ["--set-json", f"{name}={json.dumps(value)}"]
        objects = yaml.safe_load_all(output(*command))
        [scaled] = [found for found in objects if found and found["kind"] == "ScaledObject"]
        # With several triggers KEDA would use the largest value, not the sum.
        [trigger] = scaled["spec"]["triggers"]
        return trigger["metadata"]

    return metadata


@pytest.fixture(scope="session")
def httpserver_listen_address():
    return "127.0.0.1", 0
