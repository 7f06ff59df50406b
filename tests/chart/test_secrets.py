"""Each program gets the Secret and the key of its own values, and of the common ones by default."""

import itertools

import pytest
import yaml

from rendering import pods, template

# Values of the components, by the command of the pods that use them.
COMPONENTS = {
    "ingest": "ingest",
    "consumer": "consumer",
    "likesctl idle": "toolbox",
    "likesctl doctor": "toolbox",
    "likesctl migrate": "migration",
}
COMMON = {
    "redis": {"existingSecret": "all", "key": "redis-of-all"},
    "database": {"existingSecret": "all", "key": "database-of-all"},
}
PAIRS = [
    ("ingest", "redis"),
    ("consumer", "redis"),
    ("consumer", "database"),
    ("toolbox", "redis"),
    ("toolbox", "database"),
    ("migration", "database"),
]
OWN = {"existingSecret": "own", "key": "own-key"}
# All combinations of values that a component sets itself.
SET = [names for count in range(3) for names in itertools.combinations(OWN, count)]


def mounted(objects):
    """Returns the Secret and the key of the URL, by component, server and pod."""
    found = {}
    for pod in pods(objects):
        command = " ".join(pod.command)
        for volume in pod.spec["volumes"]:
            if volume["name"] in COMMON:
                (item,) = volume["secret"]["items"]
                secret = {"existingSecret": volume["secret"]["secretName"], "key": item["key"]}
                found[COMPONENTS[command], volume["name"], command] = secret
    return found


@pytest.fixture
def render(tmp_path):
    def render_with(values):
        file = tmp_path / "values.yaml"
        file.write_text(yaml.safe_dump(values))
        return mounted(template("--values", file))

    return render_with


@pytest.mark.parametrize("names", SET, ids="-".join)
@pytest.mark.parametrize(("component", "server"), PAIRS)
def test_secret_and_key_default_independently(component, server, names, render):
    own = {name: OWN[name] for name in names}
    found = render({**COMMON, component: {server: own}})
    assert {(component, server) for component, server, _ in found} == set(PAIRS)
    for (user, of, command), secret in found.items():
        expected = COMMON[of] | own if (user, of) == (component, server) else COMMON[of]
        assert secret == expected, command


def test_programs_use_their_own_keys_of_one_secret(render):
    values = {name: dict(common) for name, common in COMMON.items()}
    for component, server in PAIRS:
        values.setdefault(component, {})[server] = {"key": f"{server}-of-{component}"}
    for (component, server, command), secret in render(values).items():
        expected = {"existingSecret": "all", "key": f"{server}-of-{component}"}
        assert secret == expected, command


def test_keys_have_the_documented_defaults(render):
    secrets = {server: {"existingSecret": "all"} for server in COMMON}
    for (_, server, command), secret in render(secrets).items():
        assert secret == {"existingSecret": "all", "key": f"{server}-url"}, command
