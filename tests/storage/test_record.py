"""An experiment's records: starts, versions, and whether it has finished."""

import json
import os
import re
import sys

import numpy as np
import pytest
from support_storage import one_line

from steve.settings.roles import process_names
from steve.storage import record as record_module
from steve.storage.folders import derive_seed
from steve.storage.record import is_finished, read_run, start_record, write_json
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
