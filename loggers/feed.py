"""What a run logs, read from its csv files as they grow."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ..settings.roles import learners
from ..storage.folders import Run
from ..storage.scores import score_row
from ..storage.tables import Follower, parsed_row
from ..util import file_stamp
from . import EVALUATION

COUNTERS = ("updates", "pretrained")  # whose sum is the step


class Point(NamedTuple):
    """What `Logger.log` is called with."""

    group: str
    step: int
    values: dict[str, float]


class Feed:
    """All points of a run, each once; in each group by growing steps.

    What a learner that was killed did after its last state, it does and logs again:
    those lines have been read already and are passed over.

    Args:
        run: whose csv files are read, from their beginning.
        delivered: the last step of each group that is to be left out.

    Attributes:
        delivered: the last step of each group that it has given.
    """

    def __init__(self, run: Run, delivered: Mapping[str, int] | None = None) -> None:
        self._logs = {
            name: _Log(run.folders.learner_log(name)) for name in learners(run.config)
        }
        self._scores = _Scores(run.folders.scores)
        self.delivered = dict(delivered or {})

    def __call__(self, last: bool = False) -> list[Point]:
        """The points that are new.

        Args:
            last: no further score comes, so that of the newest policy is complete.
        """
        found = [
            Point(name, sum(int(row.get(c, 0)) for c in COUNTERS), row)
            for name, log in self._logs.items()
            for row in log()
        ]
        found += self._scores(last)
        return [self._without_counters(point) for point in found if self._is_new(point)]

    def _is_new(self, point: Point) -> bool:
        if point.step <= self.delivered.get(point.group, -1):
            return False
        self.delivered[point.group] = point.step
        return True

    @staticmethod
    def _without_counters(point: Point) -> Point:
        values = {k: v for k, v in point.values.items() if k not in COUNTERS}
        return point._replace(values=values)


class _Log:
    """The rows of a learner's log; all of them again where it was cut."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._size = -1, 0
        self._columns: list[str] = []
        self._lines = Follower(path)

    def __call__(self) -> list[dict[str, float]]:
        stamp = file_stamp(self._path)
        if stamp is None:
            return []
        inode, _, size = stamp
        if inode != self._inode or size < self._size:
            self._columns, self._lines = [], Follower(self._path)
        self._inode, self._size = inode, size
        lines = self._lines()
        if lines and not self._columns:
            self._columns = lines.pop(0).split(",")
        rows = (parsed_row(self._columns, line) for line in lines)
        return [row for row in rows if row]


class _Scores:
    """The scores as one point for each policy.

    A point is complete when a newer policy's score is there. Scores of older policies
    that come after it, from a slower evaluator, count for the next point: steps only
    grow, and no score is left out.
    """

    def __init__(self, path: Path) -> None:
        self._lines = Follower(path)
        self._frames = -1  # of the newest policy so far
        self._scores: list[float] = []  # since the last point

    def __call__(self, last: bool) -> list[Point]:
        found = []
        for row in map(score_row, self._lines()):
            if row is None:
                continue
            if row.frames > self._frames:
                found += self._point()
                self._frames, self._scores = row.frames, []
            self._scores.append(row.score)
        return [*found, *self._point()] if last else found

    def _point(self) -> list[Point]:
        if not self._scores:
            return []
        mean = sum(self._scores) / len(self._scores)
        return [Point(EVALUATION, self._frames, {"score": mean})]
