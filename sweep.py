"""Runs many experiments: python sweep.py CONFIGS_OR_FOLDERS... [--engine slurm|local]

Expands files and grids into runs of main.py and hands them to Slurm, as arrays, or to
a pool on this machine. `status`, `cancel` and `retry` look after them.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # Ctrl-C ends the imports without a stack trace
    signal.signal(signal.SIGINT, signal.SIG_DFL)

try:
    import steve  # noqa: F401
except ModuleNotFoundError:
    sys.exit("sweep.py: the package steve is not installed; run: pip install -e .")

from steve.command_line import (
    OneLineParser,
    example,
    exit_code,
    number,
    prepare_command,
    terminal_width,
    whole_number,
)
from steve.sweeps import engines, pool, record, search, slurm, status, trials
from steve.sweeps.engines import Engine, left_to_do, run_pool
from steve.sweeps.record import LOCAL, SLURM, PlannedRun, Sweep
from steve.sweeps.runs import Request, expand
from steve.sweeps.status import FAILED
from steve.sweeps.table import table
from steve.sweeps.trials import Search
from steve.util import UserError, check_path

COMMANDS = ("status", "cancel", "retry")
MAX_SEED = 2**31 - 1


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
    engine = _engine(arguments)
    output_root, runs = expand(_request(arguments, engine))
    if arguments.dry_run:
        _show_plan(engine, output_root, runs)
        if arguments.updates_per_s is not None:
            print(_cost(runs, arguments.updates_per_s))
        return 0
    slots = engine.slots()
    with record.claimed(output_root):
        left = left_to_do(output_root, runs)
        if not left:
            print("nothing is left to start")
            return 0
        if engine.on_slurm:
            engine.submit(engine.arrays(output_root, left))
            return 0
        sweep = engine.sweep(output_root, left)
        record.save(sweep)
        places = [(sweep, index) for index in range(len(left))]
        return run_pool(places, slots, arguments.program)[0]


def find_best(arguments: argparse.Namespace) -> int:
    """Runs trials of a search; or begins the one that an element of an array is."""
    engine = _engine(arguments)
    asked = Search(
        request=_request(arguments, engine),
        spaces=[search.space(text) for text in arguments.search],
        metric=arguments.metric,
        total=arguments.optuna,
        engine=engine,
        words=arguments.words,
    )
    if arguments.trial is not None:
        return trials.become(asked, arguments.trial)
    return trials.find_best(asked)


def _check(arguments: argparse.Namespace) -> None:
    """Refuses options that contradict each other.

    Raises:
        UserError: some do.
    """
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
    else:
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
        if not arguments.search:
            raise UserError("--optuna: name what is searched by --search KEY=LOW:HIGH")
    if arguments.engine == SLURM:
        return
    for option in ("partition", "time", "cpus", "mem", "no_submit"):
        if getattr(arguments, option):
            raise UserError(f"--{option.replace('_', '-')} is for --engine slurm")


def _engine(arguments: argparse.Namespace) -> Engine:
    _check(arguments)
    return Engine(
        name=arguments.engine,
        program=arguments.program,
        gpus_per_run=arguments.gpus_per_run,
        max_parallel=arguments.max_parallel,
        submits=not arguments.no_submit,
        cpus=arguments.cpus,
        partition=arguments.partition,
        time=arguments.time,
        mem=arguments.mem,
    )


def _request(arguments: argparse.Namespace, engine: Engine) -> Request:
    return Request(
        paths=arguments.paths,
        settings=arguments.set,
        seeds=arguments.seeds,
        frames=arguments.frames,
        hours=arguments.hours,
        endless=arguments.endless,
        gpu_id=engine.gpu_id,
    )


def _show_plan(engine: Engine, output_root: Path, runs: Sequence[PlannedRun]) -> None:
    for run in runs:
        print(pool.command(run.arguments))
    if engine.on_slurm:
        for array in engine.arrays(output_root, runs):
            print(f"\n# {array.script} would be:\n")
            print(engine.script(array, runs))


def _cost(runs: Sequence[PlannedRun], updates_per_s: float) -> str:
    """How long it takes at a given speed."""
    paced = [run.updates for run in runs if run.updates]
    seconds = [updates / updates_per_s for updates in paced]
    lines = [
        f"{len(paced)} of {len(runs)} runs have a pace and a limit of frames; at "
        f"{updates_per_s:g} updates/s of the value learner they take:"
    ]
    if seconds:
        shortest, longest = _duration(min(seconds)), _duration(max(seconds))
        each = shortest if shortest == longest else f"{shortest} to {longest}"
        lines.append(f"  {each} each ({max(paced):,} updates)")
        lines.append(f"  {_duration(sum(seconds))} of one machine in all")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    """In hours, below one in minutes, and below one of these in seconds."""
    if seconds < 60:
        return f"{seconds:.0f} seconds"
    unit, name = (60, "minutes") if seconds < 3600 else (3600, "hours")
    digits = 1 if seconds / unit < 1000 else 0
    return f"{seconds / unit:,.{digits}f} {name}"


# ---- looking after what was submitted -----------------------------------------------


def _require_sweep(output_root: Path) -> None:
    """Raises a UserError where an output root has none."""
    if not record.folders(output_root):
        raise UserError(f"{output_root} holds no sweep; name the runs' output_root")


def show_status(output_root: Path) -> int:
    _require_sweep(output_root)
    found = status.of_sweeps(output_root, lambda line: print(line, file=sys.stderr))
    if not found:  # what is wrong has been said
        return 2
    print("\n".join(table(found, terminal_width())))
    return 0


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
    holder = record.holder(output_root)
    if holder is not None:
        holder = _told_to_end(holder)
    if not tasks and holder is None:
        print("nothing is queued, and no pool is at work")
    return 0


def _told_to_end(holder: record.Holder) -> record.Holder | None:
    """Asks a pool to end; None: it has ended meanwhile.

    Raises:
        UserError: it is on another host, or another user's.
    """
    if holder.host != os.uname().nodename:
        where = f"process {holder.pid} on {holder.host}"
        raise UserError(f"the pool is {where}; cancel it there")
    try:
        os.kill(holder.pid, signal.SIGTERM)
    except ProcessLookupError:
        return None
    except PermissionError:
        raise UserError(f"the pool is process {holder.pid} of another user") from None
    print(f"told the pool, process {holder.pid}, to end; its runs save first")
    return holder


def retry(output_root: Path, program: str) -> int:
    """Starts failed runs again, by the engine and the script that they had."""
    _require_sweep(output_root)  # where there is none, nothing is made
    with record.claimed(output_root):
        sweeps = record.load_all(output_root)
        runs = record.latest(sweeps)
        queue = slurm.queue_of(sweeps)
        found = status.states(runs, queue)
        queued = status.tasks_by_run(sweeps, queue)
        failed: dict[Path, list[int]] = {}
        for (sweep, index), state in zip(runs, found, strict=True):
            if state.state != FAILED:
                continue
            if state.run.name in queued:
                print(f"{state.run.name}: is queued already, by another sweep")
            else:
                failed.setdefault(sweep.folder, []).append(index)
        if not failed:
            print("there is no failed run to start")
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
                engines.say_submitted(sweep, job, len(indices))
        codes = [0]
        for places, together in pools.items():
            slots = engines.slots_here(*places)
            code, stopped = run_pool(together, slots, program)
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
