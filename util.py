"""What every part shares: errors, signals, arguments, atomic files, waiting."""

if not __package__:
    raise ModuleNotFoundError("util is steve.util", name="util")

import argparse
import errno
import fnmatch
import gc
import importlib.util
import io
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
from typing import TYPE_CHECKING, Any, NoReturn

NOT_A_TERMINAL = 1000  # columns: in a file no line is broken
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)  # on the disk, or in the user's quota
STANDARD_STREAMS = {"stdin": "r", "stdout": "w", "stderr": "w"}  # by their numbers
# Unicode's categories of control characters, surrogates and separators of lines.
NOT_IN_A_PATH = ("Cc", "Cs", "Zl", "Zp")
MAX_NAME_BYTES = 255  # the kernel's
MAX_PATH_BYTES = 3000  # the kernel's 4095, less what is made below


if TYPE_CHECKING:
    from rich.console import Console, RenderableType

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
# The scripts as subcommands of `steve`.
SUBCOMMANDS = {
    "main.py": "train",
    "visualizer.py": "visualize",
    "export.py": "export",
    "plot.py": "plot",
    "sweep.py": "sweep",
    "status.py": "status",
    "verify.py": "verify",
    "toy_demo.py": "toy",
}


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


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with the command line in one line; exit code 2."""

    PLAIN = argparse.RawDescriptionHelpFormatter  # keeps the lines of its texts

    def add_settings(
        self,
        help_text: str = "replace values of the configuration, as for main.py",
        metavar: str = "KEY=VALUE",
        dest: str = "set",
    ) -> None:
        """Adds `--set`, which may be given several times with several values."""
        self.add_argument(
            "--set",
            action="extend",
            nargs="+",
            default=[],
            metavar=metavar,
            help=help_text,
            dest=dest,
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help explains)\n")


def import_from_working_folder() -> None:
    """Lets a command import the user's modules, as `python -m` does.

    The working folder goes to the end of the search path, where no file of the user's
    hides a library's. The folder of this package leaves it: Python puts it there when
    a script of ours is run, and then ours would hide the user's (`util`, `policy`).
    """
    try:
        working = os.path.realpath(os.getcwd())
    except FileNotFoundError:
        print("the working folder was removed: change to another", file=sys.stderr)
        sys.exit(2)
    ours = os.path.realpath(os.path.dirname(__file__))
    others = [
        entry
        for entry in sys.path
        if os.path.realpath(entry or working) not in (working, ours)
    ]
    sys.path[:] = [*others, working]


def prepare_command() -> None:
    """Prepares the process of a command, once its modules are imported.

    Its standard streams are there, whatever it was started with: a closed one leads to
    /dev/null, else the next file that is opened takes its number. They escape
    characters that their encoding lacks.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < len(STANDARD_STREAMS):
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, (name, mode) in enumerate(STANDARD_STREAMS.items()):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode))  # noqa: SIM115 - to the end
    hear_signals()
    escape_unknown_characters()
    import_from_working_folder()


def hear_signals() -> None:
    """Undoes what the starting program ignored or blocked: a process inherits that.

    With SIGCHLD ignored the end of a child is not seen, and a blocked SIGTERM asks
    nobody to end.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stop_signals())


def escape_unknown_characters() -> None:
    """Has stdout and stderr escape what their encoding lacks, such as of a path."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def script_words(program: str, other: str) -> list[str]:
    """How to call another command of ours in the way in which this one was called.

    Args:
        program: how this one was called: "main.py", or "steve train".
        other: a script such as "visualizer.py".
    """
    if program.startswith("steve "):
        return ["steve", SUBCOMMANDS[other]]
    script = Path(sys.argv[0])
    path = str(script.with_name(other)) if script.name == program else other
    return [python_word(), path]


def python_word() -> str:
    """How to call this Python: "python" where that is this one, or else its path."""
    found = shutil.which("python")
    ours = Path(sys.executable)
    is_ours = found and Path(found).absolute().parent == ours.parent
    return "python" if is_ours else str(ours)


def example(program: str, script: str) -> str:
    """How the help shows a call of a script: `python SCRIPT`, or the subcommand."""
    _, *words = script_words(program, script)
    return " ".join(["steve" if program.startswith("steve ") else "python", *words])


def exit_code(program: str, command: Callable[[], int | None]) -> int:
    """Runs a command; what its user can mend is one line on stderr, no stack trace.

    Returns:
        the exit code: the command's own (None: 0); 2 after a UserError, 1 where it is a
        RunError; 1 after an OSError that names a file, or where nobody reads the output
        any more; 130 after Ctrl-C. Any other exception is a bug of ours and is raised.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as during the imports
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = command() or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunError) else 2
    except BrokenPipeError:
        drop_unwritten_output()  # `| head`, say
        return 1
    except OSError as error:
        if error.filename is None and error.errno in NO_SPACE:
            drop_unwritten_output()
            error.filename = "stdout"
        if error.filename is None:
            raise
        print(f"{program}: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130


def drop_unwritten_output() -> None:
    """Flushes stdout; what it does not take is dropped.

    Python's own flush at the end would else meet the same, and give exit code 120.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    Python's search for cycles waits: among so many new objects it finds none.

    Args:
        on_cpu: as of `without_startup_notes`.
    """
    with without_startup_notes(on_cpu), environment(WITHOUT_KERAS):
        gc.disable()
        try:
            yield
        finally:
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


def whole_number(lowest: int, highest: int) -> Callable[[str], int]:
    """An argparse type: an integer in lowest .. highest."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) <= highest:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not an integer in {lowest} .. {highest}"
            )
        return int(text)

    return parse


def number(lowest: float, highest: float) -> Callable[[str], float]:
    """An argparse type: a finite number in lowest .. highest."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and lowest <= value <= highest):
            limits = f" in [{lowest:g}, {highest:g}]" if highest < math.inf else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not a number{limits}")
        return value

    return parse


def unused(path: Path) -> Path:
    """The path, or where that is taken the first free one of path-2, path-3, .."""
    return first_free(path, "-", 2) if os.path.lexists(path) else path


def first_free(path: Path, ending: str, first: int = 1) -> Path:
    """The first path that is not taken, of those with `ending` and a number behind."""
    names = (f"{path.name}{ending}{number}" for number in itertools.count(first))
    return next(p for name in names if not os.path.lexists(p := path.with_name(name)))


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
    """A folder that appears under its name once all in it is written, or not at all."""
    unfinished = folder.with_name(f"{folder.name}.unfinished-{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.rename(folder)
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


def terminal_width() -> int | None:
    """Columns of the terminal on stdout; None where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


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


def output_console() -> "Console":
    """A console on stdout; a terminal only where stdout is one, and text is text.

    FORCE_COLOR makes no terminal of a file, and ":100:" in a path no picture.
    """
    from rich.console import Console  # here: most who import this print nothing

    is_terminal = sys.stdout.isatty()
    return Console(highlight=False, emoji=False, force_terminal=is_terminal)


def print_once(shown: "RenderableType") -> None:
    """Prints it; what is redirected to a file is plain and not wrapped."""
    console = output_console()
    if console.is_terminal:
        console.print(shown)
        return
    console.width = NOT_A_TERMINAL
    with console.capture() as captured:
        console.print(shown)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def error_text(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
