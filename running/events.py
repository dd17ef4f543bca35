"""TensorBoard: logs and scores as event files next to them; the csv stays the data.

Each learner writes the lines of its own log, the launcher the scores. A launch's file
begins with the step from which on it writes: what an earlier launch wrote from there
on was never part of the run's state, and readers drop it. Events are for eyes: a fault
of theirs is said once and ends them, never the run.
"""

import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from ..storage.folders import Run
from ..storage.scores import score_row
from ..storage.tables import Follower

EVALUATION = "evaluation"
WRITTEN_ANEW = 20  # points of policies, many more than a launcher's tick sees


class EventFile:
    """One event file; it appears with its first event.

    Args:
        folder: where; a run of its own to TensorBoard.
        first_step: events of earlier files from this step on count no more.
        report: takes the line that says why there will be no further events.
    """

    def __init__(
        self, folder: Path, first_step: int, report: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._first_step = first_step
        self._report = report
        self._file: BinaryIO | None = None
        self._failed = False

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one point of each tag; what goes wrong is reported and no error."""
        if self._failed:
            return
        try:
            if self._file is None:
                self._open()
            # Not tensors, as tf.summary writes: EventAccumulator, which many scripts
            # read with, never drops those after a restart.
            points = [Summary.Value(tag=t, simple_value=v) for t, v in values.items()]
            self._append(Event(step=step, summary=Summary(value=points)))
        except OSError as error:
            self._failed = True
            self._report(
                f"{self._folder}: {error.strerror}; TensorBoard gets nothing more of "
                "this launch"
            )

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        # In the order of their names, TensorBoard reads them.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._file = open(self._folder / name, "xb")  # noqa: SIM115
        self._append(Event(file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._append(Event(step=self._first_step, session_log=start))

    def _append(self, event: Event) -> None:
        event.wall_time = time.time()
        assert self._file is not None  # `write` has opened it
        RecordWriter(self._file).write(event.SerializeToString())
        self._file.flush()


class LearnerEvents:
    """The lines of a learner's log; the step is its updates, pretraining included.

    Args:
        run: whose configuration says whether there are any.
        name: of the learner.
        counters: updates, and pretrained where there is pretraining, as restored.
    """

    def __init__(self, run: Run, name: str, counters: Mapping[str, int]) -> None:
        self._name = name
        self._is_on = run.config.tensorboard
        first_step = _step(counters) + 1
        self._file = EventFile(run.folders.events(name), first_step, _say)

    def add(self, line: Mapping[str, str | float]) -> None:
        """Writes what was appended to the log."""
        if self._is_on:
            values = {
                f"{self._name}/{column}": float(value)
                for column, value in line.items()
                if column not in ("updates", "pretrained")
            }
            self._file.write(_step(line), values)


def _say(line: str) -> None:
    """Says it in the process's output, unless the disk is too full even for that."""
    with suppress(OSError):
        print(line, file=sys.stderr)


def _step(counters: Mapping[str, str | float]) -> int:
    return int(counters["updates"]) + int(counters.get("pretrained", 0))


class ScoreEvents:
    """The scores, followed in their csv, as one point for each policy.

    A point is written when a newer policy's score is there. Scores of older policies
    that come after it, from a slower evaluator, count for the next point: steps only
    grow, as TensorBoard demands, and no score is left out.
    """

    def __init__(self, run: Run, report: Callable[[str], None]) -> None:
        self._is_on = run.config.tensorboard
        self._lines = Follower(run.folders.scores)
        self._frames = -1  # of the newest policy so far
        self._scores: list[float] = []  # since the last point
        # The newest points are written again: a launcher that was killed wrote the very
        # last ones without all of their scores, or not at all.
        self._due: deque[tuple[int, list[float]]] = deque(maxlen=WRITTEN_ANEW)
        for line in self._lines():  # of earlier launches
            self._due.extend(self._take(line))
        first_step = self._due[0][0] if self._due else self._frames
        self._file = EventFile(run.folders.events(EVALUATION), first_step, report)

    def refresh(self) -> None:
        """Writes what the new rows complete."""
        if not self._is_on:
            return
        while self._due:
            self._write(*self._due.popleft())
        for line in self._lines():
            for point in self._take(line):
                self._write(*point)

    def close(self) -> None:
        """Writes the last policy's point."""
        self.refresh()
        if self._is_on and self._scores:
            self._write(self._frames, self._scores)

    def _take(self, line: str) -> list[tuple[int, list[float]]]:
        """Adds a row; returns the point that it completes, if it does."""
        row = score_row(line)
        if row is None:
            return []
        complete = []
        if row.frames > self._frames:
            complete = [(self._frames, self._scores)] if self._scores else []
            self._frames, self._scores = row.frames, []
        self._scores.append(row.score)
        return complete

    def _write(self, frames: int, scores: list[float]) -> None:
        mean = sum(scores) / len(scores)
        self._file.write(frames, {f"{EVALUATION}/score": mean})
