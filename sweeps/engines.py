"""How a call's runs are started: by Slurm, as arrays, or by a pool on this machine."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..command_line import script_words
from ..running import devices
from ..util import UserError, counted, shown_path
from . import pool, record, slurm, status
from .record import NO_FAILURE, SLURM, PlannedRun, Sweep


@dataclass(frozen=True)
class Engine:
    """What a call says of how its runs are started.

    Attributes:
        name: SLURM or LOCAL.
        program: how the command was called, "sweep.py" or "steve sweep".
        gpus_per_run, max_parallel: as of `Sweep`.
        submits: whether Slurm's scripts are submitted, not only written.
        cpus: of each run on Slurm; None: one for each of its processes.
        partition, time, mem: as of `Resources`.
    """

    name: str
    program: str
    gpus_per_run: int
    max_parallel: int | None
    submits: bool = True
    cpus: int | None = None
    partition: str | None = None
    time: str | None = None
    mem: str | None = None

    @property
    def on_slurm(self) -> bool:
        return self.name == SLURM

    @property
    def gpu_id(self) -> str:
        """What main.py gets: a run sees its own GPUs alone."""
        return "0" if self.gpus_per_run else "cpu"

    def slots(self) -> list[dict[str, str]]:
        """The places of a pool's runs, as `slots_here`; none on Slurm.

        Raises:
            UserError: Slurm, or the GPUs of a run, are not here.
        """
        if not self.on_slurm:
            return slots_here(self.gpus_per_run, self.max_parallel)
        if self.submits:
            slurm.require()
        return []

    def sweep(self, output_root: Path, runs: Sequence[PlannedRun]) -> Sweep:
        """The runs as the next sweep of an output root; it is not recorded yet."""
        return Sweep(
            folder=record.next_folder(output_root),
            engine=self.name,
            working_folder=os.getcwd(),
            gpus_per_run=self.gpus_per_run,
            max_parallel=self.max_parallel,
            runs=tuple(runs),
        )

    def arrays(self, output_root: Path, runs: Sequence[PlannedRun]) -> list[Sweep]:
        """The runs as sweeps of one Slurm array each, no longer than the cluster takes.

        They share `max_parallel`.

        Raises:
            UserError: it is less than the number of arrays.
        """
        whole, longest = self.sweep(output_root, runs), slurm.longest_array()
        parts = [
            runs[first : first + longest] for first in range(0, len(runs), longest)
        ]
        limits: list[int | None] = [None] * len(parts)
        if (limit := self.max_parallel) is not None:
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

    def script(self, array: Sweep, runs: Sequence[PlannedRun]) -> str:
        """The job script of an array; each array asks for what any of `runs` needs."""
        resources = slurm.Resources(
            cpus=self.cpus or max(run.processes for run in runs),
            partition=self.partition,
            time=self.time,
            mem=self.mem,
        )
        return slurm.job_script(array, resources)

    def submit(self, arrays: Sequence[Sweep]) -> None:
        """Records arrays, writes their scripts and hands them to Slurm."""
        runs = [run for array in arrays for run in array.runs]
        for array in arrays:
            script = self.script(array, runs)
            record.save(array)
            slurm.write_script(array, script)
            if self.submits:
                say_submitted(array, slurm.submit(array), len(array.runs))
            else:
                say(f"written; to submit it: {slurm.command(array)}")
        if self.submits:
            say(f"to follow them: {status_command(self.program, arrays[0])}")


def slots_here(gpus_per_run: int, max_parallel: int | None) -> list[dict[str, str]]:
    """The places for a pool's runs on this machine, as `pool.slots`."""
    gpus = devices.visible_gpus(os.environ) if gpus_per_run else []
    return pool.slots(gpus_per_run, max_parallel, gpus)


def left_to_do(output_root: Path, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The runs that are not finished, running or queued; says how many are."""
    sweeps = record.load_all(output_root)
    tasks = status.tasks_by_run(sweeps, slurm.queue_of(sweeps))
    left, skipped = [], []
    for run in runs:
        state = status.already(run, output_root, tasks)
        if state:
            skipped.append(state)
        else:
            left.append(run)
    for state in dict.fromkeys(skipped):
        say(f"{skipped.count(state)} of {len(runs)} runs: {state} already")
    return left


def run_pool(
    runs: Sequence[tuple[Sweep, int]], slots: list[dict[str, str]], program: str
) -> tuple[int, bool]:
    """Runs them here to their ends; the exit code, and whether a signal ended it."""
    at_work = pool.Pool(runs, slots, say)
    codes = at_work.run()
    say(f"to see all runs: {status_command(program, runs[0][0])}")
    return (1 if set(codes) - set(NO_FAILURE) else 0), at_work.stopped


def say(line: str) -> None:
    """Prints a line at once: what comes next may take hours."""
    print(line, flush=True)


def say_submitted(array: Sweep, job: str, count: int) -> None:
    say(f"submitted {counted(count, 'run')} as job {job}: {array.script}")


def status_command(program: str, sweep: Sweep) -> str:
    """The command line that shows the runs of a sweep's output root."""
    words = script_words(program, "sweep.py")
    return shlex.join([*words, "status", shown_path(sweep.output_root)])
