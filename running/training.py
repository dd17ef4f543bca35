"""A launch as a process of its own, for a program that trains from Python.

The program may be a script without a main guard, a thread or a notebook; its signal
handlers and environment variables stay as they are. The process reads the request from
its standard input and ends the run when that is closed, so that no run outlives the
program.
"""

import contextlib
import json
import math
import os
import queue
import re
import reprlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import IO, Any

from ..settings.request import Request, Start
from ..util import RunError, UserError, to_json

# Its last argument is the program's sys.path: there `steve` may lie somewhere else.
SERVE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
    "from steve.running.training import serve; serve()"
)
END = "end\n"  # what the launcher's second line says
# Types of the arguments of `steve.train`, and what an argument must be.
ARGUMENTS: dict[str, tuple[tuple[type, ...], str]] = {
    "config": ((str, os.PathLike, Mapping), "a path, or a configuration's content"),
    "device": ((str, Integral), '"cpu" or the number of a GPU'),
    "set": ((Mapping, NoneType), "an object of values by dotted key"),
    "frames": ((Integral, NoneType), "a whole number"),
    "hours": ((Real, NoneType), "a number"),
    "name": ((str, NoneType), "a string"),
    "resume": ((bool, NoneType), "True, False or None"),
    "resume_from": ((Integral, NoneType), "a number of updates"),
    "overwrite": ((bool,), "True or False"),
}


@dataclass(frozen=True)
class Epoch:
    """How far a run is, each time that a policy has been published.

    Attributes:
        epoch: of the value learner; 1 is the policy with initial weights.
        updates: of the value learner.
        frames: environment steps of the run.
        hours: of learning.
        scores: of the last evaluation episodes, at most ten, the newest last.
    """

    epoch: int
    updates: int
    frames: int
    hours: float
    scores: tuple[float, ...]


def train(
    request: Request,
    on_epoch: Callable[[Epoch], None] | None = None,
    show: Callable[[str], None] = print,
    in_python: bool = True,
) -> Path:
    """Runs what a request asks for; returns the experiment's folder.

    Args:
        request: its configuration's paths are relative to the working folder.
        on_epoch: called in this thread; not for every epoch where they are shorter
            than a quarter of a second. What it raises stops the run, which saves.
        show: takes the lines of progress.
        in_python: whether lines name this function's arguments, or those of the
            command line.

    Raises:
        UserError: a mistake in the request, or a run that failed (RunError).
        RuntimeError: the launcher ended by a fault of this program.
        KeyboardInterrupt, and what `on_epoch` raises: after the run has ended as by
            Ctrl-C. A note of it says so where not everything could be saved.
    """
    worded = _words(in_python)
    given = json.loads(to_json({"request": asdict(request)}, "the configuration"))
    reading, writing = os.pipe()
    launcher = subprocess.Popen(
        [sys.executable, "-c", SERVE, to_json(sys.path, "sys.path")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[writing],
        start_new_session=True,  # Ctrl-C is for this process, which then tells it
        text=True,
        errors="replace",
    )
    os.close(writing)
    events = os.fdopen(reading)
    assert launcher.stdout is not None
    received = _received(launcher.stdout, events)
    result: dict[str, Any] = {}

    def take(on_epoch: Callable[[Epoch], object] | None) -> None:
        for kind, value in received:
            if kind == "line":
                show(value)
            elif "epoch" not in value:
                result.update(value)
            elif on_epoch is not None:
                on_epoch(Epoch(**value | {"scores": tuple(value["scores"])}))

    try:
        given |= {"events": writing, "in_python": in_python}
        _tell(launcher, json.dumps(given) + "\n")
        take(on_epoch)
    except BaseException as error:
        _ask_to_end(launcher)
        take(None)
        if "error" in result:
            error.add_note(worded(result["error"]))
        raise
    finally:
        _ask_to_end(launcher)
        launcher.wait()
        events.close()
        launcher.stdout.close()
    if "error" in result:
        kind = UserError if result["code"] == 2 else RunError
        raise kind(worded(result["error"]))
    if "folder" not in result:
        raise RuntimeError(
            f"the launcher ended with exit code {launcher.returncode}; what it printed "
            "says why"
        )
    return Path(result["folder"])


def check_arguments(**given: Any) -> None:
    """Checks the types of what `steve.train` was given.

    Raises:
        UserError: names the first argument of another type.
    """
    for name, value in given.items():
        kinds, what = ARGUMENTS[name]
        is_other = isinstance(value, bool) and bool not in kinds  # bool is an int
        try:
            is_no_number = isinstance(value, Real) and not math.isfinite(value)
            shown = reprlib.repr(value)
        except OverflowError:
            is_no_number, shown = True, "a whole number beyond a float's range"
        if not isinstance(value, kinds) or is_other or is_no_number:
            raise UserError(f"{name} must be {what}, not {shown}")
    for key in given["set"] or ():
        if not isinstance(key, str) or "=" in key:
            raise UserError(f"set: a key is a string without =, not {key!r}")


def _words(in_python: bool) -> Callable[[str], str]:
    return _in_python if in_python else str


def _in_python(text: str) -> str:
    """A line that names options of the command line, with the arguments of `train`."""
    text = re.sub(r"\bGPU_ID\b", "device", text)
    text = re.sub(r"--(set|name|frames|hours)(?=:| must)", r"\1", text)
    text = re.sub(r"--(resume|overwrite)\b(?!-)", r"\1=True", text)
    return re.sub(r"--(name|frames|hours)\b(?: NAME)?", r"\1=...", text)


def _received(output: IO[str], events: IO[str]) -> Iterator[tuple[str, Any]]:
    """What the launcher prints ("line") and reports ("event"), until it ends.

    An exception while one waits for the next does not end the iterator.
    """
    # Of a SimpleQueue nothing is lost where an exception interrupts `get`.
    arrived: queue.SimpleQueue[tuple[str, Any] | None] = queue.SimpleQueue()

    def forward(kind: str, stream: IO[str]) -> None:
        with contextlib.suppress(ValueError):  # closed meanwhile
            for line in stream:
                arrived.put(
                    (kind, line.rstrip("\n") if kind == "line" else json.loads(line))
                )
        arrived.put(None)

    for kind, stream in (("line", output), ("event", events)):
        threading.Thread(target=forward, args=(kind, stream), daemon=True).start()
    return chain(iter(arrived.get, None), iter(arrived.get, None))


def _tell(launcher: subprocess.Popen[str], line: str) -> None:
    assert launcher.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # its end then says why
        launcher.stdin.write(line)
        launcher.stdin.flush()


def _ask_to_end(launcher: subprocess.Popen[str]) -> None:
    """A run that is not over then saves; a second call does nothing.

    A line says so, since a process that the program has forked meanwhile may hold the
    pipe open.
    """
    assert launcher.stdin is not None
    if not launcher.stdin.closed:
        _tell(launcher, END)
    with contextlib.suppress(BrokenPipeError):
        launcher.stdin.close()


# ---- in the process of the launcher -------------------------------------------------


def serve() -> None:
    """The main function of the process: one launch, as main.py's."""
    from ..command_line import escape_unknown_characters, hear_signals, output_console
    from ..storage.folders import Folders
    from ..util import stop_as_by_ctrl_c
    from .display import Display
    from .launch import end_of, opened, run_processes
    from .progress import Progress

    hear_signals()
    escape_unknown_characters()
    content = json.loads(sys.stdin.readline())
    events = os.fdopen(content["events"], "w")
    os.set_inheritable(events.fileno(), False)
    asked = content["request"]
    asked |= {"start": Start(asked["start"]), "overrides": tuple(asked["overrides"])}
    request = Request(**asked)
    worded = _words(content["in_python"])
    shown = request.config if isinstance(request.config, str) else "{...}"
    sys.argv = ["steve.train", shown, request.device]  # for run.json
    threading.Thread(target=_end_with_the_program, daemon=True).start()

    def tell(**values: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            events.write(json.dumps(values) + "\n")
            events.flush()

    class Reporter(Display):
        """Reports each epoch, in addition to showing the progress."""

        epoch = 0  # the last that was reported

        def show(self, progress: Progress, last: bool = False) -> None:
            super().show(progress, last)
            learner = progress.learners()[0]
            if learner.epoch > self.epoch:
                self.epoch = learner.epoch
                tell(
                    epoch=learner.epoch,
                    updates=learner.updates,
                    frames=progress.frames,
                    hours=progress.hours,
                    scores=[score for _, score in progress.scores()],
                )

    try:
        folder = Folders.of(request.loaded.config, request.experiment).root
        display = Reporter(output_console(), request.experiment)
        outcome = None
        with stop_as_by_ctrl_c(), contextlib.ExitStack() as ends:
            with opened(request, lambda line: display.note(worded(line))) as run:
                if run is not None:
                    display.epoch = _published_epoch(run.folders.policy)
                    outcome = run_processes(run, display, ends)
            if outcome is not None and outcome.code:
                unsaved = "the run ended before everything was saved; resume it"
                tell(error=outcome.error or unsaved, code=outcome.code)
            tell(folder=str(folder.absolute()))
    except (UserError, OSError) as error:
        line, code = end_of(error)
        tell(error=line, code=code)
    except KeyboardInterrupt:
        tell(error="stopped before the start", code=2)


def _published_epoch(policy: Path) -> int:
    """The epoch of the newest policy; 0 where there is none."""
    from ..storage import checkpoint

    try:
        return int(checkpoint.load(policy).metadata["epoch"])
    except checkpoint.CheckpointError:
        return 0


def _end_with_the_program() -> None:
    """Asks this launch to end, as SIGTERM does: at a line, or the end of input."""
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGTERM)
