"""An experiment's records: starts, versions, and whether it has finished."""

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from support import PATIENCE, make_config
from support_storage import SIZES, one_line

from steve.settings.roles import process_names, process_seed
from steve.storage import conditions as conditions_module
from steve.storage import record as record_module
from steve.storage.conditions import processor
from steve.storage.folders import Run
from steve.storage.record import (
    describe_start,
    is_finished,
    program_commit,
    read_run,
    reasons_of,
    record_computing,
    record_finish,
    record_nondeterminism,
    record_start,
    write_json,
)
from steve.util import UserError


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
    for resumed in (False, True):
        devices = {"valuerl": "GPU-1", "worldmodel": "GPU-2"}
        record["starts"].append(describe_start(config, devices, resumed))
        write_json(folders.run, record)
    starts = json.loads(folders.run.read_text())["starts"]
    assert starts == record["starts"]
    assert [start["resumed"] for start in starts] == [False, True]
    for start in starts:
        assert start["command"] == ["main.py", "a b.json", "0", "--resume"]
        assert start["devices"] == {"valuerl": "GPU-1", "worldmodel": "GPU-2"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", start["time"])
        assert start["seeds"] == {
            name: process_seed(config, name) for name in process_names(config)
        }
        assert start["versions"]["numpy"] == np.__version__
        assert start["python"] == sys.version.split()[0]
        assert start["host"] == os.uname().nodename
        assert start["processor"] == processor()
        commit = start["commit"]
        assert commit is None or re.fullmatch(r"[0-9a-f]{40}\+?", commit)
    assert read_run(folders) == record


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.parametrize("foreign", ["0", "1"])
def test_the_commit_is_known_of_another_owners_checkout_as_well(
    tmp_path, monkeypatch, foreign
):
    """Git refuses such a checkout, unless told that it is safe."""
    author = ("-c", "user.name=a", "-c", "user.email=a@b")

    def git(*words: str) -> str:
        command = ["git", *author, "-c", "safe.directory=*", *words]
        return subprocess.check_output(command, cwd=tmp_path, text=True).strip()

    file = tmp_path / "storage" / "record.py"
    file.parent.mkdir()
    file.touch()
    monkeypatch.setattr(record_module, "__file__", str(file))
    assert program_commit() is None
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", foreign)
    assert program_commit() == git("rev-parse", "HEAD")
    file.write_text("changed")
    assert program_commit() == git("rev-parse", "HEAD") + "+"


def test_a_package_that_is_not_installed_has_no_version(config, monkeypatch):
    monkeypatch.setattr(conditions_module, "PACKAGES", ("numpy", "no-such-package"))
    versions = describe_start(config, {}, False)["versions"]
    assert versions == {"numpy": np.__version__, "no-such-package": None}


def test_json_is_published_whole_and_ends_with_a_line_break(tmp_path):
    path = tmp_path / "run.json"
    write_json(path, {"a": [1, None, "ü"]})
    assert json.loads(path.read_text()) == {"a": [1, None, "ü"]}
    assert path.read_text().endswith("}\n")
    assert os.listdir(tmp_path) == ["run.json"]


# What makes a run impossible to repeat


def start(folders, config, frames=0):
    folders.log.mkdir(parents=True, exist_ok=True)
    record_start(Run(config, folders, *SIZES, 0, cpu_learners=True), False, frames)


def test_of_a_paced_run_nothing_says_that_it_cannot_be_repeated(config, folders):
    start(folders, config)
    assert "not_reproducible" not in read_run(folders)
    assert len(read_run(folders)["starts"]) == 1


def test_a_start_names_the_keys_that_leave_results_to_chance(folders, tmp_path):
    config = make_config(
        tmp_path / "output",
        model=True,
        policy_config={"frames_per_update": False},
        evaluator_config={"every_n_epochs": False},
    )
    for _ in range(2):  # a resume adds nothing
        start(folders, config)
    found = read_run(folders)["not_reproducible"]
    assert [each["from_frame"] for each in found] == [0, 0]
    assert [each["why"] for each in found] == config.sources_of_nondeterminism
    assert "policy_config.frames_per_update" in found[0]["why"]
    assert "every_n_epochs" in found[1]["why"]


def test_a_reason_counts_from_the_first_frame_at_which_it_was_met(config, folders):
    start(folders, config)
    for frame, why in ((70, "a"), (90, "b"), (80, "a"), (100, "a")):
        record_nondeterminism(folders, frame, why)
    record = read_run(folders)
    assert record["not_reproducible"] == [
        {"from_frame": 70, "why": "a"},
        {"from_frame": 90, "why": "b"},
    ]
    assert len(record["starts"]) == 1  # the rest of it stays


def test_the_end_is_recorded_next_to_what_is_there(config, folders):
    start(folders, config)
    record_nondeterminism(folders, 7, "a")
    record_finish(folders, 100, 0.5, -3.0)
    record = read_run(folders)
    finished = record["finished"]
    assert (finished["frames"], finished["hours"]) == (100, 0.5)
    assert finished["random_score"] == -3.0
    assert record["not_reproducible"] == [{"from_frame": 7, "why": "a"}]
    start(folders, config)
    assert read_run(folders)["finished"] is None


@pytest.fixture
def machine(monkeypatch):
    """What the machine says of itself; a test changes it between two starts."""
    found = conditions_module.conditions()
    monkeypatch.setattr("steve.storage.record.conditions", lambda: dict(found))
    return found


def test_a_resume_under_other_conditions_is_no_longer_the_same_run(
    config, folders, machine
):
    start(folders, config)
    machine["processor"] = "another one"
    start(folders, config)
    assert "not_reproducible" not in read_run(folders), "nothing was learned before"
    machine |= {"processor": "a third", "versions": {"numpy": "9.0"}}
    start(folders, config, 1200)
    start(folders, config, 1300)  # as the one before
    assert reasons_of(read_run(folders)) == [
        "from frame 1,200 on this run cannot be repeated to the bit: "
        "the processor was another one and is a third",
        "from frame 1,200 on this run cannot be repeated to the bit: "
        f"numpy was {np.__version__} and is 9.0",
    ]


def test_how_a_learner_computes_is_compared_with_the_last_launch_that_says_it(
    config, folders
):
    one, other = ({"xla": xla, "threads": 2} for xla in (True, False))
    start(folders, config)
    assert record_computing(folders, "valuerl", one) == []
    assert record_computing(folders, "worldmodel", other) == []
    assert record_computing(folders, "valuerl", one) == []  # after a restart
    start(folders, config)  # and was over before any learner was built
    start(folders, config)
    assert record_computing(folders, "valuerl", other) == ["xla was true and is false"]
    assert record_computing(folders, "worldmodel", other) == []
    assert [each.get("computing") for each in read_run(folders)["starts"]] == [
        {"valuerl": one, "worldmodel": other},
        None,
        {"valuerl": other, "worldmodel": other},
    ]


def note_reasons(folders, writer):
    for number in range(25):
        record_nondeterminism(folders, number, f"{writer}: {number}")


def test_no_reason_of_several_processes_is_lost(config, folders):
    start(folders, config)
    spawn = multiprocessing.get_context("spawn")
    writers = [
        spawn.Process(target=note_reasons, args=(folders, writer)) for writer in "abc"
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(PATIENCE)
        assert writer.exitcode == 0
    reasons = {each["why"] for each in read_run(folders)["not_reproducible"]}
    assert reasons == {f"{w}: {number}" for w in "abc" for number in range(25)}


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"starts": 3, "finished": None},
        {"starts": []},
        {"starts": [], "finished": 7},
        {"starts": [], "finished": {"frames": "1"}},
        {"starts": [], "finished": {"frames": "1", "hours": 0}},
        {"starts": [], "finished": None, "not_reproducible": {}},
        {"starts": [], "finished": None, "not_reproducible": ["x"]},
        {"starts": [], "finished": None, "not_reproducible": [{"why": "x"}]},
        {"starts": [{"versions": 3}], "finished": None},
    ],
)
def test_a_record_of_another_kind_is_one_line_that_says_what_to_do(folders, content):
    folders.log.mkdir(parents=True)
    write_json(folders.run, content)
    with pytest.raises(UserError, match=r"run\.json is no record of a run; rename"):
        read_run(folders)
