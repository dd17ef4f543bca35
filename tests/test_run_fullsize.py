"""results/run_fullsize.py: order, one at a time, resumed; main.py is a stand-in."""

import contextlib
import functools
import json

import pytest
from support import PROJECT, append_frames

from steve.replay import ReplayBuffer
from steve.storage import locks
from steve.sweeps import pool
from steve.util import UserError

# Notes its limit, alone, and leaves what a run leaves that came to it.
MAIN = """
import json, pathlib, sys
folder = pathlib.Path(__file__).parent
busy = folder / "busy"
busy.touch(exist_ok=False)
config, frames = sys.argv[1], int(sys.argv[sys.argv.index("--frames") + 1])
name = pathlib.Path(config).stem
with open(folder / "calls", "a") as calls:
    print(name, frames, file=calls)
end = folder / f"fails_at_{frames}"
if not end.exists():
    log = folder / f"output/HalfCheetah-v1/{name}/log"
    log.mkdir(parents=True, exist_ok=True)
    finished = {"frames": frames, "hours": 1.0}
    record = {"experiment": name, "starts": [], "finished": finished}
    (log / "run.json").write_text(json.dumps(record))
busy.unlink()
sys.exit(1 if end.exists() else 0)
"""
STAGES = (
    ("halfcheetah/full_ddpg_noexplore", (0, 1), 12_000),
    ("halfcheetah/full_steve_noexplore", (0,), 11_000),
    ("halfcheetah/full_ddpg_noexplore", (0,), 13_000),
)
CALLS = [
    "full_ddpg_noexplore0 12000",
    "full_ddpg_noexplore1 12000",
    "full_steve_noexplore0 11000",
    "full_ddpg_noexplore0 13000",
]


@pytest.fixture
def program(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(PROJECT / "results"))
    import run_fullsize

    (tmp_path / "main.py").write_text(MAIN)
    stand_in = functools.partial(pool.Pool, main=tmp_path / "main.py")
    monkeypatch.setattr(run_fullsize, "Pool", stand_in)
    monkeypatch.setattr(run_fullsize, "STAGES", STAGES)
    monkeypatch.setattr(pool, "TICK", 0.01)
    return run_fullsize


def calls(tmp_path) -> list[str]:
    path = tmp_path / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_the_runs_go_one_after_the_other_and_what_is_finished_is_passed_over(
    program, tmp_path, capsys
):
    output = tmp_path / "output"
    runs = program.planned(output)
    assert program.work(runs, output) == 0
    assert calls(tmp_path) == CALLS
    assert program.work(runs, output) == 0
    assert calls(tmp_path) == CALLS
    assert "4 of 4 are done" in capsys.readouterr().out


def test_a_run_that_failed_stops_no_other_and_is_tried_again(program, tmp_path):
    output = tmp_path / "output"
    runs = program.planned(output)
    (tmp_path / "fails_at_11000").touch()
    assert program.work(runs, output) == 1
    assert calls(tmp_path) == CALLS
    (tmp_path / "fails_at_11000").unlink()
    assert program.work(runs, output) == 0
    assert calls(tmp_path) == [*CALLS, CALLS[2]]


def test_a_run_interrupted_on_its_way_to_more_frames_is_not_sent_back(
    program, tmp_path
):
    """It has no end in its record, and more frames than the earlier limit."""
    runs = program.planned(tmp_path / "output")
    folders = runs[0].folders(tmp_path / "output")
    folders.checkpoints.mkdir(parents=True)
    with ReplayBuffer.create(folders.replay, 3, 1, 20_000) as replay:
        append_frames(replay, 12_100)
    done = [program.is_done(run, tmp_path / "output") for run in runs]
    assert done == [True, False, False, False]
    assert program.frames_of(folders) == 12_100


def test_a_run_that_is_still_in_use_is_waited_for(program, tmp_path, monkeypatch):
    output = tmp_path / "output"
    runs = program.planned(output)
    with contextlib.ExitStack() as lock:
        lock.enter_context(locks.claimed(runs[1].folders(output)))

        def wait(condition):
            assert (condition(), calls(tmp_path)) == (False, [])
            lock.close()
            assert condition()

        monkeypatch.setattr(program, "wait_until", wait)
        assert program.work(runs, output) == 0
    assert calls(tmp_path) == CALLS


def test_two_calls_do_not_share_a_folder(program, tmp_path):
    output = tmp_path / "output"
    runs = program.planned(output)
    with program.claimed(output), pytest.raises(UserError, match="another sweep"):
        program.work(runs, output)


def test_the_list_is_of_files_that_are_there_and_shows_how_far_it_is(
    program, tmp_path, capsys, monkeypatch
):
    monkeypatch.undo()
    monkeypatch.setattr("sys.argv", ["run_fullsize.py", str(tmp_path), "--dry-run"])
    assert program.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * sum(len(seeds) for _, seeds, _ in program.STAGES)
    assert lines[0] == "# HalfCheetah-v1/full_ddpg_noexplore0 to 100,000 frames: 0"
    assert all(" cpu --resume-or-start --frames " in line for line in lines[1::2])
    assert not (tmp_path / "sweeps").exists()
    assert json.dumps(str(tmp_path)) in lines[1]
