"""One experiment's folder: its layout, who may use it, and how a launch opens it."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import portalocker

import checkpoint
from configuration import changed_keys
from disk import full_disk_line, is_full, network_filesystem
from replay import DATA_NAME, ReplayBuffer
from schema import Config
from status import VALUERL, Board, learners, process_names
from util import UserError, atomic_write, fsync_folder

PACKAGES = ("tensorflow", "gymnasium", "mujoco", "numpy", "safetensors", "portalocker")
MAX_JSON_BYTES = 64 << 20
CHILDREN_PATIENCE = 15.0  # seconds that a killed launch's processes get to end
ASKING_PATIENCE = 1.0  # seconds in which one who only asks (`is_locked`) lets go


@dataclass(frozen=True)
class Folders:
    """Where everything of one experiment lies (SPEC section 9)."""

    root: Path
    log: Path
    checkpoints: Path
    experiment: str

    @classmethod
    def of(cls, config: Config, experiment: str) -> "Folders":
        root = Path(config.output_root) / config.environment_folder / experiment
        return cls(
            root, root / config.log_path, root / config.save_model_path, experiment
        )

    @property
    def hyperparameters(self) -> Path:
        return self.log / "hps.json"

    @property
    def run(self) -> Path:
        return self.log / "run.json"

    @property
    def scores(self) -> Path:
        return self.log / f"{self.experiment}.greedy.csv"

    @property
    def board(self) -> Path:
        return self.log / "status.bin"

    @property
    def policy(self) -> Path:
        """The policy that interactors and evaluators use."""
        return self.checkpoints / "policy.safetensors"

    @property
    def replay(self) -> Path:
        return self.checkpoints / "replay"

    def learner_log(self, learner: str) -> Path:
        return self.log / f"{learner}.log"

    def events(self, writer: str) -> Path:
        """The folder of TensorBoard's files of one writer."""
        return self.log / "events" / writer

    def process_output(self, process: str) -> Path:
        """What a child process prints; its traceback, if it fails."""
        return self.log / "processes" / f"{process}.txt"

    def state(self, learner: str) -> Path:
        """A learner's newest state; the value learner loads world models from it."""
        return self.checkpoints / f"{learner}.safetensors"

    def numbered_state(self, learner: str, updates: int) -> Path:
        return self.checkpoints / f"{learner}-{updates}.safetensors"

    def numbered_replay(self, updates: int) -> Path:
        return self.checkpoints / f"replay-{updates}"

    def lock(self, kind: str) -> Path:
        """Beside the folder, so that it stays in place when the folder is moved."""
        return self.root.with_name(f".{self.experiment}.{kind}.lock")


@dataclass(frozen=True)
class Run:
    """What every process of a run is given.

    Attributes:
        config: the checked configuration.
        folders: where everything lies.
        obs_dim: O, as measured on the environment.
        action_dim: A.
        launch: 0 for the first start, then one more for each resume.
        cpu_learners: whether the learners compute on the CPU.
    """

    config: Config
    folders: Folders
    obs_dim: int
    action_dim: int
    launch: int
    cpu_learners: bool


def derive_seed(config: Config, process: str, launch: int, restart: int) -> int:
    """A distinct seed for each process, and for each time that it is started."""
    index = process_names(config).index(process)
    sequence = np.random.SeedSequence(config.seed, spawn_key=(index, launch, restart))
    return int(sequence.generate_state(1)[0])


@contextmanager
def claimed(folders: Folders) -> Iterator[None]:
    """Holds the experiment's folder: no second launch gets it at the same time.

    The lock is the kernel's: it is free as soon as its holder is gone, however it
    went. Processes that outlive a killed launcher for a moment hold a shared lock of
    their own, which is waited for.

    Raises:
        UserError: another launch has the folder.
    """
    try:
        folders.root.parent.mkdir(parents=True, exist_ok=True)
        for kind in ("run", "processes"):
            folders.lock(kind).touch()
    except OSError as error:
        raise _unwritable(error, folders) from None
    exclusive = portalocker.LOCK_EX | portalocker.LOCK_NB
    with ExitStack() as stack:
        try:
            stack.enter_context(
                portalocker.Lock(
                    folders.lock("run"), "a", timeout=ASKING_PATIENCE, flags=exclusive
                )
            )
        except portalocker.LockException:
            raise UserError(
                f"{folders.root} is in use by another launch; stop that one first, "
                "or give this one another --name"
            ) from None
        try:
            with portalocker.Lock(
                folders.lock("processes"),
                "a",
                timeout=CHILDREN_PATIENCE,
                flags=exclusive,
            ):
                pass
        except portalocker.LockException:
            raise UserError(
                f"processes of an earlier launch still use {folders.root}; end them"
            ) from None
        yield


@contextmanager
def present(folders: Folders) -> Iterator[None]:
    """Held by each child for as long as it lives; see `claimed`."""
    shared = portalocker.LOCK_SH | portalocker.LOCK_NB
    with portalocker.Lock(folders.lock("processes"), "a", timeout=5, flags=shared):
        yield


def in_use(folders: Folders) -> bool:
    """Whether a launch has the folder now."""
    return is_locked(folders.lock("run"))


def is_locked(path: Path) -> bool:
    """Whether somebody holds a lock for himself; asks without keeping him from it.

    Who wants the lock must ask again for a moment (ASKING_PATIENCE).
    """
    shared = portalocker.LOCK_SH | portalocker.LOCK_NB
    try:
        with portalocker.Lock(path, "r", timeout=0, flags=shared):
            return False
    except FileNotFoundError:
        return False
    except portalocker.LockException:
        return True


def has_output(folders: Folders) -> bool:
    """Whether there is any file of an earlier run.

    One that was killed while it wrote its first file has left no more than a
    temporary one (`atomic_write`).
    """
    return any(
        path.is_file()
        for path in folders.root.rglob("*")
        if not (path.name.startswith(".") and path.suffix == ".tmp")
    )


def is_finished(folders: Folders, frames: int | None, hours: float | None) -> bool:
    """Whether the run ended at a limit and reached one of these, today's."""
    reached = read_run(folders)["finished"]
    if not reached:
        return False
    return (frames is not None and reached["frames"] >= frames) or (
        hours is not None and reached["hours"] >= hours
    )


def check_mode(folders: Folders, merged: dict[str, Any], mode: str) -> None:
    """Refuses a start that does not say what is meant with what is there.

    Args:
        folders: the experiment's.
        merged: the configuration of this launch.
        mode: "fresh", "resume" or "overwrite".

    Raises:
        UserError: output without --resume / --overwrite, --resume without output, or
            a resume with another configuration, whose keys are named.
    """
    if mode == "fresh" and has_output(folders):
        raise UserError(
            f"{folders.root} holds output of an earlier run: --resume goes on with it, "
            "--overwrite puts it aside and starts anew, --name NAME keeps both"
        )
    if mode != "resume":
        return
    if not has_output(folders):
        raise UserError(
            f"{folders.root} holds nothing to resume; start it without --resume"
        )
    earlier = _read_json(folders.hyperparameters)
    changed = changed_keys(earlier, merged)
    if changed:
        raise UserError(
            f"the configuration differs from that of the run in {folders.root}: "
            f"{', '.join(changed)}; give the run's values, or another --name"
        )


def put_aside(folders: Folders) -> Path:
    """Renames the experiment's folder, so that nothing in it is lost."""
    number = 1
    root = folders.root
    while (aside := root.with_name(f"{root.name}.old{number}")).exists():
        number += 1
    root.rename(aside)
    return aside


def rewind(folders: Folders, config: Config, updates: int) -> Path:
    """Goes back to a numbered checkpoint; returns where the present state now is.

    A new folder is built beside the present one and takes its place when it is
    complete: the learners' states, the replay as far as it went then, the scores and
    logs up to that point.

    Raises:
        UserError: no such checkpoint, or its replay has been overwritten; nothing has
            been changed then.
    """
    available = numbered_checkpoints(folders, config)
    if updates not in available:
        listed = ", ".join(map(str, available)) or "none"
        raise UserError(
            f"{folders.checkpoints} has no checkpoint of {updates} updates of all "
            f"learners; there are: {listed}"
        )
    staging = Folders(
        root := folders.root.with_name(f".{folders.root.name}.rewound"),
        root / config.log_path,
        root / config.save_model_path,
        folders.experiment,
    )
    if root.exists():
        shutil.rmtree(root)  # of a rewind that was interrupted
    staging.checkpoints.mkdir(parents=True)
    staging.log.mkdir(parents=True)
    frames = 0
    for name in learners(config):
        numbered = folders.numbered_state(name, updates)
        state = checkpoint.load(numbered)
        frames = max(frames, int(state.metadata["frames"]))
        shutil.copy2(numbered, staging.state(name))
        shutil.copy2(numbered, staging.numbered_state(name, updates))
        _copy_rows(
            folders.learner_log(name), staging.learner_log(name), "updates", updates
        )
        if name == VALUERL:
            # Its own policy is published, and evaluated, anew.
            last = int(state.metadata["epoch"]) - 1
            _copy_rows(folders.scores, staging.scores, "epochs", last)
    _copy_replay(folders, staging, updates, frames)
    if (events := folders.log / "events").exists():
        # Whole: readers drop what a learner that starts at `updates` writes anew.
        shutil.copytree(events, staging.log / "events")
    write_json(staging.run, {**read_run(folders), "finished": None})
    shutil.copy2(folders.hyperparameters, staging.log)
    aside = put_aside(folders)
    root.rename(folders.root)
    fsync_folder(root.parent)
    return aside


def finish_rewind(folders: Folders) -> None:
    """Puts a complete rewound folder in its place, where a kill prevented that.

    Raises:
        UserError: another launch has the folder, and is perhaps just doing that.
    """
    staging = folders.root.with_name(f".{folders.root.name}.rewound")
    complete = staging / folders.hyperparameters.relative_to(folders.root)
    if folders.root.exists() or not complete.exists():
        return
    with claimed(folders):
        if not folders.root.exists():
            staging.rename(folders.root)
            fsync_folder(staging.parent)


def _copy_replay(folders: Folders, staging: Folders, updates: int, frames: int) -> None:
    """The copy made at that checkpoint, or the prefix of the present replay."""
    copy = folders.numbered_replay(updates)
    if (copy / DATA_NAME).exists():
        with ReplayBuffer.open(copy) as replay:
            replay.copy_to(staging.replay)
        return
    with ReplayBuffer.open(folders.replay) as replay:
        if replay.oldest > max(0, frames - replay.capacity):
            raise UserError(
                f"{folders.replay}: the transitions of {updates} updates have been "
                "overwritten since (keep_all_replay_buffers would have kept a copy)"
            )
        if frames > replay.frames:
            raise UserError(
                f"{folders.replay}: {frames - replay.frames} of the transitions of "
                f"{updates} updates are lost; an earlier checkpoint may be complete"
            )
        replay.copy_to(staging.replay, frames)


def numbered_checkpoints(folders: Folders, config: Config) -> list[int]:
    """The update counts of which all learners have a numbered checkpoint."""
    complete: set[int] | None = None
    for name in learners(config):
        found = {
            int(number)
            for path in folders.checkpoints.glob(f"{name}-*.safetensors")
            if (number := path.stem.removeprefix(f"{name}-")).isdecimal()
        }
        complete = found if complete is None else complete & found
    return sorted(complete or ())


def _copy_rows(source: Path, target: Path, column: str, last: int) -> None:
    """Copies a csv up to the row in which `column` passes `last`."""
    if not source.exists() or not _whole_lines(source):
        return
    header, *rows = _whole_lines(source)
    position = header.strip().split(",").index(column)
    kept = [
        row
        for row in rows
        if row.count(",") == header.count(",")  # else a torn line
        and float(row.split(",")[position]) <= last
    ]
    atomic_write(target, "".join([header, *kept]).encode())


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file, without a torn one at its end."""
    lines = path.read_text().splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]


def open_output(run: Run, merged: dict[str, Any]) -> list[str]:
    """Creates what is missing, checks and mends what is there; needs `claimed`.

    Args:
        run: whose folder it is.
        merged: its configuration, for hps.json: written first, since without it
            nothing else could be resumed.

    Returns:
        Lines for the user: damaged transitions or states that were passed over, and
        a filesystem that promises less.

    Raises:
        UserError: a folder cannot be created, the replay buffer cannot be read, or a
            learner has no good state left.
    """
    notes = []
    folders = run.folders
    try:
        folders.root.mkdir(parents=True, exist_ok=True)
        if kind := network_filesystem(folders.root):
            notes.append(
                f"{folders.root} is on a network filesystem ({kind}): a run of one "
                "host is safe there; that a launch on another host is refused, or "
                "leaves this run unharmed, is not promised"
            )
        for folder in (folders.checkpoints, folders.log / "processes"):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(folders.hyperparameters, merged)
        for leftover in folders.root.rglob(".*.tmp"):  # of writers that were killed
            leftover.unlink()
        notes += _mended_replay(run)
        notes += _checked_states(run)
        Board.create(folders.board, run.config)
    except OSError as error:
        raise _unwritable(error, folders) from None
    return notes


def _mended_replay(run: Run) -> list[str]:
    """Creates the replay buffer, or mends what is damaged of it; lines as above.

    Raises:
        UserError: it cannot be opened and has no good row, or is another environment's.
    """
    folder, sizes = run.folders.replay, (run.obs_dim, run.action_dim)
    if not (folder / DATA_NAME).exists():
        ReplayBuffer.create(folder, *sizes, run.config.replay_capacity).close()
        return []
    notes = []
    try:
        replay = ReplayBuffer.open(folder, writable=True)
    except UserError as error:
        kept = ReplayBuffer.salvage(folder, *sizes, run.config.replay_capacity)
        if kept is None:
            raise
        notes.append(
            f"{error}; its {kept[0]} good transitions were taken over, and the damaged "
            f"file is now {kept[1].name}"
        )
        replay = ReplayBuffer.open(folder, writable=True)
    with replay:
        if (replay.obs_dim, replay.action_dim) != sizes:
            raise UserError(
                f"{folder} holds transitions of {replay.obs_dim} observations and "
                f"{replay.action_dim} actions, the environment has {run.obs_dim} and "
                f"{run.action_dim}"
            )
        if lost := replay.recover():
            notes.append(
                f"{folder}: {lost} damaged transitions were dropped; frames "
                f"{replay.oldest} to {replay.frames - 1} remain"
            )
    return notes


def _checked_states(run: Run) -> list[str]:
    """Lines about states of learners that are damaged or missing.

    Raises:
        CheckpointError: a learner has no good state left.
    """
    notes = []
    for name in learners(run.config):
        if run.folders.state(name).exists():
            _, warning = checkpoint.load_newest(run.folders.state(name))
            notes += [warning] if warning else []
        elif run.folders.policy.exists():
            notes.append(f"{name} has no state: it starts from the beginning")
    return notes


def _unwritable(error: OSError, folders: Folders) -> UserError:
    if is_full(error):
        line = full_disk_line(error, folders.root.parent)
        return UserError(f"cannot write to {line}; free some space")
    return UserError(
        f"cannot write to {error.filename or folders.root}: {error.strerror}"
    )


def start_record(
    config: Config, launch: int, devices: dict[str, str], resumed: bool
) -> dict[str, Any]:
    """What `run.json` says of one start."""
    return {
        "time": now(),
        "resumed": resumed,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "devices": devices,
        "seeds": {
            name: derive_seed(config, name, launch, 0) for name in process_names(config)
        },
    }


def read_run(folders: Folders) -> dict[str, Any]:
    """run.json; for a run that has none yet, an empty one."""
    if not folders.run.exists():
        return {"experiment": folders.experiment, "starts": [], "finished": None}
    return _read_json(folders.run)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read(MAX_JSON_BYTES))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing, so how the run was configured is not known; "
            "--overwrite puts its folder aside"
        ) from None
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} cannot be read, or is not a JSON object")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    atomic_write(path, (json.dumps(content, indent=2) + "\n").encode())


def now() -> str:
    """The time in UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the program's checkout, "+" behind it where files differ."""
    folder = Path(__file__).resolve().parent
    if not (folder / ".git").exists() or shutil.which("git") is None:
        return None
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None
