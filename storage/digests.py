"""log/digests.csv: what a run had learned at each epoch, as SHA-256 (SPEC section 2).

Two runs of one configuration and seed have the same lines, on the same kind of
processor and with the same versions. `steve verify` compares them.
"""

import csv
from pathlib import Path
from typing import NamedTuple

from ..util import UserError
from .tables import append_row

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


def append_digest(path: Path, digest: Digest) -> None:
    """Appends a line, the column names before the first one.

    Raises:
        OSError: the disk is full, say; a later call may succeed.
    """
    append_row(path, digest._asdict())


def read_digests(path: Path) -> list[Digest]:
    """All complete lines; [] where there is no file.

    Raises:
        UserError: it cannot be read, or is none of ours.
    """
    try:
        content = path.read_bytes().decode()
        rows = list(csv.DictReader(content[: content.rfind("\n") + 1].splitlines()))
        if any(None in row.values() for row in rows):
            raise ValueError("a line is too short")
        return [
            Digest(
                int(row["epoch"]),
                int(row["updates"]),
                int(row["frames"]),
                *(row[name] for name in Digest._fields[3:]),
            )
            for row in rows
        ]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is no list of digests ({error})") from None
