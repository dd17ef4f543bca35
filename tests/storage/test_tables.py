"""Rows of the csv files."""

import io

import pytest

from steve.storage import tables
from steve.storage.tables import append_row


def test_column_names_come_once_before_the_first_row(tmp_path):
    path = tmp_path / "learner.log"
    append_row(path, {"hours": "0.5", "updates": 10})
    append_row(path, {"hours": "0.75", "updates": 20})
    assert path.read_text() == "hours,updates\n0.5,10\n0.75,20\n"


def test_an_empty_file_gets_column_names(tmp_path):
    path = tmp_path / "learner.log"
    path.touch()
    append_row(path, {"updates": 1})
    assert path.read_text() == "updates\n1\n"


def test_a_later_launch_appends_to_the_same_columns(tmp_path):
    path = tmp_path / "learner.log"
    path.write_text("hours,updates\n0.5,10\n")
    append_row(path, {"hours": 1, "updates": 20})
    assert path.read_text() == "hours,updates\n0.5,10\n1,20\n"


@pytest.mark.parametrize("torn", ["hou", "hours,updates\n0.5,1", "hours,updates\n0."])
def test_a_torn_line_at_the_end_is_cut_before_the_next_one(tmp_path, torn):
    path = tmp_path / "learner.log"
    path.write_text(torn)
    append_row(path, {"hours": "0.5", "updates": 10})
    assert path.read_text() == "hours,updates\n0.5,10\n"


def test_a_row_that_finds_no_room_names_its_file_and_may_be_written_later(
    tmp_path, monkeypatch
):
    path = tmp_path / "learner.log"
    append_row(path, {"updates": 1})
    with monkeypatch.context() as full:
        full.setattr(tables, "open", half_full, raising=False)
        with pytest.raises(OSError, match="No space left") as caught:
            append_row(path, {"updates": 23})
    assert caught.value.filename == str(path)
    append_row(path, {"updates": 23})
    assert path.read_text() == "updates\n1\n23\n"


def half_full(*arguments, **keys):
    """Opens a file that takes half of each write."""

    class HalfFull(io.FileIO):
        def write(self, content):
            return super().write(content[: len(content) // 2])

    return HalfFull(arguments[0], "a+")
