"""How far runs are: from their own files, and of a sweep from its logs and engine."""

import math
import mmap
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from ..replay import ReplayBuffer
from ..settings.roles import VALUERL
from ..storage import locks, record
from ..storage.folders import ASIDE, HYPERPARAMETERS, Folders
from ..storage.scores import LAST_SCORES
from ..storage.tables import last_rows
from ..util import UserError, files_below, regular_opener, signal_name
from . import record as sweeps_record
from . import slurm
from .record import LOCAL, NO_FAILURE, SLURM, PlannedRun, Sweep
from .slurm import Queue, Task

# In the order in which the table counts them.
WAITING, RUNNING, FINISHED = "waiting", "running", "finished"
FAILED, STOPPED = "failed", "stopped"
STATES = (WAITING, RUNNING, FINISHED, FAILED, STOPPED)

WITHOUT_A_WORD = "ended without a word: killed together with what watched it"
DEFAULTS = {"log_path": "log", "save_model_path": "checkpoints"}
STARTED = b"== started "
ON_A_JOB = re.compile(r"== started \S+ on \S+ by job (\S+)")
ENDED = re.compile(r"== ended (\S+) with exit code (\d+)")


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
        log: what main.py printed; None of a run that no sweep started.
        task: its place in Slurm's queue.
        lost_job: the Slurm job that ended without saying how.
    """

    run: PlannedRun
    state: str
    frames: int
    score: float | None
    seconds_left: float | None
    why: str
    log: Path | None
    task: Task | None = None
    lost_job: str | None = None


def states(
    runs: Sequence[tuple[Sweep, int]],
    queue: Queue,
    pool_since: float | None = None,
) -> list[State]:
    """The states of runs, in their order.

    Args:
        runs: sweeps and indices.
        queue: what Slurm has queued, by script and index.
        pool_since: when the local pool that is at work in this output root began, in
            seconds since 1970; None: there is none.
    """
    found = [_state(sweep, index, queue, pool_since) for sweep, index in runs]
    lost = {state.lost_job for state in found if state.lost_job is not None}
    past = slurm.past_states(sorted(lost))
    return [
        replace(state, why=f"{state.why}; Slurm says {past[state.lost_job]}")
        if state.lost_job in past
        else state
        for state in found
    ]


def already(
    run: PlannedRun, output_root: Path, tasks: Mapping[str, Task]
) -> str | None:
    """FINISHED, RUNNING or WAITING where a run need not be submitted, else None.

    Args:
        run: that one.
        output_root: of its sweep.
        tasks: as of `tasks_by_run`.
    """
    folders = run.folders(output_root)
    if locks.in_use(folders):
        return RUNNING
    if task := tasks.get(run.name):
        return WAITING if task.is_pending else RUNNING
    with suppress(UserError):  # its run.json is damaged: its launch says that
        if record.is_finished(folders, run.frames, run.hours):
            return FINISHED
    return None


def tasks_by_run(sweeps: Iterable[Sweep], queue: Queue) -> dict[str, Task]:
    """What Slurm has queued of these sweeps, by the names of the runs."""
    found: dict[str, Task] = {}
    for sweep in sweeps if queue else ():
        script = str(sweep.script.resolve())
        for index, run in enumerate(sweep.runs):
            if task := queue.get((script, index)):
                found.setdefault(run.name, task)
    return found


def _state(
    sweep: Sweep,
    index: int,
    queue: Queue,
    pool_since: float | None,
) -> State:
    task = queue.get((str(sweep.script.resolve()), index))
    log = sweep.log(index)
    state = _from_files(sweep.runs[index], sweep.output_root, log)
    if task and task.is_pending:
        why = "" if task.reason == "None" else task.reason
        return replace(state, state=WAITING, why=why, task=task)
    if state.state == RUNNING or task:
        return replace(_timed(state, sweep.output_root), state=RUNNING, task=task)
    if state.state != STOPPED:
        return state
    attempt = last_attempt(log)
    if sweep.engine != LOCAL:
        pool_since = None
    if attempt is None:
        if pool_since is not None:
            return replace(state, state=WAITING)
        return replace(state, why="not started")
    if _continued(sweep.folders(index), attempt):
        return _ended(state, sweep.folders(index))
    is_pools = pool_since is not None and _seconds(attempt.started) >= int(pool_since)
    if attempt.ended is None and is_pools:  # it has just started, and has no lock yet
        return replace(state, state=RUNNING)
    if attempt.failed:
        lost = attempt.job if attempt.code is None else None
        return replace(state, state=FAILED, why=attempt.why, lost_job=lost)
    return state


def _from_files(run: PlannedRun, output_root: Path, log: Path | None) -> State:
    """What a run's own files say: running, finished, stopped, or (damaged) failed."""
    folders = run.folders(output_root)
    state = State(
        run=run,
        state=STOPPED,
        frames=_frames(folders),
        score=_score(folders),
        seconds_left=None,
        why="",
        log=log,
    )
    if locks.in_use(folders):
        return replace(state, state=RUNNING)
    try:
        if record.is_finished(folders, run.frames, run.hours):
            return replace(state, state=FINISHED)
    except UserError as error:  # its run.json is damaged; the other runs are shown
        return replace(state, state=FAILED, why=str(error))
    return state


def _timed(state: State, output_root: Path) -> State:
    """The state with how long it takes yet."""
    folders = state.run.folders(output_root)
    return replace(state, seconds_left=_seconds_left(folders, state.run, state.frames))


# ---- runs of any kind ---------------------------------------------------------------


def below(folders: Sequence[Path], say: Callable[[str], None]) -> list[State]:
    """The states of all runs in and below folders, by name.

    Args:
        folders: output roots, or those of environments or experiments.
        say: takes a line for each thing that is not known.

    Raises:
        UserError: no such folder, or there is no run in it.
    """
    known: dict[Path, dict[str, State]] = {}

    def swept(output_root: Path) -> dict[str, State]:
        root = output_root.resolve()
        if root not in known:
            known[root] = {s.run.name: s for s in of_sweeps(output_root, say)}
        return known[root]

    found: dict[tuple[str, Path], State] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; name one of main.py's output")
        # A run's name has no "..", and what that is only the filesystem knows.
        folder = folder.resolve() if ".." in folder.parts else folder.absolute()
        here = {(name, folder.resolve()): s for name, s in swept(folder).items()}
        for path in files_below(folder, HYPERPARAMETERS):
            run, root = _recorded(path), path.absolute().parent.parent.parent.parent
            if run and not any(map(ASIDE.fullmatch, path.relative_to(folder).parts)):
                state = swept(root).get(run.name) or _alone(run, root)
                here[run.name, root.resolve()] = state
        if not here:
            raise UserError(f"{folder} holds no run; name one of main.py's output")
        found |= here
    return [found[key] for key in sorted(found)]


def of_sweeps(output_root: Path, say: Callable[[str], None]) -> list[State]:
    """The states of all runs that sweeps of an output root have, as far as known.

    Args:
        output_root: of the runs.
        say: takes a line for each thing that is not known.
    """
    sweeps = sweeps_record.load_readable(output_root, say)
    pool = sweeps_record.holder(output_root)
    since = None if pool is None else pool.since
    return states(sweeps_record.latest(sweeps), queued(sweeps, say), since)


def queued(sweeps: Sequence[Sweep], say: Callable[[str], None]) -> Queue:
    """What Slurm has queued; says so where that is not known."""
    if not any(sweep.engine == SLURM for sweep in sweeps):
        return {}
    try:
        return slurm.queue()
    except UserError as error:
        say(f"{error}: what is queued is not known")
        return {}


def _recorded(hyperparameters: Path) -> PlannedRun | None:
    """The run whose hps.json it is; None where that does not lie where it should."""
    root, log_path = hyperparameters.absolute().parent.parent, hyperparameters.parent
    try:
        content = record.read_json(hyperparameters)
    except UserError:  # damaged: its limits are not known
        content = {"log_path": log_path.name}
    if content.get("log_path", DEFAULTS["log_path"]) != log_path.name:
        return None
    checkpoints = content.get("save_model_path")
    if not isinstance(checkpoints, str) or Path(checkpoints).name != checkpoints:
        checkpoints = DEFAULTS["save_model_path"]
    frames, hours = content.get("total_frames"), content.get("total_hours")
    return PlannedRun(
        arguments=(),
        environment=root.parent.name,
        experiment=root.name,
        log_path=log_path.name,
        save_model_path=checkpoints,
        frames=frames if isinstance(frames, int) else None,
        hours=hours if isinstance(hours, int | float) else None,
        updates=None,
        processes=0,
    )


def _alone(run: PlannedRun, output_root: Path) -> State:
    """The state of a run that no sweep started."""
    state = _from_files(run, output_root, None)
    if state.state == RUNNING:
        return _timed(state, output_root)
    if state.state != STOPPED:
        return state
    return _ended(state, run.folders(output_root))


def _continued(folders: Folders, attempt: "Attempt") -> bool:
    """Whether the run's own record knows more of its end than the log of an attempt.

    A launch began after the attempt ended, as by main.py; or the attempt has an end
    that its pool or job could not write down.
    """
    with suppress(UserError, LookupError, TypeError):
        last = record.read_run(folders)["starts"][-1]
        if attempt.ended is not None:
            return _seconds(last["time"]) > _seconds(attempt.ended)
        return _seconds(last["ended"]["time"]) >= _seconds(attempt.started)
    return False


def _seconds(time: str) -> float:
    """A time in ISO 8601 since 1970; NaN, which is never later, for any other text."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except (TypeError, ValueError):
        return math.nan


def _ended(state: State, folders: Folders) -> State:
    """The state of a run that is not at work, by how its last launch ended."""
    starts = record.read_run(folders)["starts"]
    last = starts[-1] if starts and isinstance(starts[-1], dict) else {}
    if "ended" not in last:  # of an earlier version
        return state
    ended = last["ended"]
    if not isinstance(ended, dict):
        return replace(state, state=FAILED, why=WITHOUT_A_WORD)
    if ended.get("code") not in NO_FAILURE:
        return replace(state, state=FAILED, why=str(ended.get("why") or ""))
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
        started: when, as ISO 8601 has it.
        ended: likewise; None where `code` is.
    """

    code: int | None
    last_line: str
    job: str | None
    started: str
    ended: str | None

    @property
    def failed(self) -> bool:
        return self.code not in NO_FAILURE

    @property
    def why(self) -> str:
        if self.code is None:
            return WITHOUT_A_WORD
        if self.code > 128:
            return f"killed by {signal_name(self.code - 128)}"
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
    job, end = ON_A_JOB.match(text), ENDED.search(text)
    printed = text[: end.start()] if end else text
    lines = [line for line in printed.splitlines()[1:] if line.strip()]
    return Attempt(
        code=int(end[2]) if end else None,
        last_line=lines[-1].strip() if lines else "",
        job=job[1] if job else None,
        started=text.removeprefix(STARTED.decode()).partition(" ")[0],
        ended=end[1] if end else None,
    )


# ---- a run's files ------------------------------------------------------------------


def _frames(folders: Folders) -> int:
    try:
        with ReplayBuffer.open(folders.replay) as replay:
            return replay.frames
    except UserError:  # none yet
        return 0


def _score(folders: Folders) -> float | None:
    rows = last_rows(folders.scores_there, ("score",))[-LAST_SCORES:]
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
