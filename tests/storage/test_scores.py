"""The scores' csv: its rows, and what evaluators leave that are killed over it."""

import multiprocessing
import threading
import time

import portalocker
import pytest
from support import PATIENCE, make_config
from support_scores import BEFORE, killed_over, line_of, policy_of, record_many

from steve.storage import scores as scores_module
from steve.storage.board import Board
from steve.storage.scores import CSV_HEADER, ScoreFile
from steve.storage.tables import MAX_LINE

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def row(tmp_path):
    return Board.create(tmp_path / "status.bin", make_config(tmp_path))["evaluator0"]


@pytest.fixture
def csv(tmp_path):
    return tmp_path / "experiment.greedy.csv"


def test_a_header_then_a_row_for_each_episode(csv, row):
    scores = ScoreFile(csv, row)
    scores.record(policy_of(3, 0.5, 12_345), -1.5, False)
    scores.record(policy_of(4, 1.25, 20_000), 1000.125, False)
    assert csv.read_text() == (
        "hours,epochs,frames,score\n0.500000,3,12345,-1.5\n1.250000,4,20000,1000.125\n"
    )


def test_the_header_comes_once_over_all_launches(csv, row):
    for score in range(3):
        ScoreFile(csv, row).record(policy_of(), float(score), False)
    assert csv.read_bytes().count(CSV_HEADER) == 1
    assert len(csv.read_bytes().splitlines()) == 4


def test_an_empty_file_gets_its_header(csv, row):
    csv.touch()
    ScoreFile(csv, row).record(policy_of(), 1.0, False)
    assert csv.read_bytes() == CSV_HEADER + line_of(policy_of(), 1.0)


def test_scores_keep_their_full_precision(csv, row):
    values = [0.1 + 0.2, -1e-300, 1 / 3, 123_456_789.123]
    for value in values:
        ScoreFile(csv, row).record(policy_of(), value, False)
    lines = csv.read_text().splitlines()[1:]
    assert [float(line.split(",")[3]) for line in lines] == values


def test_episodes_are_counted_by_policy_and_apart_from_final_ones(csv, row):
    scores = ScoreFile(csv, row)
    counts = []
    for epoch, final in ((1, False), (1, False), (1, True), (2, False), (2, True)):
        scores.record(policy_of(epoch), 0.0, final)
        counted = ("epoch", "episodes", "final_episodes", "offset")
        counts.append(tuple(int(row[field]) for field in counted))
    assert counts == [
        (1, 1, 0, -1),
        (1, 2, 0, -1),
        (1, 2, 1, -1),
        (2, 1, 0, -1),
        (2, 1, 1, -1),
    ]


LONGEST = policy_of(10**9, 12_345.678901, 10**12)


def test_the_longest_row_fits_the_board_and_the_search_for_torn_lines(csv, row):
    line = line_of(LONGEST, -1.2345678901234567e-308)
    row["pending"] = line
    assert bytes(row["pending"]) == line
    assert len(line) < MAX_LINE
    assert len(CSV_HEADER) < MAX_LINE


# A kill on the way: the board and the file as it leaves them


@pytest.mark.parametrize("final", [False, True])
def test_killed_before_the_write_the_episode_does_not_count(csv, row, final):
    killed_over(row, csv, 2.0, BEFORE, final)
    ScoreFile(csv, row).settle()
    assert csv.read_bytes() == BEFORE
    assert (row["episodes"], row["final_episodes"], row["offset"]) == (1, 0, -1)


@pytest.mark.parametrize("length", range(1, len(line_of(policy_of(), 2.0))))
def test_killed_within_the_write_the_torn_line_is_cut(csv, row, length):
    killed_over(row, csv, 2.0, BEFORE + line_of(policy_of(), 2.0)[:length])
    ScoreFile(csv, row).settle()
    assert csv.read_bytes() == BEFORE
    assert (row["episodes"], row["offset"]) == (1, -1)


@pytest.mark.parametrize(("final", "counts"), [(False, (2, 0)), (True, (1, 1))])
def test_killed_after_the_write_the_episode_counts_once(csv, row, final, counts):
    content = BEFORE + line_of(policy_of(), 2.0)
    killed_over(row, csv, 2.0, content, final)
    for _ in range(3):
        ScoreFile(csv, row).settle()
        assert (int(row["episodes"]), int(row["final_episodes"])) == counts
        assert row["offset"] == -1
    assert csv.read_bytes() == content


class Killed(BaseException):
    """Ends a process where it stands, as SIGKILL does."""


class MortalRow:
    """A row of the board that takes so many values and then kills who writes it."""

    def __init__(self, row, lives):
        self._row = row
        self._lives = lives

    def __getitem__(self, field):
        return self._row[field]

    def __setitem__(self, field, value):
        if self._lives == 0:
            raise Killed
        self._lives -= 1
        self._row[field] = value


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("epoch", [1, 2])
def test_killed_between_any_two_values_each_row_counts_once(
    tmp_path, row, epoch, final
):
    counter = "final_episodes" if final else "episodes"
    for lives in range(20):
        csv = tmp_path / f"{lives}.csv"
        row["epoch"] = 0
        ScoreFile(csv, row).record(policy_of(1), 1.0, final)
        survived = True
        try:
            ScoreFile(csv, MortalRow(row, lives)).record(policy_of(epoch), 2.0, final)
        except Killed:
            survived = False
        ScoreFile(csv, row).settle()
        lines = csv.read_text().splitlines()[1:]
        recorded = [line for line in lines if line.split(",")[1] == str(row["epoch"])]
        if row["epoch"] == epoch:  # else the older policy's counts are of no use
            assert row[counter] == len(recorded), lives
        assert row["offset"] == -1
        if survived:
            break
    assert survived
    assert lives > 3


def test_a_row_that_the_disk_has_no_room_for_is_an_error(csv, row, monkeypatch):
    ScoreFile(csv, row).record(policy_of(), 1.0, False)
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
        with pytest.raises(OSError, match="No space left"):
            ScoreFile(csv, row).record(policy_of(), 2.0, False)
    ScoreFile(csv, row).settle()
    assert csv.read_bytes() == BEFORE
    assert row["episodes"] == 1


def test_rows_that_others_appended_meanwhile_do_not_matter(csv, row):
    others = line_of(policy_of(), 5.0) + line_of(policy_of(), 2.0)
    killed_over(row, csv, 2.0, BEFORE + others)  # another's row where ours would be
    ScoreFile(csv, row).settle()
    assert row["episodes"] == 1
    killed_over(row, csv, 2.0, BEFORE + line_of(policy_of(), 2.0) + others)
    ScoreFile(csv, row).settle()
    assert row["episodes"] == 2


def test_where_nothing_was_being_appended_nothing_is_settled(csv, row):
    content = BEFORE + b"torn"
    csv.write_bytes(content)
    ScoreFile(csv, row).settle()
    assert csv.read_bytes() == content
    assert row["episodes"] == 0
    csv.unlink()
    ScoreFile(csv, row).settle()
    assert not csv.exists()


def test_a_scores_file_that_is_gone_counts_nothing(csv, row):
    killed_over(row, csv, 2.0, BEFORE)
    csv.unlink()
    ScoreFile(csv, row).settle()
    assert (row["episodes"], row["offset"]) == (1, -1)


@pytest.mark.parametrize("torn", [b"0", b"0.25", b"0.250000,1,1000,-12.34567"])
def test_another_evaluator_cuts_the_torn_line_before_it_appends(csv, row, torn):
    csv.write_bytes(BEFORE + torn)
    ScoreFile(csv, row).record(policy_of(), 3.0, False)
    assert csv.read_bytes() == BEFORE + line_of(policy_of(), 3.0)


@pytest.mark.parametrize("length", range(1, len(CSV_HEADER)))
def test_a_torn_header_is_written_anew(csv, row, length):
    csv.write_bytes(CSV_HEADER[:length])
    ScoreFile(csv, row).record(policy_of(), 3.0, False)
    assert csv.read_bytes() == CSV_HEADER + line_of(policy_of(), 3.0)


def test_a_torn_line_behind_many_rows_is_cut_alone(csv, row):
    rows = b"".join(line_of(policy_of(epoch), 1.0) for epoch in range(1, 100))
    csv.write_bytes(CSV_HEADER + rows + b"0.25,1")
    ScoreFile(csv, row).record(policy_of(), 3.0, False)
    assert csv.read_bytes() == CSV_HEADER + rows + line_of(policy_of(), 3.0)


def test_an_evaluator_waits_while_another_one_writes(csv, row):
    recording = threading.Thread(
        target=lambda: ScoreFile(csv, row).record(policy_of(), 1.0, False)
    )
    with open(csv, "ab") as others:
        portalocker.lock(others, portalocker.LockFlags.EXCLUSIVE)
        recording.start()
        recording.join(0.2)
        assert recording.is_alive()
        assert csv.read_bytes() == b""
    recording.join(PATIENCE)
    assert csv.read_bytes() == CSV_HEADER + line_of(policy_of(), 1.0)


def recorder(folder, number, count, offset=0):
    recording = SPAWN.Process(
        target=record_many, args=(folder, number, count, offset), daemon=True
    )
    recording.start()
    return recording


def recorded_scores(csv):
    """The scores of the file, once each row is known to be whole."""
    header, *lines = csv.read_bytes().splitlines(keepends=True)
    assert header == CSV_HEADER
    for line in lines:
        epoch, score = int(line.split(b",")[1]), float(line.split(b",")[3])
        assert line == line_of(policy_of(epoch), score)
    return [float(line.split(b",")[3]) for line in lines]


def test_rows_of_two_processes_are_whole_and_each_there_once(tmp_path, csv):
    board = Board.create(tmp_path / "status.bin", make_config(tmp_path))
    processes = [recorder(tmp_path, i, 400, offset=1000 * i) for i in range(2)]
    for one in processes:
        one.join(PATIENCE)
        assert one.exitcode == 0
    scores = recorded_scores(csv)
    assert sorted(scores) == [*range(400), *range(1000, 1400)]
    for number in range(2):  # and each one's in its own order
        own = [score for score in scores if score // 1000 == number]
        assert own == sorted(own)
        row = board[f"evaluator{number}"]
        assert (row["epoch"], row["episodes"], row["offset"]) == (8, 50, -1)


def test_a_killed_evaluators_rows_and_counts_agree(tmp_path, csv):
    board = Board.create(tmp_path / "status.bin", make_config(tmp_path))
    killed, survivor = (recorder(tmp_path, i, 10**9, offset=i * 2**40) for i in (0, 1))
    deadline = time.monotonic() + PATIENCE
    while not all(board[f"evaluator{i}"]["epoch"] >= 3 for i in (0, 1)):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed.kill()
    killed.join()
    epoch = int(board["evaluator1"]["epoch"])
    while board["evaluator1"]["epoch"] < epoch + 2:  # the other one goes on
        assert time.monotonic() < deadline
        time.sleep(0.005)
    survivor.kill()
    survivor.join()
    for number in (0, 1):
        row = board[f"evaluator{number}"]
        ScoreFile(csv, row).settle()
        own = [s for s in recorded_scores(csv) if s // 2**40 == number]
        assert own == [number * 2**40 + i for i in range(len(own))]
        # 50 rows to a policy; those of the last one are what the board counts.
        assert len(own) == 50 * (row["epoch"] - 1) + row["episodes"]
