"""verify.py: what is compared, and what is said of differences."""

import json
import re

import numpy as np
import pytest
from support import make_config, make_run

from steve import verify
from steve.running.launch import FREE_SOME
from steve.settings.schema import Config
from steve.storage import checkpoint
from steve.storage.digests import Digest, append_digest
from steve.storage.folders import Folders
from steve.storage.record import (
    record_computing,
    record_nondeterminism,
    record_start,
    write_json,
)
from steve.util import RunError

PACE = 10  # updates of an epoch, one for each frame


def line(updates, epoch=None, **fields):
    epoch = 1 + updates // PACE if epoch is None else epoch
    values = {name: f"{name} of {updates}" for name in Digest._fields[3:]}
    return Digest(epoch, updates, 100 + updates, **{**values, **fields})


LINES = [line(updates) for updates in range(0, 50, PACE)]


# Two lists of digests


def test_equal_lists_are_the_same_as_far_as_both_go():
    assert verify.compare(LINES, LINES, 5) == verify.Comparison(5, 5)
    assert verify.compare(LINES, LINES[:3], 5) == verify.Comparison(3, 5)
    assert verify.compare(LINES, [], 5) == verify.Comparison(0, 5)
    assert verify.compare(LINES, LINES[:3], 2) == verify.Comparison(2, 2)


@pytest.mark.parametrize("name", ["frames", "state", "policy", "model", "rows"])
def test_the_first_epoch_that_differs_is_named_and_in_what(name):
    again = [*LINES]
    again[3] = again[3]._replace(**{name: 7})
    again[4] = again[4]._replace(state="another")
    found = verify.compare(LINES, again, 5)
    assert (found.same, found.difference) == (3, (LINES[3], [name]))
    assert verify.report(found, 5) == f"differs from epoch 4 on: {name}"


def test_a_damaged_line_of_either_list_hides_no_difference_behind_it():
    without = LINES[:2] + LINES[3:]
    assert verify.compare(without, LINES, 4) == verify.Comparison(4, 4)
    assert verify.compare(LINES, without, 5) == verify.Comparison(5, 5)
    other = [*LINES[:4], LINES[4]._replace(state="another")]
    assert verify.compare(without, other, 4).difference == (LINES[4], ["state"])


def test_an_end_that_was_continued_is_one_epoch_more_and_no_difference():
    """The epochs after it have another number, and its frames are in two lines."""
    end = line(25, epoch=4)
    later = [line(30, epoch=5, rows="the last five"), line(40, epoch=6)]
    continued = [*LINES[:3], end, *later]
    assert verify.compare(continued, LINES, 6) == verify.Comparison(6, 6)
    assert verify.compare(continued, LINES[:3], 6) == verify.Comparison(3, 6)
    later[1] = later[1]._replace(rows="others")
    found = verify.compare([*LINES[:3], end, *later], LINES, 6)
    assert found.difference == (later[1], ["rows"])


# The command


@pytest.fixture
def earlier(tmp_path):
    """An experiment as a run left it."""
    keys = {"policy_config": {"frames_per_update": 1.0}, "total_hours": 1.0}
    config = make_config(tmp_path / "output", **keys)
    run = make_run(config)
    folders = run.folders
    merged = config.model_dump(mode="json", by_alias=True)
    write_json(folders.hyperparameters, merged)
    record_start(run, resumed=False)
    record_computing(folders, "valuerl", {"xla": True})
    for each in LINES:
        append_digest(folders.digests, each)
    return folders


@pytest.fixture
def repetition(monkeypatch):
    """What `train` does in the test: a list of the lines that it writes."""
    lines = [*LINES]
    lines_of = {"xla": True, "lines": lines, "requests": []}

    def train(request, on_epoch, *, show, in_python):
        assert not in_python
        lines_of["requests"].append(request)
        config = Config.model_validate(request.loaded.merged)
        again = Folders.of(config, "again")
        run = make_run(config, "again")
        record_start(run, resumed=False)
        record_computing(again, "valuerl", {"xla": lines_of["xla"]})
        for each in lines_of["lines"]:
            append_digest(again.digests, each)
            on_epoch(None)

    monkeypatch.setattr(verify, "train", train)
    return lines_of


def verified(folders, capsys, *options):
    code = verify.main([str(folders.root), "cpu", *options])
    return code, capsys.readouterr().out.splitlines()


def test_a_full_disk_is_that_of_the_temporary_folder(earlier, monkeypatch, capsys):
    def train(*_, **__):
        raise RunError(f"there/run.json: No space left on device; {FREE_SOME}")

    monkeypatch.setattr(verify, "train", train)
    assert verify.main([str(earlier.root), "cpu"]) == 1
    line = "there/run.json: No space left on device; free some, or name a larger disk "
    assert capsys.readouterr().err == f"verify.py: {line}in TMPDIR\n"


def test_a_wrong_device_is_named_as_on_the_command_line(earlier, capsys):
    assert verify.main([str(earlier.root), "gpu"]) == 2
    assert "GPU_ID must be a whole number" in capsys.readouterr().err


def test_a_run_that_repeats_itself_is_identical(earlier, repetition, capsys):
    said = ["identical to the bit up to epoch 5 (all)"]
    assert verified(earlier, capsys) == (0, said)
    said = ["identical to the bit up to epoch 2 of 5"]
    assert verified(earlier, capsys, "--epochs", "2") == (0, said)
    request = repetition["requests"][0]
    assert request.loaded.config.evaluator_config.count == 0
    assert request.loaded.config.total_hours is None
    assert not str(request.loaded.config.output_root).startswith(str(earlier.root))


def test_a_difference_is_said_with_all_that_can_be_the_cause(
    earlier, repetition, capsys
):
    repetition["lines"][3] = LINES[3]._replace(state="x", policy="y")
    code, (differs, size) = verified(earlier, capsys)
    assert code == 1
    assert differs == "differs from epoch 4 on: state, policy"
    assert size == "by how much is not known: the policy of that epoch is not kept"
    record = json.loads(earlier.run.read_text())
    record["starts"][0] |= {"processor": "another", "commit": "0123"}
    write_json(earlier.run, record)
    repetition["xla"] = False
    code, (*notes, differs, _) = verified(earlier, capsys)
    assert code == 1
    assert notes[0].startswith("note: the processor was another and is ")
    assert notes[-1] == "note: valuerl's xla was true and is false"
    assert differs == "differs from epoch 4 on: state, policy"


def test_the_largest_difference_of_a_weight_is_said_where_both_policies_are_kept(
    tmp_path,
):
    both = [Folders.at(tmp_path / name, "log", "c", name) for name in ("a", "b")]
    for folders, value in zip(both, (1.0, 1.25), strict=True):
        folders.checkpoints.mkdir(parents=True)
        weights = {"policy/w0": np.full((2, 2), value, np.float32)}
        checkpoint.publish(folders.policy, weights, {"updates": 30})
        folders.policies.add(30, folders.policy)
    found = verify.how_far(*both, 30)
    assert found == "largest difference of a weight of the policy: 0.25"


def test_what_made_the_run_impossible_to_repeat_is_said_first(
    earlier, repetition, capsys
):
    record_nondeterminism(earlier, 1200, "valuerl: rows are lost")
    code, (note, _) = verified(earlier, capsys)
    assert code == 0
    assert re.fullmatch(r"note: from frame 1,200 on .*: valuerl: rows are lost", note)


def test_a_run_whose_record_is_gone_is_compared_all_the_same(
    earlier, repetition, capsys
):
    earlier.run.unlink()
    assert verified(earlier, capsys)[0] == 0


@pytest.mark.parametrize("key", ["digests", "pace", "folder", "key"])
def test_what_cannot_be_verified_is_one_line(earlier, repetition, capsys, key):
    folder = str(earlier.root)
    if key == "digests":
        earlier.digests.unlink()
        expected = "digests.csv: is missing or empty; the run has ended no epoch"
    elif key == "pace":
        merged = json.loads(earlier.hyperparameters.read_text())
        merged["policy_config"]["frames_per_update"] = False
        write_json(earlier.hyperparameters, merged)
        expected = "frames_per_update is false"
    elif key == "key":
        merged = json.loads(earlier.hyperparameters.read_text())
        write_json(earlier.hyperparameters, {**merged, "of_another_version": 1})
        expected = "hps.json is no configuration: of_another_version"
    else:
        folder = str(earlier.log / "processes")
        expected = "has no log/hps.json; name an experiment's folder"
    assert verify.main([folder, "cpu"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert expected in captured.err
    assert repetition["requests"] == []


def test_a_repetition_that_ends_early_without_a_difference_is_no_success(
    earlier, repetition, capsys
):
    del repetition["lines"][3:]
    code, (said,) = verified(earlier, capsys)
    assert (code, said) == (1, "identical to the bit up to epoch 3 of 5")


def test_the_repetition_is_on_the_device_and_tells_no_logger(
    earlier, repetition, capsys
):
    merged = json.loads(earlier.hyperparameters.read_text())
    merged["loggers"] = [{"entry_point": "wandb", "kwargs": {}}]
    write_json(earlier.hyperparameters, merged)
    assert verify.main([str(earlier.root), "3"]) == 0
    (request,) = repetition["requests"]
    config = request.loaded.config
    assert request.device == "3"
    assert (config.loggers, config.tensorboard, config.final_episodes) == ([], False, 0)
