"""The chart refuses invalid values with an error that names the value and the fix."""

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


def test_accepts_the_values_that_refused_cases_start_from(render):
    assert render({})


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_invalid_values(case, render):
    with pytest.raises(AssertionError, match="exited with") as refused:
        render(REFUSED[case]["values"])
    message = " ".join(str(refused.value).partition("exited with")[2].split())
    assert [text for text in REFUSED[case]["says"] if text not in message] == []
