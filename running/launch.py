"""Launches a run: checks everything, opens the output, runs the processes."""

import argparse
import multiprocessing
import os
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..settings import loading
from ..settings.loading import LoadedConfig
from ..settings.roles import VALUERL, WORLDMODEL, learners, process_names
from ..settings.schema import Environment
from ..storage import locks, opening, rewind
from ..storage.folders import Folders, Run
from ..storage.record import is_finished, now, read_run, start_record, write_json
from ..util import UserError
from . import devices
from .child import end_with_parent
from .devices import NO_GPU, VARIABLE, Assignment
from .display import Display, closing_lines
from .progress import Progress
from .supervisor import Child, Outcome, Supervisor

if TYPE_CHECKING:
    from ..envwrap import EnvSpec

IMPORT_PATIENCE = 60.0  # seconds, beside step_timeout, to import the simulator
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)


def _measure(env: Environment) -> "EnvSpec":
    from .. import envwrap  # here: the launcher itself needs no simulator

    return envwrap.measure(env)


def measure_environment(env: Environment) -> "EnvSpec":
    """Makes the environment once, in a process of its own, and reads its sizes.

    Raises:
        UserError: it cannot be made, or does not fit the configuration.
    """
    earlier = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), initializer=end_with_parent
    )
    try:
        patience = env.step_timeout + IMPORT_PATIENCE
        return pool.submit(_measure, env).result(patience)
    except BrokenProcessPool:
        raise UserError(
            f"making the environment {env.name} ended its process; make it once by "
            "itself to see why"
        ) from None
    except TimeoutError:
        raise UserError(
            f"making the environment {env.name} took over {patience:g} s"
        ) from None
    finally:
        for worker in set(multiprocessing.active_children()) - earlier:
            worker.kill()
        # Waits for its thread, which would else race with the interpreter's end.
        pool.shutdown(cancel_futures=True)


def plan_children(run: Run, valuerl_gpu: str, worldmodel_gpu: str) -> list[Child]:
    """All processes of a run, with the environment variables that they start with."""
    gpus = {VALUERL: valuerl_gpu, WORLDMODEL: worldmodel_gpu}
    mains = {
        VALUERL: "steve.valuerl_learner:main",
        WORLDMODEL: "steve.worldmodel_learner:main",
        "interactor": "steve.acting.interactor:interact",
        "evaluator": "steve.acting.evaluator:evaluate",
    }
    children = []
    for name in process_names(run.config)[1:]:  # the first is the launcher
        is_learner = name in gpus
        variables = {VARIABLE: gpus.get(name, NO_GPU)}
        if is_learner:
            # Two learners may share one GPU: take memory as it is needed.
            variables |= {
                "TF_FORCE_GPU_ALLOW_GROWTH": "true",
                "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"),
            }
        else:
            variables |= ONE_THREAD
        kind = name.rstrip("0123456789")
        children.append(Child(name, kind, mains[kind], variables))
    return children


def load(arguments: argparse.Namespace) -> LoadedConfig:
    """The configuration that the command line names.

    Raises:
        UserError: a mistake in it.
    """
    return loading.load(
        arguments.config,
        overrides=arguments.set,
        frames=arguments.frames,
        hours=arguments.hours,
    )


def launch(arguments: argparse.Namespace) -> int:
    """Checks everything, then opens the output and runs; returns the exit code.

    Raises:
        UserError: a mistake; nothing has been written if it shows before the start.
    """
    loaded = load(arguments)
    name = loading.experiment_name(arguments.config, arguments.name)
    folders = Folders.of(loaded.config, name)
    assignment = devices.assign(
        arguments.gpu_id, devices.visible_gpus(os.environ), loaded.config.has_model
    )
    rewind.finish_rewind(folders)
    opening.check_mode(folders, loaded.merged, _mode(arguments, folders))
    sizes = measure_environment(loaded.config.env)

    display = Display(Console(highlight=False), name)
    with locks.claimed(folders):
        mode = _mode(arguments, folders)  # nobody else can change it from here on
        opening.check_mode(folders, loaded.merged, mode)
        goes_on = mode == "resume" and arguments.resume_from is None
        if goes_on and _is_finished(folders, loaded):
            display.note(f"{folders.root} is finished: nothing is left to do")
            return 0
        notes = _prepare(arguments, loaded, folders, mode)
        record = read_run(folders)
        run = Run(
            config=loaded.config,
            folders=folders,
            obs_dim=sizes.obs_dim,
            action_dim=sizes.action_dim,
            launch=len(record["starts"]),
            cpu_learners=arguments.gpu_id == "cpu",
        )
        notes += opening.open_output(run, loaded.merged)
        _record_start(run, record, assignment, mode == "resume")
        for note in (*loaded.notes, assignment.note, *notes):
            if note:
                display.note(note)
        return _supervise(arguments, run, record, assignment, display)


def _record_start(
    run: Run, record: dict[str, Any], assignment: Assignment, resumed: bool
) -> None:
    """Adds this start to run.json."""
    used = {
        name: "cpu" if run.cpu_learners else getattr(assignment, name)
        for name in learners(run.config)
    }
    record["finished"] = None
    record["starts"].append(start_record(run.config, run.launch, used, resumed))
    write_json(run.folders.run, record)


def _mode(arguments: argparse.Namespace, folders: Folders) -> str:
    if arguments.resume_or_start:
        return "resume" if opening.has_output(folders) else "fresh"
    if arguments.resume or arguments.resume_from is not None:
        return "resume"
    return "overwrite" if arguments.overwrite else "fresh"


def _is_finished(folders: Folders, loaded: LoadedConfig) -> bool:
    config = loaded.config
    return is_finished(folders, config.total_frames, config.total_hours)


def _prepare(
    arguments: argparse.Namespace,
    loaded: LoadedConfig,
    folders: Folders,
    mode: str,
) -> list[str]:
    """Puts earlier output aside where that was asked for; returns notes."""
    if mode == "overwrite" and opening.has_output(folders):
        return [f"the earlier output is now {rewind.put_aside(folders)}"]
    if arguments.resume_from is None:
        return []
    aside = rewind.rewind(folders, loaded.config, arguments.resume_from)
    return [
        f"going on from {arguments.resume_from} updates; what came later is in {aside}"
    ]


def _supervise(
    arguments: argparse.Namespace,
    run: Run,
    record: dict[str, Any],
    assignment: Assignment,
    display: Display,
) -> int:
    """Runs the processes and says how it ended."""
    display.note(f"results go to {run.folders.root}")
    children = plan_children(run, assignment.valuerl, assignment.worldmodel)
    supervisor = Supervisor(run, children, display)
    outcome = supervisor.run()
    if outcome.finished:
        record["finished"] = {
            "time": now(),
            "frames": supervisor.progress.frames,
            "hours": supervisor.progress.hours,
            "random_score": supervisor.progress.random_score(),
        }
        write_json(run.folders.run, record)
    _report(arguments, outcome, run, supervisor.progress, display)
    return outcome.code


def _report(
    arguments: argparse.Namespace,
    outcome: Outcome,
    run: Run,
    progress: Progress,
    display: Display,
) -> None:
    """The last lines: what came out and what to do next, or what went wrong."""
    if outcome.error:
        print(outcome.error, file=sys.stderr)
        return
    lines = closing_lines(progress, outcome.finished)
    lines.append(f"all scores: {run.folders.scores}")
    if not outcome.finished:
        lines += ["to go on:", f"  {next_command('main.py', arguments, '--resume')}"]
    if run.folders.policy.exists():
        folder = str(run.folders.checkpoints)
        command = next_command("visualizer.py", arguments, folder)
        lines += ["to look at the policy:", f"  {command}"]
    for line in lines:
        display.note(line)


def next_command(program: str, arguments: argparse.Namespace, addition: str) -> str:
    """The command line of a program for the same configuration, GPU and name."""
    words = ["python", program, arguments.config, arguments.gpu_id, addition]
    if program == "main.py":
        for option in ("name", "frames", "hours"):
            value = getattr(arguments, option)
            words += [] if value is None else [f"--{option}", str(value)]
    return shlex.join([*words, *(["--set", *arguments.set] if arguments.set else [])])
