"""The Slurm engine: a readable job script, and what Slurm knows of its jobs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..util import UserError, atomic_write, check_path
from .record import MAIN, SLURM, Sweep

SAVE_SECONDS = 60  # before the time limit; a run saves within 15
DEFAULT_ARRAY_SIZE = 1001
ARRAY_SIZE = re.compile(r"^MaxArraySize\s*=\s*(\d+)", re.MULTILINE)
ERROR = re.compile(r"^(\w+): error: ")
JOBS_AT_ONCE = 1000  # in an argument of sacct, whose length the kernel limits
SEPARATOR = "\t"  # between squeue's fields; no path of a sweep holds one

PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "RESV_DEL_HOLD"}

# USR1 goes to the script alone (--signal=B:), so it can tell a time limit, after which
# nobody but itself queues the job again, from TERM: scancel, or preemption, after which
# Slurm does. Bash runs a trap only between commands, hence `&` and `wait`.
TEMPLATE = """\
#!/bin/bash
# {count} runs as one Slurm array, written by sweep.py. To change something, edit this
# file and submit it again (finished runs end at once, running ones must be cancelled):
#     {command}
{directives}

job=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
echo "== started $(date -u +%FT%TZ) on $(hostname) by job $job"
ended() {{ echo "== ended $(date -u +%FT%TZ) with exit code $1"; exit "$1"; }}

case $SLURM_ARRAY_TASK_ID in
{cases}
*) echo "there is no run $SLURM_ARRAY_TASK_ID" >&2; ended 2 ;;
esac

again=no
trap 'again=yes; kill -TERM "$run"' USR1  # the time limit is near: save, then requeue
trap 'kill -TERM "$run"' TERM             # scancel or preemption: save

cd {working_folder} || ended 1
{python} {program} "$@" &
run=$!
while kill -0 "$run" 2> /dev/null; do wait "$run"; done
wait "$run"
code=$?
echo "== ended $(date -u +%FT%TZ) with exit code $code"

# 1 is a failure and 2 a mistake, which would only come again.
if [ $again = yes ] && [ $code -ne 1 ] && [ $code -ne 2 ]; then
    scontrol requeue "$job"
fi
exit $code
"""


@dataclass(frozen=True)
class Resources:
    """What each run asks Slurm for; None leaves it to the cluster."""

    cpus: int
    partition: str | None = None
    time: str | None = None
    mem: str | None = None


def job_script(sweep: Sweep, resources: Resources) -> str:
    """The array's script: an element for each run, by its index.

    Raises:
        UserError: a path or a word holds a character that would end a comment.
    """
    for path, what in (
        (sweep.script, "the path of Slurm's script"),
        (sweep.working_folder, "the working folder"),
        (sys.executable, "Python's path"),
        (MAIN, "the path of the project"),
        (resources.partition or "", "--partition"),
        (resources.time or "", "--time"),
        (resources.mem or "", "--mem"),
    ):
        check_path(path, what)
    last = len(sweep.runs) - 1
    limit = f"%{sweep.max_parallel}" if sweep.max_parallel else ""
    output = str(sweep.log(0)).replace("%", "%%").removesuffix("0.txt") + "%a.txt"
    options = {
        "job-name": f"sweep-{sweep.folder.name}",
        "array": f"0-{last}{limit}",
        "partition": resources.partition,
        "time": resources.time,
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": resources.cpus,
        "mem": resources.mem,
        "gres": f"gpu:{sweep.gpus_per_run}" if sweep.gpus_per_run else None,
        "output": output,
        "open-mode": "append",
        "signal": f"B:USR1@{SAVE_SECONDS}",
    }
    lines = [
        f"#SBATCH --{key}={shlex.quote(str(value))}"
        for key, value in options.items()
        if value
    ]
    cases = [
        f"{index}) set -- {shlex.join(run.arguments)} ;;"
        for index, run in enumerate(sweep.runs)
    ]
    return TEMPLATE.format(
        count=len(sweep.runs),
        command=command(sweep),
        directives="\n".join([*lines, "#SBATCH --requeue"]),
        cases="\n".join(cases),
        working_folder=shlex.quote(sweep.working_folder),
        python=shlex.quote(sys.executable),
        program=shlex.quote(str(MAIN.with_name(sweep.program))),
    )


def write_script(sweep: Sweep, script: str) -> None:
    atomic_write(sweep.script, os.fsencode(script))


def command(sweep: Sweep) -> str:
    """The command line that submits a sweep by hand."""
    return shlex.join(["sbatch", str(sweep.script)])


def longest_array() -> int:
    """How many elements an array may have here: MaxArraySize.

    Where the cluster does not say it, Slurm's default.
    """
    if shutil.which("scontrol") is None:
        return DEFAULT_ARRAY_SIZE
    found = ARRAY_SIZE.search(_call(["scontrol", "show", "config"]).stdout)
    return max(1, int(found[1])) if found else DEFAULT_ARRAY_SIZE


def require() -> None:
    """Raises a UserError where there is no Slurm on this machine."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "sbatch was not found: this machine submits nothing to Slurm; --engine "
            "local runs here, --dry-run shows the script"
        )


def submit(sweep: Sweep, indices: Iterable[int] | None = None) -> str:
    """Submits the script as it stands; returns the job's id.

    Args:
        sweep: whose script it is.
        indices: the runs; None: as the script says.

    Raises:
        UserError: sbatch refuses.
    """
    require()
    words = ["sbatch", "--parsable"]
    if indices is not None:
        limit = f"%{sweep.max_parallel}" if sweep.max_parallel else ""
        words.append(f"--array={','.join(map(str, indices))}{limit}")
    done = _call([*words, str(sweep.script)])
    if done.returncode:
        why = _reason(done.stderr)
        if "job array" in why:
            why += f" (MaxArraySize is {longest_array()} here)"
        raise UserError(f"{why}; the script stays: {command(sweep)}")
    return done.stdout.strip().partition(";")[0]


@dataclass(frozen=True)
class Task:
    """One run's place in Slurm's queue."""

    job: str  # as scancel takes it
    state: str
    reason: str

    @property
    def is_pending(self) -> bool:
        return self.state in PENDING


Queue = Mapping[tuple[str, int], Task]  # by script and array index


def queue() -> Queue:
    """The user's jobs that wait or run.

    They are found by their script, so that one that was submitted by hand is known too.

    Raises:
        UserError: squeue is there and fails.
    """
    if shutil.which("squeue") is None:
        return {}
    fields = SEPARATOR.join(("%K", "%T", "%i", "%r", "%Z", "%o"))
    user, shown = f"--user={os.getuid()}", f"--format={fields}"
    done = _call(["squeue", "--noheader", "--array", user, shown])
    if done.returncode:
        raise UserError(_reason(done.stderr))
    tasks = {}
    for line in done.stdout.splitlines():
        index, state, job, reason, folder, command = line.split(SEPARATOR, 5)
        if index.isdecimal():
            script = str(Path(folder, command).resolve())
            tasks[script, int(index)] = Task(job, state, reason)
    return tasks


def queue_of(sweeps: Iterable[Sweep]) -> Queue:
    """As `queue` where one of the sweeps is Slurm's; a user without needs no Slurm."""
    return queue() if any(sweep.engine == SLURM for sweep in sweeps) else {}


def cancel(tasks: Iterable[Task]) -> None:
    """Ends jobs; those that run save first.

    Raises:
        UserError: scancel refuses.
    """
    done = _call(["scancel", *(task.job for task in tasks)])
    if done.returncode:
        raise UserError(_reason(done.stderr))


def past_states(jobs: Iterable[str]) -> dict[str, str]:
    """How jobs ended, such as TIMEOUT, where the cluster keeps accounts of it."""
    jobs = list(jobs)
    if not jobs or shutil.which("sacct") is None:
        return {}
    plain = ("--noheader", "--parsable2", "--allocations", "--format=JobID,State")
    ended: dict[str, str] = {}
    for first in range(0, len(jobs), JOBS_AT_ONCE):
        some = ",".join(jobs[first : first + JOBS_AT_ONCE])
        done = _call(["sacct", *plain, f"--jobs={some}"])
        if done.returncode:  # most often: "accounting storage is disabled"
            return {}
        rows = [line.split("|") for line in done.stdout.splitlines()]
        ended |= {row[0]: row[1] for row in rows if len(row) == 2}
    return ended


def _call(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, capture_output=True, text=True, errors="surrogateescape", check=False
    )


def _reason(text: str) -> str:
    """Why a program of Slurm refuses, on one line.

    All errors are named: the last one may say no more than that it failed.
    """
    lines = text.strip().splitlines() or ["it failed without a word"]
    errors = [line for line in lines if ERROR.match(line)] or lines[-1:]
    first = ERROR.sub(r"\1: ", errors[0])
    return "; ".join([first, *(ERROR.sub("", line) for line in errors[1:])])
