"""The files that `make chart-files` writes are as the chart is."""

import documents


def test_every_value_has_a_comment():
    assert documents.undocumented() == []


def test_files_made_of_the_chart_are_up_to_date():
    stale = [path for path, text in documents.made().items() if path.read_text() != text]
    assert not stale, "run `make chart-files`"
