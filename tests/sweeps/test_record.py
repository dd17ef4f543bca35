"""The record of a sweep: written, read, and claimed by one call at a time."""

import errno
import json
import os
import subprocess
import sys

import pytest
from support import PROJECT, make_sweep

from steve.storage import locks
from steve.sweeps import record
from steve.util import UserError


def test_a_record_is_read_as_it_was_written_and_the_last_sweep_of_a_run_counts(
    tmp_path,
):
    first = make_sweep(tmp_path, "a", "b")
    second = make_sweep(tmp_path, "b", "c")
    assert [first.folder.name, second.folder.name] == ["1", "2"]
    assert record.load_all(tmp_path) == [first, second]
    latest = record.latest([first, second])
    assert latest == [(first, 0), (second, 0), (second, 1)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: "{",
        lambda content: "[" * 100_000,
        lambda content: json.dumps([content]),
        lambda content: json.dumps({"runs": 3}),
        lambda content: json.dumps({**content, "max_parallel": "many"}),
        lambda content: json.dumps({**content, "runs": [{"experiment": "a"}]}),
        lambda content: json.dumps(content).replace('"frames": 10000', '"frames": []'),
    ],
)
def test_a_damaged_record_is_one_line_and_the_others_are_read(tmp_path, damage):
    sweep, other = make_sweep(tmp_path, "a"), make_sweep(tmp_path, "b")
    path = sweep.folder / "sweep.json"
    content = json.loads(path.read_text())
    path.write_text(damage(content))
    said = []
    assert record.load_readable(tmp_path, said.append) == [other]
    assert len(said) == 1
    assert f"{path} cannot be read, or is no record of a sweep; rename" in said[0]
    with pytest.raises(UserError, match="is no record of a sweep") as caught:
        record.load_all(tmp_path)
    assert str(caught.value) == said[0]


def test_a_record_that_is_no_file_is_not_waited_for(tmp_path):
    path = make_sweep(tmp_path, "a").folder / "sweep.json"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="cannot be read"):
        record.load_all(tmp_path)


def test_what_is_raised_meanwhile_is_not_blamed_on_the_lock(tmp_path):
    with pytest.raises(OSError, match="No space left"), record.claimed(tmp_path):
        raise OSError(28, "No space left on device")
    with record.claimed(tmp_path):  # which is free again
        assert record.holder(tmp_path) is not None


def test_a_filesystem_without_locks_is_no_other_call(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("portalocker.portalocker.LOCKER", refuse)
    monkeypatch.setattr(locks, "ASKING_PATIENCE", 0.0)
    match = "filesystem without file locks .* choose another output_root"
    with pytest.raises(UserError, match=match), record.claimed(tmp_path):
        pass
    assert record.holder(tmp_path) is None


def test_one_call_at_a_time_starts_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "ASKING_PATIENCE", 0.0)
    assert record.holder(tmp_path) is None
    code = (
        "import sys, pathlib, signal\n"
        "from steve.sweeps import record\n"
        "with record.claimed(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True); signal.pause()"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(words, cwd=PROJECT, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        assert record.holder(tmp_path)[0] == other.pid
        with (
            pytest.raises(UserError, match="another sweep"),
            record.claimed(tmp_path),
        ):
            pass
        other.kill()
    assert record.holder(tmp_path) is None
    with record.claimed(tmp_path):
        pass
