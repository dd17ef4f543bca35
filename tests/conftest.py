"""Settings that all tests share."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

# Set before any test module imports TensorFlow: its start-up notes bury the results.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Programs leave a SIGHUP alone that nohup has ignored: the tests must not be under it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Puts a stand-in for a program first on the PATH.

    It is given a name and what bash is to do; the returned file has a line with the
    arguments of each call.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def write(program: str, body: str = "") -> Path:
        calls = tmp_path / f"{program}.calls"
        script = folder / program
        script.write_text(f'#!/bin/bash\necho "$@" >> {calls}\n{body}\n')
        script.chmod(0o755)
        return calls

    return write
