"""Trains a policy: python main.py CONFIG.json GPU_ID [--resume]

Reads the configuration, lays out the experiment's folder, starts the learners,
interactors and evaluators, and watches them until the run's limit or Ctrl-C.
"""

# No TensorFlow and no learner at the top: every child process imports this file again.
import argparse
import errno
import multiprocessing
import os
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

import configuration
import devices
import experiment
from configuration import LoadedConfig
from devices import NO_GPU, VARIABLE, Assignment
from disk import full_disk_line, is_full
from display import Display, closing_lines, print_once
from experiment import Folders, Run
from process import end_with_parent
from progress import Progress
from schema import Environment
from status import VALUERL, WORLDMODEL, learners, process_names
from supervisor import Child, Outcome, Supervisor
from util import OneLineParser, UserError, exit_code, stop_as_by_ctrl_c

if TYPE_CHECKING:
    from envwrap import EnvSpec

IMPORT_PATIENCE = 60.0  # seconds, beside step_timeout, to import the simulator
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)


DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="main.py",
        usage="main.py CONFIG.json GPU_ID [options]\n"
        "       main.py --describe CONFIG.json [--set KEY=VALUE ...]\n"
        "       main.py --list",
        description="Trains a policy by STEVE or one of its relatives.",
        epilog="example: python main.py config/quickstart.json cpu --name first "
        "--set seed=1",
    )
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG.json", help="experiment file"
    )
    parser.add_argument(
        "gpu_id",
        nargs="?",
        metavar="GPU_ID",
        help="GPU of the value learner, counted from 0 among those that are visible; "
        'the next one gets the world model; or "cpu"',
    )
    parser.add_argument(
        "--list", action="store_true", help="show the experiments that come along"
    )
    parser.add_argument(
        "--describe",
        action="store_true",
        help="show the merged configuration and where each value comes from",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--resume", action="store_true", help="go on with an interrupted run"
    )
    how.add_argument(
        "--resume-or-start",
        action="store_true",
        help="go on with an interrupted run, or start it where there is none yet",
    )
    how.add_argument(
        "--overwrite",
        action="store_true",
        help="start anew; the earlier output is renamed, not deleted",
    )
    how.add_argument(
        "--resume-from",
        type=int,
        metavar="N",
        help="go on from the numbered checkpoint of N updates; the present state of "
        "the output is kept under another name",
    )
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="replace values, such as policy_config.batch_size=128",
    )
    parser.add_argument("--name", help="the experiment's name; by default the file's")
    parser.add_argument(
        "--frames", type=int, metavar="N", help="stop after N environment frames"
    )
    parser.add_argument(
        "--hours", type=float, metavar="H", help="stop after H hours of learning"
    )
    # Intermixed: options may also stand between the two positional arguments.
    parsed = parser.parse_intermixed_args(arguments)
    needed = {"CONFIG.json": parsed.config, "GPU_ID": parsed.gpu_id or parsed.describe}
    missing = [name for name, given in needed.items() if not given]
    if missing and not parsed.list:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return parsed


def _measure(env: Environment) -> "EnvSpec":
    import envwrap  # here: the launcher itself needs no simulator

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
        VALUERL: "valuerl_learner:main",
        WORLDMODEL: "worldmodel_learner:main",
        "interactor": "actors:interact",
        "evaluator": "actors:evaluate",
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
    return configuration.load(
        arguments.config,
        overrides=arguments.set,
        frames=arguments.frames,
        hours=arguments.hours,
    )


def show(arguments: argparse.Namespace) -> None:
    """Prints what `--list` or `--describe` asks for.

    Raises:
        UserError: a mistake in the configuration.
    """
    import catalogue  # here: a run has no use for it

    if arguments.list:
        shown = catalogue.list_experiments()
    else:
        shown = catalogue.describe(arguments.config, load(arguments))
    print_once(shown)


def launch(arguments: argparse.Namespace) -> int:
    """Checks everything, then opens the output and runs; returns the exit code.

    Raises:
        UserError: a mistake; nothing has been written if it shows before the start.
    """
    loaded = load(arguments)
    name = configuration.experiment_name(arguments.config, arguments.name)
    folders = Folders.of(loaded.config, name)
    assignment = devices.assign(
        arguments.gpu_id, devices.visible_gpus(os.environ), loaded.config.has_model
    )
    experiment.finish_rewind(folders)
    experiment.check_mode(folders, loaded.merged, _mode(arguments, folders))
    sizes = measure_environment(loaded.config.env)

    display = Display(Console(highlight=False), name)
    with experiment.claimed(folders):
        mode = _mode(arguments, folders)  # nobody else can change it from here on
        experiment.check_mode(folders, loaded.merged, mode)
        goes_on = mode == "resume" and arguments.resume_from is None
        if goes_on and _is_finished(folders, loaded):
            display.note(f"{folders.root} is finished: nothing is left to do")
            return 0
        notes = _prepare(arguments, loaded, folders, mode)
        record = experiment.read_run(folders)
        run = Run(
            config=loaded.config,
            folders=folders,
            obs_dim=sizes.obs_dim,
            action_dim=sizes.action_dim,
            launch=len(record["starts"]),
            cpu_learners=arguments.gpu_id == "cpu",
        )
        notes += experiment.open_output(run, loaded.merged)
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
    record["starts"].append(
        experiment.start_record(run.config, run.launch, used, resumed)
    )
    experiment.write_json(run.folders.run, record)


def _mode(arguments: argparse.Namespace, folders: Folders) -> str:
    if arguments.resume_or_start:
        return "resume" if experiment.has_output(folders) else "fresh"
    if arguments.resume or arguments.resume_from is not None:
        return "resume"
    return "overwrite" if arguments.overwrite else "fresh"


def _is_finished(folders: Folders, loaded: LoadedConfig) -> bool:
    config = loaded.config
    return experiment.is_finished(folders, config.total_frames, config.total_hours)


def _prepare(
    arguments: argparse.Namespace,
    loaded: LoadedConfig,
    folders: Folders,
    mode: str,
) -> list[str]:
    """Puts earlier output aside where that was asked for; returns notes."""
    if mode == "overwrite" and experiment.has_output(folders):
        return [f"the earlier output is now {experiment.put_aside(folders)}"]
    if arguments.resume_from is None:
        return []
    aside = experiment.rewind(folders, loaded.config, arguments.resume_from)
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
            "time": experiment.now(),
            "frames": supervisor.progress.frames,
            "hours": supervisor.progress.hours,
            "random_score": supervisor.progress.random_score(),
        }
        experiment.write_json(run.folders.run, record)
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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code (SPEC section 12)."""
    stop_as_by_ctrl_c()  # until the supervisor takes over
    parsed = parse_arguments(arguments)
    if parsed.list or parsed.describe:
        return exit_code("main.py", lambda: show(parsed))
    try:
        return launch(parsed)
    except UserError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise  # a bug of ours
        line = f"{error.filename}: {error.strerror}"
        if is_full(error):
            line = f"{full_disk_line(error, Path.cwd())}; free some and --resume"
        print(f"main.py: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped before the start", file=sys.stderr)
        return 0


if __name__ == "__main__":
    sys.exit(main())
