"""How far the runs of a sweep are: from their own files, their logs and the engine."""

import mmap
import re
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..replay import ReplayBuffer
from ..settings.roles import VALUERL
from ..storage import locks, record
from ..storage.folders import Folders
from ..storage.tables import last_rows
from ..util import UserError, regular_opener
from . import slurm
from .record import LOCAL, NO_FAILURE, PlannedRun, Sweep
from .slurm import Queue, Task

# In the order in which the table counts them.
WAITING, RUNNING, FINISHED = "waiting", "running", "finished"
FAILED, STOPPED = "failed", "stopped"
STATES = (WAITING, RUNNING, FINISHED, FAILED, STOPPED)

LAST_SCORES = 10  # evaluation episodes that the shown score is the mean of
STARTED = b"== started "
ON_A_JOB = re.compile(r"== started \S+ on \S+ by job (\S+)")
ENDED = re.compile(r"== ended \S+ with exit code (\d+)")


@dataclass(frozen=True)
class State:
    """One run, as `status` shows it.

    Attributes:
        run: what was asked for.
        state: one of STATES. A stopped run is neither queued nor finished, and did not
            fail: it was cancelled, or never started.
        frames: environment frames so far.
        score: mean of the last evaluation episodes; None before the first.
        seconds_left: by the speed of its last log lines; None where that is not known.
        why: why it failed, or waits.
        log: what main.py printed.
        task: its place in Slurm's queue.
        lost_job: the Slurm job that ended without saying how.
    """

    run: PlannedRun
    state: str
    frames: int
    score: float | None
    seconds_left: float | None
    why: str
    log: Path
    task: Task | None = None
    lost_job: str | None = None


def states(
    runs: Sequence[tuple[Sweep, int]],
    queue: Queue,
    pool_is_alive: bool,
) -> list[State]:
    """The states of runs, in their order.

    Args:
        runs: sweeps and indices.
        queue: what Slurm has queued, by script and index.
        pool_is_alive: whether a local pool of this output root is at work.
    """
    found = [_state(sweep, index, queue, pool_is_alive) for sweep, index in runs]
    lost = {state.lost_job for state in found if state.lost_job is not None}
    past = slurm.past_states(sorted(lost))
    return [
        replace(state, why=f"{state.why}; Slurm says {past[state.lost_job]}")
        if state.lost_job in past
        else state
        for state in found
    ]


def already(
    run: PlannedRun,
    output_root: Path,
    sweeps: Sequence[Sweep],
    queue: Queue,
) -> str | None:
    """FINISHED, RUNNING or WAITING where a run need not be submitted, else None."""
    folders = run.folders(output_root)
    if locks.in_use(folders):
        return RUNNING
    for sweep in sweeps:
        for index, earlier in enumerate(sweep.runs):
            task = _task(sweep, index, queue)
            if task and earlier.name == run.name:
                return WAITING if task.is_pending else RUNNING
    with suppress(UserError):  # its run.json is damaged: its launch says that
        if record.is_finished(folders, run.frames, run.hours):
            return FINISHED
    return None


def _task(sweep: Sweep, index: int, queue: Queue) -> Task | None:
    return queue.get((str(sweep.script.resolve()), index))


def _state(
    sweep: Sweep,
    index: int,
    queue: Queue,
    pool_is_alive: bool,
) -> State:
    run, folders = sweep.runs[index], sweep.folders(index)
    task = _task(sweep, index, queue)
    frames = _frames(folders)
    attempt = last_attempt(sweep.log(index))
    state = State(
        run=run,
        state=STOPPED,
        frames=frames,
        score=_score(folders),
        seconds_left=None,
        why="",
        log=sweep.log(index),
        task=task,
    )
    in_use = locks.in_use(folders)
    if task and task.is_pending:
        why = "" if task.reason == "None" else task.reason
        return replace(state, state=WAITING, why=why)
    if in_use or task:
        left = _seconds_left(folders, run, frames)
        return replace(state, state=RUNNING, seconds_left=left)
    try:
        if record.is_finished(folders, run.frames, run.hours):
            return replace(state, state=FINISHED)
    except UserError as error:  # its run.json is damaged; the other runs are shown
        return replace(state, state=FAILED, why=str(error))
    if attempt is None:
        if sweep.engine == LOCAL and pool_is_alive:
            return replace(state, state=WAITING)
        return replace(state, why="not started")
    if attempt.failed:
        lost = attempt.job if attempt.code is None else None
        return replace(state, state=FAILED, why=attempt.why, lost_job=lost)
    return state


# ---- a run's log --------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """The last attempt at a run, as its log tells.

    Attributes:
        code: main.py's exit code; None where it has not ended, or nobody could write
            it down.
        last_line: the last that main.py printed.
        job: the Slurm job's id; None for a local run.
    """

    code: int | None
    last_line: str
    job: str | None

    @property
    def failed(self) -> bool:
        return self.code not in NO_FAILURE

    @property
    def why(self) -> str:
        if self.code is None:
            return "ended without a word: killed together with what watched it"
        if self.code > 128:
            return f"killed by {_signal_name(self.code - 128)}"
        return self.last_line


def last_attempt(log: Path) -> Attempt | None:
    """Reads the end of a log, from its last start on; None before the first."""
    try:
        with (
            open(log, "rb", opener=regular_opener) as file,
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as m,
        ):
            start = m.rfind(STARTED)
            if start < 0:
                return None
            text = m[start:].decode(errors="replace")
    except (OSError, ValueError):  # none, no file, or (ValueError) empty
        return None
    job, code = ON_A_JOB.match(text), ENDED.search(text)
    printed = text[: code.start()] if code else text
    lines = [line for line in printed.splitlines()[1:] if line.strip()]
    return Attempt(
        code=int(code[1]) if code else None,
        last_line=lines[-1].strip() if lines else "",
        job=job[1] if job else None,
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# ---- a run's files ------------------------------------------------------------------


def _frames(folders: Folders) -> int:
    try:
        with ReplayBuffer.open(folders.replay) as replay:
            return replay.frames
    except UserError:  # none yet
        return 0


def _score(folders: Folders) -> float | None:
    rows = last_rows(folders.scores, ("score",))[-LAST_SCORES:]
    scores = [row["score"] for row in rows]
    return sum(scores) / len(scores) if scores else None


def _seconds_left(folders: Folders, run: PlannedRun, frames: int) -> float | None:
    """To the nearer limit, by the learner's last log lines."""
    rows = last_rows(folders.learner_log(VALUERL), ("hours", "frames"))
    if not rows:
        return None
    first, last = rows[0], rows[-1]
    hours = last["hours"] - first["hours"]
    left = []
    if run.hours is not None:
        left.append(run.hours - last["hours"])
    if run.frames is not None and hours > 0 and last["frames"] > first["frames"]:
        left.append((run.frames - frames) * hours / (last["frames"] - first["frames"]))
    return max(0.0, min(left) * 3600) if left else None
