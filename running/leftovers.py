"""What a process of the run leaves running when it is killed.

An environment may have started a program, such as a simulator, which it ends when it is
closed. Nobody closes the environment of a process that was killed.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

VARIABLE = "STEVE_PROCESS"  # inherited by all that a process of a run starts
PATIENCE = 11.0  # seconds; an environment's own process takes up to 10 to close it
TICK = 0.1  # seconds between looks


class Process(NamedTuple):
    """A process of this machine.

    Attributes:
        pid: its number, which another one may get later.
        start: clock ticks from the machine's start to its own.
    """

    pid: int
    start: int


def mark(root: Path, name: str) -> dict[str, str]:
    """The variable by which what a process starts is known, also after its death.

    It is the same in each launch, whatever the folder of the run is called.

    Args:
        root: that folder.
        name: of the process.
    """
    status = root.stat()
    return {VARIABLE: f"{status.st_dev}:{status.st_ino}:{name}"}


def end(variables: Mapping[str, str]) -> list[Process]:
    """Asks what a process of the run had started to end; that process must be gone.

    Args:
        variables: the `mark` of that process.

    Returns:
        whom it has asked.
    """
    wanted = f"{VARIABLE}={variables[VARIABLE]}".encode()
    return _end(lambda variable: variable == wanted)


def end_all(root: Path) -> list[Process]:
    """Asks what any process of a run had started to end; all of them must be gone.

    Args:
        root: the run's folder.

    Returns:
        whom it has asked.
    """
    beginning = f"{VARIABLE}={mark(root, '')[VARIABLE]}".encode()
    return _end(lambda variable: variable.startswith(beginning))


def _end(is_mark: Callable[[bytes], bool]) -> list[Process]:
    asked = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is another user's
            if any(map(is_mark, path.read_bytes().split(b"\0"))):
                pid = int(path.parent.name)
                start = _start_of(pid)
                os.kill(pid, signal.SIGTERM)
                asked.append(Process(pid, start))
    return asked


def remaining(asked: Sequence[Process]) -> list[Process]:
    """Those that are still there."""
    there = []
    for process in asked:
        with suppress(OSError):
            if _start_of(process.pid) == process.start:
                there.append(process)
    return there


def kill(asked: Sequence[Process]) -> None:
    """Kills those that are still there; one may be unable to obey a signal."""
    for process in remaining(asked):
        with suppress(OSError):
            os.kill(process.pid, signal.SIGKILL)


def finish(
    asked: Sequence[Process],
    patience: float = PATIENCE,
    at_once: Callable[[], bool] = lambda: False,
) -> None:
    """Waits until all have ended, and kills those that do not.

    Args:
        asked: by `end`.
        patience: seconds that they may take.
        at_once: whether to wait no longer.
    """
    until = time.monotonic() + patience
    while remaining(asked) and time.monotonic() < until and not at_once():
        time.sleep(TICK)
    kill(asked)


def _start_of(pid: int) -> int:
    """When a process started.

    Raises:
        ProcessLookupError: it has ended, whether or not its parent knows it yet.
        OSError: there is none.
    """
    # After the name, which may hold anything: state, .., the 22nd of all is the start.
    state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    if state in b"ZX":
        raise ProcessLookupError(pid)
    return int(fields[18])
