"""The scores' csv: a row for each evaluation episode (SPEC section 9)."""

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import portalocker

from ..util import named, regular_opener
from .tables import (
    Follower,
    cut_torn_line,
    parsed_row,
    whole_lines,
    write_whole,
)

COLUMNS = ("hours", "epochs", "frames", "score")
CSV_HEADER = f"{','.join(COLUMNS)}\n".encode()
LAST_SCORES = 10
ROW_BYTES = 128  # no row of scores is longer


class ScoredPolicy(Protocol):
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
    """A complete line of the scores' csv; None for its header and a damaged line."""
    row = parsed_row(COLUMNS, line)
    if row is None:
        return None
    hours, epoch, frames, score = row.values()
    return ScoreRow(hours, int(epoch), int(frames), score)


class Scores:
    """Follows a csv of scores as it grows.

    Attributes:
        rows: epoch and score of all complete rows so far, oldest first.
    """

    def __init__(self, path: Path) -> None:
        self._lines = Follower(path)
        self.rows: list[tuple[int, float]] = []

    def refresh(self) -> None:
        """Reads the complete rows that were added since the last time."""
        for line in self._lines():
            if row := score_row(line):
                self.rows.append((row.epoch, row.score))


class Position(NamedTuple):
    """Where a file of scores stands.

    Attributes:
        epoch: of its last row; 0 where there is none.
        rows: the last rows that are of that epoch.
    """

    epoch: int
    rows: int


class ScoreFile:
    """A csv of scores that all evaluators append to (SPEC section 9).

    In a run that keeps an order the rows are sorted by epoch and episode: which row
    comes next, the file itself says. So none is written twice, however a process
    ended.

    Args:
        path: of the file; made with its first row.
        per_policy: how many rows a policy gets.
    """

    def __init__(self, path: Path, per_policy: int) -> None:
        self._path = path
        self._per_policy = per_policy

    def position(self) -> Position:
        """Where the file stands now."""
        try:
            with open(self._path, "rb", opener=regular_opener) as file:
                return self._position(file)
        except FileNotFoundError:
            return Position(0, 0)

    def _position(self, file: BinaryIO) -> Position:
        file.seek(
            max(0, file.seek(0, os.SEEK_END) - ROW_BYTES * (self._per_policy + 2))
        )
        rows = map(score_row, whole_lines(file.read()))
        epochs = [row.epoch for row in rows if row]
        if not epochs:
            return Position(0, 0)
        last = epochs[-1]
        same = itertools.takewhile(lambda epoch: epoch == last, reversed(epochs))
        return Position(last, len(list(same)))

    def record(
        self,
        policy: ScoredPolicy,
        score: float,
        is_next: Callable[[Position], bool] = lambda _: True,
    ) -> bool:
        """Appends one finished episode.

        Args:
            policy: whose it is.
            score: the sum of its rewards.
            is_next: says whether its row comes next; asked under the lock.

        Returns:
            False where it does not come next; nothing has been written then.
        """
        line = f"{policy.hours:.6f},{policy.epoch},{policy.frames},{score!r}\n".encode()
        with self._opened() as file:
            # Under the lock: whoever wrote a torn line has been killed.
            size = cut_torn_line(file)
            if not is_next(self._position(file)):
                return False
            if size == 0:
                write_whole(file, CSV_HEADER)
            write_whole(file, line)
            os.fdatasync(file.fileno())  # its policy may be removed now
        return True

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """The file, locked against the other evaluators until it is closed."""
        with (
            named(self._path),
            open(self._path, "ab+", buffering=0, opener=regular_opener) as file,
        ):
            portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE)
            yield file
