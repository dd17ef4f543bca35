"""What a sweep runs: files and grids expanded into checked runs."""

import itertools
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..running import pace
from ..settings import loading
from ..settings.files import locate
from ..settings.loading import LoadedConfig
from ..settings.request import Start
from ..settings.roles import process_names
from ..settings.schema import Config
from ..storage import opening
from ..storage.folders import Folders, output_folder
from ..util import UserError, files_below
from .record import PlannedRun

IN_A_NAME = r"[A-Za-z0-9._+=-]+"  # a value that may stand in an experiment's name


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
        label: what is added to the names of all runs.
    """

    paths: Sequence[str]
    settings: Sequence[str] = ()
    seeds: Sequence[int] = ()
    frames: int | None = None
    hours: float | None = None
    endless: bool = False
    gpu_id: str = "cpu"
    label: str = ""


@dataclass(frozen=True)
class _Choice:
    """One value of one key: what `--set` gets, and what it adds to the name."""

    override: str
    label: str = ""


class WrongConfiguration(UserError):
    """A configuration that cannot be run, whatever output there is."""


def expand(request: Request) -> tuple[Path, list[PlannedRun]]:
    """All runs of a request, in order of files, then of values, then of seeds.

    Returns:
        The output root, which they share, and the runs, with distinct folders.

    Raises:
        WrongConfiguration: a mistake in a configuration; nothing has been started.
        UserError: another mistake; likewise.
    """
    axes = _axes(request)
    runs: dict[str, PlannedRun] = {}
    roots: dict[str, str] = {}
    # In order; one mistake in --set is one, not 132.
    faults: dict[str, type[UserError]] = {}
    for path in _files(request.paths):
        for choices in itertools.product(*axes):
            try:
                run, root = _planned(request, path, choices)
            except UserError as error:
                faults[str(error)] = type(error)
                continue
            if run.name in runs:
                faults[_collision(run, runs[run.name])] = UserError
            runs[run.name] = run
            roots.setdefault(root, path)
    if faults:
        more = f" (and {len(faults) - 1} more mistakes)" if len(faults) > 1 else ""
        first, kind = next(iter(faults.items()))
        raise kind(f"{first}{more}; nothing was started")
    if len(roots) > 1:
        (one, first), (other, second) = list(roots.items())[:2]
        raise UserError(
            f"{first} writes to {one}, {second} to {other}; give all runs one folder "
            "by --set output_root=FOLDER"
        )
    return Path(next(iter(roots))), list(runs.values())


def _files(paths: Sequence[str]) -> list[str]:
    """The files, each once; a folder, also a packaged one, is all .json below it.

    Hidden folders in it, such as JupyterLab's `.ipynb_checkpoints`, are passed over.
    """
    files: dict[str, None] = {}
    for path in paths:
        folder = locate(path)
        if not folder.is_dir():
            files[path] = None
            continue
        found = sorted(
            str(file)
            for file in files_below(folder, "*.json")
            if not any(part[0] == "." for part in file.relative_to(folder).parts)
        )
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
        WrongConfiguration: its values are wrong, or contradict each other.
        UserError: it has no limit, or is not that of the output that is already there.
    """
    overrides = [choice.override for choice in choices]
    try:
        loaded = loading.load(
            path, overrides=overrides, frames=request.frames, hours=request.hours
        )
    except UserError as error:
        raise WrongConfiguration(str(error)) from None
    config = loaded.config
    own = loading.experiment_name(path)
    name = loading.experiment_name(
        path, own + "".join(choice.label for choice in choices) + request.label
    )
    if not (config.total_frames or config.total_hours or request.endless):
        raise UserError(
            f"{path} has no limit: give --frames N or --hours H, or --endless to let "
            "it run until it is cancelled"
        )
    _check_output(Folders.of(config, name), loaded)
    arguments = [path, request.gpu_id, "--resume-or-start"]
    arguments += [f"--name={name}"] if name != own else []  # it may begin with -
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
    return planned, str(output_folder(config))


def _check_output(folders: Folders, loaded: LoadedConfig) -> None:
    if opening.has_output(folders):
        opening.check_mode(folders, loaded.merged, Start.RESUME)


def _updates(config: Config) -> int | None:
    """Those of the value learner; None: it has no pace, or the run no such limit."""
    policy = config.policy_config
    if config.total_frames is None or not policy.frames_per_update:
        return None
    return pace.updates_for(config, policy)


def _collision(run: PlannedRun, other: PlannedRun) -> str:
    if run.arguments == other.arguments:
        return (
            f"{run.arguments[0]}: {run.name} is asked for twice; give each file, seed "
            "and value once"
        )
    files = " and ".join(dict.fromkeys((other.arguments[0], run.arguments[0])))
    return (
        f"{files}: two runs would both be {run.name}; rename a file, or sweep them "
        "with different output_root"
    )
