"""The scores' csv: its rows, their order, and what a killed evaluator leaves."""

import errno
import multiprocessing
import threading

import portalocker
import pytest
from support import PATIENCE, poll
from support_scores import BEFORE, EPISODES, line_of, policy_of, record_in_turn

from steve.storage import scores as scores_module
from steve.storage.scores import CSV_HEADER, ROW_BYTES, Position, ScoreFile

SPAWN = multiprocessing.get_context("spawn")
LONGEST = line_of(policy_of(10**9, 12_345.678901, 10**12), -1.2345678901234567e-308)


@pytest.fixture
def csv(tmp_path):
    return tmp_path / "experiment.greedy.csv"


def rows_of(*epochs):
    return b"".join(line_of(policy_of(epoch), 1.0) for epoch in epochs)


# Rows


def test_a_header_then_a_row_for_each_episode(csv):
    scores = ScoreFile(csv, 1)
    assert scores.record(policy_of(3, 0.5, 12_345), -1.5)
    assert scores.record(policy_of(4, 1.25, 20_000), 1000.125)
    assert csv.read_text() == (
        "hours,epochs,frames,score\n0.500000,3,12345,-1.5\n1.250000,4,20000,1000.125\n"
    )


def test_the_header_comes_once_over_all_launches(csv):
    for score in range(3):
        ScoreFile(csv, 1).record(policy_of(), float(score))
    assert csv.read_bytes().count(CSV_HEADER) == 1
    assert len(csv.read_bytes().splitlines()) == 4


def test_a_row_is_on_the_disk_before_its_policy_may_go(csv, monkeypatch):
    on_disk = []
    monkeypatch.setattr("os.fdatasync", lambda _: on_disk.append(csv.read_bytes()))
    ScoreFile(csv, 1).record(policy_of(), 1.0)
    assert on_disk == [csv.read_bytes()]
    assert on_disk[0].endswith(line_of(policy_of(), 1.0))


def test_an_empty_file_gets_its_header(csv):
    csv.touch()
    ScoreFile(csv, 1).record(policy_of(), 1.0)
    assert csv.read_bytes() == CSV_HEADER + line_of(policy_of(), 1.0)


def test_scores_keep_their_full_precision(csv):
    values = [0.1 + 0.2, -1e-300, 1 / 3, 123_456_789.123]
    for value in values:
        ScoreFile(csv, 1).record(policy_of(), value)
    lines = csv.read_text().splitlines()[1:]
    assert [float(line.split(",")[3]) for line in lines] == values


def test_the_longest_row_fits_the_search_for_positions():
    assert len(LONGEST) <= ROW_BYTES
    assert len(CSV_HEADER) < ROW_BYTES


# The position: which row comes next, the file itself says


def test_a_file_that_is_not_there_has_no_rows(csv):
    assert ScoreFile(csv, 2).position() == Position(0, 0)
    assert not csv.exists(), "asking makes no file"


@pytest.mark.parametrize("length", range(len(CSV_HEADER) + 1))
def test_a_file_without_rows_has_none(csv, length):
    csv.write_bytes(CSV_HEADER[:length])
    assert ScoreFile(csv, 2).position() == Position(0, 0)


@pytest.mark.parametrize(
    ("epochs", "position"),
    [
        ([1], (1, 1)),
        ([1, 1], (1, 2)),
        ([1, 1, 2], (2, 1)),
        ([1, 1, 3, 3, 3], (3, 3)),
        ([5, 6, 5], (5, 1)),  # version 1.0 kept no order
        ([9, 10, 10], (10, 2)),
        ([1, 11, 1, 11], (11, 1)),  # an epoch's number is compared whole
    ],
)
def test_the_position_is_the_last_epoch_and_how_many_rows_end_with_it(
    csv, epochs, position
):
    csv.write_bytes(CSV_HEADER + rows_of(*epochs))
    assert ScoreFile(csv, 3).position() == position


@pytest.mark.parametrize("length", range(len(line_of(policy_of(2), 2.0))))
def test_a_torn_line_is_no_row(csv, length):
    csv.write_bytes(BEFORE + line_of(policy_of(2), 2.0)[:length])
    assert ScoreFile(csv, 3).position() == Position(1, 1)


@pytest.mark.parametrize("per_policy", [1, 2, 7])
def test_all_rows_of_a_policy_count_however_long_they_and_the_file_are(csv, per_policy):
    rows = rows_of(*range(1, 1000)) + per_policy * LONGEST
    csv.write_bytes(CSV_HEADER + rows)
    assert ScoreFile(csv, per_policy).position() == Position(10**9, per_policy)
    csv.write_bytes(CSV_HEADER + rows + b"0.250000,10000000000")
    assert ScoreFile(csv, per_policy).position() == Position(10**9, per_policy)


def test_of_more_rows_than_a_policy_gets_enough_count(csv):
    csv.write_bytes(CSV_HEADER + 1000 * line_of(policy_of(4), 1.0))
    epoch, rows = ScoreFile(csv, 2).position()
    assert epoch == 4
    assert rows >= 2


def test_whether_a_row_comes_next_is_asked_with_the_position_under_the_lock(csv):
    csv.write_bytes(BEFORE + b"0.25,1,")
    asked = []

    flags = portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING

    def is_next(position):
        asked.append(position)
        with open(csv, "ab") as other, pytest.raises(portalocker.LockException):
            portalocker.lock(other, flags)
        return True

    assert ScoreFile(csv, 2).record(policy_of(), 2.0, is_next)
    assert ScoreFile(csv, 2).record(policy_of(2), 3.0, is_next)
    assert asked == [(1, 1), (1, 2)]
    rows = line_of(policy_of(), 2.0) + line_of(policy_of(2), 3.0)
    assert csv.read_bytes() == BEFORE + rows


def test_a_row_that_does_not_come_next_is_not_written(csv):
    csv.write_bytes(BEFORE)
    assert not ScoreFile(csv, 2).record(policy_of(), 2.0, lambda _: False)
    assert csv.read_bytes() == BEFORE


def test_the_first_row_comes_next_to_nothing(csv):
    asked = []
    scores = ScoreFile(csv, 2)
    assert scores.record(policy_of(), 2.0, lambda at: not asked.append(at))
    assert asked == [(0, 0)]


# A kill on the way: the file as it leaves it


@pytest.mark.parametrize("torn", [b"0", b"0.25", b"0.250000,1,1000,-12.34567"])
def test_another_evaluator_cuts_the_torn_line_before_it_appends(csv, torn):
    csv.write_bytes(BEFORE + torn)
    ScoreFile(csv, 2).record(policy_of(), 3.0)
    assert csv.read_bytes() == BEFORE + line_of(policy_of(), 3.0)


@pytest.mark.parametrize("length", range(1, len(CSV_HEADER)))
def test_a_torn_header_is_written_again(csv, length):
    csv.write_bytes(CSV_HEADER[:length])
    ScoreFile(csv, 2).record(policy_of(), 3.0)
    assert csv.read_bytes() == CSV_HEADER + line_of(policy_of(), 3.0)


def test_a_torn_line_behind_many_rows_is_cut_alone(csv):
    rows = rows_of(*range(1, 100))
    csv.write_bytes(CSV_HEADER + rows + b"0.25,1")
    ScoreFile(csv, 2).record(policy_of(), 3.0)
    assert csv.read_bytes() == CSV_HEADER + rows + line_of(policy_of(), 3.0)


def test_a_row_that_the_disk_has_no_room_for_is_an_error_and_may_be_tried_again(
    csv, monkeypatch
):
    scores = ScoreFile(csv, 2)
    scores.record(policy_of(), 1.0)
    opened = open

    class Full:
        """A file that takes ten bytes of what it is given."""

        def __init__(self, *arguments, **keys):
            self._file = opened(*arguments, **keys)

        def __getattr__(self, name):
            return getattr(self._file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def write(self, content):
            return self._file.write(content[:10])

    with monkeypatch.context() as patch:
        patch.setattr(scores_module, "open", Full, raising=False)
        for _ in range(3):
            with pytest.raises(OSError, match="No space left") as caught:
                scores.record(policy_of(), 2.0)
            assert caught.value.errno == errno.ENOSPC
            assert scores.position() == Position(1, 1)
    scores.record(policy_of(), 2.0, lambda at: at == (1, 1))
    assert csv.read_bytes() == BEFORE + line_of(policy_of(), 2.0)


# Several evaluators


def test_an_evaluator_waits_while_another_one_writes(csv):
    recording = threading.Thread(
        target=lambda: ScoreFile(csv, 1).record(policy_of(), 1.0)
    )
    with open(csv, "ab") as others:
        portalocker.lock(others, portalocker.LockFlags.EXCLUSIVE)
        recording.start()
        recording.join(0.2)
        assert recording.is_alive()
        assert csv.read_bytes() == b""
    recording.join(PATIENCE)
    assert csv.read_bytes() == CSV_HEADER + line_of(policy_of(), 1.0)


def recorder(csv, number, count, end):
    recording = SPAWN.Process(
        target=record_in_turn, args=(csv, number, count, end), daemon=True
    )
    recording.start()
    return recording


def sorted_rows(end):
    """The csv with all rows in their order, each once."""
    rows = (line_of(policy_of(1 + n // EPISODES), float(n)) for n in range(end))
    return CSV_HEADER + b"".join(rows)


def test_rows_of_two_processes_take_turns(csv):
    processes = [recorder(csv, number, 2, 300) for number in range(2)]
    for one in processes:
        one.join(PATIENCE)
        assert one.exitcode == 0
    assert csv.read_bytes() == sorted_rows(300)


def test_a_killed_evaluator_leaves_the_others_waiting_and_its_successor_continues(csv):
    def rows():
        return csv.read_bytes().count(b"\n") - 1 if csv.exists() else 0

    killed, other = (recorder(csv, number, 2, 10**9) for number in range(2))
    poll(lambda: rows() >= 75, "75 rows")
    killed.kill()
    killed.join()
    end = rows() + 100
    successor = recorder(csv, 0, 2, end)
    successor.join(PATIENCE)
    assert successor.exitcode == 0
    other.kill()
    other.join()
    assert rows() >= end - 1
    assert csv.read_bytes() == sorted_rows(rows())


@pytest.mark.parametrize("damage", [b"\n", b"0.1,2-1,1.5\n", b"\xff,3,0,1.0\n"])
def test_a_damaged_row_does_not_lose_the_position(csv, damage):
    csv.write_bytes(CSV_HEADER + rows_of(1, 1, 2) + damage)
    assert ScoreFile(csv, 2).position() == Position(2, 1)
