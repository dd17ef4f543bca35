"""The status board: live counters that the processes of a run show each other.

A row per process, in memory of the launcher that all of them map (memfd). It is no
file: on some filesystems a store to a mapped file needs a block of the disk, and a full
disk would then kill the process. A row is written by its own process alone (the
launcher's fields of a row excepted) and read by all: learners' update counts pace the
interactors, heartbeats show the launcher who hangs, and the terminal shows the rest.
Entries are aligned 8-byte words, so none is seen half-written.

A file in the experiment's folder says where that memory is, and has rows of the same
kind. They hold what a resume needs of the board, which is only how many episodes an
evaluator has run for its policy, where no order is kept; `keep` writes it.
"""

import mmap
import os
import secrets
import weakref
from enum import StrEnum
from pathlib import Path

import numpy as np

from ..settings.roles import evaluators, process_names
from ..settings.schema import Config
from ..util import RunError, atomic_write, named

# Phases of a run, in the launcher's row.
RUNNING, FINAL_EPISODES = 0, 1


class Wait(StrEnum):
    """What a process waits for: the field that sums up the seconds.

    PACE is there in any paced run: frames, room for them, or a policy to evaluate. The
    others are the price of a run that can be repeated.
    """

    PACE = "waited_pace"
    TURN = "waited_turn"  # rows of others that come first
    POLICY = "waited_policy"  # that of a vector step
    MODEL = "waited_model"  # the world model of an epoch
    EVALUATORS = "waited_evaluators"  # that are many policies behind


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
        ("hours", "f8"),  # learners: own hours of learning
        *((wait, "f8") for wait in Wait),  # seconds of this launch
        ("reserved", "f8", 4),  # 1.0: speed and metrics, now read from the logs
        ("episodes", "i8"),  # evaluators: recorded for the policy of `epoch`
        # evaluators: the epoch of which episodes were given up last; -1: final ones
        ("gave_up", "i8"),
        ("dropped", "i8"),  # actors: transitions lost to a failing environment
        ("random_score", "f8"),  # evaluators: of random actions, at the end of the run
        ("memory", "S144"),  # in the first row: where the live rows are
    ],
    align=True,
)


# What an evaluator of a later launch continues from, where no order is kept.
EVALUATOR_FIELDS = ("epoch", "episodes")


class Board:
    """Access to the rows by process name.

    Other processes can open it as long as the object that `create` returned is there;
    those that have opened it keep the rows.
    """

    def __init__(self, path: Path, memory: int) -> None:
        """
        Args:
            path: the file that leads to the rows.
            memory: a descriptor of theirs; not needed afterwards.
        """
        self._path = path
        self._rows = np.frombuffer(mmap.mmap(memory, 0), ROW)
        self._index = {
            bytes(name).decode(): i for i, name in enumerate(self._rows["name"])
        }

    @classmethod
    def create(cls, path: Path, config: Config) -> "Board":
        """A fresh board; evaluators' counts continue from an earlier one at `path`."""
        earlier = {}
        size = path.stat().st_size if path.is_file() else 0
        if size <= MAX_BYTES and size % ROW.itemsize == 0 and size:
            rows = np.fromfile(path, ROW)
            earlier = {
                bytes(row["name"]).decode("ascii", "replace"): row for row in rows
            }
        names, continuing = process_names(config), evaluators(config)
        fresh = np.zeros(len(names), ROW)
        for row, name in zip(fresh, names, strict=True):
            row["name"], row["random_score"] = name, np.nan
            if name in earlier and name in continuing:
                for field in EVALUATOR_FIELDS:
                    row[field] = max(0, earlier[name][field])  # less: it is damaged
        label = f"steve-board-{secrets.token_hex(8)}"
        memory = os.memfd_create(label)
        fresh[0]["memory"] = f"/proc/{os.getpid()}/fd/{memory} {label}"
        with named(path), open(memory, "wb", closefd=False) as file:
            file.write(fresh.tobytes())  # all, or an error
        board = cls(path, memory)
        weakref.finalize(board, os.close, memory)
        atomic_write(path, fresh.tobytes())
        return board

    @classmethod
    def open(cls, path: Path) -> "Board":
        """The board of a launch that is still there.

        Raises:
            RunError: the file leads to none.
        """
        try:
            with open(path, "rb") as file:
                row = np.frombuffer(file.read(ROW.itemsize), ROW)[0]
            place, _, label = bytes(row["memory"]).decode("ascii").partition(" ")
            # The number may be another process's by now, and the file anybody's.
            if not os.readlink(place).startswith(f"/memfd:{label} "):
                raise FileNotFoundError(place)
            memory = os.open(place, os.O_RDWR)
        except (OSError, ValueError, IndexError):
            raise RunError(
                f"{path}: leads to no live counters: its launcher has ended, or the "
                "file was changed"
            ) from None
        try:
            return cls(path, memory)
        finally:
            os.close(memory)

    def keep(self, name: str) -> None:
        """Writes the row of a process to the file, for a later launch.

        Raises:
            OSError: the disk is full, say; may be repeated.
        """
        index = self._index[name]
        with named(self._path), open(self._path, "rb+") as file:
            file.seek(index * ROW.itemsize)
            file.write(self._rows[index].tobytes())

    def __getitem__(self, name: str) -> np.void:
        """The row of a process; assigning to its fields is seen by all.

        Raises:
            KeyError: no such process in this run.
        """
        return self._rows[self._index[name]]
