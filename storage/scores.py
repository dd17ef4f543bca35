"""The scores' csv: a row for each evaluation episode (SPEC section 9)."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
import portalocker

from ..util import named
from .folders import Run
from .tables import Follower, cut_torn_line, write_whole

CSV_HEADER = b"hours,epochs,frames,score\n"
LAST_SCORES = 10


class Published(Protocol):
    """What a row says of the policy whose score it is."""

    epoch: int
    frames: int
    hours: float


class ScoreRow(NamedTuple):
    """One row of the scores' csv (SPEC section 9)."""

    hours: float
    epoch: int
    frames: int
    score: float


def score_row(line: str) -> ScoreRow | None:
    """A complete line of the scores' csv; None for its header."""
    hours, epoch, frames, score = line.split(",")
    if epoch == "epochs":
        return None
    return ScoreRow(float(hours), int(epoch), int(frames), float(score))


class Scores:
    """Follows the scores' csv as it grows."""

    def __init__(self, run: Run) -> None:
        self._lines = Follower(run.folders.scores)
        self.rows: deque[tuple[int, float]] = deque(maxlen=LAST_SCORES)  # epoch, score

    def refresh(self) -> None:
        """Reads the complete rows that were added since the last time."""
        for line in self._lines():
            if row := score_row(line):
                self.rows.append((row.epoch, row.score))


def counter(final: bool) -> str:
    """The field of the status board that counts such episodes."""
    return "final_episodes" if final else "episodes"


class ScoreFile:
    """The scores' csv, written by all evaluators, each row once (SPEC section 9).

    Before it appends, an evaluator notes on the status board which row it is about to
    write and where. If it is killed on the way, its successor sees by that whether
    the row is there, so that no episode is recorded twice.
    """

    def __init__(self, path: Path, row: np.void) -> None:
        self._path = path
        self._row = row

    def record(self, policy: Published, score: float, final: bool) -> None:
        """Appends one finished episode and counts it."""
        line = f"{policy.hours:.6f},{policy.epoch},{policy.frames},{score!r}\n".encode()
        row = self._row
        with self._opened() as file:
            # Under the lock: whoever wrote a torn line has been killed.
            if cut_torn_line(file) == 0:
                write_whole(file, CSV_HEADER)
            if row["epoch"] != policy.epoch:
                # In this order: a kill on the way must not leave old counts behind.
                row["episodes"] = row["final_episodes"] = 0
                row["epoch"] = policy.epoch
            row["pending"], row["phase"] = line, final
            row["pending_count"] = row[counter(final)] + 1
            row["offset"] = file.tell()
            write_whole(file, line)
            self._count()

    def settle(self) -> None:
        """Counts the row that a predecessor was killed over, if it is there."""
        row = self._row
        if int(row["offset"]) < 0:
            return
        with self._opened() as file:
            cut_torn_line(file)
            line = bytes(row["pending"])
            file.seek(int(row["offset"]))
            if file.read(len(line)) == line:
                self._count()
            row["offset"] = -1

    def _count(self) -> None:
        """Counts the pending row; doing it twice changes nothing."""
        self._row[counter(bool(self._row["phase"]))] = self._row["pending_count"]
        self._row["offset"] = -1

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """The file, locked against the other evaluators until it is closed."""
        with named(self._path), open(self._path, "ab+", buffering=0) as file:
            portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE)
            yield file
