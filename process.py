"""The child's side of a process: signals, output, priority, and how it ends."""

import ctypes
import errno
import faulthandler
import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import wait
from types import FrameType

from checkpoint import CheckpointError
from experiment import Run, derive_seed, present
from status import Board
from util import UserError

# Exit codes of a child; the supervisor reads them.
STOPPED = 0
FAILED = 1
MISTAKE = 2  # a user's mistake that only the child could see
HOPELESS = 3  # a restart would only meet the same again
PR_SET_PDEATHSIG = 1


class RunError(UserError):
    """A run that cannot go on, through nobody's bug: one line, and no restart."""


class Stop:
    """Turns SIGTERM into a flag that the process's loop asks for."""

    def __init__(self) -> None:
        self._requested = False
        signal.signal(signal.SIGTERM, self._request)

    def _request(self, signum: int, frame: FrameType | None) -> None:
        self._requested = True

    def __call__(self) -> bool:
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
    """

    run: Run
    name: str
    seed: int
    board: Board
    stop: Stop


def child_main(
    main: str,
    run: Run,
    name: str,
    restart: int,
    nice: int,
) -> None:
    """Runs a main function as a child of the launcher; the target of its Process.

    `main` is "module:function", so that the launcher need not import what its
    children import; the function takes a Context.
    Ends the process with STOPPED, FAILED (after a traceback in its output file) or
    MISTAKE or HOPELESS (after one line). Ends it at once when the launcher is gone.
    """
    _redirect_output(run, name)
    faulthandler.enable()
    _end_with_parent()
    stop = Stop()
    os.nice(nice)
    code = STOPPED
    with present(run.folders):
        try:
            module, function = main.split(":")
            main_function = getattr(importlib.import_module(module), function)
            seed = derive_seed(run.config, name, run.launch, restart)
            board = Board.open(run.folders.board)
            board[name]["pid"] = os.getpid()
            main_function(Context(run, name, seed, board, stop))
        except UserError as error:
            print(error, file=sys.stderr)
            hopeless = isinstance(error, (RunError, CheckpointError))
            code = HOPELESS if hopeless else MISTAKE
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                print(_full_disk(run, error), file=sys.stderr)
                code = HOPELESS
            else:
                traceback.print_exc()
                code = FAILED
        except BaseException:
            traceback.print_exc()
            code = FAILED
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: threads of libraries must not keep a finished process alive.
        os._exit(code)


def _redirect_output(run: Run, name: str) -> None:
    path = run.folders.process_output(name)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _full_disk(run: Run, error: OSError) -> str:
    path = error.filename or run.folders.root
    free = shutil.disk_usage(run.folders.root).free
    return (
        f"{path}: {error.strerror} ({free:,} bytes are free); the run stops. Free some "
        "space and --resume"
    )


def _end_with_parent() -> None:
    """Ends this process when the launcher dies, however it died: no orphans.

    The kernel does it, also to a process that is stopped or hangs in a library; the
    thread is for a launcher that died before the kernel was asked.
    """
    parent = multiprocessing.parent_process()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(FAILED)

    threading.Thread(target=watch, daemon=True).start()
