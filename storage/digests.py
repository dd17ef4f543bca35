"""log/digests.csv: what a run had learned at each epoch, as SHA-256 (SPEC section 2).

Two runs of one configuration and seed have the same lines, on the same kind of
processor and with the same versions. `steve verify` compares them.
"""

from pathlib import Path
from typing import NamedTuple

from ..util import UserError
from .tables import append_row, copy_rows, read_table, trim_log

NONE = "-"  # where there is nothing to be said: no world model, rows that are lost


class Digest(NamedTuple):
    """One line.

    Attributes:
        epoch: of the value learner.
        updates: of it.
        frames: that it has learned from.
        state: SHA-256 of the tensors of its state.
        policy: of those of the policy that it published.
        model: of those of the world model's state that it has taken up.
        rows: of the replay buffer's rows from the line before up to `frames`.
    """

    epoch: int
    updates: int
    frames: int
    state: str
    policy: str
    model: str
    rows: str


TEXTS = Digest._fields[3:]


def append_digest(path: Path, digest: Digest) -> None:
    """Appends a line, the column names before the first one; it is on the disk then.

    Raises:
        OSError: the disk is full, say; a later call may succeed.
    """
    append_row(path, digest._asdict(), durable=True)


def read_digests(path: Path) -> list[Digest]:
    """All lines that are whole; [] where there is no file.

    Raises:
        UserError: it cannot be read, or is none of ours.
    """
    try:
        table = read_table(path, TEXTS)
    except OSError as error:
        raise UserError(f"{path}: is no list of digests ({error.strerror})") from None
    if table is None:
        return []
    if table.columns != list(Digest._fields):
        raise UserError(f"{path}: is no list of digests (see its first line)")
    return [
        Digest(
            int(row["epoch"]),
            int(row["updates"]),
            int(row["frames"]),
            *line.split(",")[3:],
        )
        for line, row in zip(table.lines, table.rows, strict=True)
        if row
    ]


def trim_digests(path: Path, updates: int) -> None:
    """Cuts the lines of more updates; does nothing where there is no file."""
    trim_log(path, {"updates": updates}, TEXTS)


def copy_digests(source: Path, target: Path, updates: int) -> None:
    """Copies the lines of at most so many updates."""
    copy_rows(source, target, "updates", updates, TEXTS)
