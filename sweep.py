"""Runs many experiments: python sweep.py CONFIGS_OR_FOLDERS... [--engine slurm|local]

Expands files and grids into runs of main.py and hands them to Slurm, as arrays, or to
a pool on this machine. `status`, `cancel` and `retry` look after them.
"""

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

if __name__ == "__main__":  # Ctrl-C ends the imports without a stack trace
    signal.signal(signal.SIGINT, signal.SIG_DFL)

try:
    import steve  # noqa: F401
except ModuleNotFoundError:
    sys.exit("sweep.py: the package steve is not installed; run: pip install -e .")

from steve.running import devices
from steve.sweeps import pool as pool_module
from steve.sweeps import record, search, slurm, status
from steve.sweeps.pool import Pool
from steve.sweeps.record import LOCAL, NO_FAILURE, SLURM, PlannedRun, Sweep
from steve.sweeps.runs import Request, WrongConfiguration, expand
from steve.sweeps.slurm import Queue, Resources
from steve.sweeps.status import FAILED, FINISHED
from steve.sweeps.table import table
from steve.util import (
    OneLineParser,
    UserError,
    check_path,
    counted,
    example,
    exit_code,
    number,
    prepare_command,
    script_words,
    shown_path,
    terminal_width,
    whole_number,
)

COMMANDS = ("status", "cancel", "retry")
MAX_SEED = 2**31 - 1
SEARCH = "-search"  # behind the experiment's name: the study of a search


# ---- the command line ---------------------------------------------------------------


def parse_arguments(
    arguments: Sequence[str], program: str = "sweep.py"
) -> argparse.Namespace:
    if arguments and arguments[0] in COMMANDS:
        parser = OneLineParser(
            prog=f"{program} {arguments[0]}",
            description={
                "status": "Shows how far all runs are.",
                "cancel": "Ends what runs, which saves first, and what waits.",
                "retry": "Resumes the runs that failed.",
            }[arguments[0]],
        )
        parser.add_argument("output_root", metavar="OUTPUT_ROOT", type=Path)
        parsed = parser.parse_args(arguments[1:])
        parsed.command = arguments[0]
        return parsed
    parsed = _submit_parser(program).parse_args(arguments)
    parsed.command, parsed.program = "submit", program
    parsed.words = tuple(arguments)
    return parsed


def _submit_parser(program: str) -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=program,
        description="Runs many experiments, through Slurm or on this machine. "
        "A run that is finished or running is left alone, one that was interrupted "
        f"is resumed. Afterwards: {program} status|cancel|retry OUTPUT_ROOT.",
        epilog=f"example: {example(program, 'sweep.py')} config/quickstart.json "
        "--engine local --gpus-per-run 0 --seeds 0-3 "
        "--set policy_config.learning_rate=1e-3,3e-4",
    )
    option = parser.add_argument
    option(
        "paths",
        nargs="+",
        metavar="CONFIG_OR_FOLDER",
        help="experiment files, or folders of them",
    )
    option("--engine", choices=(SLURM, LOCAL), default=SLURM, help="default: slurm")
    parser.add_settings(
        "replace values as main.py does; several values make a grid", "KEY=V1,V2"
    )
    option("--seeds", type=seeds, default=[], metavar="0-3", help="a run for each seed")
    option("--frames", type=int, metavar="N", help="each run stops after N frames")
    option("--hours", type=float, metavar="H", help="or after H hours of learning")
    option("--endless", action="store_true", help="runs without a limit are meant so")
    option(
        "--gpus-per-run",
        type=int,
        choices=(2, 1, 0),
        default=2,
        help="GPUs of each run (2: one for each learner; 0: the CPU); default: 2",
    )
    option(
        "--max-parallel",
        type=whole_number(1, 100_000),
        metavar="N",
        help="runs at a time; default: as Slurm or the GPUs allow, on CPUs 1",
    )
    option("--partition", metavar="P", help="Slurm's partition")
    option("--time", metavar="T", help="Slurm's time limit; runs are resumed after it")
    option(
        "--cpus",
        type=whole_number(1, 10_000),
        metavar="C",
        help="cores of each run, for Slurm; default: one for each of its processes",
    )
    option("--mem", metavar="M", help="memory of each run, for Slurm, such as 16G")
    option(
        "--optuna",
        type=whole_number(1, 100_000),
        metavar="N",
        help="search the values of --search by N runs in all",
    )
    option(
        "--search",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=LOW:HIGH[:log]",
        help="what --optuna tries: a range, or choices as in KEY=A,B,C",
    )
    option(
        "--metric",
        choices=tuple(search.METRICS),
        default="auc",
        help="what --optuna raises: the mean score over all frames (default), or the "
        "final one",
    )
    # Which trial an element of a search's array is: a word of the script.
    option("--trial", type=whole_number(0, 100_000), help=argparse.SUPPRESS)
    option(
        "--dry-run",
        action="store_true",
        help="show the runs and the script, do nothing",
    )
    option(
        "--no-submit",
        action="store_true",
        help="write Slurm's script, to be edited and submitted by hand",
    )
    option(
        "--updates-per-s",
        type=number(1e-6, 1e6),
        metavar="U",
        help="with --dry-run: how long it takes at this speed of the value learner",
    )
    return parser


def seeds(text: str) -> list[int]:
    """An argparse type: seeds as in "0-3" or "0,2,5-7"."""
    seed = whole_number(0, MAX_SEED)
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        low, high = seed(first), seed(last or first)
        if high < low:
            raise argparse.ArgumentTypeError(f"{part!r} ends before it begins")
        found += range(low, high + 1)
    return list(dict.fromkeys(found))


# ---- submitting ---------------------------------------------------------------------


def submit(arguments: argparse.Namespace) -> int:
    """Expands, checks, leaves out what is done or under way, and starts the rest."""
    _check(arguments)
    output_root, runs = expand(
        Request(
            paths=arguments.paths,
            settings=arguments.set,
            seeds=arguments.seeds,
            frames=arguments.frames,
            hours=arguments.hours,
            endless=arguments.endless,
            gpu_id="0" if arguments.gpus_per_run else "cpu",
        )
    )
    if arguments.dry_run:
        _show_plan(arguments, output_root, runs)
        return 0
    is_local = arguments.engine == LOCAL
    slots = _slots(arguments.gpus_per_run, arguments.max_parallel) if is_local else []
    if not is_local and not arguments.no_submit:
        slurm.require()
    with record.claimed(output_root):
        left = _left_to_do(output_root, runs)
        if not left:
            print("nothing is left to start")
            return 0
        if is_local:
            sweep = _sweep(arguments, output_root, left)
            record.save(sweep)
            places = [(sweep, index) for index in range(len(left))]
            return _run_pool(places, slots, arguments.program)[0]
        _submit_arrays(arguments, _arrays(arguments, output_root, left))
        return 0


def _submit_arrays(arguments: argparse.Namespace, sweeps: Sequence[Sweep]) -> None:
    """Records sweeps, writes their scripts and hands them to Slurm."""
    resources = _resources(arguments, [run for sweep in sweeps for run in sweep.runs])
    for sweep in sweeps:
        script = slurm.job_script(sweep, resources)
        record.save(sweep)
        slurm.write_script(sweep, script)
        if arguments.no_submit:
            print(f"written; to submit it: {slurm.command(sweep)}")
            continue
        job = slurm.submit(sweep)
        submitted = counted(len(sweep.runs), "run")
        print(f"submitted {submitted} as job {job}: {sweep.script}")
    if not arguments.no_submit:
        print(f"to follow them: {_status_command(arguments.program, sweeps[0])}")


# ---- a search -----------------------------------------------------------------------


def find_best(arguments: argparse.Namespace) -> int:
    """Runs trials of a search until there are as many as asked for."""
    _check(arguments)
    spaces = [search.space(text) for text in arguments.search]
    if not spaces:
        raise UserError("--optuna: name what is searched by --search KEY=LOW:HIGH")
    output_root, ends = _ends(arguments, spaces)
    path = output_root / record.FOLDER / f"{ends[0].experiment}.optuna"
    limits = [each for each in (arguments.frames, arguments.hours) if each is not None]
    asked = json.dumps([arguments.paths, arguments.set, arguments.metric, *limits])
    if arguments.trial is not None:
        return _become(arguments, output_root, search.Study(path, spaces, asked))
    on_slurm = arguments.engine == SLURM
    if on_slurm and not arguments.no_submit:
        slurm.require()
    slots = [] if on_slurm else _slots(arguments.gpus_per_run, arguments.max_parallel)
    with record.claimed(output_root):
        study = search.Study(path, spaces, asked)
        if on_slurm:
            _submit_trials(arguments, output_root, study, ends)
        elif not _run_trials(arguments, output_root, study, slots):
            print("stopped; the same call continues the search")
            return 0
    best, left = study.best(), study.open_numbers(arguments.optuna)
    if best is not None:
        so_far = " so far" if left else ""
        print(f"the best{so_far}: {_worth(arguments.metric, *best)}")
    if left:
        print("the same call says more once trials have ended")
    elif best is None:
        print("no trial has finished")
        return 1
    return 0


def _ends(
    arguments: argparse.Namespace, spaces: Sequence[search.Space]
) -> tuple[Path, list[PlannedRun]]:
    """The output root, and a run for each end of the spaces; all others lie between.

    Raises:
        UserError: a run cannot have such values, or they decide on its folder.
    """
    ends = []
    for values in zip_longest(*(space.ends for space in spaces), fillvalue=None):
        chosen = [v or s.ends[0] for v, s in zip(values, spaces, strict=True)]
        output_root, (first, *others) = expand(_request(arguments, chosen, SEARCH))
        if others:
            raise UserError(
                "--optuna: give one configuration and one value for each key"
            )
        ends.append(first)
    places = {(run.environment, run.log_path, run.save_model_path) for run in ends}
    if len(places) > 1 and arguments.engine == SLURM:
        raise UserError("--search with Slurm: the values must not name folders")
    return output_root, ends


def _run_trials(
    arguments: argparse.Namespace,
    output_root: Path,
    study: search.Study,
    slots: list[dict[str, str]],
) -> bool:
    """Runs trials in a local pool; whether all have ended."""
    metric = search.METRICS[arguments.metric]
    while numbers := study.open_numbers(arguments.optuna)[: len(slots)]:
        trials, runs = [], []
        for trial in filter(None, map(study.begin, numbers)):
            run = _valid_run(arguments, study, trial)
            if run is not None:
                trials.append(trial)
                runs.append(run)
        if not runs:
            continue
        sweep = _sweep(arguments, output_root, runs)
        record.save(sweep)
        places = [(sweep, index) for index in range(len(runs))]
        pool = Pool(places, slots, _say)
        pool.run()
        # What a second Ctrl-C has ended did not fail by itself.
        ends = (FINISHED,) if pool.stopped else (FINISHED, FAILED)
        found = status.states(places, {})
        for trial, state, (_, index) in zip(trials, found, places, strict=True):
            if state.state in ends:
                ended = state.state == FINISHED
                value = metric(sweep.folders(index).scores) if ended else None
                study.tell(trial, value)
                _say(f"{state.run.name}: {_worth(arguments.metric, trial, value)}")
        if pool.stopped or any(state.state not in ends for state in found):
            return False
    return True


def _valid_run(
    arguments: argparse.Namespace, study: search.Study, trial: search.Trial
) -> PlannedRun | None:
    """The run of a trial; None where its values contradict each other: it has failed.

    `_ends` tries the ends of all spaces together, not each combination.

    Raises:
        UserError: its output is that of another configuration, and stays so.
    """
    try:
        return _trial_run(arguments, trial)
    except WrongConfiguration as error:
        _say(f"trial {trial.number}: {error}")
        study.tell(trial, None)
        return None


def _submit_trials(
    arguments: argparse.Namespace,
    output_root: Path,
    study: search.Study,
    ends: Sequence[PlannedRun],
) -> None:
    """Submits an element for each trial that has neither ended nor is under way.

    Its values are chosen when it starts, by what the trials before were worth.
    """
    _collect(arguments, output_root, study)
    name = ends[0].experiment.removesuffix(SEARCH)
    runs = [
        replace(
            ends[0],
            arguments=("--trial", str(number), *arguments.words),
            experiment=f"{name}{_label(number)}",
            processes=max(run.processes for run in ends),
        )
        for number in study.open_numbers(arguments.optuna)
    ]
    if left := _left_to_do(output_root, runs):
        arrays = _arrays(arguments, output_root, left)
        program = Path(__file__).name
        _submit_arrays(arguments, [replace(each, program=program) for each in arrays])


def _become(
    arguments: argparse.Namespace, output_root: Path, study: search.Study
) -> int:
    """Begins or continues a trial: this process becomes main.py."""
    _collect(arguments, output_root, study)
    trial = study.begin(arguments.trial)
    if trial is None:
        print(f"trial {arguments.trial} has ended already")
        return 0
    _say(f"trial {trial.number}: {' '.join(trial.settings)}")
    run = _valid_run(arguments, study, trial)
    if run is None:
        return 2
    os.execv(sys.executable, [sys.executable, str(slurm.MAIN), *run.arguments])


def _collect(
    arguments: argparse.Namespace, output_root: Path, study: search.Study
) -> None:
    """Tells the study what the trials are worth whose runs have finished."""
    for trial in study.begun():
        with suppress(UserError):  # its output is damaged: its launch says that
            run = _trial_run(arguments, trial)
            if status.already(run, output_root, (), {}) == FINISHED:
                metric = search.METRICS[arguments.metric]
                study.tell(trial, metric(run.folders(output_root).scores))


def _trial_run(arguments: argparse.Namespace, trial: search.Trial) -> PlannedRun:
    """The run of a trial."""
    request = _request(arguments, trial.settings, _label(trial.number))
    (run,) = expand(request)[1]
    return run


def _label(number: int) -> str:
    """What a trial adds to the name of its run."""
    return f"-trial{number}"


def _request(
    arguments: argparse.Namespace, settings: Sequence[str], label: str
) -> Request:
    return Request(
        paths=arguments.paths,
        settings=[*arguments.set, *settings],
        frames=arguments.frames,
        hours=arguments.hours,
        gpu_id="0" if arguments.gpus_per_run else "cpu",
        label=label,
    )


def _worth(metric: str, trial: search.Trial, value: float | None) -> str:
    shown = "failed" if value is None else f"{metric} {value:,.4g}"
    return f"trial {trial.number}, {' '.join(trial.settings)}: {shown}"


def _say(line: str) -> None:
    print(line, flush=True)


def _check(arguments: argparse.Namespace) -> None:
    check_path(Path.cwd(), "the working folder")
    for limit in ("frames", "hours"):
        if arguments.endless and getattr(arguments, limit) is not None:
            raise UserError(f"--endless and --{limit} contradict each other")
    if arguments.updates_per_s is not None and not arguments.dry_run:
        raise UserError("--updates-per-s only says what a sweep costs: add --dry-run")
    if arguments.optuna is None:
        for option in ("search", "trial"):
            if getattr(arguments, option) not in ([], None):
                raise UserError(f"--{option} is for --optuna N")
    if arguments.optuna is not None:
        for option in ("seeds", "endless", "dry_run"):
            if getattr(arguments, option):
                raise UserError(
                    f"--optuna and --{option.replace('_', '-')} contradict each other"
                )
        if arguments.engine == SLURM and arguments.max_parallel is None:
            raise UserError(
                "--optuna with Slurm: give --max-parallel N; a trial learns from "
                "those that have ended when it starts"
            )
    if arguments.engine == SLURM:
        return
    for option in ("partition", "time", "cpus", "mem", "no_submit"):
        if getattr(arguments, option):
            raise UserError(f"--{option.replace('_', '-')} is for --engine slurm")


def _slots(gpus_per_run: int, max_parallel: int | None) -> list[dict[str, str]]:
    gpus = devices.visible_gpus(os.environ) if gpus_per_run else []
    return pool_module.slots(gpus_per_run, max_parallel, gpus)


def _sweep(
    arguments: argparse.Namespace, output_root: Path, runs: Sequence[PlannedRun]
) -> Sweep:
    return Sweep(
        folder=record.next_folder(output_root),
        engine=arguments.engine,
        working_folder=os.getcwd(),
        gpus_per_run=arguments.gpus_per_run,
        max_parallel=arguments.max_parallel,
        runs=tuple(runs),
    )


def _arrays(
    arguments: argparse.Namespace, output_root: Path, runs: Sequence[PlannedRun]
) -> list[Sweep]:
    """The runs as sweeps of one Slurm array each, no longer than the cluster takes.

    They share `--max-parallel`.

    Raises:
        UserError: it is less than the number of arrays.
    """
    whole, longest = _sweep(arguments, output_root, runs), slurm.longest_array()
    parts = [runs[first : first + longest] for first in range(0, len(runs), longest)]
    limits: list[int | None] = [None] * len(parts)
    if (limit := arguments.max_parallel) is not None:
        if limit < len(parts):
            raise UserError(
                f"{len(runs)} runs are {len(parts)} Slurm arrays, each of at most "
                f"{longest} (MaxArraySize): --max-parallel must be at least "
                f"{len(parts)}"
            )
        each, rest = divmod(limit, len(parts))
        limits = [each + (number < rest) for number in range(len(parts))]
    first = int(whole.folder.name)
    return [
        replace(
            whole,
            folder=whole.folder.with_name(str(first + number)),
            max_parallel=share,
            runs=tuple(part),
        )
        for number, (part, share) in enumerate(zip(parts, limits, strict=True))
    ]


def _resources(arguments: argparse.Namespace, runs: Sequence[PlannedRun]) -> Resources:
    return Resources(
        cpus=arguments.cpus or max(run.processes for run in runs),
        partition=arguments.partition,
        time=arguments.time,
        mem=arguments.mem,
    )


def _left_to_do(output_root: Path, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The runs that are not finished, running or queued; says how many are."""
    sweeps = record.load_all(output_root)
    queue = _queue(sweeps)
    left, skipped = [], []
    for run in runs:
        state = status.already(run, output_root, sweeps, queue)
        if state:
            skipped.append(state)
        else:
            left.append(run)
    for state in dict.fromkeys(skipped):
        print(f"{skipped.count(state)} of {len(runs)} runs: {state} already")
    return left


def _show_plan(
    arguments: argparse.Namespace, output_root: Path, runs: Sequence[PlannedRun]
) -> None:
    for run in runs:
        print(pool_module.command(run.arguments))
    if arguments.engine == SLURM:
        for sweep in _arrays(arguments, output_root, runs):
            print(f"\n# {sweep.script} would be:\n")
            print(slurm.job_script(sweep, _resources(arguments, runs)))
    if arguments.updates_per_s is not None:
        print(_cost(runs, arguments.updates_per_s))


def _cost(runs: Sequence[PlannedRun], updates_per_s: float) -> str:
    """How long it takes at a given speed."""
    paced = [run.updates for run in runs if run.updates]
    hours = [updates / updates_per_s / 3600 for updates in paced]
    lines = [
        f"{len(paced)} of {len(runs)} runs have a pace and a limit of frames; at "
        f"{updates_per_s:g} updates/s of the value learner they take:"
    ]
    if hours:
        shortest, longest = f"{min(hours):,.1f}", f"{max(hours):,.1f}"
        each = shortest if shortest == longest else f"{shortest} to {longest}"
        lines.append(f"  {each} hours each ({max(paced):,} updates)")
        lines.append(f"  {sum(hours):,.0f} hours of one machine in all")
    return "\n".join(lines)


def _run_pool(
    runs: Sequence[tuple[Sweep, int]], slots: list[dict[str, str]], program: str
) -> tuple[int, bool]:
    """The exit code, and whether a signal ended it."""
    pool = Pool(runs, slots, _say)
    codes = pool.run()
    print(f"to see all runs: {_status_command(program, runs[0][0])}")
    return (1 if set(codes) - set(NO_FAILURE) else 0), pool.stopped


# ---- looking after what was submitted -----------------------------------------------


def _require_sweep(output_root: Path) -> None:
    """Raises a UserError where an output root has none."""
    if not record.folders(output_root):
        raise UserError(f"{output_root} holds no sweep; name the runs' output_root")


def _queue(sweeps: Sequence[Sweep]) -> Queue:
    """What Slurm has queued; a user without a sweep in it needs no Slurm."""
    return slurm.queue() if any(s.engine == SLURM for s in sweeps) else {}


def show_status(output_root: Path) -> int:
    _require_sweep(output_root)
    found = status.of_sweeps(output_root, lambda line: print(line, file=sys.stderr))
    if not found:  # what is wrong has been said
        return 2
    print("\n".join(table(found, terminal_width())))
    return 0


def _status_command(program: str, sweep: Sweep) -> str:
    words = script_words(program, "sweep.py")
    return shlex.join([*words, "status", shown_path(sweep.output_root)])


def cancel(output_root: Path) -> int:
    """Ends what is queued or running; a local pool's runs and its rest."""
    _require_sweep(output_root)
    places = [folder / record.SCRIPT for folder in record.folders(output_root)]
    scripts = {str(path.resolve()) for path in places if path.exists()}
    queue = slurm.queue() if scripts else {}
    tasks = [task for (script, _), task in queue.items() if script in scripts]
    if tasks:
        slurm.cancel(tasks)
        print(f"cancelled {len(tasks)} jobs; those that run save first")
    pool = record.holder(output_root)
    if pool is not None:
        pool = _told_to_end(pool)
    if not tasks and pool is None:
        print("nothing is queued, and no pool is at work")
    return 0


def _told_to_end(pool: record.Holder) -> record.Holder | None:
    """Asks a pool to end; None: it has ended meanwhile.

    Raises:
        UserError: it is on another host, or another user's.
    """
    if pool.host != os.uname().nodename:
        where = f"process {pool.pid} on {pool.host}"
        raise UserError(f"the pool is {where}; cancel it there")
    try:
        os.kill(pool.pid, signal.SIGTERM)
    except ProcessLookupError:
        return None
    except PermissionError:
        raise UserError(f"the pool is process {pool.pid} of another user") from None
    print(f"told the pool, process {pool.pid}, to end; its runs save first")
    return pool


def retry(output_root: Path, program: str) -> int:
    """Starts failed runs again, by the engine and the script that they had."""
    _require_sweep(output_root)  # where there is none, nothing is made
    with record.claimed(output_root):
        sweeps = record.load_all(output_root)
        runs = record.latest(sweeps)
        found = status.states(runs, _queue(sweeps))
        failed: dict[Path, list[int]] = {}
        for (sweep, index), state in zip(runs, found, strict=True):
            if state.state == FAILED:
                failed.setdefault(sweep.folder, []).append(index)
        if not failed:
            print("no run has failed")
            return 0
        pools: dict[tuple[int, int | None], list[tuple[Sweep, int]]] = {}
        for sweep in sweeps:
            indices = failed.get(sweep.folder, [])
            if not indices:
                continue
            if sweep.engine == LOCAL:
                places = sweep.gpus_per_run, sweep.max_parallel
                pools.setdefault(places, []).extend((sweep, i) for i in indices)
            else:
                job = slurm.submit(sweep, indices)
                submitted = counted(len(indices), "run")
                print(f"submitted {submitted} as job {job}: {sweep.script}")
        codes = [0]
        for places, together in pools.items():
            code, stopped = _run_pool(together, _slots(*places), program)
            codes.append(code)
            if stopped:
                break
        return max(codes)


def main(arguments: Sequence[str] | None = None, program: str = "sweep.py") -> int:
    """The command; returns the exit code: 1 where a local run failed, 2 a mistake."""
    parsed = parse_arguments(sys.argv[1:] if arguments is None else arguments, program)

    def command() -> int:
        match parsed.command:
            case "status":
                return show_status(parsed.output_root)
            case "cancel":
                return cancel(parsed.output_root)
            case "retry":
                return retry(parsed.output_root, program)
            case _:
                return (find_best if parsed.optuna else submit)(parsed)

    return exit_code(program, command)


if __name__ == "__main__":
    prepare_command()
    sys.exit(main())
