"""What a sweep runs: files and grids expanded into checked runs, and its record."""

import itertools
import json
import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import portalocker

import configuration
import experiment
from configuration import LoadedConfig
from experiment import Folders
from schema import Config
from status import process_names
from util import UserError

FOLDER = "sweeps"  # of the output root
RECORD, LOCK = "sweep.json", ".lock"
SLURM, LOCAL = "slurm", "local"
# Exit codes, as a shell gives them, of runs that did not fail: SIGTERM (15) that comes
# before main.py can answer it ends it as a signal does.
NO_FAILURE = (0, 128 + 15)
IN_A_NAME = r"[A-Za-z0-9._+=-]+"  # a value that may stand in an experiment's name


@dataclass(frozen=True)
class PlannedRun:
    """One run of main.py.

    Attributes:
        arguments: of main.py.
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
        return Folders(
            root, root / self.log_path, root / self.save_model_path, self.experiment
        )


# ---- expanding ----------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        paths: configuration files, and folders of them.
        settings: "KEY=V1,V2", as of `--set`.
        seeds: one run for each; none: the configurations' own.
        frames, hours: limits of each run; None: the configurations' own.
        endless: whether runs may have no limit.
        gpu_id: for main.py.
    """

    paths: Sequence[str]
    settings: Sequence[str] = ()
    seeds: Sequence[int] = ()
    frames: int | None = None
    hours: float | None = None
    endless: bool = False
    gpu_id: str = "cpu"


@dataclass(frozen=True)
class _Choice:
    """One value of one key: what `--set` gets, and what it adds to the name."""

    override: str
    label: str = ""


def expand(request: Request) -> tuple[Path, list[PlannedRun]]:
    """All runs of a request, in order of files, then of values, then of seeds.

    Returns:
        The output root, which they share, and the runs, with distinct folders.

    Raises:
        UserError: a mistake in any of the configurations; nothing has been started.
    """
    axes = _axes(request)
    runs: dict[str, PlannedRun] = {}
    roots: dict[str, str] = {}
    faults: dict[str, None] = {}  # in order; one mistake in --set is one, not 132
    for path in _files(request.paths):
        for choices in itertools.product(*axes):
            try:
                run, root = _planned(request, path, choices)
            except UserError as error:
                faults[str(error)] = None
                continue
            if run.name in runs:
                faults[_collision(run, runs[run.name])] = None
            runs[run.name] = run
            roots.setdefault(root, path)
    if faults:
        more = f" (and {len(faults) - 1} more mistakes)" if len(faults) > 1 else ""
        raise UserError(f"{next(iter(faults))}{more}; nothing was started")
    if len(roots) > 1:
        (one, first), (other, second) = list(roots.items())[:2]
        raise UserError(
            f"{first} writes to {one}, {second} to {other}; give all runs one folder "
            "by --set output_root=FOLDER"
        )
    return Path(next(iter(roots))), list(runs.values())


def _files(paths: Sequence[str]) -> list[str]:
    """The files, each once; a folder stands for all .json below it."""
    files: dict[str, None] = {}
    for path in paths:
        if not os.path.isdir(path):
            files[path] = None
            continue
        found = sorted(str(file) for file in Path(path).rglob("*.json"))
        if not found:
            raise UserError(f"{path} holds no .json file")
        files.update(dict.fromkeys(found))
    return list(files)


def _axes(request: Request) -> list[list[_Choice]]:
    """For each key its values, the seeds last."""
    keys = [setting.partition("=")[0] for setting in request.settings]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"--set: {key} stands twice; give all its values in one")
    if request.seeds and "seed" in keys:
        raise UserError("--seeds and --set seed=... both set the seed; give one")
    split = [(key, *_values(s)) for key, s in zip(keys, request.settings, strict=True)]
    varied = [key for key, *values in split if len(values) > 1]
    axes = []
    for key, *values in split:
        if len(values) < 2:
            axes.append([_Choice("=".join([key, *values]))])
            continue
        last = key.rpartition(".")[2]
        is_unique = sum(other.rpartition(".")[2] == last for other in varied) == 1
        shown = last if is_unique else key
        axes.append(
            [
                _Choice(f"{key}={value}", f"-{shown}={_in_a_name(value, number)}")
                for number, value in enumerate(values)
            ]
        )
    if request.seeds:
        axes.append([_Choice(f"seed={n}", f"-seed{n}") for n in request.seeds])
    return axes


def _values(setting: str) -> list[str]:
    """The values in "KEY=V1,V2"; none where there is no "=".

    A JSON value is one, whatever commas are in it; several JSON values are separated
    by commas, as in a list; and so is what is no JSON, such as names.
    """
    _, equals, text = setting.partition("=")
    if not equals:
        return []
    with suppress(ValueError):
        json.loads(text)
        return [text]
    with suppress(ValueError):
        return [json.dumps(value) for value in json.loads(f"[{text}]")] or [text]
    return text.split(",")


def _in_a_name(value: str, number: int) -> str:
    plain = value.strip('"')
    return plain if re.fullmatch(IN_A_NAME, plain) else f"v{number}"


def _planned(
    request: Request, path: str, choices: Sequence[_Choice]
) -> tuple[PlannedRun, str]:
    """One run and its output root.

    Raises:
        UserError: the configuration is wrong, has no limit, or is not that of the
            output that is already there.
    """
    overrides = [choice.override for choice in choices]
    loaded = configuration.load(
        path, overrides=overrides, frames=request.frames, hours=request.hours
    )
    config = loaded.config
    own = configuration.experiment_name(path)
    name = configuration.experiment_name(
        path, own + "".join(choice.label for choice in choices)
    )
    if not (config.total_frames or config.total_hours or request.endless):
        raise UserError(
            f"{path} has no limit: give --frames N or --hours H, or --endless to let "
            "it run until it is cancelled"
        )
    _check_output(Folders.of(config, name), loaded)
    arguments = [path, request.gpu_id, "--resume-or-start"]
    arguments += ["--name", name] if name != own else []
    for option in ("frames", "hours"):
        value = getattr(request, option)
        arguments += [] if value is None else [f"--{option}", str(value)]
    arguments += ["--set", *overrides] if overrides else []
    planned = PlannedRun(
        arguments=tuple(arguments),
        environment=config.environment_folder,
        experiment=name,
        log_path=config.log_path,
        save_model_path=config.save_model_path,
        frames=config.total_frames,
        hours=config.total_hours,
        updates=_updates(config),
        processes=len(process_names(config)) - 1,
    )
    return planned, config.output_root


def _check_output(folders: Folders, loaded: LoadedConfig) -> None:
    if experiment.has_output(folders):
        experiment.check_mode(folders, loaded.merged, "resume")


def _updates(config: Config) -> int | None:
    policy = config.policy_config
    if config.total_frames is None or not policy.frames_per_update:
        return None
    learned = config.total_frames - policy.frames_before_learning
    return int(learned / policy.frames_per_update)


def _collision(run: PlannedRun, other: PlannedRun) -> str:
    files = " and ".join(dict.fromkeys((other.arguments[0], run.arguments[0])))
    return (
        f"{files}: two runs would both be {run.name}; rename a file, or sweep them "
        "with different output_root"
    )


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
    """

    folder: Path
    engine: str
    working_folder: str
    gpus_per_run: int
    max_parallel: int | None
    runs: tuple[PlannedRun, ...]

    @property
    def output_root(self) -> Path:
        return self.folder.parents[1]

    @property
    def script(self) -> Path:
        return self.folder / "job.sh"

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
    experiment.write_json(sweep.folder / RECORD, content)


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
        with portalocker.Lock(
            path, "a+", timeout=experiment.ASKING_PATIENCE, flags=flags
        ) as file:
            file.truncate(0)
            file.write(f"{os.getpid()} {platform.node()}")
            file.flush()
            yield
    except portalocker.LockException:
        raise UserError(
            f"another sweep.py starts runs in {output_root} now; wait for its end, or "
            f"python sweep.py cancel {output_root}"
        ) from None
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror}") from None


def holder(output_root: Path) -> tuple[int, str] | None:
    """Process id and host of the call that starts runs here now; None: none does."""
    path = output_root / FOLDER / LOCK
    if not experiment.is_locked(path):
        return None
    number, _, host = path.read_text().partition(" ")
    return (int(number), host) if number else None


def load_all(output_root: Path) -> list[Sweep]:
    """All sweeps of an output root, the oldest first.

    Raises:
        UserError: a record cannot be read.
    """
    sweeps = output_root.absolute() / FOLDER
    folders = [sweeps / number for number in sorted(_numbers(sweeps), key=int)]
    return [_load(folder) for folder in folders if (folder / RECORD).exists()]


def _numbers(sweeps: Path) -> list[str]:
    if not sweeps.is_dir():
        return []
    return [path.name for path in sweeps.iterdir() if path.name.isdecimal()]


def _load(folder: Path) -> Sweep:
    path = folder / RECORD
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        runs = [
            PlannedRun(**{**run, "arguments": tuple(run["arguments"])})
            for run in content.pop("runs")
        ]
        return Sweep(folder=folder, runs=tuple(runs), **content)
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{path} cannot be read, or is no record of a sweep") from None


def latest(sweeps: Sequence[Sweep]) -> list[tuple[Sweep, int]]:
    """Each run once: the last sweep that has it, and its index there."""
    found: dict[str, tuple[Sweep, int]] = {}
    for sweep in sweeps:
        for index, run in enumerate(sweep.runs):
            found[run.name] = (sweep, index)
    return list(found.values())
