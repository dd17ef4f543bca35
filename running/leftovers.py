"""What a process of the run leaves running when it is killed.

An environment may have started a program, such as a simulator, which it ends when it is
closed. Nobody closes the environment of a process that was killed.
"""

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ..storage.folders import Run

VARIABLE = "STEVE_PROCESS"  # inherited by all that a process of a run starts


def mark(run: Run, name: str) -> dict[str, str]:
    """The variable by which what a process starts is known, also after its death.

    It is the same in each launch, whatever the folder of the run is called.
    """
    status = run.folders.root.stat()
    return {VARIABLE: f"{status.st_dev}:{status.st_ino}:{name}"}


def end(variables: Mapping[str, str]) -> None:
    """Asks what a process of the run had started to end; that process must be gone.

    Args:
        variables: the `mark` of that process.
    """
    wanted = f"{VARIABLE}={variables[VARIABLE]}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is another user's
            if wanted in path.read_bytes().split(b"\0"):
                os.kill(int(path.parent.name), signal.SIGTERM)
