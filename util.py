"""What every part shares: errors, signals, atomic files, waiting."""

if not __package__:
    raise ModuleNotFoundError("util is steve.util", name="util")

import errno
import fnmatch
import gc
import importlib.util
import itertools
import json
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)  # on the disk, or in the user's quota
# Unicode's categories of control characters, surrogates and separators of lines.
NOT_IN_A_PATH = ("Cc", "Cs", "Zl", "Zp")
MAX_NAME_BYTES = 255  # the kernel's
MAX_PATH_BYTES = 3000  # the kernel's 4095, less what is made below

# What TensorFlow writes at its start where nothing is wrong (extended expressions).
STARTUP_NOTES = (
    "^WARNING: All log messages before absl::InitializeLog",
    "^I[0-9]{4} ",
    "^[0-9-]+ [0-9:.]+: I ",
    "^To enable the following instructions: ",
    "Unable to register cu[A-Z]+ factory",
    "computation placer already registered",
)
NO_GPU_NOTES = ("failed call to cuInit",)
GREP_PATIENCE = 1.0  # seconds
WITHOUT_KERAS = {"TF_USE_LEGACY_KERAS": "1"}
GROWTH = 1.25  # of the intervals of a wait


class UserError(Exception):
    """A user's mistake: one line that says what is wrong and what to do.

    The launcher prints it without a stack trace and exits with code 2, or 1 where it is
    a RunError.
    """


class RunError(UserError):
    """A run that cannot continue, through nobody's bug: one line, and no restart."""


def to_json(value: Any, what: str) -> str:
    """A value as JSON; NumPy's numbers and arrays are taken as Python's.

    Raises:
        UserError: it holds something else that is no JSON; names `what`.
    """

    def plain(part: Any) -> Any:
        if hasattr(part, "tolist"):
            return part.tolist()
        if isinstance(part, os.PathLike):
            return os.fspath(part)
        raise TypeError(f"{type(part).__name__} is no value of JSON")

    try:
        return json.dumps(value, default=plain)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: {error}") from None


def is_installed(package: str) -> bool:
    """Whether a package can be imported; a mere folder of that name is no package."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def stop_signals() -> list[int]:
    """Those that ask a program to end; SIGUSR1 is what clusters announce an end with.

    Not SIGHUP where nohup has it ignored, nor SIGUSR1 where somebody has.
    """
    may_be_deaf = (signal.SIGHUP, signal.SIGUSR1)
    heard = [n for n in may_be_deaf if signal.getsignal(n) != signal.SIG_IGN]
    return [signal.SIGINT, signal.SIGTERM, *heard]


def signal_name(number: int) -> str:
    """What a signal is called, such as SIGKILL."""
    try:
        return signal.Signals(number).name
    except ValueError:  # of the real-time signals most have no name
        return f"signal {number}"


@contextmanager
def on_stop_signals(
    handler: Callable[[int, FrameType | None], None],
) -> Iterator[None]:
    """Has the stop signals handled meanwhile."""
    before = {number: signal.signal(number, handler) for number in stop_signals()}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def stop_as_by_ctrl_c() -> Iterator[None]:
    """Meanwhile every stop signal does what Ctrl-C does by default."""
    with on_stop_signals(signal.default_int_handler):
        yield


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the block where it lasts longer.

    It interrupts what waits in Python, in the main thread; elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it took over {seconds:g} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables of this process meanwhile, for what starts or reads
    them; afterwards they are as before."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def redirected(descriptor: int, numbers: tuple[int, ...] = (1, 2)) -> Iterator[None]:
    """For a moment, stdout and stderr lead to another file, also those of libraries.

    A child process that starts meanwhile keeps it so.

    Args:
        descriptor: of the file.
        numbers: 1 for stdout, 2 for stderr.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = [os.dup(number) for number in numbers]
    try:
        for number in numbers:
            os.dup2(descriptor, number)
        yield
    finally:
        for number, original in zip(numbers, kept, strict=True):
            os.dup2(original, number)
            os.close(original)


@contextmanager
def without_startup_notes(on_cpu: bool = True) -> Iterator[None]:
    """For a moment, TensorFlow's notes at its start do not reach stderr.

    They obey no log level. Whatever else is written there passes, also where this
    process crashes meanwhile: another one, grep, leaves the notes out. Where there is
    none, they pass too.

    Args:
        on_cpu: whether that no GPU can be used is a note as well.
    """
    notes = "|".join(STARTUP_NOTES + NO_GPU_NOTES * on_cpu)
    # Not what marks the processes of a run: it writes on where this one is killed.
    needed = {k: os.environ[k] for k in ("PATH", "LD_LIBRARY_PATH") if k in os.environ}
    try:
        grep = subprocess.Popen(
            ["grep", "-a", "-v", "-E", "--line-buffered", notes],
            stdin=subprocess.PIPE,
            stdout=2,
            env={**needed, "LC_ALL": "C"},
            start_new_session=True,  # Ctrl-C does not end it before this process
        )
    except OSError:
        yield
        return
    assert grep.stdin is not None
    try:
        with redirected(grep.stdin.fileno(), (2,)):
            yield
    finally:
        grep.stdin.close()
        # No longer where a process that was started meanwhile still writes there.
        with suppress(subprocess.TimeoutExpired):
            grep.wait(GREP_PATIENCE)


@contextmanager
def importing_tensorflow(on_cpu: bool = True) -> Iterator[None]:
    """For the import of TensorFlow: without its notes, in two thirds of its time.

    Keras is left out; who uses `tf.keras` later gets the one that is installed.
    Python's search for cycles waits: it would go through the new objects many times.

    Args:
        on_cpu: as of `without_startup_notes`.
    """
    with without_startup_notes(on_cpu), environment(WITHOUT_KERAS):
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if was_enabled:
                gc.enable()


def check_path(path: str | Path, what: str) -> None:
    """Refuses a path that no file can have, or that would not stay on its line.

    Args:
        path: of a file or a folder.
        what: what messages call it.

    Raises:
        UserError: a character of it ends a line, steers a terminal or is no text; a
            name in it is too long.
    """
    text = str(path)
    for character in text:
        if unicodedata.category(character) in NOT_IN_A_PATH:
            raise UserError(
                f"{what} must not hold the character {character!a}: {text!a}"
            )
    longest = max(map(len, os.fsencode(text).split(b"/")))
    if longest > MAX_NAME_BYTES:
        raise UserError(
            f"{what} must not hold a name of more than {MAX_NAME_BYTES} bytes, as one "
            f"of {longest}"
        )
    if len(os.fsencode(text)) > MAX_PATH_BYTES:
        raise UserError(f"{what} must be at most {MAX_PATH_BYTES} bytes long")


def one_line(text: object) -> str:
    """A text, or an error's, without line breaks."""
    return " ".join(str(text).split())


def unused(path: Path) -> Path:
    """The path, or where that is taken the first free one of path-2, path-3, .."""
    return first_free(path, "-", 2) if os.path.lexists(path) else path


def first_free(path: Path, ending: str, first: int = 1) -> Path:
    """The first path that is not taken, of those with `ending` and a number behind."""
    names = (f"{path.name}{ending}{number}" for number in itertools.count(first))
    return next(p for name in names if not os.path.lexists(p := path.with_name(name)))


def put_damaged_aside(path: Path) -> Path:
    """Renames a damaged file; the new name ends with .damaged and perhaps a number."""
    aside = unused(path.with_name(f"{path.name}.damaged"))
    path.rename(aside)
    return aside


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Adds the file to an OSError that names none, as those of write and fsync do."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def files_below(folder: Path, pattern: str) -> list[Path]:
    """The files in and below a folder whose names match a pattern, sorted.

    Links to folders are followed, and each real folder is looked into once.
    """
    found, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        found += [Path(place, name) for name in fnmatch.filter(files, pattern)]
    return sorted(found)


def regular_opener(path: str, flags: int) -> int:
    """An opener for `open` that refuses what is no file.

    Opening a pipe that nobody else has open would wait for ever.

    Raises:
        OSError: it cannot be opened, or is a pipe or a device.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", path)
    return descriptor


def file_stamp(path: Path) -> tuple[int, int, int] | None:
    """Changes when a file is written or replaced, at the cost of one `stat`.

    Take it before the file is read: what is written in between is then read twice.

    Returns:
        inode, modification time (ns) and size; None where there is no file.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def fsync_folder(folder: Path) -> None:
    """Makes the names in a folder durable (a rename is not, before this)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with named(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, content: bytes) -> None:
    """Publishes a file: temporary name, fsync, rename, fsync of the folder.

    Whoever opens `path` at any instant, even after a crash, sees the whole old
    content or the whole new one (SPEC section 2, "published").

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is as before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with named(path), open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder that appears under its name once all in it is on the disk, or not."""
    unfinished = folder.with_name(f"{folder.name}.unfinished-{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        for path in unfinished.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        for each in (unfinished, *filter(Path.is_dir, unfinished.rglob("*"))):
            fsync_folder(each)
        unfinished.rename(folder)
        fsync_folder(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def wait_until(
    condition: Callable[[], bool], shortest: float = 0.001, longest: float = 0.05
) -> None:
    """Sleeps until `condition()` holds, asking at growing intervals (seconds).

    The interval grows by a quarter each time, from `shortest` to `longest`: a wait is
    noticed to be over after a fifth of it more, and a long one costs next to nothing.
    """
    interval = shortest
    while not condition():
        time.sleep(interval)
        interval = min(GROWTH * interval, longest)


class Every:
    """True once whenever a counter has reached or passed the next multiple.

    Args:
        interval: the distance of the multiples, > 0.
        start: where the counter stands now; multiples up to here count as seen.
    """

    def __init__(self, interval: float, start: float = 0.0) -> None:
        self._interval = interval
        self._next = self._after(start)

    def _after(self, count: float) -> float:
        return (math.floor(count / self._interval) + 1) * self._interval

    def until(self, count: float) -> float:
        """How far it is from a counter to the next multiple; 0 where it is passed."""
        return max(0.0, self._next - count)

    def __call__(self, count: float) -> bool:
        if count < self._next:
            return False
        self._next = self._after(count)
        return True


def counted(number: int, noun: str) -> str:
    """ "1 run", "2 runs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shown_path(path: Path) -> str:
    """A path as a user would type it in the working folder."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def clock(seconds: float | None) -> str:
    """h:mm:ss; "-" for None."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def error_text(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
