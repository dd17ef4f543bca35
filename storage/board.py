"""The status board: live counters that the processes of a run show each other.

One small memory-mapped file with a row per process. A row is written by its own
process alone (the launcher's fields of a row excepted) and read by all: learners'
update counts pace the interactors, heartbeats show the launcher who hangs, and the
terminal shows the rest. Entries are aligned 8-byte words, so none is seen half-written.
It holds nothing that a resume could not do without, apart from how many episodes an
evaluator has run for its policy, where no order is kept.
"""

from pathlib import Path

import numpy as np

from ..settings.roles import process_names
from ..settings.schema import Config
from ..util import atomic_write

# Phases of a run, in the launcher's row.
RUNNING, FINAL_EPISODES = 0, 1

MAX_BYTES = 64 << 20  # of an earlier board
ROW = np.dtype(
    [
        ("name", "S32"),
        ("pid", "i8"),
        ("heartbeat", "f8"),  # seconds of the system's monotonic clock
        ("phase", "i8"),  # launcher: one of the above
        ("ready", "i8"),  # learners: 1 once built and restored
        ("disk_full", "i8"),  # 1 while it waits for space on the disk
        ("updates", "i8"),  # learners: updates done, without pretraining
        ("pretrained", "i8"),  # world-model learner: pretraining updates done
        ("epoch", "i8"),  # learners: own epoch; evaluators: the last that is scored
        ("models", "i8"),  # value learner: published world models taken up
        ("hours", "f8"),  # value learner: hours of learning
        ("reserved", "f8", 9),  # 1.0: speed and metrics, now read from the logs
        ("episodes", "i8"),  # evaluators: recorded for the policy of `epoch`
        ("gave_up", "i8"),  # evaluators: 1 once the final episodes are given up
        ("dropped", "i8"),  # actors: transitions lost to a failing environment
        ("random_score", "f8"),  # evaluators: of random actions, at the end of the run
        ("unused", "S144"),  # 1.0: the csv row that was being appended
    ],
    align=True,
)


# What an evaluator of a later launch continues from, where no order is kept.
EVALUATOR_FIELDS = ("epoch", "episodes")


class Board:
    """Access to the rows by process name."""

    def __init__(self, rows: np.memmap) -> None:
        self._rows = rows
        self._index = {bytes(name).decode(): i for i, name in enumerate(rows["name"])}

    @classmethod
    def create(cls, path: Path, config: Config) -> "Board":
        """A fresh board; evaluators' counts continue from an earlier one at `path`."""
        earlier = {}
        size = path.stat().st_size if path.exists() else 0
        if size <= MAX_BYTES and size % ROW.itemsize == 0 and size:
            rows = np.fromfile(path, ROW)
            earlier = {
                bytes(row["name"]).decode("ascii", "replace"): row for row in rows
            }
        names = process_names(config)
        fresh = np.zeros(len(names), ROW)
        for row, name in zip(fresh, names, strict=True):
            row["name"], row["random_score"] = name, np.nan
            if name in earlier and name.startswith("evaluator"):
                for field in EVALUATOR_FIELDS:
                    row[field] = earlier[name][field]
        atomic_write(path, fresh.tobytes())
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> "Board":
        return cls(np.memmap(path, ROW, mode="r+"))

    def __getitem__(self, name: str) -> np.void:
        """The row of a process; assigning to its fields is seen by all.

        Raises:
            KeyError: no such process in this run.
        """
        return self._rows[self._index[name]]
