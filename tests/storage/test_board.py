"""The status board: its rows, who sees what, what a later launch takes over."""

import gc
import math
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from support import PATIENCE, make_config

from steve.settings.roles import process_names
from steve.storage.board import FINAL_EPISODES, ROW, RUNNING, Board
from steve.util import RunError

SPAWN = multiprocessing.get_context("spawn")
COUNTS = {"agent_config": {"count": 2}, "evaluator_config": {"count": 3}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "status.bin"


# Rows


def test_a_fresh_board_starts_from_nothing(path, tmp_path):
    config = make_config(tmp_path, model=True, **COUNTS)
    board = Board.create(path, config)
    for name in process_names(config):
        row = board[name]
        for field in (
            "pid",
            "ready",
            "heartbeat",
            "phase",
            "updates",
            "epoch",
            "episodes",
            "gave_up",
        ):
            assert row[field] == 0, (name, field)
        assert math.isnan(row["random_score"])


@pytest.mark.parametrize("name", ["worldmodel", "evaluator3", "interactor", ""])
def test_a_process_that_is_not_in_the_run_is_a_key_error(path, tmp_path, name):
    board = Board.create(path, make_config(tmp_path, **COUNTS))
    with pytest.raises(KeyError):
        board[name]


def test_every_name_fits_its_row(path, tmp_path):
    counts = {"agent_config": {"count": 101}, "evaluator_config": {"count": 11}}
    config = make_config(tmp_path, model=True, **counts)
    board = Board.create(path, config)
    for i, name in enumerate(process_names(config)):
        board[name]["updates"] = i
    values = [int(Board.open(path)[name]["updates"]) for name in process_names(config)]
    assert values == list(range(115))


def test_all_entries_but_the_texts_are_aligned_words():
    # Half of an aligned 8-byte word is never seen.
    for name in ROW.names:
        dtype, offset = ROW.fields[name][:2]
        if dtype.kind != "S":
            assert dtype.base.itemsize == 8, name
            assert offset % 8 == 0, name
    assert ROW.itemsize % 8 == 0


# Who sees what


def test_what_is_written_is_seen_through_another_board(path, tmp_path):
    board = Board.create(path, make_config(tmp_path, **COUNTS))
    other = Board.open(path)
    row, seen = board["valuerl"], other["valuerl"]
    row["updates"] = 7
    row["hours"] = 0.5
    assert (seen["updates"], seen["hours"]) == (7, 0.5)
    row["updates"] += 1
    assert seen["updates"] == 8
    other["launcher"]["phase"] = FINAL_EPISODES
    assert board["launcher"]["phase"] == FINAL_EPISODES


def test_a_row_is_nobody_elses(path, tmp_path):
    config = make_config(tmp_path, **COUNTS)
    board = Board.create(path, config)
    before = board._rows.tobytes()
    row = board["interactor1"]
    for field in ROW.names:
        if field != "name":
            row[field] = b"x" * 144 if field == "memory" else 99
    after = board._rows.tobytes()
    size = ROW.itemsize
    changed = [
        name
        for i, name in enumerate(process_names(config))
        if before[i * size : (i + 1) * size] != after[i * size : (i + 1) * size]
    ]
    assert changed == ["interactor1"]


def answer(path):
    """Another process: waits for 5 updates, then shows 6."""
    board = Board.open(path)
    while board["valuerl"]["updates"] != 5:
        pass
    board["interactor0"]["updates"] = 6


def test_what_is_written_is_seen_by_another_process(path, tmp_path):
    board = Board.create(path, make_config(tmp_path))
    process = SPAWN.Process(target=answer, args=(path,), daemon=True)
    process.start()
    board["valuerl"]["updates"] = 5
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert board["interactor0"]["updates"] == 6
    assert board["valuerl"]["updates"] == 5


def test_a_store_to_the_board_reaches_no_file(path, tmp_path):
    board = Board.create(path, make_config(tmp_path))
    other = Board.open(path)
    before = path.read_bytes()
    board["valuerl"]["updates"] = other["interactor0"]["updates"] = 5
    assert path.read_bytes() == before
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_full_disk_is_an_error_where_a_row_is_kept(path, tmp_path, monkeypatch):
    board = Board.create(path, make_config(tmp_path))
    board._path = Path("/dev/full")
    board["evaluator0"]["episodes"] = 5
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        board.keep("evaluator0")


def test_rows_outlive_their_launchers_object_where_they_are_open(path, tmp_path):
    board = Board.create(path, make_config(tmp_path))
    other = Board.open(path)
    board["valuerl"]["updates"] = 5
    del board
    assert other["valuerl"]["updates"] == 5


def test_the_launchers_object_leaves_no_open_file(path, tmp_path):
    gc.collect()  # what earlier tests left may hold files, and go at any time
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        Board.create(path, make_config(tmp_path))
    assert set(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("why", ["gone", "another", "missing", "empty", "damaged"])
def test_a_file_that_leads_nowhere_is_one_line(path, tmp_path, why):
    board = Board.create(path, make_config(tmp_path))
    if why == "gone":
        del board
    elif why == "another":  # process has got the number
        content = path.read_bytes()
        place = bytes(np.frombuffer(content, ROW)[0]["memory"])
        other = place[:-1] + (b"1" if place[-1:] == b"0" else b"0")
        path.write_bytes(content.replace(place, other))
    elif why == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if why == "empty" else b"\xff" * path.stat().st_size)
    with pytest.raises(RunError, match="leads to no live counters") as e:
        Board.open(path)
    assert "\n" not in str(e.value)


# A later launch


def fill_evaluator(row, number):
    row["epoch"], row["episodes"] = 10 + number, 20 + number
    row["gave_up"], row["dropped"] = 1, 30 + number
    row["random_score"], row["heartbeat"], row["pid"] = 1.0, 1e6, 99


@pytest.mark.parametrize("model", [False, True])
@pytest.mark.parametrize(("interactors", "evaluators"), [(1, 1), (2, 3), (4, 5)])
def test_evaluators_counts_go_on_when_process_counts_change(
    path, tmp_path, model, interactors, evaluators
):
    earlier = Board.create(path, make_config(tmp_path, **COUNTS))
    for number in range(3):
        fill_evaluator(earlier[f"evaluator{number}"], number)
        earlier.keep(f"evaluator{number}")
    counts = {
        "agent_config": {"count": interactors},
        "evaluator_config": {"count": evaluators},
    }
    board = Board.create(path, make_config(tmp_path, model, **counts))
    for number in range(evaluators):
        row = board[f"evaluator{number}"]
        there = number < 3
        assert row["epoch"] == (10 + number if there else 0)
        assert row["episodes"] == (20 + number if there else 0)
        assert row["gave_up"] == row["dropped"] == row["heartbeat"] == row["pid"] == 0


def test_counts_below_zero_are_damaged_and_begin_anew(path, tmp_path):
    earlier = Board.create(path, make_config(tmp_path))
    earlier["evaluator0"]["epoch"] = 7
    earlier["evaluator0"]["episodes"] = -(2**63) + 1
    earlier.keep("evaluator0")
    row = Board.create(path, make_config(tmp_path))["evaluator0"]
    assert (row["epoch"], row["episodes"]) == (7, 0)


# The rows of version 1.0.
ROW_1_0 = np.dtype(
    [
        ("name", "S32"),
        ("pid", "i8"),
        ("heartbeat", "f8"),
        ("phase", "i8"),
        ("ready", "i8"),
        ("disk_full", "i8"),
        ("updates", "i8"),
        ("pretrained", "i8"),
        ("epoch", "i8"),
        ("models", "i8"),
        ("hours", "f8"),
        ("reserved", "f8", 9),
        ("episodes", "i8"),
        ("final_episodes", "i8"),
        ("dropped", "i8"),
        ("random_score", "f8"),
        ("pending_count", "i8"),
        ("offset", "i8"),
        ("pending", "S128"),
    ],
    align=True,
)


def test_an_evaluators_counts_go_on_from_a_board_of_version_1_0(path, tmp_path):
    config = make_config(tmp_path, **COUNTS)
    earlier = np.zeros(len(process_names(config)), ROW_1_0)
    earlier["name"], earlier["pending"] = process_names(config), b"x" * 128
    for field in ("epoch", "episodes", "final_episodes", "pending_count", "offset"):
        earlier[field] = np.arange(len(earlier)) + ROW_1_0.names.index(field)
    path.write_bytes(earlier.tobytes())
    board = Board.create(path, config)
    for number, name in enumerate(process_names(config)):
        counts = [0, 0]
        if name.startswith("evaluator"):
            fields = ("epoch", "episodes")
            counts = [number + ROW_1_0.names.index(field) for field in fields]
        row = board[name]
        assert [row["epoch"], row["episodes"]] == counts, name
        assert row["gave_up"] == 0, name


def test_a_later_launch_takes_nothing_else_over(path, tmp_path):
    config = make_config(tmp_path, model=True)
    earlier = Board.create(path, config)
    earlier["launcher"]["phase"] = FINAL_EPISODES
    for name in ("valuerl", "worldmodel", "interactor0"):
        for field in ("updates", "epoch", "heartbeat", "hours", "ready"):
            earlier[name][field] = 9
    earlier["evaluator0"]["random_score"] = 3.0
    earlier["evaluator0"]["gave_up"] = 1
    earlier.keep("evaluator0")
    board = Board.create(path, config)
    assert board["launcher"]["phase"] == RUNNING
    for name in ("valuerl", "worldmodel", "interactor0"):
        for field in ("updates", "epoch", "heartbeat", "hours", "ready"):
            assert board[name][field] == 0
    assert math.isnan(board["evaluator0"]["random_score"])
    assert board["evaluator0"]["gave_up"] == 0


@pytest.mark.parametrize("size", [0, 1, 1000, ROW.itemsize, 100_003])
def test_a_file_of_another_layout_is_replaced(path, tmp_path, size):
    path.write_bytes(np.random.default_rng(0).bytes(size))
    config = make_config(tmp_path, **COUNTS)
    board = Board.create(path, config)
    assert path.stat().st_size == len(process_names(config)) * ROW.itemsize
    assert board["evaluator0"]["episodes"] == 0
    assert board["valuerl"]["updates"] == 0


@pytest.mark.parametrize("size", [-8, 8])
def test_rows_in_a_file_of_the_wrong_size_are_not_trusted(path, tmp_path, size):
    config = make_config(tmp_path)
    board = Board.create(path, config)
    fill_evaluator(board["evaluator0"], 0)
    board.keep("evaluator0")
    content = path.read_bytes()
    path.write_bytes(content[:size] if size < 0 else content + bytes(size))
    row = Board.create(path, config)["evaluator0"]
    assert (row["epoch"], row["episodes"]) == (0, 0)
