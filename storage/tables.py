"""The csv files of a run: the scores, and the learners' logs."""

import errno
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..util import UserError, atomic_write, file_stamp, named, regular_opener

MAX_TABLE_BYTES = 256 << 20  # of a csv that is read: far beyond any run's
TAIL_BYTES = 16384  # of a csv: some hundred rows

BLOCK_BYTES = 4096  # that are read at once where a csv is read from its end

ERRORS = "surrogateescape"  # bytes that are no UTF-8 stay as they are


class Table(NamedTuple):
    """A csv without the torn line at its end.

    Attributes:
        header: its first line.
        lines: the other lines as they stand in the file, without their ends.
        rows: the numbers of each line by column; None where the line is damaged.
    """

    header: str
    lines: list[str]
    rows: list[dict[str, float] | None]

    @property
    def columns(self) -> list[str]:
        return self.header.split(",")

    @property
    def damaged(self) -> int:
        """How many lines are damaged."""
        return self.rows.count(None)

    def text(self, keep: Iterable[int]) -> bytes:
        """The csv of some of its lines."""
        lines = [self.header, *(self.lines[number] for number in keep)]
        return "".join(f"{line}\n" for line in lines).encode(errors=ERRORS)

    def under(self, columns: Sequence[str]) -> bytes:
        """The csv with other columns' names; its own first line is damaged."""
        return f"{','.join(columns)}\n".encode() + self.text(range(len(self.lines)))


def read_table(path: Path, texts: Collection[str] = ()) -> Table | None:
    """Reads a csv whatever its content; None where there is none, or it is empty.

    Args:
        path: of the file.
        texts: columns that hold no numbers.

    Raises:
        OSError: it cannot be opened or read, is no file, or is over MAX_TABLE_BYTES.
    """
    try:
        with open(path, "rb", opener=regular_opener) as file:
            content = file.read(MAX_TABLE_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(content) > MAX_TABLE_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return parsed_table(content, texts)


def parsed_table(content: bytes, texts: Collection[str] = ()) -> Table | None:
    """As `read_table`, of what a file holds."""
    header, *lines = whole_lines(content) or [""]
    if not header and not lines:
        return None
    columns = header.split(",")
    return Table(header, lines, [parsed_row(columns, line, texts) for line in lines])


def whole_lines(content: bytes) -> list[str]:
    """The lines of what a file holds, without a torn one at its end."""
    return content.decode(errors=ERRORS).split("\n")[:-1]


def parsed_row(
    columns: Sequence[str], line: str, texts: Collection[str] = ()
) -> dict[str, float] | None:
    """The finite numbers of a line by column; None where it is not such a line.

    Args:
        columns: of the csv.
        line: without its end.
        texts: columns that hold no numbers; they are left out.
    """
    cells = line.split(",")
    if len(cells) != len(columns):
        return None
    named_cells = zip(columns, cells, strict=True)
    try:
        row = {name: float(cell) for name, cell in named_cells if name not in texts}
    except ValueError:
        return None
    return row if all(map(math.isfinite, row.values())) else None


def copy_rows(
    source: Path, target: Path, column: str, last: int, texts: Collection[str] = ()
) -> None:
    """Copies the rows of a csv in which `column` is not beyond `last`.

    Damaged lines are passed over.
    """
    table = read_table(source, texts)
    if table is not None and column in table.columns:
        rows = enumerate(table.rows)
        kept = [number for number, row in rows if row and row[column] <= last]
        atomic_write(target, table.text(kept))


def last_rows(path: Path, columns: Sequence[str] = ()) -> list[dict[str, float]]:
    """The last complete rows of a csv that may be growing; none: [].

    Args:
        path: of the file.
        columns: that the rows must have.
    """
    try:
        with open(path, "rb", opener=regular_opener) as file:
            header = file.readline(TAIL_BYTES).decode(errors=ERRORS).strip().split(",")
            first = file.tell()
            file.seek(0, 2)
            file.seek(max(first, file.tell() - TAIL_BYTES))
            is_whole = file.tell() == first
            lines = whole_lines(file.read())
    except OSError:
        return []
    if not set(columns) <= set(header):
        return []
    rows = (parsed_row(header, line) for line in lines[0 if is_whole else 1 :])
    return [row for row in rows if row]


# Columns of a learner's log that are no metrics, whichever learner it is.
NO_METRICS = (
    "hours",
    "epoch",
    "updates",
    "frames",
    "updates_per_s",
    "models",
    "pretrained",
)


def check_metric_names(names: Collection[str]) -> None:
    """Refuses what cannot be a column of a learner's log next to the counters.

    Raises:
        UserError: names the first one.
    """
    for name in names:
        is_text = isinstance(name, str) and name.isprintable() and name.strip()
        faults = {
            "a counter in the learner's log is called so": name in NO_METRICS,
            "it stands twice": list(names).count(name) > 1,
            "it would not be one column of a csv file": not is_text or "," in name,
        }
        for why, is_fault in faults.items():
            if is_fault:
                raise UserError(f"metric_names: {name!r}: {why}; choose another name")


def trim_log(
    path: Path, counters: Mapping[str, int], texts: Collection[str] = ()
) -> None:
    """Cuts the lines of a learner's log in which a counter is beyond its value now.

    What is damaged behind the last line that stays goes too. Does nothing where there
    is no log, or none with these columns.

    Args:
        path: of the log.
        counters: their values now, by column.
        texts: columns that hold no numbers.
    """
    table = read_table(path, texts)
    if table is None or not set(counters) <= set(table.columns):
        return
    kept = [
        number
        for number, row in enumerate(table.rows)
        if row is None or all(row[name] <= count for name, count in counters.items())
    ]
    while kept and table.rows[kept[-1]] is None:
        kept.pop()
    trimmed = table.text(kept)
    if path.stat().st_size != len(trimmed):
        atomic_write(path, trimmed)


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


def append_row(path: Path, values: Mapping[str, object], durable: bool = False) -> None:
    """Appends a csv row in one write, the column names before the first one.

    Args:
        path: of the file.
        values: by column.
        durable: whether the row must be on the disk then.

    Raises:
        OSError: the disk is full, say; a later call may succeed.
    """
    with (
        named(path),
        open(path, "ab+", buffering=0, opener=regular_opener) as file,
    ):
        fresh = cut_torn_line(file) == 0
        lines = [list(values)] if fresh else []
        lines.append([str(value) for value in values.values()])
        write_whole(file, "".join(",".join(line) + "\n" for line in lines).encode())
        if durable:
            os.fdatasync(file.fileno())


def cut_torn_line(file: BinaryIO) -> int:
    """Cuts a part of a line at a file's end, which a killed writer left.

    Returns:
        the file's size then; that is where it stands.
    """
    size = end = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = file.seek(max(0, end - BLOCK_BYTES))
        if newline := file.read(end - begin).rfind(b"\n") + 1:
            end = begin + newline
            break
        end = begin
    if end < size:
        file.truncate(end)
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
        try:
            with open(self._path, "rb", opener=regular_opener) as file:
                file.seek(self._offset)
                added = file.read()
        except FileNotFoundError:
            return []
        self._offset += added.rfind(b"\n") + 1
        return whole_lines(added)
