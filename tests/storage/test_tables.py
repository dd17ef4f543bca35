"""Rows of the csv files."""

import io
import os

import pytest

from steve.storage import tables
from steve.storage.tables import append_row, copy_rows, last_rows, trim_log


def test_column_names_come_once_before_the_first_row(tmp_path):
    path = tmp_path / "learner.log"
    append_row(path, {"hours": "0.5", "updates": 10})
    append_row(path, {"hours": "0.75", "updates": 20})
    assert path.read_text() == "hours,updates\n0.5,10\n0.75,20\n"


def test_a_file_beyond_all_bounds_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "learner.log"
    append_row(path, {"updates": 1})
    monkeypatch.setattr(tables, "MAX_TABLE_BYTES", path.stat().st_size)
    assert tables.read_table(path).rows == [{"updates": 1}]
    append_row(path, {"updates": 2})
    with pytest.raises(OSError, match="File too large"):
        tables.read_table(path)


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


LOG = b"hours,updates,q_loss\n0.1,10,1.5\n0.2,20,2.5\n0.3,30,3.5\n0.4,40,4.5\n"
DAMAGE = {
    "a letter in the counter": (b"0.2,20,", b"0.2,2x,"),
    "a letter in a metric": (b",2.5\n", b",2.y\n"),
    "a lost comma": (b"0.2,20", b"0.2-20"),
    "one comma more": (b"0.2,20", b"0.2,,20"),
    "a quote": (b"0.2,20", b'0.2,"20'),
    "no UTF-8": (b"0.2,", b"\xff.2,"),
    "a NUL": (b"0.2,20", b"0.2,2\0"),
    "no number": (b",2.5", b",inf"),
    "an empty line": (b"0.2,20,2.5\n", b"\n"),
    "a carriage return": (b"0.2,20,2.5\n", b"\r0.2\n"),
}


@pytest.fixture(params=DAMAGE.values(), ids=DAMAGE.keys())
def damaged(request, tmp_path):
    """A log whose second line is damaged."""
    path = tmp_path / "valuerl.log"
    path.write_bytes(LOG.replace(*request.param))
    assert path.read_bytes() != LOG
    return path


def test_a_damaged_line_stays_where_later_lines_are_cut(damaged):
    before = damaged.read_bytes()
    trim_log(damaged, {"updates": 30})
    assert damaged.read_bytes() == before[: before.index(b"0.4,40")]


def test_a_damaged_line_behind_those_that_stay_is_cut(damaged):
    trim_log(damaged, {"updates": 10})
    assert damaged.read_bytes() == LOG[: LOG.index(b"0.2,20")]


def test_a_damaged_line_is_not_copied(damaged, tmp_path):
    copy_rows(damaged, tmp_path / "copy", "updates", 30)
    kept = LOG[: LOG.index(b"0.4,40")].replace(b"0.2,20,2.5\n", b"")
    assert (tmp_path / "copy").read_bytes() == kept


def test_a_damaged_line_is_passed_over_at_the_end_of_a_csv(damaged):
    assert [row["updates"] for row in last_rows(damaged)] == [10, 30, 40]


@pytest.mark.parametrize("header", [b"hours,updatez,q_loss", b"", b"\xff"])
def test_a_csv_without_its_columns_is_left_alone(tmp_path, header):
    path = tmp_path / "valuerl.log"
    content = header + LOG[LOG.index(b"\n") :]
    path.write_bytes(content)
    trim_log(path, {"updates": 20})
    copy_rows(path, tmp_path / "copy", "updates", 20)
    assert path.read_bytes() == content
    assert not (tmp_path / "copy").exists()
    assert last_rows(path, ("updates",)) == []


@pytest.mark.parametrize("zeros", [1, 5000, 20000])
def test_zeros_that_a_power_failure_left_are_cut_before_the_next_row(tmp_path, zeros):
    path = tmp_path / "valuerl.log"
    path.write_bytes(LOG + bytes(zeros))
    append_row(path, {"hours": 0.5, "updates": 50, "q_loss": 5.5})
    assert path.read_bytes() == LOG + b"0.5,50,5.5\n"


def test_a_pipe_in_place_of_a_csv_is_an_error_and_not_waited_for(tmp_path):
    path = tmp_path / "valuerl.log"
    os.mkfifo(path)
    assert last_rows(path) == []
    for call in (
        lambda: append_row(path, {"updates": 1}),
        lambda: trim_log(path, {"updates": 1}),
        lambda: tables.Follower(path)(),
    ):
        with pytest.raises(OSError, match="is not a regular file") as caught:
            call()
        assert caught.value.filename == str(path)
