"""util: atomic files, waiting, intervals, paths, signals, the import of TensorFlow."""

import errno
import itertools
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import PATIENCE

from steve import util
from steve.util import (
    Every,
    RunError,
    UserError,
    appearing,
    atomic_write,
    clock,
    is_installed,
    named,
    to_json,
    unused,
    wait_until,
)

OLD, NEW = b"the old content", b"the new content, which is longer"


@pytest.fixture
def calls(monkeypatch):
    """The names of the system calls that atomic_write makes, in order."""
    made = []

    def watch(name):
        original = getattr(os, name)

        def recorded(target, *rest):
            kind = name
            if name == "fsync":
                mode = os.fstat(target).st_mode
                kind = "fsync folder" if stat.S_ISDIR(mode) else "fsync file"
            made.append(kind)
            return original(target, *rest)

        monkeypatch.setattr(os, name, recorded)

    watch("fsync")
    watch("replace")
    return made


def failing(*_):
    raise OSError(errno.ENOSPC, "no space left")


# Atomic files


@pytest.mark.parametrize("before", [None, OLD])
def test_a_file_is_written_and_nothing_else_stays(tmp_path, before):
    path = tmp_path / "file.json"
    if before:
        path.write_bytes(before)
    atomic_write(path, NEW)
    assert path.read_bytes() == NEW
    assert os.listdir(tmp_path) == ["file.json"]


def test_the_file_is_on_the_disk_before_its_name_and_the_name_before_the_return(
    tmp_path, calls
):
    atomic_write(tmp_path / "file.json", NEW)
    assert calls == ["fsync file", "replace", "fsync folder"]


def test_the_whole_content_is_there_when_the_file_is_synced(tmp_path, monkeypatch):
    sizes = []
    sync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (sizes.append(os.fstat(fd).st_size), sync(fd))
    )
    atomic_write(tmp_path / "file.json", NEW)
    assert sizes[0] == len(NEW)


def test_the_temporary_is_hidden_and_in_the_same_folder(tmp_path, monkeypatch):
    renamed = []
    replace = os.replace
    monkeypatch.setattr(
        os, "replace", lambda *names: (renamed.append(names), replace(*names))
    )
    path = tmp_path / "file.json"
    atomic_write(path, NEW)
    ((temporary, target),) = renamed
    assert target == path
    assert temporary.parent == tmp_path
    assert temporary.name.startswith(".")
    assert temporary.name.endswith(".tmp")  # as a launch looks for what was left


@pytest.mark.parametrize("before", [None, OLD])
@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_failure_leaves_the_old_content_and_no_temporary(
    tmp_path, monkeypatch, call, before
):
    path = tmp_path / "file.json"
    if before:
        path.write_bytes(before)
    if call == "write":
        # A device that is always full, in place of the temporary.
        original = open
        monkeypatch.setattr(
            util, "open", lambda name, mode: full_disk(original, name), raising=False
        )
    else:
        monkeypatch.setattr(os, call, failing)
    with pytest.raises(OSError, match=r"(?i)no space left"):
        atomic_write(path, NEW)
    assert os.listdir(tmp_path) == (["file.json"] if before else [])
    if before:
        assert path.read_bytes() == OLD


def full_disk(original, name):
    """A file that takes three bytes and then fails."""
    original(name, "wb").close()
    file = original(name, "r+b")

    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            file.close()

        def write(self, content):
            file.write(content[:3])
            file.flush()
            failing()

    return Full()


def test_every_instant_shows_the_old_content_or_the_new(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    path.write_bytes(OLD)
    seen = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def looking(*arguments, original=original):
            seen.append(path.read_bytes())
            result = original(*arguments)
            seen.append(path.read_bytes())
            return result

        monkeypatch.setattr(os, name, looking)
    atomic_write(path, NEW)
    assert seen == [OLD, OLD, OLD, NEW, NEW, NEW]


@pytest.mark.parametrize("before", [None, OLD])
def test_the_file_has_the_permissions_of_any_new_file(tmp_path, before):
    path = tmp_path / "file.json"
    if before:
        path.write_bytes(before)
    mask = os.umask(0o027)
    try:
        atomic_write(path, NEW)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_folder_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        atomic_write(tmp_path / "none" / "file.json", NEW)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "new" / "results"

    def fail():
        with appearing(folder) as unfinished:
            (unfinished / "half").touch()
            assert not folder.exists()
            raise RunError("broken")

    with pytest.raises(RunError):
        fail()
    assert list((tmp_path / "new").iterdir()) == []
    with appearing(folder) as unfinished:
        (unfinished / "whole").touch()
    assert [path.name for path in folder.iterdir()] == ["whole"]


def test_a_folder_appears_when_all_in_it_is_on_the_disk(tmp_path, monkeypatch):
    folder, on_disk = tmp_path / "results", set()

    def fsync(descriptor):
        status = os.fstat(descriptor)
        on_disk.add((status.st_ino, folder.exists()))

    monkeypatch.setattr("os.fsync", fsync)
    with appearing(folder) as unfinished:
        (unfinished / "inner").mkdir()
        (unfinished / "inner" / "file").write_text("x")
    inside = [folder, folder / "inner", folder / "inner" / "file"]
    assert on_disk == {
        *((path.stat().st_ino, False) for path in inside),
        (tmp_path.stat().st_ino, True),
    }


# Errors with a name


def test_an_error_without_a_name_gets_one_and_others_keep_theirs(tmp_path):
    with pytest.raises(OSError, match="File exists") as caught, named(tmp_path):
        raise OSError(errno.EEXIST, "File exists")
    assert caught.value.filename == str(tmp_path)
    with pytest.raises(OSError, match="File exists") as caught, named(tmp_path):
        raise OSError(errno.EEXIST, "File exists", "/mine")
    assert caught.value.filename == "/mine"


# Waiting


@pytest.fixture
def naps(monkeypatch):
    """The intervals that were asked for; no time passes."""
    taken = []
    monkeypatch.setattr(util.time, "sleep", taken.append)
    return taken


def true_after(calls):
    """A condition that holds from call number `calls` + 1 on."""
    answers = iter([False] * calls)
    return lambda: next(answers, True)


def test_a_condition_that_holds_costs_no_sleep(naps):
    wait_until(true_after(0))
    assert naps == []


def test_an_interval_is_a_fifth_of_the_wait_at_most_and_at_least_the_shortest(naps):
    wait_until(true_after(30))
    waited = list(itertools.accumulate(naps))
    assert naps[0] == 0.001
    assert all(n <= 0.001 + w / 5 for n, w in zip(naps, waited, strict=True))
    assert len(naps) == 30
    assert naps[-1] == 0.05


def test_intervals_can_be_chosen(naps):
    wait_until(true_after(4), shortest=1.0, longest=1.5)
    assert naps == [1.0, 1.25, 1.5, 1.5]


def test_the_condition_is_asked_no_more_once_it_holds(naps):
    asked = []
    wait_until(lambda: asked.append(None) or len(asked) == 3)
    assert len(asked) == 3
    assert len(naps) == 2


# Intervals


def hits(every, counts):
    return [count for count in counts if every(count)]


def test_every_hits_each_multiple_once():
    assert hits(Every(3), range(12)) == [3, 6, 9]
    every = Every(3)
    assert [every(count) for count in (3, 3, 4, 6, 6)] == [
        True,
        False,
        False,
        True,
        False,
    ]


def test_a_jump_over_several_multiples_hits_once():
    # Next after 10 is 12, not 6 or 9.
    assert hits(Every(3), [1, 10, 11, 12, 20, 21]) == [10, 12, 20, 21]


def test_multiples_up_to_the_start_count_as_seen():
    assert hits(Every(500, start=1000), [1000, 1001, 1499, 1500]) == [1500]
    assert hits(Every(500, start=999), [999, 1000, 1001]) == [1000]
    assert hits(Every(500, start=1001), [1001, 1400, 1500]) == [1500]


def test_until_is_the_distance_to_the_next_multiple():
    every = Every(5, start=3)
    assert [every.until(count) for count in (3, 4, 5, 7)] == [2, 1, 0, 0]
    assert every(7)
    assert every.until(7) == 3


def test_the_count_0_is_no_hit():
    assert not Every(5)(0)


def test_intervals_below_1_work():
    assert hits(Every(0.25), [0.1, 0.25, 0.3, 0.6, 0.7, 0.75]) == [0.25, 0.6, 0.75]


# Times


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (None, "-"),
        (0, "0:00:00"),
        (59.9, "0:00:59"),
        (60, "0:01:00"),
        (3599, "0:59:59"),
        (3600, "1:00:00"),
        (3661.5, "1:01:01"),
        (100 * 3600 + 62, "100:01:02"),
    ],
)
def test_clock(given, text):
    assert clock(given) == text


# Paths


def test_a_path_that_is_taken_gets_the_first_free_number(tmp_path):
    path = tmp_path / "plots"
    assert unused(path) == path
    path.mkdir()
    (tmp_path / "plots-2").symlink_to("nowhere")  # a name that is taken, too
    assert unused(path) == tmp_path / "plots-3"


# Signals


@pytest.fixture
def handlers():
    """Puts them back; also where the test's own was not put back by what it tests."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = list(map(signal.getsignal, numbers))
    yield
    for each, handler in zip(numbers, before, strict=True):
        signal.signal(each, handler)


def test_stop_signals_are_handled_for_a_while(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
    before = list(map(signal.getsignal, numbers))
    heard = []
    with util.on_stop_signals(lambda number, frame: heard.append(number)):
        for each in numbers:
            os.kill(os.getpid(), each)
    assert heard == numbers
    assert list(map(signal.getsignal, numbers)) == before


@pytest.mark.parametrize("ignored", [signal.SIGHUP, signal.SIGUSR1])
def test_what_nohup_or_another_has_ignored_stays_ignored(handlers, ignored):
    signal.signal(ignored, signal.SIG_IGN)
    with util.stop_as_by_ctrl_c():
        with util.on_stop_signals(lambda number, frame: pytest.fail("it was handled")):
            os.kill(os.getpid(), ignored)
        assert signal.getsignal(ignored) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler


def test_links_to_folders_are_followed_once(tmp_path):
    real = tmp_path / "real"
    (real / "deep").mkdir(parents=True)
    (real / "deep" / "a.json").touch()
    (real / "deep" / "b.txt").touch()
    (real / "deep" / "loop").symlink_to(real)
    compared = tmp_path / "compared"
    compared.mkdir()
    for name in ("one", "two"):
        (compared / name).symlink_to(real)
    found = util.files_below(compared, "*.json")
    assert found == [compared / "one" / "deep" / "a.json"]


# TensorFlow's notes at its start

NOTES = """\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795688628.107359    4521 port.cc:153] oneDNN custom operations are on.
2030-11-26 10:00:00.107359: I tensorflow/core/util/port.cc:153] oneDNN operations.
I0000 00:00:1795688628.107671    4521 cudart_stub.cc:31] Could not find cuda drivers
To enable the following instructions: AVX2 AVX512F FMA, in other operations, rebuild
"""
NO_GPU = (
    "E0000 00:00:1795688645.791036 1 cuda_platform.cc:52] failed call to cuInit: \n"
)
ERROR = "E0000 00:00:1795688645.791036 1 gpu.cc:52] out of memory \xe9\n"
ENDS = {"return": "pass", "exception": "raise SystemExit(1)", "crash": "os.abort()"}


def noted(text: str, ending: str = "pass", on_cpu: bool = True) -> str:
    """What reaches stderr of a text that is written meanwhile."""
    script = f"""
import os
from steve.util import without_startup_notes
with without_startup_notes({on_cpu}):
    os.write(2, {text.encode("latin-1")!r})
    {ending}
os.write(2, b"I0000 afterwards")
"""
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, encoding="latin-1").stderr


@pytest.mark.parametrize("ending", ENDS)
def test_notes_at_the_start_are_left_out_and_errors_pass_also_at_a_crash(ending):
    found = noted(NOTES + ERROR + NO_GPU, ENDS[ending])
    assert found == ERROR + "I0000 afterwards" * (ending == "return")


def test_where_a_gpu_was_asked_for_it_is_an_error_that_there_is_none():
    assert noted(NOTES + NO_GPU, on_cpu=False) == NO_GPU + "I0000 afterwards"


def test_every_signal_has_a_name():
    assert util.signal_name(9) == "SIGKILL"
    assert util.signal_name(40) == "signal 40"


def test_tensorflow_is_imported_without_keras_and_cycles_are_sought_as_before():
    lines = (
        "import gc, sys\n"
        "from steve.util import importing_tensorflow\n"
        "with importing_tensorflow():\n"
        "    import tensorflow\n"
        "    assert not gc.isenabled()\n"
        "assert gc.isenabled() and 'keras' not in sys.modules\n"
        "gc.disable()\n"
        "with importing_tensorflow():\n"
        "    pass\n"
        "assert not gc.isenabled()\n"
        "assert tensorflow.keras.layers.Dense\n"
    )
    subprocess.run([sys.executable, "-c", lines], check=True)


def test_without_grep_the_notes_pass(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert noted(NOTES) == NOTES + "I0000 afterwards"


def test_a_process_that_was_started_meanwhile_is_not_waited_for():
    script = """
import subprocess
import steve.util
steve.util.GREP_PATIENCE = 0.01
with steve.util.without_startup_notes():
    subprocess.Popen(["cat"])
"""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=pipe, stderr=pipe) as process:
        assert process.wait(PATIENCE) == 0
        assert process.stdin is not None
        process.stdin.close()  # which ends cat


def test_a_module_that_imports_tensorflow_shows_none_of_its_notes(tmp_path):
    text = (NOTES + ERROR).encode("latin-1")
    (tmp_path / "noisy.py").write_text(f"import os\nos.write(2, {text!r})\n")
    script = """
from steve.settings.extensions import import_modules
import_modules(["noisy"])
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, encoding="latin-1"
    )
    assert (done.returncode, done.stderr) == (0, ERROR)


def test_values_of_numpy_and_paths_become_json_and_others_are_named():
    value = {"a": np.int64(3), "b": np.array([0.5]), "c": Path("x"), "d": None}
    assert to_json(value, "it") == '{"a": 3, "b": [0.5], "c": "x", "d": null}'
    with pytest.raises(UserError, match=r"env\.name: set is no value of JSON"):
        to_json({1}, "env.name")


def test_a_mere_folder_is_no_installed_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("left_by_a_run", "a_package"):
        (tmp_path / name).mkdir()
    (tmp_path / "a_package" / "__init__.py").touch()
    assert is_installed("a_package")
    assert not is_installed("left_by_a_run")
    assert not is_installed("nowhere")
