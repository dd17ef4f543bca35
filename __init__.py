"""Stochastic Ensemble Value Expansion (STEVE) in TensorFlow 2.

    run = steve.train("config/quickstart.json", frames=3000)
    policy = run.policy()
    action = policy.act(observation)

Importing the package imports neither TensorFlow nor gymnasium; each name below is
loaded when it is first used.
"""

import importlib
from collections.abc import Callable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .acting.deployed import DeployedPolicy
    from .analysis.curves import load_curves
    from .analysis.loaded import LoadedRun, load_policy, load_run, load_runs
    from .analysis.published import load_results
    from .environments import register_envs
    from .running.training import Epoch
    from .settings.extensions import weighting, world_model
    from .util import RunError, UserError
    from .worldmodel import WorldModel, WorldModelProtocol

__version__ = "1.1.0.dev0"
__all__ = [
    "DeployedPolicy",
    "Epoch",
    "LoadedRun",
    "RunError",
    "UserError",
    "WorldModel",
    "WorldModelProtocol",
    "load_curves",
    "load_policy",
    "load_results",
    "load_run",
    "load_runs",
    "register_envs",
    "train",
    "weighting",
    "world_model",
]

_HOMES = {
    "DeployedPolicy": "acting.deployed",
    "Epoch": "running.training",
    "LoadedRun": "analysis.loaded",
    "RunError": "util",
    "UserError": "util",
    "WorldModel": "worldmodel",
    "WorldModelProtocol": "worldmodel",
    "load_curves": "analysis.curves",
    "load_policy": "analysis.loaded",
    "load_results": "analysis.published",
    "load_run": "analysis.loaded",
    "load_runs": "analysis.loaded",
    "register_envs": "environments",
    "weighting": "settings.extensions",
    "world_model": "settings.extensions",
}


if not TYPE_CHECKING:  # a checker takes the imports above, and finds misspelt names

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'steve' has no attribute {name!r}")
        return getattr(importlib.import_module(f"steve.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def train(
    config: str | PathLike[str] | Mapping[str, Any],
    device: str | int = "cpu",
    *,
    set: Mapping[str, Any] | None = None,
    frames: int | None = None,
    hours: float | None = None,
    name: str | None = None,
    resume: bool | None = False,
    resume_from: int | None = None,
    overwrite: bool = False,
    on_epoch: "Callable[[Epoch], None] | None" = None,
    show: Callable[[str], None] = print,
) -> "LoadedRun":
    """Trains as `steve train` does, in processes of its own; returns the run.

    Works from a script without a main guard, from a thread and from a notebook. It
    leaves signal handlers and environment variables alone. Ctrl-C ends the run, which
    saves first.

    Args:
        config: a configuration file, in the working folder or packaged
            ("config/quickstart.json", or "quickstart" for short); or its content, an
            object with `inherits` and `updates`.
        device: "cpu", or the number of the value learner's GPU.
        set: values by dotted key, such as {"policy_config.batch_size": 128}.
        frames: limit of the run in environment steps.
        hours: limit of the run in hours of learning.
        name: the experiment's name; by default that of the file.
        resume: True continues an interrupted run; None continues it or, where there
            is none, starts it.
        resume_from: resumes from the numbered checkpoint of so many updates; what came
            later is kept in a folder next to the run's.
        overwrite: starts again; the earlier output is renamed, not deleted.
        on_epoch: called in this thread with an `Epoch` after each published policy
            (where they follow each other within a quarter of a second, not after every
            one). What it raises ends the run, which saves first.
        show: takes the lines of progress.

    Returns:
        the run, with `.folder`, `.finished`, `.scores`, `.log("valuerl")`, `.policy()`.

    Raises:
        UserError: a mistake, or (as RunError) a run that failed; one line.
        RuntimeError: the run ended by a fault of this program.
        KeyboardInterrupt, and what `on_epoch` raises: after the run has ended as by
            Ctrl-C. A note of it says so where not everything could be saved.
    """
    from os import fspath

    from .analysis.loaded import load_run
    from .running import training
    from .settings.request import Request, Start
    from .util import UserError, to_json

    training.check_arguments(
        config=config,
        device=device,
        set=set,
        frames=frames,
        hours=hours,
        name=name,
        resume=resume,
        resume_from=resume_from,
        overwrite=overwrite,
    )
    if resume_from is not None:
        resume = True
    if resume is not False and overwrite:
        raise UserError("resume and overwrite contradict each other: give one")
    start = Start.OVERWRITE if overwrite else Start.FRESH
    if resume is not False:
        start = Start.RESUME if resume else Start.RESUME_OR_START
    request = Request(
        config=dict(config) if isinstance(config, Mapping) else fspath(config),
        device=str(device),
        start=start,
        rewind_to=None if resume_from is None else int(resume_from),
        overrides=tuple(f"{k}={to_json(v, k)}" for k, v in (set or {}).items()),
        name=name,
        frames=None if frames is None else int(frames),
        hours=None if hours is None else float(hours),
    )
    return load_run(training.train(request, on_epoch, show))
