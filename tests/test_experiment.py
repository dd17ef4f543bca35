"""An experiment's folder: layout, claims, modes, going back, opening, records."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import portalocker
import pytest
import support_env
from support import PATIENCE, make_config

from steve.replay import HEADER_BYTES, Batch, ReplayBuffer
from steve.settings.roles import process_names
from steve.settings.schema import Config
from steve.storage import checkpoint, locks, opening
from steve.storage import record as record_module
from steve.storage import rewind as rewinding
from steve.storage.board import Board
from steve.storage.checkpoint import CheckpointError
from steve.storage.folders import Folders, Run, derive_seed
from steve.storage.locks import claimed, in_use, present
from steve.storage.opening import check_mode, has_output, open_output
from steve.storage.record import is_finished, read_run, start_record, write_json
from steve.storage.rewind import finish_rewind, numbered_checkpoints, put_aside, rewind
from steve.util import UserError

ROOT = Path(__file__).resolve().parents[1]
SPAWN = multiprocessing.get_context("spawn")
SIZES = (support_env.OBS_DIM, support_env.ACTION_DIM)


def open_now(folders, config):
    """`open_output` as a launch calls it."""
    run = Run(config, folders, *SIZES, launch=0, cpu_learners=True)
    return open_output(run, config.model_dump(mode="json", by_alias=True))


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path / "output", model=True)


@pytest.fixture
def folders(config):
    return Folders.of(config, "first")


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Layout


def test_everything_lies_where_the_specification_says():
    config = Config.model_validate({"env": {"name": "Hopper-v1"}, "output_root": "out"})
    folders = Folders.of(config, "steve0")
    root = Path("out/Hopper-v1/steve0")
    assert folders.root == root
    assert folders.hyperparameters == root / "log/hps.json"
    assert folders.run == root / "log/run.json"
    assert folders.scores == root / "log/steve0.greedy.csv"
    assert folders.learner_log("valuerl") == root / "log/valuerl.log"
    assert folders.learner_log("worldmodel") == root / "log/worldmodel.log"
    assert folders.board.parent == root / "log"
    assert folders.process_output("evaluator1").parent.parent == root / "log"
    for path in (
        folders.policy,
        folders.replay,
        folders.state("valuerl"),
        folders.numbered_state("valuerl", 500),
        folders.numbered_replay(500),
    ):
        assert path.parent == root / "checkpoints"


def test_the_names_of_log_and_checkpoints_follow_the_configuration(tmp_path):
    config = make_config(tmp_path, save_model_path="models", log_path="logs")
    folders = Folders.of(config, "first")
    assert folders.log == folders.root / "logs"
    assert folders.state("valuerl").parent == folders.root / "models"


def test_no_two_things_share_a_path(folders):
    learners = ("valuerl", "worldmodel")
    processes = (*learners, "interactor0", "interactor1", "evaluator0")
    paths = [
        folders.hyperparameters,
        folders.run,
        folders.scores,
        folders.board,
        folders.policy,
        folders.replay,
        folders.numbered_replay(1),
        folders.numbered_replay(11),
        *(folders.learner_log(name) for name in learners),
        *(folders.process_output(name) for name in processes),
        *(folders.state(name) for name in learners),
        *(checkpoint.previous_path(folders.state(name)) for name in learners),
        *(folders.numbered_state(name, n) for name in learners for n in (1, 11)),
        *(folders.lock(kind) for kind in ("run", "processes")),
    ]
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("name", ["dm_control/cheetah-run-v0", "Env-v0"])
def test_an_environment_is_one_folder_whatever_its_id(tmp_path, name):
    config = Config.model_validate({"env": {"name": name}, "output_root": "out"})
    assert len(Folders.of(config, "first").root.parts) == 3


def test_locks_lie_outside_so_that_the_folder_can_move(folders):
    for kind in ("run", "processes"):
        assert folders.root not in folders.lock(kind).parents
        assert folders.lock(kind).name.startswith(".")


# Modes

MERGED = {
    "seed": 0,
    "total_frames": 100,
    "env": {"name": "Counting-v0", "discount": 0.99},
    "policy_config": {"batch_size": 512, "log_every_n": 500},
    "agent_config": {"count": 1, "batch_size": 8},
}


def with_output(folders, merged=MERGED):
    folders.log.mkdir(parents=True)
    write_json(folders.hyperparameters, merged)


def mode_error(folders, merged, mode):
    with pytest.raises(UserError) as caught:
        check_mode(folders, merged, mode)
    return one_line(caught)


@pytest.mark.parametrize("mode", ["fresh", "overwrite"])
def test_where_nothing_is_a_start_is_welcome(folders, mode):
    check_mode(folders, MERGED, mode)
    assert not has_output(folders)


def test_output_is_in_the_way_of_a_fresh_start(folders):
    with_output(folders)
    message = mode_error(folders, MERGED, "fresh")
    assert str(folders.root) in message
    for way_out in ("--resume", "--overwrite", "--name"):
        assert way_out in message


def test_with_overwrite_output_is_no_obstacle_even_of_another_configuration(folders):
    with_output(folders)
    check_mode(folders, {**MERGED, "seed": 1}, "overwrite")


def test_there_must_be_something_to_resume(folders):
    message = mode_error(folders, MERGED, "resume")
    assert str(folders.root) in message
    assert "nothing to resume" in message


def test_the_same_configuration_resumes(folders):
    with_output(folders)
    check_mode(folders, json.loads(json.dumps(MERGED)), "resume")


def test_a_resume_names_the_keys_that_have_changed(folders):
    with_output(folders)
    changed = json.loads(json.dumps(MERGED))
    changed["seed"] = 1
    changed["env"]["discount"] = 0.9
    changed["policy_config"]["batch_size"] = 64
    message = mode_error(folders, changed, "resume")
    for key in ("seed", "env.discount", "policy_config.batch_size"):
        assert key in message
    for key in ("env.name", "total_frames", "agent_config"):
        assert key not in message


def test_limits_log_intervals_and_process_counts_may_change(folders):
    with_output(folders)
    changed = json.loads(json.dumps(MERGED))
    changed["total_frames"] = 200
    changed["policy_config"]["log_every_n"] = 10
    changed["agent_config"]["count"] = 2
    check_mode(folders, changed, "resume")


@pytest.mark.parametrize("content", ['{"seed": ', "[]", "null", "\xff"])
def test_a_configuration_that_cannot_be_read_is_named(folders, content):
    with_output(folders)
    folders.hyperparameters.write_bytes(content.encode("latin-1"))
    message = mode_error(folders, MERGED, "resume")
    assert str(folders.hyperparameters) in message
    assert "JSON" in message


def test_a_first_file_that_was_not_written_to_its_end_is_no_output(folders):
    folders.log.mkdir(parents=True)
    (folders.log / ".hps.json.123.tmp").write_text("{")
    assert not has_output(folders)
    check_mode(folders, MERGED, "fresh")


@pytest.mark.parametrize(
    ("frames", "hours", "finished"),
    [
        (100, None, True),
        (101, None, False),
        (None, 2.0, True),
        (None, 2.5, False),
        (101, 2.0, True),
        (None, None, False),
    ],
)
def test_a_run_is_finished_until_its_limit_is_raised(folders, frames, hours, finished):
    folders.log.mkdir(parents=True)
    assert not is_finished(folders, frames, hours)
    reached = {"frames": 100, "hours": 2.0}
    write_json(folders.run, {"starts": [{}], "finished": reached})
    assert is_finished(folders, frames, hours) == finished


def test_output_without_a_configuration_is_output_too(folders):
    open_folder = folders.log / "processes"
    open_folder.mkdir(parents=True)
    assert not has_output(folders)  # empty folders are nobody's work
    (open_folder / "valuerl.txt").touch()
    assert has_output(folders)
    assert "--overwrite" in mode_error(folders, MERGED, "fresh")
    message = mode_error(folders, MERGED, "resume")
    assert str(folders.hyperparameters) in message
    assert "missing" in message


# Claims


def hold(folders, how, held):
    """Another process: claims the folder, or is present, until it is killed."""
    with {"claimed": claimed, "present": present}[how](folders):
        held.set()
        time.sleep(PATIENCE)


class Holder:
    """A process that holds a folder."""

    def __init__(self, folders, how):
        held = SPAWN.Event()
        self.process = SPAWN.Process(
            target=hold, args=(folders, how, held), daemon=True
        )
        self.process.start()
        assert held.wait(PATIENCE)

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(PATIENCE)
        assert self.process.exitcode == -signal.SIGKILL


def claim_error(folders):
    with pytest.raises(UserError) as caught, claimed(folders):
        pass
    return one_line(caught)


def test_a_second_claim_is_refused_until_the_first_has_ended(folders):
    with claimed(folders):
        message = claim_error(folders)
        assert str(folders.root) in message
        assert "--name" in message
    with claimed(folders):
        pass


def test_a_folder_is_in_use_as_long_as_a_launch_has_it(folders):
    assert not in_use(folders)
    with claimed(folders):
        assert in_use(folders)
    assert not in_use(folders)


def test_a_claim_outwaits_one_who_only_asks(folders, monkeypatch):
    folders.lock("run").parent.mkdir(parents=True, exist_ok=True)
    folders.lock("run").touch()
    shared = portalocker.LOCK_SH | portalocker.LOCK_NB
    asker = portalocker.Lock(folders.lock("run"), "r", timeout=0, flags=shared)
    asker.acquire()
    monkeypatch.setattr(time, "sleep", lambda seconds: asker.release())
    with claimed(folders):
        assert in_use(folders)


def test_another_experiment_may_be_claimed_meanwhile(config, folders):
    with claimed(folders), claimed(Folders.of(config, "second")):
        pass


def test_a_failure_gives_the_claim_back(folders):
    with pytest.raises(RuntimeError), claimed(folders):
        raise RuntimeError
    with claimed(folders):
        pass


def test_a_claim_holds_between_processes_and_is_free_once_its_holder_is_killed(folders):
    holder = Holder(folders, "claimed")
    assert "in use" in claim_error(folders)
    holder.kill()
    begun = time.monotonic()
    with claimed(folders):
        assert time.monotonic() - begun < 1


def test_a_claim_outlasts_the_renaming_of_its_folder(folders):
    with claimed(folders):
        folders.root.mkdir()
        put_aside(folders)
        assert "in use" in claim_error(folders)


def test_children_of_a_killed_launch_hold_the_next_one_back_until_they_are_gone(
    folders, monkeypatch
):
    folders.root.parent.mkdir(parents=True)
    children = [Holder(folders, "present") for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(locks, "CHILDREN_PATIENCE", 0.1)
        message = claim_error(folders)
        assert claim_error(folders) == message  # the first left nothing claimed
    assert "earlier launch" in message
    assert str(folders.root) in message
    children[0].kill()
    killed = []

    def kill_the_last():
        killed.append(time.monotonic())
        children[1].kill()

    timer = threading.Timer(0.4, kill_the_last)
    timer.start()
    with claimed(folders):
        claimed_at = time.monotonic()
    timer.join()
    assert claimed_at > killed[0]


def test_the_children_of_a_launch_are_present_together_while_it_holds_the_claim(
    folders,
):
    with claimed(folders), present(folders), present(folders):
        pass
    with claimed(folders):
        pass


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    message = claim_error(Folders.of(make_config(tmp_path / "file"), "first"))
    assert str(tmp_path / "file") in message


# Putting aside


def test_earlier_output_is_renamed_and_nothing_is_overwritten(folders):
    asides = []
    for number in range(4):
        folders.log.mkdir(parents=True)
        (folders.log / "content").write_text(str(number))
        asides.append(put_aside(folders))
        assert not folders.root.exists()
    assert len(set(asides)) == 4
    for number, aside in enumerate(asides):
        assert aside.parent == folders.root.parent
        assert (aside / "log" / "content").read_text() == str(number)


@pytest.mark.parametrize("kind", ["file", "folder", "empty folder"])
def test_a_name_that_is_taken_is_passed_over(folders, kind):
    folders.root.mkdir(parents=True)
    expected = put_aside(folders)
    expected.rmdir()
    if kind == "file":
        expected.write_text("mine")
    else:
        expected.mkdir()
        if kind == "folder":
            (expected / "mine").touch()
    folders.root.mkdir()
    assert put_aside(folders) != expected
    assert expected.exists()
    assert expected.is_file() == (kind == "file")


# Going back to a numbered checkpoint


def transitions(count, first=0):
    values = np.arange(first, first + count, dtype=np.float32)
    return Batch(
        obs=values[:, None] + np.zeros(SIZES[0], np.float32),
        action=np.zeros((count, SIZES[1]), np.float32),
        reward=values,
        next_obs=values[:, None] + np.ones(SIZES[0], np.float32),
        terminated=np.zeros(count, np.float32),
    )


def rewards_in(folder):
    with ReplayBuffer.open(folder) as replay:
        first = replay.oldest
        return replay.read(first, replay.frames - first).reward.tolist()


def save_state(folders, learner, updates, epoch, frames, numbered=True):
    path = folders.state(learner)
    if numbered:
        path = folders.numbered_state(learner, updates)
    tensors = {f"{learner}/w": np.full((2, 3), updates, np.float32)}
    metadata = {"updates": updates, "epoch": epoch, "frames": frames, "hours": 0.5}
    checkpoint.publish(path, tensors, metadata)


def write_rows(path, columns, rows):
    lines = [columns, *rows]
    path.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))


def former_run(folders, capacity=1000, learners=("valuerl", "worldmodel")):
    """Output of 300 updates and 90 frames; numbered checkpoints at 100 and 200."""
    folders.checkpoints.mkdir(parents=True)
    folders.log.mkdir()
    with ReplayBuffer.create(folders.replay, *SIZES, capacity) as replay:
        for first in range(0, 90, 10):
            replay.append(transitions(10, first))
    for learner in learners:
        lead = 2 if learner == "worldmodel" else 0
        save_state(folders, learner, 100, 5, 30 + lead)
        save_state(folders, learner, 200, 9, 60 + lead)
        save_state(folders, learner, 300, 13, 90, numbered=False)
        rows = [(u / 1000, u // 25, u) for u in (50, 100, 150, 200, 250)]
        write_rows(folders.learner_log(learner), ("hours", "epoch", "updates"), rows)
    rows = [(e / 10, e, 10 * e, -e) for e in (1, 1, 4, 5, 5, 6, 9, 12)]
    write_rows(folders.scores, ("hours", "epochs", "frames", "score"), rows)
    write_json(folders.hyperparameters, MERGED)
    write_json(folders.run, {"experiment": "first", "starts": [{}], "finished": {}})


def tree(root):
    """All files below a folder, with their content; locks left out."""
    return {
        path.relative_to(root): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def rows_of(path):
    return [line.split(",") for line in path.read_text().splitlines()]


def test_the_numbers_are_those_of_which_all_learners_have_a_state(config, folders):
    assert numbered_checkpoints(folders, config) == []
    former_run(folders)
    save_state(folders, "valuerl", 1000, 40, 90)
    save_state(folders, "worldmodel", 50, 2, 15)
    assert numbered_checkpoints(folders, config) == [100, 200]
    without_model = make_config(Path(config.output_root))
    assert numbered_checkpoints(folders, without_model) == [100, 200, 1000]


def test_going_back_restores_states_replay_and_rows(config, folders):
    former_run(folders)
    rewind(folders, config, 100)
    for learner in ("valuerl", "worldmodel"):
        state = checkpoint.load(folders.state(learner))
        assert state.metadata["updates"] == 100
        assert state.metadata["epoch"] == 5
        assert (state.tensors[f"{learner}/w"] == 100).all()
        updates = [row[2] for row in rows_of(folders.learner_log(learner))]
        assert updates == ["updates", "50", "100"]
    # 30 frames for the value learner, 32 for the world model.
    assert rewards_in(folders.replay) == list(range(32))
    epochs = [row[1] for row in rows_of(folders.scores)]
    # The policy of epoch 5 is published, and evaluated, anew.
    assert epochs == ["epochs", "1", "1", "4"]
    assert rows_of(folders.scores)[-1] == ["0.4", "4", "40", "-4"]
    assert json.loads(folders.hyperparameters.read_text()) == MERGED
    assert read_run(folders)["starts"] == [{}]
    assert read_run(folders)["finished"] is None
    assert numbered_checkpoints(folders, config) == [100]
    assert not folders.policy.exists()  # that of a later epoch


def test_the_later_state_is_kept_as_it_was(config, folders):
    former_run(folders)
    before = tree(folders.root)
    aside = rewind(folders, config, 100)
    assert tree(aside) == before
    assert aside != folders.root
    assert rewards_in(aside / "checkpoints" / "replay") == list(range(90))


def test_one_can_go_back_twice(config, folders):
    former_run(folders)
    first = rewind(folders, config, 200)
    second = rewind(folders, config, 200)
    assert first != second
    assert rewards_in(folders.replay) == list(range(62))
    with pytest.raises(UserError, match="there are: 200"):
        rewind(folders, config, 100)


def test_without_a_model_there_is_one_learner_to_go_back(tmp_path):
    config = make_config(tmp_path)
    folders = Folders.of(config, "first")
    former_run(folders, learners=("valuerl",))
    rewind(folders, config, 200)
    assert rewards_in(folders.replay) == list(range(60))
    assert not folders.state("worldmodel").exists()


def test_a_run_without_scores_or_logs_yet_can_go_back(config, folders):
    former_run(folders)
    for path in (folders.scores, folders.learner_log("valuerl")):
        path.unlink()
    rewind(folders, config, 100)
    assert not folders.scores.exists()
    assert rewards_in(folders.replay) == list(range(32))


def test_a_run_that_went_back_opens_and_goes_on_appending(config, folders):
    former_run(folders)
    rewind(folders, config, 100)
    assert open_now(folders, config) == []
    with ReplayBuffer.open(folders.replay, writable=True) as replay:
        assert replay.append(transitions(8, 500))
        assert replay.frames == 40


def rewind_error(folders, config, updates):
    """The error of an attempt, which must have changed nothing."""
    before = tree(folders.root)
    siblings = sorted(path.name for path in folders.root.parent.glob("[!.]*"))
    with pytest.raises(UserError) as caught:
        rewind(folders, config, updates)
    assert tree(folders.root) == before
    assert sorted(p.name for p in folders.root.parent.glob("[!.]*")) == siblings
    return one_line(caught)


@pytest.mark.parametrize("updates", [0, 150, 300])
def test_a_checkpoint_that_is_not_there_is_an_error_that_lists_those_that_are(
    config, folders, updates
):
    former_run(folders)
    message = rewind_error(folders, config, updates)
    assert f" {updates} updates" in message
    assert "100, 200" in message


def test_where_there_is_no_numbered_checkpoint_the_error_says_none(config, folders):
    former_run(folders)
    for path in folders.checkpoints.glob("*-*.safetensors"):
        path.unlink()
    assert "none" in rewind_error(folders, config, 100)


def test_a_damaged_checkpoint_changes_nothing(config, folders):
    former_run(folders)
    path = folders.numbered_state("worldmodel", 100)
    path.write_bytes(path.read_bytes()[:-4])
    assert str(path) in rewind_error(folders, config, 100)
    rewind(folders, config, 200)  # and does not stand in the way of another


def test_a_replay_that_was_overwritten_since_is_an_error(config, folders):
    former_run(folders, capacity=40)  # frames 50 to 89 are left; 32 are wanted
    message = rewind_error(folders, config, 100)
    assert "overwritten" in message
    assert "keep_all_replay_buffers" in message


def test_a_replay_that_lost_transitions_since_is_an_error(config, folders):
    former_run(folders)
    with ReplayBuffer.open(folders.replay, writable=True) as replay:
        replay.truncate(30)
    message = rewind_error(folders, config, 100)
    assert "2 of the transitions of 100 updates are lost" in message


def test_the_copy_of_the_replay_is_used_where_there_is_one(config, folders):
    former_run(folders, capacity=40)
    with ReplayBuffer.create(folders.numbered_replay(100), *SIZES, 40) as copy:
        copy.append(transitions(32, first=1000))
    rewind(folders, config, 100)
    assert rewards_in(folders.replay) == list(range(1000, 1032))


def test_what_an_interrupted_attempt_left_is_no_obstacle(config, folders, monkeypatch):
    former_run(folders)
    with monkeypatch.context() as patch:
        patch.setattr(rewinding, "put_aside", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rewind(folders, config, 200)
    rewind(folders, config, 100)
    assert rewards_in(folders.replay) == list(range(32))
    assert numbered_checkpoints(folders, config) == [100]


@pytest.mark.parametrize("torn", ["0.1", "0.6,6,60,-6.2"])
def test_torn_lines_and_rows_of_later_times_are_left_behind(config, folders, torn):
    former_run(folders)
    with open(folders.scores, "a") as file:
        file.write(torn)
    rewind(folders, config, 200)
    assert rows_of(folders.scores)[-1] == ["0.6", "6", "60", "-6"]


@pytest.mark.parametrize("killed_at", [1, 2])
def test_going_back_that_was_killed_between_its_renamings_is_finished(
    config, folders, monkeypatch, killed_at
):
    former_run(folders)
    renamings = []
    rename = Path.rename

    def rename_or_die(path, target):
        renamings.append(path)
        if len(renamings) == killed_at:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename_or_die)
        with pytest.raises(KeyboardInterrupt):
            rewind(folders, config, 100)
    finish_rewind(folders)
    # Before the first renaming nothing has happened, after it all has.
    frames = 90 if killed_at == 1 else 32
    assert rewards_in(folders.replay) == list(range(frames))
    finish_rewind(folders)
    assert rewards_in(folders.replay) == list(range(frames))


def test_who_is_just_going_back_is_not_interfered_with(config, folders, monkeypatch):
    """Between its renamings there is no folder, but one that is complete."""
    former_run(folders)

    def put_aside_and_look(folders):
        aside = put_aside(folders)
        with pytest.raises(UserError, match="in use by another launch"):
            finish_rewind(folders)
        return aside

    monkeypatch.setattr(rewinding, "put_aside", put_aside_and_look)
    with claimed(folders):
        rewind(folders, config, 200)
    assert rewards_in(folders.replay) == list(range(62))


def test_where_nothing_was_interrupted_there_is_nothing_to_finish(config, folders):
    finish_rewind(folders)
    assert not folders.root.exists()
    former_run(folders)
    before = tree(folders.root)
    finish_rewind(folders)
    assert tree(folders.root) == before


# Opening


def test_a_fresh_output_has_folders_an_empty_replay_and_a_board(config, folders):
    with claimed(folders):
        assert open_now(folders, config) == []
    with ReplayBuffer.open(folders.replay) as replay:
        assert (replay.obs_dim, replay.action_dim) == SIZES
        assert replay.frames == 0
        assert replay.capacity == config.replay_capacity
    board = Board.open(folders.board)
    assert board["worldmodel"]["updates"] == 0
    assert folders.process_output("valuerl").parent.is_dir()


def test_opened_again_everything_is_still_there(config, folders):
    open_now(folders, config)
    with ReplayBuffer.open(folders.replay, writable=True) as replay:
        replay.append(transitions(20))
    board = Board.open(folders.board)
    board["valuerl"]["updates"] = 7
    row = board["evaluator0"]
    row["epoch"], row["episodes"] = 3, 2
    assert open_now(folders, config) == []
    assert rewards_in(folders.replay) == list(range(20))
    row = Board.open(folders.board)["evaluator0"]
    assert (row["epoch"], row["episodes"]) == (3, 2)
    assert Board.open(folders.board)["valuerl"]["updates"] == 0


def damage_replay(folders, frame):
    path = folders.replay / "replay.bin"
    with ReplayBuffer.open(folders.replay) as replay:
        row_bytes = (path.stat().st_size - HEADER_BYTES) // replay.capacity
    with open(path, "r+b") as file:
        file.seek(HEADER_BYTES + frame * row_bytes)
        file.write(b"\xff")


def test_a_damaged_tail_of_the_replay_is_dropped_and_reported(config, folders):
    open_now(folders, config)
    with ReplayBuffer.open(folders.replay, writable=True) as replay:
        replay.append(transitions(20))
    damage_replay(folders, 17)
    (note,) = open_now(folders, config)
    assert "3 damaged transitions" in note
    assert "\n" not in note
    assert rewards_in(folders.replay) == list(range(17))
    assert open_now(folders, config) == []


def test_a_replay_that_is_none_is_an_error(config, folders):
    open_now(folders, config)
    (folders.replay / "replay.bin").write_bytes(b"something else")
    with pytest.raises(UserError, match=re.escape(str(folders.replay))) as caught:
        open_now(folders, config)
    one_line(caught)


def test_a_damaged_state_is_reported_where_an_earlier_one_is_good(config, folders):
    open_now(folders, config)
    path = folders.state("valuerl")
    for updates in (1, 2):
        metadata = {"updates": updates}
        tensors = {"w": np.ones(3, np.float32)}
        checkpoint.publish(path, tensors, metadata, keep_previous=True)
    assert open_now(folders, config) == []
    path.write_bytes(path.read_bytes()[:-1])
    (note,) = open_now(folders, config)
    assert str(path) in note
    checkpoint.previous_path(path).unlink()
    with pytest.raises(CheckpointError):
        open_now(folders, config)


def test_what_killed_writers_left_is_removed(config, folders):
    open_now(folders, config)
    save_state(folders, "valuerl", 1, 1, 1, numbered=False)
    leftovers = [
        folders.checkpoints / ".valuerl.safetensors.123.tmp",
        folders.log / ".run.json.123.tmp",
        folders.replay / ".replay.bin.123.tmp",
    ]
    for leftover in leftovers:
        leftover.touch()
    open_now(folders, config)
    assert not any(leftover.exists() for leftover in leftovers)
    assert folders.state("valuerl").exists()


def test_output_that_cannot_be_written_is_an_error(config, folders):
    folders.root.parent.mkdir(parents=True)
    folders.root.touch()  # a file where the folder should be
    with pytest.raises(UserError, match=re.escape(str(folders.root))) as caught:
        open_now(folders, config)
    one_line(caught)


# Seeds


def test_every_process_launch_and_restart_has_a_seed_of_its_own(tmp_path):
    seeds = set()
    count = 0
    for seed in range(3):
        config = make_config(
            tmp_path,
            model=True,
            seed=seed,
            agent_config={"count": 3},
            evaluator_config={"count": 3},
        )
        for name in process_names(config):
            for launch in range(4):
                for restart in range(6):
                    seeds.add(derive_seed(config, name, launch, restart))
                    count += 1
    assert count == 3 * 9 * 4 * 6
    assert len(seeds) == count
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_equal_inputs_give_the_same_seed_in_every_process(tmp_path):
    config = make_config(tmp_path, model=True, seed=5)
    seeds = [derive_seed(config, name, 1, 2) for name in process_names(config)]
    again = make_config(tmp_path / "elsewhere", model=True, seed=5)
    assert seeds == [derive_seed(again, name, 1, 2) for name in process_names(again)]
    script = (
        "from support import make_config\n"
        "from steve.storage.folders import derive_seed\n"
        "from steve.settings.roles import process_names\n"
        f"config = make_config({str(tmp_path)!r}, model=True, seed=5)\n"
        "print([derive_seed(config, n, 1, 2) for n in process_names(config)])\n"
    )
    path = str(ROOT / "tests")
    output = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert json.loads(output.stdout) == seeds


# Records


def test_a_run_without_a_record_has_an_empty_one(folders):
    assert read_run(folders) == {
        "experiment": "first",
        "starts": [],
        "finished": None,
    }


def test_a_record_that_is_no_json_is_named(folders):
    folders.log.mkdir(parents=True)
    folders.run.write_text("{")
    with pytest.raises(UserError, match=re.escape(str(folders.run))) as caught:
        read_run(folders)
    one_line(caught)


def test_a_start_is_recorded_with_all_that_it_takes_to_repeat_it(
    config, folders, monkeypatch
):
    folders.log.mkdir(parents=True)
    monkeypatch.setattr(
        sys, "argv", ["/somewhere/main.py", "a b.json", "0", "--resume"]
    )
    record = read_run(folders)
    for launch, resumed in enumerate((False, True)):
        devices = {"valuerl": "GPU-1", "worldmodel": "GPU-2"}
        record["starts"].append(start_record(config, launch, devices, resumed))
        write_json(folders.run, record)
    starts = json.loads(folders.run.read_text())["starts"]
    assert starts == record["starts"]
    assert [start["resumed"] for start in starts] == [False, True]
    for launch, start in enumerate(starts):
        assert start["command"] == ["main.py", "a b.json", "0", "--resume"]
        assert start["devices"] == {"valuerl": "GPU-1", "worldmodel": "GPU-2"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", start["time"])
        assert start["seeds"] == {
            name: derive_seed(config, name, launch, 0) for name in process_names(config)
        }
        assert start["versions"]["numpy"] == np.__version__
        assert start["python"] == sys.version.split()[0]
        assert start["host"] == os.uname().nodename
        commit = start["commit"]
        assert commit is None or re.fullmatch(r"[0-9a-f]{40}\+?", commit)
    assert read_run(folders) == record


def test_a_package_that_is_not_installed_has_no_version(config, monkeypatch):
    monkeypatch.setattr(record_module, "PACKAGES", ("numpy", "no-such-package"))
    versions = start_record(config, 0, {}, False)["versions"]
    assert versions == {"numpy": np.__version__, "no-such-package": None}


def test_json_is_published_whole_and_ends_with_a_line_break(tmp_path):
    path = tmp_path / "run.json"
    write_json(path, {"a": [1, None, "ü"]})
    assert json.loads(path.read_text()) == {"a": [1, None, "ü"]}
    assert path.read_text().endswith("}\n")
    assert os.listdir(tmp_path) == ["run.json"]


# What a kill before everything leaves, and what the disk is


def test_temporary_files_are_no_output(config, folders):
    """They are all that is there of a launch killed while it wrote its first file."""
    (folders.root / "log").mkdir(parents=True)
    (folders.log / ".hps.json.123.tmp").write_text("{")
    assert not has_output(folders)
    check_mode(folders, MERGED, "fresh")
    open_now(folders, config)
    assert has_output(folders)


def test_a_network_filesystem_is_one_line_that_says_what_is_promised(
    config, folders, monkeypatch
):
    monkeypatch.setattr(opening, "network_filesystem", lambda path: "nfs4")
    (note,) = open_now(folders, config)
    assert note.startswith(f"{folders.root} is on a network filesystem (nfs4): ")
    assert "one host" in note
    assert "not promised" in note
    assert "\n" not in note


def test_a_local_filesystem_is_nothing_to_speak_of(config, folders, monkeypatch):
    monkeypatch.setattr(opening, "network_filesystem", lambda path: None)
    assert open_now(folders, config) == []


def test_a_full_disk_is_one_line_with_path_and_free_bytes(config, folders, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", str(folders.hyperparameters))

    monkeypatch.setattr(opening, "write_json", full)
    with pytest.raises(UserError, match=r"hps.json: No space left .* bytes are free"):
        open_now(folders, config)


# Two launches at once

LAUNCHES = """
import sys
from pathlib import Path
import support, support_env
from steve.storage import locks, opening
from steve.storage.folders import Folders, Run
from steve.util import UserError

config = support.make_config(Path(sys.argv[1]))
merged = config.model_dump(mode="json", by_alias=True)
for line in sys.stdin:
    number = line.strip()
    folders = Folders.of(config, f"run{number}")
    run = Run(config, folders, 3, 1, 0, True)
    try:
        opening.check_mode(folders, merged, "fresh")
        with locks.claimed(folders):
            opening.check_mode(folders, merged, "fresh")
            opening.open_output(run, merged)
            print("won", flush=True)
            sys.stdin.readline()
    except UserError as error:
        print(f"lost {error}", flush=True)
        sys.stdin.readline()
"""


def test_of_two_launches_at_once_one_wins_a_hundred_times(tmp_path):
    paths = str(ROOT / "tests")
    launches = [
        subprocess.Popen(
            [sys.executable, "-c", LAUNCHES, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]

    def tell(text):
        for launch in launches:
            launch.stdin.write(f"{text}\n")
            launch.stdin.flush()

    reasons = []
    try:
        for number in range(100):
            tell(number)
            lost, won = sorted(launch.stdout.readline() for launch in launches)
            assert won == "won\n", (lost, won)
            assert "in use by another launch" in lost or "holds output" in lost, lost
            reasons.append("in use" in lost)
            tell("on")
    finally:
        for launch in launches:
            launch.communicate(timeout=PATIENCE)
    assert any(reasons), "they were never there at once"
