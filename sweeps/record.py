"""The record of a sweep: what it runs, and where."""

import os
import platform
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import portalocker
from pydantic import TypeAdapter, ValidationError

from ..storage import locks, record
from ..storage.folders import Folders
from ..util import UserError, named

MAIN = Path(__file__).resolve().parents[1] / "main.py"
FOLDER = "sweeps"  # of the output root
RECORD, SCRIPT, LOCK = "sweep.json", "job.sh", ".lock"
SLURM, LOCAL = "slurm", "local"
# Exit codes, as a shell gives them, of runs that did not fail: SIGTERM (15) that comes
# before main.py can answer it ends it as a signal does.
NO_FAILURE = (0, 128 + 15)


@dataclass(frozen=True)
class PlannedRun:
    """One run of main.py.

    Attributes:
        arguments: of main.py, or of its sweep's program.
        environment: the name of its environment's folder.
        experiment: its own name.
        log_path, save_model_path: of its configuration.
        frames, hours: its limits.
        updates: of the value learner up to `frames`; None where nothing sets a pace.
        processes: that learn and act, its launcher not counted.
    """

    arguments: tuple[str, ...]
    environment: str
    experiment: str
    log_path: str
    save_model_path: str
    frames: int | None
    hours: float | None
    updates: int | None
    processes: int

    @property
    def name(self) -> str:
        return f"{self.environment}/{self.experiment}"

    def folders(self, output_root: Path) -> Folders:
        root = output_root / self.environment / self.experiment
        return Folders.at(root, self.log_path, self.save_model_path, self.experiment)


# ---- the record ---------------------------------------------------------------------


@dataclass(frozen=True)
class Sweep:
    """What was asked of one engine by one call; `OUTPUT_ROOT/sweeps/NUMBER/`.

    Attributes:
        folder: its own.
        engine: SLURM or LOCAL.
        working_folder: where its commands are run, absolute.
        gpus_per_run: GPUs that each run gets.
        max_parallel: runs at a time; None: as many as there are GPUs for.
        runs: by their index, which also names their logs.
        program: the script that takes their arguments; it ends as main.py.
    """

    folder: Path
    engine: str
    working_folder: str
    gpus_per_run: int
    max_parallel: int | None
    runs: tuple[PlannedRun, ...]
    program: str = "main.py"

    @property
    def output_root(self) -> Path:
        return self.folder.parents[1]

    @property
    def script(self) -> Path:
        return self.folder / SCRIPT

    def log(self, index: int) -> Path:
        """What main.py printed in all attempts at a run."""
        return self.folder / f"{index}.txt"

    def folders(self, index: int) -> Folders:
        return self.runs[index].folders(self.output_root)


def next_folder(output_root: Path) -> Path:
    """Where the next sweep's record goes; `save` makes it."""
    sweeps = output_root.absolute() / FOLDER
    return sweeps / str(max([0, *map(int, _numbers(sweeps))]) + 1)


def save(sweep: Sweep) -> None:
    """Writes the record into a new folder; needs `claimed`."""
    sweep.folder.mkdir()
    content = asdict(sweep)
    del content["folder"]
    record.write_json(sweep.folder / RECORD, content)


@contextmanager
def claimed(output_root: Path) -> Iterator[None]:
    """Held by a call that starts runs; a local pool, as long as it works.

    Raises:
        UserError: another call holds it, or nothing can be written there.
    """
    path = output_root / FOLDER / LOCK
    flags = portalocker.LOCK_EX | portalocker.LOCK_NB
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = portalocker.Lock(path, "a+", timeout=locks.ASKING_PATIENCE, flags=flags)
        file = lock.acquire()
    except portalocker.LockException as error:
        locks.check_locks(error, output_root)
        raise UserError(
            f"another sweep.py starts runs in {output_root} now; wait for its end, or "
            f"python sweep.py cancel {shlex.quote(str(output_root))}"
        ) from None
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror}") from None
    try:
        with named(path):
            file.truncate(0)
            file.write(f"{os.getpid()} {platform.node()}")
            file.flush()
        yield
    finally:
        lock.release()


class Holder(NamedTuple):
    """The call that starts runs in an output root now.

    Attributes:
        pid: its process.
        host: where that is.
        since: when it began, in seconds since 1970.
    """

    pid: int
    host: str
    since: float


def holder(output_root: Path) -> Holder | None:
    """The call that starts runs here now; None: none does."""
    path = output_root / FOLDER / LOCK
    if not locks.is_locked(path):
        return None
    number, _, host = path.read_text().partition(" ")
    if not number.isdecimal():
        return None
    return Holder(int(number), host, path.stat().st_mtime)


def folders(output_root: Path) -> list[Path]:
    """Where the records of an output root are, the oldest first."""
    sweeps = output_root.absolute() / FOLDER
    numbered = [sweeps / number for number in sorted(_numbers(sweeps), key=int)]
    return [folder for folder in numbered if (folder / RECORD).exists()]


def load_all(output_root: Path) -> list[Sweep]:
    """All sweeps of an output root, the oldest first.

    Raises:
        UserError: a record cannot be read.
    """
    return [_load(folder) for folder in folders(output_root)]


def load_readable(output_root: Path, say: Callable[[str], None]) -> list[Sweep]:
    """The sweeps of an output root whose records can be read, the oldest first.

    Args:
        output_root: of the runs.
        say: takes a line for each of the other records.
    """
    found = []
    for folder in folders(output_root):
        try:
            found.append(_load(folder))
        except UserError as error:
            say(str(error))
    return found


def _numbers(sweeps: Path) -> list[str]:
    if not sweeps.is_dir():
        return []
    return [path.name for path in sweeps.iterdir() if path.name.isdecimal()]


def _load(folder: Path) -> Sweep:
    path = folder / RECORD
    try:
        content = {**record.read_json(path), "folder": folder}
        return TypeAdapter(Sweep).validate_python(content)
    except (UserError, ValidationError):
        raise UserError(
            f"{path} cannot be read, or is no record of a sweep; rename its folder, "
            f"{folder.name}, once no job of it is queued, to continue without it"
        ) from None


def latest(sweeps: Sequence[Sweep]) -> list[tuple[Sweep, int]]:
    """Each run once: the last sweep that has it, and its index there."""
    found: dict[str, tuple[Sweep, int]] = {}
    for sweep in sweeps:
        for index, run in enumerate(sweep.runs):
            found[run.name] = (sweep, index)
    return list(found.values())
