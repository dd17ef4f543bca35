"""The csv files of a run: the scores, and the learners' logs."""

import csv
import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ..util import atomic_write, file_stamp, named

TAIL_BYTES = 16384  # of a csv: some hundred rows

MAX_LINE = 4096  # bytes; no row of a csv is longer


def copy_rows(source: Path, target: Path, column: str, last: int) -> None:
    """Copies a csv up to the row in which `column` passes `last`."""
    if not source.exists() or not _whole_lines(source):
        return
    header, *rows = _whole_lines(source)
    position = header.strip().split(",").index(column)
    kept = [
        row
        for row in rows
        if row.count(",") == header.count(",")  # else a torn line
        and float(row.split(",")[position]) <= last
    ]
    atomic_write(target, "".join([header, *kept]).encode())


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file, without a torn one at its end."""
    lines = path.read_text().splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]


def last_rows(path: Path) -> list[dict[str, float]]:
    """The last complete rows of a csv that may be growing; none: []."""
    try:
        with open(path, "rb") as file:
            header = file.readline().decode().strip().split(",")
            first = file.tell()
            file.seek(0, 2)
            file.seek(max(first, file.tell() - TAIL_BYTES))
            is_whole = file.tell() == first
            lines = file.read().decode(errors="replace").split("\n")[:-1]
    except OSError:
        return []
    rows = []
    for line in lines if is_whole else lines[1:]:
        cells = line.split(",")
        with suppress(ValueError):  # torn by a kill
            rows.append(dict(zip(header, map(float, cells), strict=True)))
    return rows


# Columns of a learner's log that are no metrics.
NO_METRICS = (
    "hours",
    "epoch",
    "updates",
    "frames",
    "updates_per_s",
    "models",
    "pretrained",
)


def trim_log(path: Path, counters: Mapping[str, int]) -> None:
    """Cuts the lines of a learner's log in which a counter is beyond its value now.

    A torn line goes too. Does nothing where there is no log.
    """
    if not path.exists():
        return
    content = path.read_text()
    whole = content[: content.rfind("\n") + 1]
    header, *lines = whole.splitlines(keepends=True) or [""]
    kept = [
        line
        for line, row in zip(lines, csv.DictReader([header, *lines]), strict=True)
        if None not in row.values()  # a torn line
        and all(int(row[name]) <= count for name, count in counters.items())
    ]
    trimmed = "".join([header, *kept])
    if trimmed != content:
        atomic_write(path, trimmed.encode())


class LogFollower:
    """The newest line of a learner's log, once this launch has written one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: object = None
        self._newest: dict[str, float] | None = None
        self._earlier = self._read()

    def _read(self) -> dict[str, float] | None:
        rows = last_rows(self._path)
        return rows[-1] if rows else None

    def __call__(self) -> dict[str, float] | None:
        """The line's numbers by column; None before the first."""
        stamp = file_stamp(self._path)
        if stamp != self._stamp:
            self._stamp = stamp
            newest = self._read()
            if newest != self._earlier:
                self._newest = newest
        return self._newest


def append_row(path: Path, values: Mapping[str, object]) -> None:
    """Appends a csv row in one write, the column names before the first one.

    Raises:
        OSError: the disk is full, say; a later call may succeed.
    """
    with named(path), open(path, "ab+", buffering=0) as file:
        fresh = cut_torn_line(file) == 0
        lines = [list(values)] if fresh else []
        lines.append([str(value) for value in values.values()])
        write_whole(file, "".join(",".join(line) + "\n" for line in lines).encode())


def cut_torn_line(file: BinaryIO) -> int:
    """Cuts a part of a line at a file's end, which a killed writer left.

    Returns:
        the file's size then; that is where it stands.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - MAX_LINE))
    tail = file.read()
    if tail and not tail.endswith(b"\n"):
        file.truncate(end - len(tail) + tail.rfind(b"\n") + 1)
    return file.seek(0, os.SEEK_END)


def write_whole(file: BinaryIO, content: bytes) -> None:
    """Writes to an unbuffered file in one write.

    Raises:
        OSError: not all of it found room.
    """
    if file.write(content) < len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Follower:
    """Reads a text file as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def __call__(self) -> list[str]:
        """The complete lines that were added since the last time."""
        if not self._path.exists():
            return []
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode().splitlines()
