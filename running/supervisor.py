"""Starts the processes of a run, watches them, and ends them (SPEC section 12)."""

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType

from ..replay import ReplayBuffer
from ..settings.roles import LAUNCHER, VALUERL, WORLDMODEL, Kind
from ..storage.board import FINAL_EPISODES, Board
from ..storage.disk import full_disk_line
from ..storage.folders import Run
from ..storage.record import read_run, reasons_of
from ..util import (
    UserError,
    environment,
    file_stamp,
    on_stop_signals,
    signal_name,
)
from . import leftovers
from .child import (
    FULL_DISK,
    HOPELESS,
    MISTAKE,
    ONE_REQUEST,
    STARTUP_GRACE,
    STOPPED,
    child_main,
    full_disk_advice,
)
from .display import Display
from .progress import Progress

TICK = 0.25  # seconds between looks at the children
LEARNER_STARTUP = 1800.0  # seconds in which a learner builds and compiles its graphs
LEARNER_GRACE = 4.0  # seconds more than step_timeout: an update may be a long one
LOGGER_PATIENCE = 1800.0  # seconds that a logger may wait for somebody else's server
OWN_PAUSE = 5.0  # seconds between looks after which the launcher itself was stopped
LOGGERS_END = 120.0  # seconds that loggers get after a run that came to its limit
STOP_PATIENCE = 12.0  # seconds that children get to save and end
KILL_PATIENCE = 2.0  # seconds until one that is killed has ended
FOR_THE_LAUNCHER = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
ACTOR_RESTARTS, RESTART_WINDOW = 5, 600.0  # times, in seconds
LEARNER_RESTARTS = 1
GIVEN_UP = (MISTAKE, HOPELESS, FULL_DISK)  # with one line
ACTOR_NICE = 10
OUTPUT_BYTES = 1 << 16  # of a child, that are looked at after its end
TRACEBACK = "Traceback (most recent call last)"
CHAINED = (  # before the traceback of an exception that another one led to
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
SPAWN = multiprocessing.get_context("spawn")


@dataclass
class Child:
    """One process of the run, through all its restarts."""

    name: str
    kind: str  # the name without its number
    main: str  # "module:function"
    environ: Mapping[str, str]
    process: BaseProcess | None = None
    starts: int = 0
    exited_at: list[float] = field(default_factory=list)  # unexpectedly; clock seconds
    output_from: int = 0  # where its last start's output begins in its file
    done: bool = False  # its work is done, or it was the reason to end the run

    @property
    def is_learner(self) -> bool:
        return self.kind in (VALUERL, WORLDMODEL)

    @property
    def is_logger(self) -> bool:
        return self.kind == Kind.LOGGER

    @property
    def started(self) -> BaseProcess:
        """The process of its last start."""
        assert self.process is not None, f"{self.name} has not been started"
        return self.process

    @property
    def exit_code(self) -> int:
        """With which its last start ended."""
        code = self.started.exitcode
        assert code is not None, f"{self.name} has not ended"
        return code

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.is_alive()


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        code: the launcher's exit code.
        finished: whether the limit was reached.
        error: what to print where it failed: a traceback, then one line.
    """

    code: int
    finished: bool = False
    error: str | None = None


@contextmanager
def _without_signals() -> Iterator[None]:
    """Blocks FOR_THE_LAUNCHER; a child that starts meanwhile keeps them blocked.

    A terminal or a cluster sends them to all processes of the run. Only the launcher
    handles them; it asks the children to end by SIGTERM.
    """
    resource_tracker.ensure_running()  # its own start would unblock Ctrl-C again
    signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_LAUNCHER)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FOR_THE_LAUNCHER)


def _how(code: int) -> str:
    """How a process with this exit code ended."""
    if code < 0:
        return f"was ended by {signal_name(-code)}"
    return f"ended with exit code {code}"


def _no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Supervisor:
    """Runs all processes of a run until its limit, a failure, or a signal.

    Args:
        run: whose processes they are.
        board: its status board; opened by the children.
        children: the processes, not yet started.
        display: shows the progress and what happens to the children.
        make_process: makes a process that is not yet started.
        clock: monotonic seconds, those of the children's heartbeats.
        wait: waits until one of the sentinels is ready, or until a time is over.
    """

    def __init__(
        self,
        run: Run,
        board: Board,
        children: list[Child],
        display: Display,
        *,
        make_process: Callable[..., BaseProcess] = SPAWN.Process,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[list[int], float], object] = wait,
    ) -> None:
        # Here: all children import this module.
        from ..loggers.tensorboard import RunEvents

        self._run = run
        self._children = children
        self._marks = {
            c.name: leftovers.mark(run.folders.root, c.name) for c in children
        }
        self._display = display
        self._make_process = make_process
        self._clock = clock
        self._wait = wait
        self._board = board
        self._replay = ReplayBuffer.open(run.folders.replay)
        self.progress = Progress(run, self._board, self._replay)
        self._events = RunEvents(run, display.note)
        self._stop_requested_at: float | None = None
        self._at_once = False  # a second signal came
        self._looked_at = self._awake_since = self._clock()
        # What killed children had started, each with the time at which to kill it.
        self._leftovers: list[tuple[float, list[leftovers.Process]]] = []
        self._waiting: set[str] = set()  # children that wait for space on the disk
        self._record = file_stamp(run.folders.run)
        self._reasons = len(reasons_of(read_run(run.folders)))

    def run(self) -> Outcome:
        """Starts the children and returns when all have ended."""
        outcome = Outcome(1)
        with on_stop_signals(self.on_signal):
            try:
                self.start()
                while (reason := self.watch_once()) is None:
                    self._wait_for_exit(self._alive())
                outcome = reason
            finally:  # after an exception too, what was learned is saved
                outcome = self._end(outcome)
        return outcome

    def start(self) -> None:
        """Starts all children."""
        for child in self._children:
            self._start(child)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Asks the run to end; a second one, at once."""
        now = self._clock()
        if self._stop_requested_at is None:
            self._stop_requested_at = now
        elif now - self._stop_requested_at > ONE_REQUEST:
            self._at_once = True

    def _start(self, child: Child) -> None:
        path = self._run.folders.process_output(child.name)
        child.output_from = path.stat().st_size if path.exists() else 0
        now = self._clock()
        row = self._board[child.name]
        row["heartbeat"] = now + STARTUP_GRACE
        row["ready"] = row["disk_full"] = 0
        child.process = self._make_process(
            target=child_main,
            name=child.name,
            args=(
                child.main,
                self._run,
                child.name,
                0 if child.is_learner else ACTOR_NICE,
            ),
        )
        variables = {**child.environ, **self._marks[child.name]}
        with environment(variables), _without_signals():
            child.started.start()
        child.starts += 1

    # -- while it runs -----------------------------------------------------------

    def watch_once(self) -> Outcome | None:
        """Looks at each child once: kills it if it hangs, restarts it if it ended.

        Returns:
            Why the run is to end; None while it is not.
        """
        if self._stop_requested_at is not None:
            return Outcome(0)
        root = self._run.folders.root
        if not root.is_dir():
            advice = "the run stops. Give it back its name and --resume"
            return Outcome(1, error=f"{root} was renamed or removed; {advice}")
        self._kill_hung()
        self._kill_leftovers()
        self._note_full_disk()
        self._note_reasons()
        for child in self._children:
            if not child.alive and not child.done:
                failure = self._handle_exit(child)
                if failure:
                    child.done = True
                    return failure
        if self._advance():
            return Outcome(0, finished=True)
        self._display.show(self.progress)
        if self.progress.are_ready():  # what is not part of their states has been cut
            self._events.refresh()
        return None

    def _alive(self) -> list[Child]:
        return [child for child in self._children if child.alive]

    def _wait_for_exit(self, alive: list[Child]) -> None:
        """Returns when one of these children ends, or after a TICK."""
        self._wait([child.started.sentinel for child in alive], TICK)

    def _advance(self) -> bool:
        """Moves from learning to the final episodes; True when those are done."""
        if not all(child.done for child in self._children if child.is_learner):
            return False
        launcher = self._board[LAUNCHER]
        if launcher["phase"] != FINAL_EPISODES:
            for child in self._children:
                if child.kind == Kind.INTERACTOR:
                    child.done = True
                    child.started.terminate()
            launcher["phase"] = FINAL_EPISODES
        return all(child.done for child in self._children if not child.is_logger)

    def _limit_reached(self) -> bool:
        hours = float(self._board[VALUERL]["hours"])
        return self._run.config.limit_reached(self._replay.frames, hours)

    def _kill_hung(self) -> None:
        now = self._clock()
        if now - self._looked_at > OWN_PAUSE:
            # By Ctrl-Z or a cluster that suspends jobs; the children were stopped too.
            self._awake_since = now
        self._looked_at = now
        for child in self._children:
            patience = self._patience(child)
            heartbeat = self._board[child.name]["heartbeat"]
            silence = now - max(heartbeat, self._awake_since)
            if child.alive and silence > patience:
                self._display.note(
                    f"{child.name} shows no life for {patience:g} s and is killed"
                )
                self._kill([child])
                self._board[child.name]["heartbeat"] = now

    def _kill(self, children: Sequence[Child]) -> None:
        """Kills children and waits up to KILL_PATIENCE for them.

        A child in an uninterruptible system call ends later. Nobody waits for it.
        """
        for child in children:
            child.started.kill()
        until = time.monotonic() + KILL_PATIENCE
        for child in children:
            child.started.join(max(0.0, until - time.monotonic()))
            if child.alive:  # Python would wait for it at the launcher's own end
                multiprocessing.process._children.discard(child.started)  # type: ignore[attr-defined]

    def _patience(self, child: Child) -> float:
        """For how many seconds a child may show no life."""
        timeout = self._run.config.env.step_timeout
        if child.is_logger:
            return LOGGER_PATIENCE
        if not child.is_learner:
            return timeout
        if not self._board[child.name]["ready"]:
            return max(timeout, LEARNER_STARTUP)
        return timeout + LEARNER_GRACE

    def _note_full_disk(self) -> None:
        """Reports which children begin and which cease to wait for space."""
        waiting = {c.name for c in self._children if self._board[c.name]["disk_full"]}
        for name in sorted(waiting - self._waiting):
            line = full_disk_line(_no_space(), self._run.folders.root)
            self._display.note(f"{line}; {name} waits for space")
        for name in sorted(self._waiting - waiting):
            self._display.note(f"{name} has space again and continues")
        self._waiting = waiting

    def _note_reasons(self) -> None:
        """Reports why the run cannot be repeated, as children say it in run.json."""
        stamp = file_stamp(self._run.folders.run)
        if stamp == self._record:
            return
        self._record = stamp
        with suppress(UserError):  # a file that its user damages meanwhile
            reasons = reasons_of(read_run(self._run.folders))
            for reason in reasons[self._reasons :]:
                self._display.note(reason)
            self._reasons = len(reasons)

    def _handle_exit(self, child: Child) -> Outcome | None:
        """Decides about a child that ended: done, restarted, or the end of the run."""
        code = child.exit_code
        if child.is_logger and self._board[child.name]["ready"]:
            child.done = True
            file = self._run.folders.process_output(child.name)
            self._display.note(
                f"{child.name} {_how(code)}; `loggers` get nothing more of this launch "
                f"(its output: {file})"
            )
            return None
        final = self._board[LAUNCHER]["phase"] == FINAL_EPISODES
        expected = self._limit_reached() if child.is_learner else final
        if code == STOPPED and expected:
            child.done = True
            return None
        if code in GIVEN_UP:
            # After a restart it was not the configuration: that has been good before.
            is_mistake = code == MISTAKE and child.starts == 1
            return Outcome(2 if is_mistake else 1, error=self._last_line(child))
        now = self._clock()
        child.exited_at.append(now)
        how = _how(code)
        if child.is_learner:
            too_often = len(child.exited_at) > LEARNER_RESTARTS
        else:
            recent = [t for t in child.exited_at if now - t < RESTART_WINDOW]
            too_often = len(recent) > ACTOR_RESTARTS
        if too_often:
            file = self._run.folders.process_output(child.name)
            return Outcome(
                1,
                error=f"{self._output(child)}\n{child.name} {how} after "
                f"{child.starts - 1} restarts; the run stops (its output: {file})",
            )
        self._end_leftovers(child)
        self._display.note(f"{child.name} {how} and is restarted")
        self._start(child)
        return None

    def _end_leftovers(self, child: Child) -> None:
        """Ends what a child that is gone had started and did not end itself.

        A learner starts nothing, and what a logger started may yet be at work.
        """
        is_actor = not (child.is_learner or child.is_logger)
        if is_actor or child.exit_code < 0:
            until = self._clock() + leftovers.PATIENCE
            self._leftovers.append((until, leftovers.end(self._marks[child.name])))

    def _kill_leftovers(self) -> None:
        """Kills what should have ended by now."""
        now = self._clock()
        for until, asked in self._leftovers:
            if until < now:
                leftovers.kill(asked)
        self._leftovers = [
            (until, left)
            for until, asked in self._leftovers
            if until >= now and (left := leftovers.remaining(asked))
        ]

    def _last_line(self, child: Child) -> str:
        """The line with which a child gave up; names the child."""
        output = self._output(child)
        if child.exit_code == FULL_DISK and not output:
            # There was no space for its line either.
            return full_disk_advice(_no_space(), self._run)
        line = (output.splitlines() or ["stopped without a message"])[-1]
        return line if line.startswith(child.name) else f"{child.name}: {line}"

    def _output(self, child: Child) -> str:
        """What the child's last start printed, from its last traceback on if any."""
        path = self._run.folders.process_output(child.name)
        if not path.exists():
            return ""
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(child.output_from, end - OUTPUT_BYTES))
            text = file.read().decode(errors="replace").strip()
        start = text.rfind(TRACEBACK)
        while text[: max(start, 0)].rstrip().endswith(CHAINED):
            earlier = text.rfind(TRACEBACK, 0, start)
            if earlier < 0:
                break
            start = earlier
        return text[start:] if start >= 0 else "\n".join(text.splitlines()[-20:])

    # -- the end -----------------------------------------------------------------

    def _end(self, outcome: Outcome) -> Outcome:
        """Asks the children to save and end; kills those that do not in time."""
        if not outcome.finished:
            self._display.note("stopping: saving what was learned")
        killed = self._wait_for_ends(outcome)
        for child in self._children:
            if child.process is not None and not child.alive:
                self._end_leftovers(child)
        asked = [process for _, each in self._leftovers for process in each]
        if leftovers.remaining(asked):
            self._display.note("waiting for what processes had started to end")
        leftovers.finish(asked, at_once=lambda: self._at_once)
        # One that is not ready has restored nothing yet, and has nothing to save.
        unsaved = [
            child.name
            for child in killed
            if child.is_learner and self._board[child.name]["ready"]
        ]
        failures = []
        if unsaved:
            failures.append(
                f"{', '.join(unsaved)} killed before the end of its saving; "
                "--resume continues from its last state"
            )
        for child in self._children:
            if child.done or child in killed or child.process is None:
                continue
            if not self._ended_as_asked(child):
                failure = self._failure_at_the_end(child)
                if child.is_learner:
                    failures.append(failure)
                else:  # it had nothing to save
                    self._display.note(failure.splitlines()[-1])
        try:
            self._note_reasons()
            self._events.close()
            self._display.show(self.progress, last=True)
        finally:
            self._display.close()
        if outcome.code == 0 and failures:
            return Outcome(1, error="\n".join(failures))
        return outcome

    def _wait_for_ends(self, outcome: Outcome) -> list[Child]:
        """Asks the children to end; returns those that had to be killed."""
        for child in self._alive():
            child.started.terminate()
        begun = self._clock()
        killed: list[Child] = []
        while alive := [child for child in self._alive() if child not in killed]:
            now = self._clock()
            late = [
                child
                for child in alive
                if self._at_once or now > self._end_of(child, begun, outcome.finished)
            ]
            self._kill(late)
            killed += late
            for child in late:
                if child.is_logger:
                    self._display.note(
                        f"{child.name} was killed: what it had not passed on is lost"
                    )
            if not late:
                self._wait_for_exit(alive)
            for child in self._alive():
                if not child.is_learner:  # an environment may have taken the first one
                    child.started.terminate()
        return killed

    def _end_of(self, child: Child, begun: float, finished: bool) -> float:
        """Until when a child may take to end, by the clock.

        Args:
            child: that one.
            begun: when it was asked to.
            finished: whether the run came to its limit.
        """
        if not (child.is_logger and finished):
            return begun + STOP_PATIENCE
        if self._stop_requested_at is None:
            return begun + LOGGERS_END
        return max(begun, self._stop_requested_at) + STOP_PATIENCE

    def _ended_as_asked(self, child: Child) -> bool:
        """Whether a child that was asked to end has nothing left to save."""
        if child.exit_code == -signal.SIGTERM:  # it was asked before it had begun
            return not (child.is_learner and self._board[child.name]["ready"])
        # An environment that ends its process when it is asked to does no harm.
        return child.exit_code == STOPPED or (
            child.exit_code == 0 and not child.is_learner
        )

    def _failure_at_the_end(self, child: Child) -> str:
        """Why a child that was asked to save and end did not."""
        code = child.exit_code
        if code in GIVEN_UP:
            return self._last_line(child)
        return f"{self._output(child)}\n{child.name} {_how(code)} when asked to end"
