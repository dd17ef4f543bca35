"""The launch behind `steve.train`: what its end says. test_api.py trains."""

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import steve
from steve.running import training
from steve.running.launch import end_of
from steve.settings.request import Request
from steve.util import RunError, UserError

EVENT = {"epoch": 1, "updates": 0, "frames": 8, "hours": 0.0, "scores": [1.0, 2.0]}
LAUNCHER = """
import json, os, sys
events = os.fdopen(json.loads(sys.stdin.readline())["events"], "w")
events.write('%s' + "\\n")
events.flush()
sys.stdin.read()  # until it is asked to end
print("valuerl was ended by SIGKILL")
events.write('%s' + "\\n")
"""


def pretend(monkeypatch, last):
    """A launcher that reports an epoch, and how the run ended once asked to end."""
    program = LAUNCHER % (json.dumps(EVENT), json.dumps(last))
    monkeypatch.setattr(training, "SERVE", program)


def test_the_launcher_is_asked_to_end_by_a_line(monkeypatch):
    """A process that the program has forked may hold its standard input open."""
    program = LAUNCHER.replace("stdin.read()", "stdin.readline()")
    last = json.dumps({"folder": "output"})
    monkeypatch.setattr(training, "SERVE", program % (json.dumps(EVENT), last))
    forked = []

    def on_epoch(epoch):
        forked.append(os.fork())
        if not forked[-1]:
            time.sleep(20)  # at last it lets the launcher end
            os._exit(0)
        raise ValueError("enough")

    try:
        with pytest.raises(ValueError, match="enough"):
            training.train(Request("quickstart", "cpu"), on_epoch)
        assert os.waitpid(forked[0], os.WNOHANG) == (0, 0)
    finally:
        os.kill(forked[0], signal.SIGKILL)
        os.waitpid(forked[0], 0)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize(
    ("last", "notes"),
    [
        ({"error": "not saved; --resume it", "code": 1}, ["not saved; resume=True it"]),
        ({"folder": "output"}, []),
    ],
)
def test_what_on_epoch_raises_comes_with_how_the_run_ended(
    monkeypatch, kind, last, notes
):
    pretend(monkeypatch, last)
    epochs, lines = [], []

    def on_epoch(epoch):
        epochs.append(epoch)
        raise kind("enough")

    with pytest.raises(kind, match="enough") as raised:
        training.train(Request("quickstart", "cpu"), on_epoch, lines.append)
    assert epochs == [training.Epoch(1, 0, 8, 0.0, (1.0, 2.0))]
    assert lines == ["valuerl was ended by SIGKILL"]
    assert getattr(raised.value, "__notes__", []) == notes


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UserError("a mistake"), ("a mistake", 2)),
        (RunError("it failed"), ("it failed", 1)),
        (OSError(errno.EIO, "Input/output error", "run.json"), (None, 1)),
        (OSError(errno.ENOSPC, "No space left on device", "/"), (None, 1)),
    ],
)
def test_what_ends_a_launch_is_a_line_and_a_code(error, expected):
    line, code = end_of(error)
    assert (code, "\n" in line) == (expected[1], False)
    assert line == expected[0] or error.strerror.lower() in line.lower()


@pytest.mark.parametrize("error", [OSError(errno.EBADF, "Bad"), ValueError("a bug")])
def test_a_fault_of_ours_is_raised(error):
    with pytest.raises(type(error)):
        end_of(error)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"config": None}, "config must be a path, or a configuration's content, not"),
        ({"device": 1.0}, "device must be"),
        ({"set": ["seed=1"]}, "set must be an object of values by dotted key, not"),
        ({"set": {"seed=1": 2}}, "set: a key is a string without =, not 'seed=1'"),
        ({"frames": "9"}, "frames must be a whole number, not '9'"),
        ({"frames": True}, "frames must be a whole number, not True"),
        ({"hours": float("nan")}, "hours must be a number, not nan"),
        ({"hours": 10**400}, "hours must be a number, not a whole number beyond a "),
        ({"frames": 10**5000}, "frames must be a whole number, not a whole number be"),
        ({"name": 10**5000}, "name must be a string, not a whole number beyond"),
        ({"hours": "9"}, "hours must be a number"),
        ({"name": 3}, "name must be a string, not 3"),
        ({"resume": 0}, "resume must be True, False or None, not 0"),
        ({"overwrite": "no"}, "overwrite must be True or False, not 'no'"),
        ({"resume_from": "9"}, "resume_from must be a number of updates"),
        ({"name": "a/b"}, "name must be one plain folder name"),
        ({"device": "gpu"}, 'device must be a whole number or "cpu", not "gpu"'),
        ({"frames": -3}, "frames: total_frames must be"),
        ({"config": "bad name.json"}, "give another with name=..."),
    ],
)
def test_a_wrong_argument_is_one_line_in_pythons_words(
    tmp_path, monkeypatch, given, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad name.json").write_text('{"inherits": ["config/quickstart.json"]}')
    with pytest.raises(UserError) as refused:
        steve.train(**{"config": "quickstart"} | given)
    line = str(refused.value)
    assert said in line
    assert "\n" not in line
    assert "--" not in line


def test_numbers_may_be_numpys():
    given = dict.fromkeys(training.ARGUMENTS) | {"config": "x", "set": {}}
    given["overwrite"] = False
    numbers = {"device": np.int64(0), "frames": np.int32(9), "hours": np.float32(1)}
    training.check_arguments(**given | numbers)


def test_the_launcher_is_that_of_the_programs_own_path(tmp_path, monkeypatch):
    (tmp_path / "steve" / "running").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [Path("/nowhere"), *sys.path])
    fake = "print('found'); serve = lambda: print('its own'); "
    (tmp_path / "steve" / "running" / "training.py").write_text(fake)
    monkeypatch.syspath_prepend(str(tmp_path))
    shown = []
    with pytest.raises(RuntimeError, match="exit code 0"):
        training.train(Request("quickstart", "cpu"), show=shown.append)
    assert shown == ["found", "its own"]


def test_a_launcher_that_reports_no_end_is_a_fault(monkeypatch):
    monkeypatch.setattr(training, "SERVE", "import sys; sys.exit(3)")
    with pytest.raises(RuntimeError, match="ended with exit code 3"):
        training.train(Request("quickstart", "cpu"), show=lambda line: None)
