"""Helm refuses values that make no sense, and says why."""

import pytest
import yaml

from rendering import HERE, load, template

SECRETS = {"redis": {"existingSecret": "redis"}, "database": {"existingSecret": "database"}}
(REFUSED,) = load((HERE / "refused.yaml").read_text())


@pytest.fixture
def render(tmp_path):
    def render_with(values):
        files = []
        for layer in (SECRETS, values):
            files += ["--values", tmp_path / f"{len(files)}.yaml"]
            files[-1].write_text(yaml.safe_dump(layer))
        return template(*files)

    return render_with


def test_accepts_the_values_that_the_refused_ones_change(render):
    assert render({})


@pytest.mark.parametrize("what", REFUSED)
def test_refuses(what, render):
    with pytest.raises(AssertionError, match="ended with") as refused:
        render(REFUSED[what]["values"])
    said = " ".join(str(refused.value).partition("ended with")[2].split())
    assert [words for words in REFUSED[what]["says"] if words not in said] == []
