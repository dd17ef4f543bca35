"""Opening an experiment's folder: modes, earlier output, two launches at once."""

import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
from support import QUICKSTART
from support_storage import (
    MERGED,
    SIZES,
    learned,
    one_line,
    open_now,
    rewards_in,
    save_policy,
    save_state,
    transitions,
)

from steve.replay import ReplayBuffer
from steve.replay_file import HEADER_BYTES
from steve.settings.interface import EnvSizes, Interface
from steve.settings.request import Request
from steve.storage import checkpoint, conditions, opening
from steve.storage.checkpoint import CheckpointError
from steve.storage.folders import Folders, Run
from steve.storage.locks import claimed
from steve.storage.opening import check_mode, has_output, removed_if_it_fails
from steve.storage.record import read_json, read_run, reasons_of, write_json
from steve.storage.scores import CSV_HEADER
from steve.util import RunError, UserError

# Modes


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
    before = MERGED["policy_config"]["batch_size"]
    for change in (
        f"seed {MERGED['seed']} -> 1",
        f"env.discount {MERGED['env']['discount']} -> 0.9",
        f"policy_config.batch_size {before} -> 64",
    ):
        assert change in message
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


def test_output_behind_links_is_output(folders, tmp_path):
    folders.root.mkdir(parents=True)
    for inner in (folders.log, folders.checkpoints):
        (tmp_path / inner.name).mkdir()
        inner.symlink_to(tmp_path / inner.name)
    assert not has_output(folders)
    (tmp_path / folders.checkpoints.name / "policy.safetensors").touch()
    assert "holds output" in mode_error(folders, MERGED, "fresh")


def test_a_first_opening_that_fails_leaves_nothing_behind_links_either(
    config, folders, tmp_path
):
    folders.root.mkdir(parents=True)
    (tmp_path / "log").mkdir()
    folders.log.symlink_to(tmp_path / "log")

    def fail_late():
        with removed_if_it_fails(folders):
            open_now(folders, config)
            assert list((tmp_path / "log").iterdir())
            raise UserError("no")

    with pytest.raises(UserError):
        fail_late()
    assert list((tmp_path / "log").iterdir()) == []
    assert not has_output(folders)


@pytest.mark.parametrize("mode", ["fresh", "overwrite", "resume_or_start"])
def test_a_new_run_is_not_called_as_what_was_put_aside(folders, mode):
    aside = replace(folders, root=folders.root.with_name("x.old1"), experiment="x.old1")
    assert "give another --name" in mode_error(aside, MERGED, mode)
    assert "nothing to resume" in mode_error(aside, MERGED, "resume")
    (aside.root / "log").mkdir(parents=True)  # such a one may be resumed
    write_json(aside.root / "log" / "hps.json", MERGED)
    there = Folders.at(aside.root, folders.log.name, "checkpoints", "x.old1")
    assert check_mode(there, MERGED, "resume")


def test_a_file_in_place_of_the_folder_is_one_line(folders):
    folders.root.parent.mkdir(parents=True)
    folders.root.write_text("notes")
    with pytest.raises(UserError, match=r"Not a directory") as caught, claimed(folders):
        pass
    assert str(folders.root) in one_line(caught)
    assert folders.root.read_text() == "notes"


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (KeyboardInterrupt(), {"code": 0, "why": None}),
        (ValueError("a\nb"), {"code": 1, "why": "a b"}),
        (UserError("c"), {"code": 2, "why": "c"}),
        (RunError("d"), {"code": 1, "why": "d"}),
    ],
)
def test_an_end_before_the_processes_is_recorded(tmp_path, error, end):
    request = Request(QUICKSTART, "cpu", overrides=(f"output_root={tmp_path}",))

    def measure(config):
        return opening.Measured(EnvSizes(3, 1, None))

    with (
        pytest.raises(type(error)),
        opening.opened(request, measure, {}, lambda line: None) as run,
    ):
        raise error
    (start,) = read_run(run.folders)["starts"]
    assert {key: start["ended"][key] for key in end} == end


def test_temporary_files_are_no_output(config, folders):
    """They are all that is there of a launch killed while it wrote its first file."""
    (folders.root / "log").mkdir(parents=True)
    (folders.log / ".hps.json.123.tmp").write_text("{")
    assert not has_output(folders)
    check_mode(folders, MERGED, "fresh")
    open_now(folders, config)
    assert has_output(folders)


# A first opening that fails


@pytest.mark.parametrize("error", [UserError("no"), ValueError("bug"), OSError("io")])
def test_a_first_opening_that_fails_leaves_nothing(config, folders, monkeypatch, error):
    """So the corrected call starts; what somebody else put there stays."""

    def fail(*arguments):
        raise error

    for is_there in (False, True):
        if is_there:
            (folders.root / "empty").mkdir(parents=True)
        with monkeypatch.context() as broken:
            broken.setattr(ReplayBuffer, "create", fail)
            with (
                claimed(folders),
                pytest.raises((UserError, ValueError)),
                opening.removed_if_it_fails(folders),
            ):
                open_now(folders, config)
        assert not has_output(folders)
        assert folders.root.exists() == is_there
    assert list(folders.root.iterdir()) == [folders.root / "empty"]
    check_mode(folders, MERGED, "fresh")
    open_now(folders, config)
    assert has_output(folders)


def test_what_a_user_puts_there_while_an_opening_fails_stays(config, folders, tmp_path):
    (tmp_path / "states").mkdir()
    folders.root.mkdir(parents=True)
    folders.checkpoints.symlink_to(tmp_path / "states")
    mine = [
        folders.root / "notes.md",
        folders.log / "processes" / "notes.md",
        folders.checkpoints / "notes.md",
        folders.replay / "notes.md",
    ]

    def fail_late():
        with removed_if_it_fails(folders):
            open_now(folders, config)
            for path in mine:
                path.write_text("mine")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_late()
    assert all(path.read_text() == "mine" for path in mine)
    for path in mine:
        path.unlink()
    assert not has_output(folders)


def test_a_later_opening_that_fails_removes_nothing(config, folders):
    open_now(folders, config)
    before = sorted(folders.root.rglob("*"))
    with pytest.raises(UserError), opening.removed_if_it_fails(folders):
        raise UserError("no")
    assert sorted(folders.root.rglob("*")) == before


# Output


def test_a_fresh_output_has_folders_and_an_empty_replay(config, folders):
    with claimed(folders):
        assert open_now(folders, config) == []
    with ReplayBuffer.open(folders.replay) as replay:
        assert (replay.obs_dim, replay.action_dim) == SIZES
        assert replay.frames == 0
        assert replay.capacity == config.replay_capacity
    assert folders.process_output("valuerl").parent.is_dir()


def test_opened_again_everything_is_still_there(config, folders):
    open_now(folders, config)
    with ReplayBuffer.open(folders.replay, writable=True) as replay:
        replay.append(transitions(20))
    assert open_now(folders, config) == []
    assert rewards_in(folders.replay) == list(range(20))


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
        replay.append(transitions(10))
        replay.append(transitions(10, 10))
    damage_replay(folders, 17)
    (note,) = open_now(folders, config)
    assert "10 damaged transitions" in note  # the whole vector step
    assert "\n" not in note
    assert rewards_in(folders.replay) == list(range(10))
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
        folders.policies.folder / ".policy-7.safetensors.tmp",
        folders.checkpoints / ".worldmodel.safetensors.previous.tmp",
        folders.root / ".events.out.tfevents.1.vm.steve.123.tmp",
    ]
    folders.policies.folder.mkdir()
    (folders.root / "work").mkdir()
    others = [
        folders.root / ".notes.tmp",
        folders.root / ".analysis.json.tmp",
        folders.root / "work" / ".dict.bin.7.tmp",
        folders.log / ".my.csv.tmp",
    ]
    for path in (*leftovers, *others):
        path.touch()
    (folders.root / ".wandb.json.tmp").mkdir()
    open_now(folders, config)
    assert all(other.exists() for other in others)
    assert not any(leftover.exists() for leftover in leftovers)
    assert folders.state("valuerl").exists()


def test_output_that_cannot_be_written_is_an_error(config, folders):
    folders.root.parent.mkdir(parents=True)
    folders.root.touch()  # a file where the folder should be
    with pytest.raises(UserError, match=re.escape(str(folders.root))) as caught:
        open_now(folders, config)
    one_line(caught)


# What a run of version 1.0 left under one name


def version_1_run(folders, config, value=1000, model=1000):
    """The value learner's state says nothing of the world model that it had."""
    learned(folders, config, value, model)
    save_policy(folders, value)


def test_a_policy_under_one_name_gets_its_number(config, folders):
    learned(folders, config)
    assert folders.policies.numbers() == []
    save_policy(folders, 1000)
    open_now(folders, config)
    assert folders.policies.numbers() == [1000]
    assert checkpoint.load(folders.policies.path(1000)).metadata["updates"] == 1000
    save_policy(folders, 1500)  # those that are there are not added to
    open_now(folders, config)
    assert folders.policies.numbers() == [1000]


def test_a_damaged_policy_is_left_to_the_value_learner(config, folders):
    learned(folders, config)
    save_policy(folders, 1000)
    folders.policy.write_bytes(folders.policy.read_bytes()[:-1])
    open_now(folders, config)
    assert folders.policies.numbers() == []


def test_the_value_learner_finds_the_world_model_of_a_run_of_version_1(config, folders):
    version_1_run(folders, config)
    assert open_now(folders, config) == []
    assert folders.models.numbers() == [1000]
    found = checkpoint.load(folders.models.path(1000))
    assert found.metadata["updates"] == 1000


def test_another_number_of_interactors_is_noted(config, folders):
    open_now(folders, config)
    assert "not_reproducible" not in read_run(folders)
    merged = read_json(folders.hyperparameters)
    merged["agent_config"] = {**merged.get("agent_config", {}), "count": 5}
    write_json(folders.hyperparameters, merged)
    open_now(folders, config)
    (reason,) = read_run(folders)["not_reproducible"]
    assert reason["why"] == "agent_config.count was 5 and is 1"


def value_state_with_model(folders, model_updates):
    metadata = {"updates": 1000, "epoch": 4, "model_updates": model_updates}
    tensors = {"valuerl/w": np.ones(3, np.float32)}
    checkpoint.publish(folders.state("valuerl"), tensors, metadata)


def test_a_model_that_is_there_under_its_number_is_left_alone(config, folders):
    open_now(folders, config)
    value_state_with_model(folders, 500)
    save_state(folders, "worldmodel", 1000, 4, 350, numbered=False)
    folders.models.add(500, folders.state("valuerl"))
    before = folders.models.path(500).read_bytes()
    assert open_now(folders, config) == []
    assert folders.models.numbers() == [500]
    assert folders.models.path(500).read_bytes() == before


@pytest.mark.parametrize("updates", [500, 700])
def test_a_missing_model_is_replaced_by_the_newest_state(config, folders, updates):
    open_now(folders, config)
    value_state_with_model(folders, 500)
    save_state(folders, "worldmodel", updates, 4, 350, numbered=False)
    assert open_now(folders, config) == []
    found = checkpoint.load(folders.models.path(500))
    assert found.metadata["updates"] == updates
    reasons = reasons_of(read_run(folders))
    assert len(reasons) == (updates != 500)
    assert all("that of 700 is used instead" in reason for reason in reasons)


def test_a_damaged_state_is_not_what_is_published(config, folders):
    open_now(folders, config)
    value_state_with_model(folders, 500)
    path = folders.state("worldmodel")
    for updates in (500, 700):
        metadata = {"updates": updates, "epoch": 4}
        tensors = {"worldmodel/w": np.ones(3, np.float32)}
        checkpoint.publish(path, tensors, metadata, keep_previous=True)
    path.write_bytes(path.read_bytes()[:-1])
    (note,) = open_now(folders, config)  # of the damaged state
    assert "is used instead" in note
    found = checkpoint.load(folders.models.path(500))
    assert found.metadata["updates"] == 500


@pytest.mark.parametrize(("model_updates", "epoch"), [(-1, 4), (500, 0)])
def test_before_the_first_model_nothing_is_published(
    config, folders, model_updates, epoch
):
    open_now(folders, config)
    value_state_with_model(folders, model_updates)
    save_state(folders, "worldmodel", 0, epoch, 350, numbered=False)
    assert open_now(folders, config) == []
    assert folders.models.numbers() == []


# What is resumed


def test_a_resume_says_where_each_learner_continues(config, folders):
    run = Run(config, folders, *SIZES, launch=1, cpu_learners=True)
    open_now(folders, config)
    begun = f"resuming {folders.root}"
    assert opening.what_is_resumed(run) == f"{begun}: 0 frames"
    with ReplayBuffer.open(folders.replay, writable=True) as replay:
        replay.append(transitions(20))
    tensors = {"worldmodel/w": np.ones(3, np.float32)}
    counters = {"updates": 0, "epoch": 0, "pretrained": 1500}
    checkpoint.publish(folders.state("worldmodel"), tensors, counters)
    assert opening.what_is_resumed(run) == (
        f"{begun}: 20 frames; worldmodel after 1,500 updates of pretraining"
    )
    checkpoint.publish(
        folders.state("worldmodel"), tensors, counters | {"updates": 900, "epoch": 3}
    )
    save_state(folders, "valuerl", 1000, 4, 18, numbered=False)
    assert opening.what_is_resumed(run) == (
        f"{begun}: 20 frames; valuerl after 1,000 updates, in epoch 4; "
        "worldmodel after 900 updates, in epoch 3"
    )


# What the disk is


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


# Notes


@pytest.mark.parametrize(("rescale", "said"), [(False, 1), (True, 0)])
def test_actions_that_do_not_span_the_environments_box_are_noted(
    tmp_path, rescale, said
):
    interface = Interface((), (-2000.0,), (2000.0,), (1,), "float32", rescale, 0.0)
    overrides = (f"output_root={tmp_path}", "agent_config.count=1")
    request = Request(QUICKSTART, "cpu", overrides=overrides)
    notes = []
    sizes = EnvSizes(3, 1, interface)
    with opening.opened(
        request, lambda config: opening.Measured(sizes), {}, notes.append
    ):
        pass
    assert sum("env.rescale_actions" in line for line in notes) == said
    assert sum("InvertedPendulum-v5" in line for line in notes) == said


def test_a_resume_on_another_processor_is_one_line(tmp_path, monkeypatch):
    notes = []
    overrides = (f"output_root={tmp_path}", "agent_config.count=1")

    def open_with(start):
        request = Request(QUICKSTART, "cpu", start, overrides=overrides)
        sizes = EnvSizes(3, 1, None)
        with opening.opened(
            request, lambda config: opening.Measured(sizes), {}, notes.append
        ) as run:
            return run.folders

    with ReplayBuffer.open(open_with("fresh").replay, writable=True) as replay:
        replay.append(transitions(7))
    open_with("resume")
    assert not [line for line in notes if "repeated" in line]
    monkeypatch.setattr(conditions, "processor", lambda: "another one")
    open_with("resume")
    (line,) = [line for line in notes if "repeated" in line]
    assert line.startswith("from frame 7 on this run cannot be repeated to the bit")
    assert line.endswith("and is another one")


def test_a_resume_says_what_it_has_otherwise(tmp_path):
    notes = []

    def open_with(start, *overrides):
        notes.clear()
        fixed = (f"output_root={tmp_path}", "env.step_timeout=9")
        request = Request(QUICKSTART, "cpu", start, overrides=(*fixed, *overrides))
        with opening.opened(
            request,
            lambda config: opening.Measured(EnvSizes(3, 1, None)),
            {},
            notes.append,
        ):
            pass
        return [line for line in notes if "changed" in line]

    assert open_with("fresh", "total_frames=5000") == []
    assert open_with("resume", "total_frames=5000") == []
    assert open_with("resume", "total_frames=null", "evaluator_config.count=0") == [
        "changed since the last launch: evaluator_config.count 2 -> 0, "
        "total_frames 5000 -> null"
    ]
    assert open_with("resume", "total_frames=null", "evaluator_config.count=0") == []


# Damaged tables

ROWS = b"0.1,1,10,1.5\n0.2,2,20,2.5\n"


def test_damaged_scores_are_counted_in_one_line(folders, config):
    learned(folders, config)
    content = CSV_HEADER + b"\n0.1,1-10,1.5\n" + ROWS
    folders.scores.write_bytes(content)
    (note,) = open_now(folders, config)
    assert note == f"{folders.scores}: 2 damaged lines are passed over"
    assert folders.scores.read_bytes() == content


@pytest.mark.parametrize("first", [b"hours,epoch3,frames,score", b"", b"\xff\0"])
def test_scores_get_the_names_of_their_columns_again(folders, config, first):
    learned(folders, config)
    folders.scores.write_bytes(first + b"\n" + ROWS)
    (note,) = open_now(folders, config)
    assert note.startswith(f"{folders.scores}: its first line was damaged")
    assert folders.scores.read_bytes() == CSV_HEADER + first + b"\n" + ROWS


def test_a_log_without_the_names_of_its_columns_is_put_aside(folders, config):
    log = folders.learner_log("valuerl")
    log.parent.mkdir(parents=True)
    log.write_bytes(b"hours,updatez\n0.1,10\n")
    (note,) = open_now(folders, config)
    aside = log.with_name("valuerl.log.damaged")
    assert note == f"{log}: its first line is damaged; it is now {aside.name}"
    assert aside.read_bytes() == b"hours,updatez\n0.1,10\n"
    assert not log.exists()


def test_a_pipe_in_place_of_a_file_is_one_line_and_is_not_waited_for(folders, config):
    folders.log.mkdir(parents=True)
    for path in (folders.scores, folders.learner_log("valuerl"), folders.digests):
        os.mkfifo(path)
        with pytest.raises(UserError, match="is not a regular file") as caught:
            open_now(folders, config)
        assert str(path) in one_line(caught)
        path.unlink()
    for path in (folders.hyperparameters, folders.run):
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        with pytest.raises(UserError, match="cannot be read") as caught:
            read_json(path)
        assert str(path) in one_line(caught)


# Renamed folders


def test_scores_go_on_in_one_file_where_the_folder_was_renamed(folders, config):
    learned(folders, config)
    earlier = folders.log / "earlier.greedy.csv"
    earlier.write_bytes(CSV_HEADER + ROWS)
    (note,) = open_now(folders, config)
    assert note == f"{earlier} is now first.greedy.csv, as the folder's name says"
    assert folders.scores.read_bytes() == CSV_HEADER + ROWS
    assert not earlier.exists()


def test_scores_of_two_names_are_left_as_they_are(folders, config):
    learned(folders, config)
    for name in ("earlier", "first"):
        (folders.log / f"{name}.greedy.csv").write_bytes(CSV_HEADER + ROWS)
    assert open_now(folders, config) == []
    assert (folders.log / "earlier.greedy.csv").exists()
