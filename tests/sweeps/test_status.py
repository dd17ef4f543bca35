"""What a run's files, its log and the queue say together."""

import signal
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from support import append_frames, make_sweep

from steve.replay import ReplayBuffer
from steve.storage import locks, record
from steve.storage.folders import Folders
from steve.sweeps import slurm
from steve.sweeps.record import SLURM, Sweep
from steve.sweeps.slurm import Task
from steve.sweeps.status import (
    FAILED,
    FINISHED,
    RUNNING,
    STOPPED,
    WAITING,
    State,
    already,
    below,
    last_attempt,
    states,
    tasks_by_run,
)
from steve.util import UserError

START = "== started 2030-01-01T00:00:00Z on host by job 7_0\n"
END = "== ended 2030-01-01T00:00:00Z with exit code "


@pytest.fixture
def sweep(tmp_path) -> Sweep:
    made = make_sweep(tmp_path, "run", engine=SLURM)
    return replace(made, runs=tuple(replace(run, frames=100) for run in made.runs))


def state_of(
    sweep: Sweep, task: Task | None = None, pool_since: float | None = None
) -> State:
    queue = {(str(sweep.script), 0): task} if task else {}
    return states([(sweep, 0)], queue, pool_since)[0]


def finish(sweep: Sweep, frames: int) -> None:
    folders = sweep.folders(0)
    folders.log.mkdir(parents=True, exist_ok=True)
    reached = {"frames": frames, "hours": 0.5}
    record.write_json(folders.run, {"starts": [{}], "finished": reached})


# States


def test_a_run_that_nobody_started_is_stopped_or_waits_for_its_pool(sweep):
    assert (state_of(sweep).state, state_of(sweep).why) == (STOPPED, "not started")
    local = replace(sweep, engine="local")
    assert state_of(local, pool_since=0.0).state == WAITING
    assert state_of(local).state == STOPPED


@pytest.mark.parametrize(
    ("later", "expected"), [(-4.4, RUNNING), (0.3, RUNNING), (5.6, FAILED)]
)
def test_a_run_that_its_pool_has_just_started_is_running(sweep, later, expected):
    """It takes its lock after its imports; what an earlier pool left has failed."""
    local = replace(sweep, engine="local")
    local.log(0).write_text(f"{START}importing\n")
    started = datetime.fromisoformat("2030-01-01T00:00:00Z").timestamp()
    assert state_of(local, pool_since=started + later).state == expected
    assert state_of(sweep, pool_since=started + later).state == FAILED
    folders = local.folders(0)  # it has ended, and its pool could not write that down
    folders.log.mkdir(parents=True)
    ended = {"time": "2030-01-01T00:10:00+00:00", "code": 1, "why": "no space"}
    record.write_json(folders.run, {"starts": [{"ended": ended}], "finished": None})
    assert state_of(local, pool_since=started + later).why == "no space"


def test_the_queue_says_who_waits_and_who_runs(sweep):
    sweep.log(0).write_text(f"{START}{END}0\n")  # an attempt before it was requeued
    pending = Task("7_0", "PENDING", "BeginTime")
    state = state_of(sweep, pending)
    assert (state.state, state.why, state.task) == (WAITING, "BeginTime", pending)
    assert state_of(sweep, Task("7_0", "RUNNING", "None")).state == RUNNING


def test_a_run_whose_folder_is_in_use_is_running(sweep):
    sweep.log(0).write_text(f"{START}main.py: in use by another launch\n{END}2\n")
    with locks.claimed(sweep.folders(0)):
        assert state_of(sweep).state == RUNNING
    assert state_of(sweep).state == FAILED


def test_a_run_that_reached_its_limit_is_finished_until_the_limit_is_raised(sweep):
    sweep.log(0).write_text(f"{START}{END}0\n")
    assert state_of(sweep).state == STOPPED
    finish(sweep, frames=100)
    assert state_of(sweep).state == FINISHED
    finish(sweep, frames=99)
    assert state_of(sweep).state == STOPPED


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"a line\nvalue learner: diverged\n{END}1\n", "value learner: diverged"),
        (f"a line\n{END}{128 + signal.SIGKILL}\n", "killed by SIGKILL"),
        (f"{END}1\n", ""),
        ("a line\n", "ended without a word: killed together with what watched it"),
    ],
)
def test_why_a_run_failed_is_the_last_that_it_said(sweep, text, why, monkeypatch):
    monkeypatch.setattr(slurm, "past_states", lambda jobs: {})
    sweep.log(0).write_text(f"{START}an old reason\n{END}2\n{START}{text}")
    state = state_of(sweep)
    assert (state.state, state.why) == (FAILED, why)


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        ({"time": "2030-01-01T00:00:05+00:00", "code": 0, "why": None}, (STOPPED, "")),
        ({"time": "2030-01-01T00:00:05+00:00", "code": 1, "why": "x"}, (FAILED, "x")),
        ({"time": "2029-12-31T00:00:00+00:00", "code": 0, "why": None}, None),
        (None, None),
    ],
)
def test_a_run_whose_pool_was_killed_says_itself_how_it_ended(sweep, ended, expected):
    local = replace(sweep, engine="local")
    local.log(0).write_text(f"{START}a line\n")
    folders = local.folders(0)
    folders.log.mkdir(parents=True)
    record.write_json(folders.run, {"starts": [{"ended": ended}], "finished": None})
    state = state_of(local)
    without = FAILED, "ended without a word: killed together with what watched it"
    assert (state.state, state.why) == (expected or without)


@pytest.mark.parametrize(
    ("code", "time", "ended", "expected"),
    [
        (0, "05", {"code": 1, "why": "by hand"}, (FAILED, "by hand")),
        (1, "05", {"code": 0, "why": None}, (STOPPED, "")),
        (1, "00", {"code": 0, "why": None}, (FAILED, "a line")),
    ],
)
def test_a_launch_after_the_sweeps_says_how_the_run_ended(
    sweep, code, time, ended, expected
):
    """As of a run that main.py was asked to continue."""
    sweep.log(0).write_text(f"{START}a line\n{END}{code}\n")
    folders = sweep.folders(0)
    folders.log.mkdir(parents=True)
    last = {"time": f"2030-01-01T00:00:{time}+00:00", "ended": ended}
    record.write_json(folders.run, {"starts": [last], "finished": None})
    state = state_of(sweep)
    assert (state.state, state.why) == expected


def test_a_run_that_was_asked_to_end_before_it_could_answer_has_not_failed(sweep):
    sweep.log(0).write_text(f"{START}{END}{128 + signal.SIGTERM}\n")
    assert state_of(sweep).state == STOPPED


def test_slurms_accounts_add_why_a_job_is_lost(sweep, monkeypatch):
    asked = []

    def past_states(jobs):
        asked.extend(jobs)
        return {"7_0": "OUT_OF_MEMORY"}

    monkeypatch.setattr(slurm, "past_states", past_states)
    sweep.log(0).write_text(f"{START}a line\n")
    assert state_of(sweep).why.endswith("; Slurm says OUT_OF_MEMORY")
    assert asked == ["7_0"]
    sweep.log(0).write_text(f"{START}a line\n{END}1\n")
    assert state_of(sweep).why == "a line"


# Not twice


def test_what_is_finished_running_or_queued_is_not_submitted_again(sweep):
    run, root = sweep.runs[0], sweep.output_root
    sweep.log(0).write_text(f"{START}{END}1\n")
    assert already(run, root, {}) is None
    for name, state in (("PENDING", WAITING), ("RUNNING", RUNNING)):
        queue = {(str(sweep.script), 0): Task("7_0", name, "")}
        assert already(run, root, tasks_by_run([sweep], queue)) == state
        other = replace(run, experiment="other")
        assert already(other, root, tasks_by_run([sweep], queue)) is None
    with locks.claimed(sweep.folders(0)):
        assert already(run, root, {}) == RUNNING
    finish(sweep, frames=100)
    assert already(run, root, {}) == FINISHED
    assert already(replace(run, frames=101), root, {}) is None


# Progress


def write_csv(path: Path, header: str, *rows: str, torn: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in (header, *rows)) + torn)


def test_frames_score_and_time_left_come_from_the_runs_files(sweep):
    folders = sweep.folders(0)
    assert (state_of(sweep).frames, state_of(sweep).score) == (0, None)
    folders.replay.mkdir(parents=True)
    with ReplayBuffer.create(folders.replay, 3, 1, 1000) as replay:
        append_frames(replay, 60)
    rows = [f"0.1,1,50,{score}" for score in range(1, 13)]
    write_csv(folders.scores, "hours,epochs,frames,score", *rows, torn="0.1,1,50,9")
    # 20 frames in 0.1 hours; 40 are missing.
    header = "hours,epoch,updates,frames"
    write_csv(folders.learner_log("valuerl"), header, "0.1,1,1,30", "0.2,2,2,50")
    with locks.claimed(folders):
        state = state_of(sweep)
        assert state.frames == 60
        assert state.score == sum(range(3, 13)) / 10
        assert state.seconds_left == pytest.approx(0.2 * 3600)
        sooner = replace(sweep, runs=(replace(sweep.runs[0], hours=0.25),))
        assert state_of(sooner).seconds_left == pytest.approx(0.05 * 3600)
    assert state_of(sweep).seconds_left is None


def test_a_renamed_folder_has_the_score_that_it_had(sweep):
    folders = sweep.folders(0)
    header = "hours,epochs,frames,score"
    write_csv(folders.log / "earlier.greedy.csv", header, "0.1,1,50,3")
    assert state_of(sweep).score == 3
    write_csv(folders.log / "other.greedy.csv", header, "0.1,1,50,4")
    assert state_of(sweep).score is None  # whose they are is not known
    write_csv(folders.scores, header, "0.1,1,50,5")
    assert state_of(sweep).score == 5


def test_a_log_without_a_start_is_no_attempt(tmp_path):
    log = tmp_path / "log.txt"
    assert last_attempt(log) is None
    log.write_text("")
    assert last_attempt(log) is None
    log.write_text("slurmstepd: error: no space\n")
    assert last_attempt(log) is None
    log.write_text("== started 2030-01-01T00:00:00Z on host\n")
    assert last_attempt(log).job is None


def test_one_damaged_record_does_not_take_the_table_with_it(tmp_path):
    sweep = make_sweep(tmp_path, "bad", "good")
    folders = sweep.folders(0)
    folders.log.mkdir(parents=True)
    folders.run.write_text("{")
    folders.scores.write_text("hours,epochs,frames,scorf\n0.1,1,10,1.5\n")
    folders.learner_log("valuerl").write_text("hours\n0.1\n")
    bad, good = states([(sweep, 0), (sweep, 1)], {})
    assert (bad.state, bad.score) == (FAILED, None)
    assert str(folders.run) in bad.why
    assert good.state == STOPPED
    assert already(sweep.runs[0], tmp_path, {}) is None


# Runs of any kind


def made_by_hand(root: Path, experiment: str, **run) -> Folders:
    """The folder of a run that main.py made; `run` is its run.json."""
    folders = Folders.at(root / "Hopper-v1" / experiment, "log", "states", experiment)
    folders.log.mkdir(parents=True)
    content = {"log_path": "log", "save_model_path": "states", "total_frames": 100}
    record.write_json(folders.hyperparameters, content)
    if run:
        record.write_json(folders.run, {"starts": [], "finished": None, **run})
    return folders


def told(*folders: Path) -> dict[str, tuple[str, str]]:
    """State and reason of each run below folders, by name."""
    said: list[str] = []
    found = {s.run.name: (s.state, s.why) for s in below(folders, said.append)}
    assert said == []
    return found


def test_runs_of_main_tell_how_they_ended(tmp_path):
    made_by_hand(tmp_path, "old", starts=[{}])
    made_by_hand(tmp_path, "bare")
    for name, ended in (
        ("killed", None),
        ("stopped", {"code": 0, "why": None}),
        ("bad", {"code": 1, "why": "valuerl: q_loss is nan"}),
    ):
        made_by_hand(tmp_path, name, starts=[{"ended": {"code": 1}}, {"ended": ended}])
    made_by_hand(tmp_path, "done", finished={"frames": 100, "hours": 0.5})
    made_by_hand(tmp_path, "more", finished={"frames": 99, "hours": 0.5})
    made_by_hand(tmp_path, "bad.old1", starts=[{"ended": None}])  # put aside
    with locks.claimed(made_by_hand(tmp_path, "now")):
        found = told(tmp_path)
    assert {name.partition("/")[2]: state for name, (state, _) in found.items()} == {
        "old": STOPPED,
        "bare": STOPPED,
        "killed": FAILED,
        "stopped": STOPPED,
        "bad": FAILED,
        "done": FINISHED,
        "more": STOPPED,
        "now": RUNNING,
    }
    assert list(found) == sorted(found)
    assert found["Hopper-v1/bad"][1] == "valuerl: q_loss is nan"
    assert found["Hopper-v1/killed"][1].startswith("ended without a word")


def test_runs_of_sweeps_and_of_main_are_listed_together_and_once(tmp_path):
    sweep = make_sweep(tmp_path, "first", "second")
    sweep.log(0).write_text(f"{START}no space\n{END}1\n")
    own, second = sweep.folders(0), sweep.folders(1)
    for folders in (own, second):
        folders.log.mkdir(parents=True)
        record.write_json(folders.hyperparameters, {})
    made_by_hand(tmp_path, "alone", starts=[{}])
    environment = sweep.runs[0].environment
    expected = {
        "Hopper-v1/alone": (STOPPED, ""),
        f"{environment}/first": (FAILED, "no space"),
        f"{environment}/second": (STOPPED, "not started"),
    }
    assert told(tmp_path) == expected
    assert told(own.root, tmp_path, second.root.parent) == expected
    assert told(own.root) == {f"{environment}/first": (FAILED, "no space")}


def test_a_folder_may_be_named_by_dots(tmp_path, monkeypatch):
    folders = made_by_hand(tmp_path, "now", starts=[{}])
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link"
    link.symlink_to(folders.root)
    assert told(link / "..") == {"Hopper-v1/now": (STOPPED, "")}
    for place, name in ((folders.log, ".."), (folders.root, ".."), (folders.root, ".")):
        monkeypatch.chdir(place)
        assert told(Path(name)) == {"Hopper-v1/now": (STOPPED, "")}
        with locks.claimed(folders):
            assert told(Path(name)) == {"Hopper-v1/now": (RUNNING, "")}


def test_damaged_records_do_not_take_the_table_with_them(tmp_path):
    made_by_hand(tmp_path, "good", starts=[{}])
    bad = made_by_hand(tmp_path, "bad", starts=[{}])
    bad.hyperparameters.write_text("{")
    bad.run.write_text("{")
    odd = made_by_hand(tmp_path, "odd", starts=[7])
    keys = {"total_frames": "x", "total_hours": [], "save_model_path": "../.."}
    record.write_json(odd.hyperparameters, keys)
    make_sweep(tmp_path, "first")
    (make_sweep(tmp_path, "lost").folder / "sweep.json").write_text("{")
    make_sweep(tmp_path, "last")
    said: list[str] = []
    found = {s.run.experiment: s.state for s in below([tmp_path], said.append)}
    ends = {"good": STOPPED, "bad": FAILED, "odd": FAILED}
    assert found == {**ends, "first": STOPPED, "last": STOPPED}
    assert len(said) == 1
    assert "is no record of a sweep" in said[0]


def test_a_folder_without_a_run_is_a_mistake(tmp_path):
    for folder, why in ((tmp_path / "no", "is not a folder"), (tmp_path, "no run")):
        with pytest.raises(UserError, match=why):
            below([folder], print)
