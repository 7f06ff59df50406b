"""The files that `make chart-files` generates are up to date."""

import documents


def test_every_value_has_a_comment():
    assert documents.undocumented() == []


def test_generated_files_are_up_to_date():
    stale = [path for path, text in documents.generated().items() if path.read_text() != text]
    assert not stale, "run `make chart-files`"
