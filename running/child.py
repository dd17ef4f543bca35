"""The child's side of a process: signals, output, priority, and how it ends."""

import contextlib
import ctypes
import errno
import faulthandler
import importlib
import io
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from types import FrameType
from typing import Any, TypeVar

from ..settings.extensions import import_modules
from ..settings.roles import actors, process_seed
from ..storage.board import Board, Wait
from ..storage.checkpoint import CheckpointError
from ..storage.disk import file_error_line, full_disk_line, is_full
from ..storage.folders import Run
from ..storage.locks import present
from ..storage.record import record_nondeterminism
from ..util import (
    RunError,
    UserError,
    importing_tensorflow,
    wait_until,
)

# Exit codes of a child; the supervisor reads them.
FAILED = 1
MISTAKE = 2  # a user's mistake that only the child could see
HOPELESS = 3  # a restart would only meet the same again
FULL_DISK = 4
STOPPED = 5  # as asked; not 0, with which an environment's code may end the process
ONE_REQUEST = 0.5  # seconds in which several signals are one: some tools send two
PR_SET_PDEATHSIG = 1
STARTUP_GRACE = 60.0  # seconds more than step_timeout for imports and environments
SLOW_DISK = 240.0  # seconds that one write may take: a slow disk is no hanging process
FULL_DISK_RETRY = 10.0  # seconds until a write is tried again
FULL_DISK_PATIENCE = 3600.0  # seconds after which a run gives up on a full disk

Result = TypeVar("Result")


class Stop:
    """Turns SIGTERM into a flag that the process's loop asks for.

    Each question takes the signal again: environments may have handlers of their own.
    """

    def __init__(self) -> None:
        self._requested = False
        self._take_signal()

    def _take_signal(self) -> None:
        if threading.current_thread() is threading.main_thread():  # others may not
            signal.signal(signal.SIGTERM, self._request)

    def _request(self, signum: int, frame: FrameType | None) -> None:
        self._requested = True

    def __call__(self) -> bool:
        self._take_signal()
        return self._requested


@dataclass(frozen=True)
class Context:
    """What a process's main function gets.

    Attributes:
        run: configuration, folders, sizes.
        name: of this process, as on the status board.
        seed: its own.
        board: the status board.
        stop: true from the moment at which the process is asked to end.
        ends: what is called when the main function is over, however it ended.
    """

    run: Run
    name: str
    seed: int
    board: Board
    stop: Stop
    ends: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def store(self, write: Callable[[], Result]) -> Result:
        """Calls a function that writes; while the disk is full, again and again.

        Args:
            write: may be repeated after an OSError.

        Raises:
            OSError: not a full disk; or it was full for FULL_DISK_PATIENCE, or until
                the process was asked to end.
        """
        row = self.board[self.name]
        give_up = time.monotonic() + FULL_DISK_PATIENCE
        while True:
            row["heartbeat"] = time.monotonic() + SLOW_DISK
            try:
                result = write()
            except OSError as error:
                if not is_full(error) or self.stop() or time.monotonic() > give_up:
                    raise
                if not row["disk_full"]:
                    line = full_disk_line(error, self.run.folders.root)
                    _say(f"{line}; {self.name} waits for space")
                row["disk_full"] = 1
                self._pause(FULL_DISK_RETRY)
            else:
                row["disk_full"] = 0
                row["heartbeat"] = time.monotonic()
                return result

    def note_nondeterminism(self, frame: int, why: str) -> None:
        """Says here and in run.json that the run cannot be repeated from a frame on."""
        line = f"{self.name}: {why}"
        print(f"{line}; this run cannot be repeated to the bit", flush=True)
        self.store(lambda: record_nondeterminism(self.run.folders, frame, line))

    def while_there_is(self, cause: Callable[[], Wait | None]) -> Callable[[], bool]:
        """A condition for `wait_until`: nothing is left to wait for.

        Args:
            cause: what there is to wait for; None: nothing. The seconds of each are
                summed up on the board.
        """
        row, since = self.board[self.name], 0.0
        last: Wait | None = None

        def over() -> bool:
            nonlocal last, since
            found = cause()
            if last is not None or found is not None:
                now = time.monotonic()
                if last is not None:
                    row[last] += now - since
                last, since = found, now
            return found is None

        return over

    def _pause(self, seconds: float) -> None:
        """Waits and shows life meanwhile; no longer than until asked to end."""
        until = time.monotonic() + seconds

        def over() -> bool:
            self.board[self.name]["heartbeat"] = now = time.monotonic()
            return now > until or self.stop()

        wait_until(over)


def child_main(
    main: str,
    run: Run,
    name: str,
    nice: int,
) -> None:
    """Runs a main function as a child of the launcher; the target of its Process.

    `main` is "module:function", so that the launcher need not import what its
    children import; the function takes a Context.
    Ends the process with STOPPED, FAILED (after a traceback in its output file) or
    MISTAKE, HOPELESS or FULL_DISK (after one line, its last). Ends it at once when the
    launcher is gone.
    """
    _redirect_output(run, name)
    faulthandler.enable()
    end_with_parent()
    stop = Stop()
    os.nice(nice)
    code = STOPPED
    with present(run.folders):
        try:
            module, function = main.split(":")
            with importing_tensorflow():
                main_function = getattr(importlib.import_module(module), function)
            acts = name in actors(run.config)
            import_modules(run.env_modules if acts else run.config.module)
            seed = process_seed(run.config, name)
            board = Board.open(run.folders.board)
            board[name]["pid"] = os.getpid()
            with _own_streams(), contextlib.ExitStack() as ends:
                main_function(Context(run, name, seed, board, stop, ends))
        except UserError as error:
            _say(str(error))
            hopeless = isinstance(error, (RunError, CheckpointError))
            code = HOPELESS if hopeless else MISTAKE
        except OSError as error:
            if is_full(error):
                _say(full_disk_advice(error, run))
                code = FULL_DISK
            elif error.errno == errno.EFBIG and error.filename:
                _say(file_error_line(error))
                code = HOPELESS
            else:
                _say(traceback.format_exc().rstrip())
                code = FAILED
        except BaseException:
            _say(traceback.format_exc().rstrip())
            code = FAILED
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        # Not sys.exit: threads of libraries must not keep a finished process alive.
        os._exit(code)


def _redirect_output(run: Run, name: str) -> None:
    path = run.folders.process_output(name)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    take_streams()


def take_streams() -> None:
    """Makes a full disk no error of those who print."""
    sys.stdout, sys.stderr = _printing_to(1), _printing_to(2)


@contextlib.contextmanager
def _own_streams() -> Iterator[None]:
    """Takes the streams back at the end, where an environment has set others."""
    streams = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


class _ShortOfSpace(io.FileIO):
    """Drops what finds no space on the disk: no process ends for want of a line."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if not is_full(error):
                raise
            return len(data)


def _printing_to(descriptor: int) -> io.TextIOWrapper:
    """A stream of UTF-8, in which a path that is none is escaped."""
    file = io.BufferedWriter(_ShortOfSpace(descriptor, "wb", closefd=False))
    return io.TextIOWrapper(file, "utf-8", "backslashreplace", line_buffering=True)


def full_disk_advice(error: OSError, run: Run) -> str:
    line = full_disk_line(error, run.folders.root)
    return f"{line}; the run stops. Free some space and --resume"


def _say(line: str) -> None:
    """Prints to this process's file, if that finds room on the disk."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def signal_at_parents_death(number: signal.Signals) -> None:
    """Asks the kernel to signal this process when its parent dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def end_with_parent() -> None:
    """Ends this process when its parent dies, however it died: no orphans.

    The kernel does it, also to a process that is stopped or hangs in a library. A
    parent that died before the kernel was asked is noticed here at once; the thread is
    for systems on which the kernel refuses.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a child process calls this"
    signal_at_parents_death(signal.SIGKILL)
    if wait([parent.sentinel], 0):
        os._exit(FAILED)

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(FAILED)

    threading.Thread(target=watch, daemon=True).start()
