"""Launches that meet: each holds its folder, from its first look to its end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import PATIENCE, PROJECT, QUICKSTART

from steve.settings.interface import EnvSizes
from steve.settings.request import Request
from steve.storage import opening
from steve.storage.folders import Folders
from steve.storage.locks import claimed
from steve.util import UserError

LAUNCHES = """
import sys
from pathlib import Path
from test_launches import start_of
from steve.util import UserError

for line in sys.stdin:
    try:
        with start_of(Path(sys.argv[1]), name=f"run{line.strip()}"):
            print("won", flush=True)
            sys.stdin.readline()
    except UserError as error:
        print(f"lost {error}", flush=True)
        sys.stdin.readline()
"""


def start_of(tmp_path, name=None, measured=lambda: None):
    sizes = EnvSizes(3, 1, None)
    request = Request(
        QUICKSTART, "cpu", overrides=(f"output_root={tmp_path}",), name=name
    )

    def measure(config):
        measured()
        return opening.Measured(sizes)

    return opening.opened(request, measure, {}, lambda line: None)


def test_of_two_launches_at_once_one_wins_each_time(tmp_path):
    paths = os.pathsep.join(map(str, (PROJECT / "tests", Path(__file__).parent)))
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
        for number in range(10):
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


def test_a_start_where_a_run_is_at_work_says_so_and_not_to_resume_it(tmp_path):
    with start_of(tmp_path) as run:
        assert run is not None
        refused = pytest.raises(UserError, match="in use by another launch; --name")
        with refused, start_of(tmp_path):
            pass
    refused = pytest.raises(UserError, match="holds output of an earlier run")
    with refused, start_of(tmp_path):
        pass


def test_a_run_is_held_under_whatever_name_its_folder_gets(tmp_path):
    with start_of(tmp_path) as run:
        other = run.folders.root.with_name("other")
        other.symlink_to(run.folders.root)
        renamed = Folders.of(run.config, "other")
        with pytest.raises(UserError, match="in use by another"), claimed(renamed):
            pass


def test_output_that_came_while_the_environment_was_asked_is_not_touched(tmp_path):
    def another_launch():
        with start_of(tmp_path):
            pass

    with (
        pytest.raises(UserError, match="holds output"),
        start_of(tmp_path, measured=another_launch),
    ):
        pass
