"""Runs the experiments of config/fullsize in the order of their worth, one at a time.

    python results/run_fullsize.py OUTPUT_FOLDER

The same call continues after any end: Ctrl-C, a kill, a reboot. What is finished is
passed over, what was interrupted is resumed, and a run that is still in use is waited
for. Some are listed twice: first to fewer frames, later to more. A run that fails does
not stop the others; the next call tries it again. `python sweep.py status|cancel
OUTPUT_FOLDER` looks after them.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from steve.command_line import OneLineParser, exit_code, prepare_command
from steve.replay import ReplayBuffer
from steve.storage import locks, record
from steve.storage.folders import Folders
from steve.sweeps.pool import Pool, command
from steve.sweeps.record import (
    LOCAL,
    NO_FAILURE,
    PlannedRun,
    Sweep,
    claimed,
    next_folder,
    save,
)
from steve.sweeps.runs import Request, expand
from steve.util import UserError, wait_until

# Experiment, seeds, frames. All of theirs: nobody explores.
STAGES = (
    ("halfcheetah/full_ddpg_noexplore", (0, 1, 2, 3, 4), 100_000),
    ("hopper/full_ddpg_noexplore", (0, 1, 2), 100_000),
    ("halfcheetah/full_steve_noexplore", (0, 1, 2), 25_000),
    ("halfcheetah/full_mve_tdk_noexplore", (0, 1, 2), 25_000),
    ("halfcheetah/full_mve_tdk_noexplore", (0,), 50_000),
    ("halfcheetah/full_steve_noexplore", (0,), 50_000),
    ("halfcheetah/full_mve_tdk_noexplore", (1, 2), 50_000),
    ("halfcheetah/full_steve_noexplore", (1, 2), 50_000),
    ("hopper/full_steve_noexplore", (0, 1), 25_000),
)


def planned(output: Path) -> list[PlannedRun]:
    """All runs, in their order.

    Raises:
        UserError: what is in the folder has another configuration.
    """
    runs = []
    for name, seeds, frames in STAGES:
        files = [f"config/fullsize/{name}{seed}.json" for seed in seeds]
        settings = [f"output_root={json.dumps(str(output))}"]
        runs += expand(Request(files, settings, frames=frames))[1]
    return runs


def frames_of(folders: Folders) -> int:
    """Environment frames so far."""
    try:
        with ReplayBuffer.open(folders.replay) as replay:
            return replay.frames
    except UserError:  # none yet
        return 0


def is_done(run: PlannedRun, output: Path) -> bool:
    """Whether the run ended at this limit, or has begun with what lies behind it."""
    folders = run.folders(output)
    if record.is_finished(folders, run.frames, run.hours):
        return True
    return frames_of(folders) > (run.frames or 0)


def show(runs: Sequence[PlannedRun], output: Path) -> None:
    for run in runs:
        done = "done" if is_done(run, output) else frames_of(run.folders(output))
        print(f"# {run.name} to {run.frames:,} frames: {done}")
        print(command(run.arguments))


def work(runs: Sequence[PlannedRun], output: Path, parallel: int = 1) -> int:
    """Runs what is left, so many at a time; returns the exit code, 1 where one failed.

    Raises:
        UserError: another call is at work in the folder.
    """
    with claimed(output):
        for run in runs:
            if locks.in_use(run.folders(output)):
                print(f"{run.name} is in use: waiting for its end", flush=True)
                wait_until(lambda run=run: not locks.in_use(run.folders(output)))
        left = [run for run in runs if not is_done(run, output)]
        print(f"{len(runs) - len(left)} of {len(runs)} are done", flush=True)
        if not left:
            return 0
        sweep = Sweep(next_folder(output), LOCAL, os.getcwd(), 0, parallel, tuple(left))
        save(sweep)
        places = [(sweep, index) for index in range(len(left))]
        codes = Pool(
            places, [{}] * parallel, lambda line: print(line, flush=True)
        ).run()
    return 1 if set(codes) - set(NO_FAILURE) else 0


def main() -> int:
    parser = OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", metavar="OUTPUT_FOLDER", type=Path)
    parser.add_argument(
        "--dry-run", action="store_true", help="show the runs and how far they are"
    )
    given = parser.parse_args()

    def run() -> int:
        output = given.output.absolute()
        runs = planned(output)
        if given.dry_run:
            show(runs, output)
            return 0
        return work(runs, output)

    return exit_code("run_fullsize.py", run)


if __name__ == "__main__":
    prepare_command()
    sys.exit(main())
