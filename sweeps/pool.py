"""The local engine: runs of main.py side by side on this machine."""

import contextlib
import errno
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType

from ..running.child import FAILED, ONE_REQUEST, signal_at_parents_death
from ..running.devices import VARIABLE, Gpu
from ..storage import locks, record
from ..storage.disk import full_disk_line, is_full
from ..util import UserError, counted, on_stop_signals
from .record import MAIN, NO_FAILURE, Sweep

TICK = 0.2  # seconds between looks at the runs
KILLED = 128  # what a shell adds to the signal's number


@dataclass
class _Running:
    sweep: Sweep
    index: int
    process: subprocess.Popen[bytes]
    slot: Mapping[str, str]


def slots(
    gpus_per_run: int, max_parallel: int | None, gpus: Sequence[Gpu]
) -> list[dict[str, str]]:
    """The environment variables of runs that may run at a time.

    Without GPUs, `max_parallel` runs (by default one); else a run for each group of
    `gpus_per_run` GPUs, at most `max_parallel`.

    Raises:
        UserError: fewer GPUs than one run needs.
    """
    if not gpus_per_run:
        return [{}] * (max_parallel or 1)
    groups = [
        gpus[first : first + gpus_per_run]
        for first in range(0, len(gpus) - gpus_per_run + 1, gpus_per_run)
    ]
    if not groups:
        raise UserError(
            f"{len(gpus)} GPUs were found, and a run gets {gpus_per_run}; "
            "--gpus-per-run changes that (0: the CPU)"
        )
    return [
        {VARIABLE: ",".join(gpu.token for gpu in group)}
        for group in groups[:max_parallel]
    ]


class Pool:
    """Works through runs until all have ended or a signal comes.

    Ctrl-C and SIGTERM let the runs save and end, and start no more; a second one ends
    them at once. A run that fails does not stop the others. When this process is
    killed, its runs save and end as well.

    Args:
        runs: sweeps and indices, in order.
        slots: for each place the environment variables of its runs.
        tell: gets a line for each event.
        main: the program; tests have their own.
    """

    def __init__(
        self,
        runs: Sequence[tuple[Sweep, int]],
        slots: Sequence[Mapping[str, str]],
        tell: Callable[[str], None] = print,
        main: Path = MAIN,
    ) -> None:
        self._waiting = deque(runs)
        self._count = len(runs)
        self._free = deque(slots)
        self._running: list[_Running] = []
        self._tell = tell
        self._main = main
        self._without_log: set[Path] = set()  # for want of space, at the first try
        self._unwritten: deque[tuple[Path, str]] = deque()  # lines, by their logs
        self._signals = 0
        self._passed_on = 0
        self._signalled_at = -math.inf  # when the first one came, monotonic seconds

    @property
    def stopped(self) -> bool:
        """Whether a signal asked it to end."""
        return self._signals > 0

    def run(self) -> list[int]:
        """Returns the exit codes of all runs that were started, as a shell would."""
        codes = []
        with on_stop_signals(self._on_signal):
            while self._running or (self._waiting and not self._signals):
                while self._waiting and self._free and not self._signals:
                    if not self._start(*self._waiting[0]):
                        break
                    self._waiting.popleft()
                codes += self._collect()
                self._pass_signals_on()
                self._write_lines()
                time.sleep(TICK)
        for path, line in self._unwritten:
            self._say(f"there was no space in {path} for: {line}")
        return codes

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._signals:
            self._signals, self._signalled_at = 1, now
        elif now - self._signalled_at > ONE_REQUEST:
            self._signals = 2

    def _pass_signals_on(self) -> None:
        if self._signals and not self._passed_on:
            self._say(
                f"stopping: {counted(len(self._running), 'run')} to save and end, "
                f"{len(self._waiting)} not started; the same call continues them"
            )
        # A run takes several within ONE_REQUEST for one, as this pool does, and got the
        # first one later than the pool.
        has_first = time.monotonic() - self._signalled_at > 2 * ONE_REQUEST
        if self._passed_on < self._signals and (has_first or not self._passed_on):
            self._passed_on += 1
            for running in self._running:
                running.process.terminate()

    def _start(self, sweep: Sweep, index: int) -> bool:
        """Starts a run or leaves it alone; False: there is no space for its log."""
        run, path = sweep.runs[index], sweep.log(index)
        if locks.in_use(sweep.folders(index)):
            self._event(f"{run.name} is running already: left alone")
            return True
        try:
            log = open(path, "ab")  # noqa: SIM115 - closed below
        except OSError as error:
            if not is_full(error):
                raise
            if path not in self._without_log:
                self._event(f"{full_disk_line(error, path)}; {run.name} waits")
            self._without_log.add(path)
            return False
        with log:
            self._write(path, f"== started {_now()} on {os.uname().nodename}")
            slot = self._free.popleft()
            child = subprocess.Popen(
                [sys.executable, str(self._main), *run.arguments],
                cwd=sweep.working_folder,
                env={**os.environ, **slot},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=partial(_begin, os.getpid()),
            )
        self._running.append(_Running(sweep, index, child, slot))
        gpus = f" on GPU {slot[VARIABLE]}" if slot else ""
        number = self._count - len(self._waiting) + 1
        self._event(f"{run.name} started{gpus}, {number} of {self._count}: {path}")
        return True

    def _collect(self) -> list[int]:
        """Takes leave of runs that have ended; returns their exit codes."""
        codes = []
        ended = [each for each in self._running if each.process.poll() is not None]
        for each in ended:
            self._running.remove(each)
            self._free.append(each.slot)
            path, name = each.sweep.log(each.index), each.sweep.runs[each.index].name
            code = each.process.returncode
            code = code if code >= 0 else KILLED - code
            codes.append(code)
            self._write(path, f"== ended {_now()} with exit code {code}")
            self._event(f"{name} {self._ending(each, code)}")
        return codes

    def _ending(self, each: _Running, code: int) -> str:
        run = each.sweep.runs[each.index]
        if code not in NO_FAILURE:
            return f"failed with exit code {code}: {each.sweep.log(each.index)}"
        folders = each.sweep.folders(each.index)
        with contextlib.suppress(UserError):  # its run.json is damaged
            if record.is_finished(folders, run.frames, run.hours):
                return "finished"
        return "stopped"

    def _write(self, path: Path, line: str) -> None:
        """Writes a line to a run's log, later where there is no space for it now."""
        self._unwritten.append((path, line))
        self._write_lines()

    def _write_lines(self) -> None:
        """Writes the lines that wait, each log's in their order."""
        waiting, self._unwritten = self._unwritten, deque()
        full: set[Path] = set()
        for path, line in waiting:
            try:
                if path not in full:
                    _append(path, line)
            except OSError as error:
                if not is_full(error):
                    raise
                full.add(path)
            if path in full:
                self._unwritten.append((path, line))

    def _event(self, line: str) -> None:
        self._say(f"{datetime.now().strftime('%H:%M:%S')} {line}")

    def _say(self, line: str) -> None:
        # Neither a full disk nor a reader that is gone ends the runs.
        with contextlib.suppress(OSError):
            self._tell(line)


def _append(path: Path, line: str) -> None:
    """Appends a line, or nothing.

    Raises:
        OSError: it could not be written.
    """
    with open(path, "ab", buffering=0) as log:
        size = os.fstat(log.fileno()).st_size
        content = f"{line}\n".encode()
        if log.write(content) < len(content):
            log.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _begin(parent: int) -> None:
    """In the child, before main.py: out of Ctrl-C's reach, ended with its parent."""
    os.setpgid(0, 0)
    signal_at_parents_death(signal.SIGTERM)
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(FAILED)


def command(arguments: Sequence[str]) -> str:
    """The command line of a run, as a user would type it."""
    is_here = MAIN.parent == Path.cwd()
    return shlex.join(["python", MAIN.name if is_here else str(MAIN), *arguments])


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
