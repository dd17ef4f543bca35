"""The file format of the replay buffer: `replay.bin`.

A header of 4096 bytes, and then `capacity` rows. The header, little-endian as all is:

    at 0   "STEVERPL", version, O, A, words of a row          8 bytes, 4 x uint32
           capacity                                           uint64
           CRC-32 of what comes before it                     uint32
    at 64  counters: intent, frames, reserved                 3 x uint64
           their complements                                  3 x uint64
           counter: turn, and its complement                  2 x uint64

The first `reserved` rows have disk space. What the other counters mean, and the order
in which they are stored, is told in `replay`. All eight words lie in one cache line.

Frame f, the f-th transition ever appended,
lies in row f mod capacity:

    obs [O], next_obs [O], action [A], reward, terminated     float32
    environment, episode, step within it, cut                 uint32
    vector step                                               uint64
    f                                                         uint64
    CRC-32 of everything before it in the row                 uint32

The second and third line say where a row comes from (`Origin`): by them a resume
finds the episodes that were running. Format 1 lacks them; its files are read and
appended to as they are.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from .batch import Batch, columns, fields, row_width
from .util import RunError, fsync_folder, named

DATA_NAME = "replay.bin"
MAGIC = b"STEVERPL"
FORMAT_VERSION = 2
READABLE = (1, FORMAT_VERSION)

HEADER_BYTES = 4096
# magic, version, obs_dim, action_dim, row words, capacity; their CRC-32 follows
FIXED_FIELDS = struct.Struct("<8sIIIIQ")
CHECKSUM = struct.Struct("<I")
COUNTERS = slice(64, 128)
COUNTER_WORDS = struct.Struct("<8Q")
INTENT, FRAMES, RESERVED, TURN = 0, 1, 2, 6
# Where each counter's complement lies, by which damage is seen.
COPY = {INTENT: 3, FRAMES: 4, RESERVED: 5, TURN: 7}
ALL_ONES = (1 << 64) - 1
MAX_COUNT = 1 << 62  # signed arithmetic cannot overflow
READS = 100  # of a counter whose complement differs: of a killed writer or old file

MAX_DIM = 1 << 20
MAX_CAPACITY = 1 << 32
TRAILER_WORDS = 3  # the frame number is two words, the checksum one
ORIGIN_WORDS = 6  # the vector step is two words
CHUNK_BYTES = 16 << 20  # disk space reserved, and rows verified or copied, at once
IMPORTED = (1 << 32) - 1  # in place of the number of an environment


class Origin(NamedTuple):
    """Where B transitions come from, whole numbers [B] each.

    Attributes:
        env: the environment's number among those of all interactors; IMPORTED of rows
            that are a dataset's.
        episode: of that environment, from 0 on.
        step: of that episode, from 0 on.
        truncated: 1 where the episode was truncated after it, else 0; 0 where it also
            terminated.
        turn: the vector step, which counts over all interactors.
    """

    env: np.ndarray
    episode: np.ndarray
    step: np.ndarray
    truncated: np.ndarray
    turn: np.ndarray


@dataclass(frozen=True)
class Layout:
    """The fixed part of the header, and the sizes that follow from it."""

    obs_dim: int
    action_dim: int
    capacity: int
    version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name, largest in (
            ("obs_dim", MAX_DIM),
            ("action_dim", MAX_DIM),
            ("capacity", MAX_CAPACITY),
        ):
            value = getattr(self, name)
            if not 1 <= value <= largest:
                raise ValueError(f"{name} must be 1 to {largest}, not {value}")

    @property
    def row_words(self) -> int:
        return row_width(self.obs_dim, self.action_dim) + self.extra_words

    @property
    def extra_words(self) -> int:
        """Those of a row that follow the transition."""
        return (ORIGIN_WORDS if self.has_origins else 0) + TRAILER_WORDS

    @property
    def has_origins(self) -> bool:
        return self.version > 1

    @property
    def row_bytes(self) -> int:
        return 4 * self.row_words

    @property
    def file_bytes(self) -> int:
        return HEADER_BYTES + self.capacity * self.row_bytes

    def offset(self, frame: int) -> int:
        """Where the row of a frame begins in the file."""
        return HEADER_BYTES + frame % self.capacity * self.row_bytes

    @property
    def chunk_rows(self) -> int:
        return max(1, CHUNK_BYTES // self.row_bytes)

    def header(self, intent: int, frames: int, turn: int = 0) -> bytes:
        """Returns the header page; no disk space counts as reserved yet."""
        fixed = FIXED_FIELDS.pack(
            MAGIC,
            self.version,
            self.obs_dim,
            self.action_dim,
            self.row_words,
            self.capacity,
        )
        page = bytearray(HEADER_BYTES)
        page[: len(fixed)] = fixed
        CHECKSUM.pack_into(page, len(fixed), zlib.crc32(fixed))
        counters = (intent, frames, 0)
        copies = (value ^ ALL_ONES for value in counters)
        turns = turn, turn ^ ALL_ONES
        page[COUNTERS] = COUNTER_WORDS.pack(*counters, *copies, *turns)
        return bytes(page)

    @classmethod
    def parse(cls, page: bytes, file_bytes: int) -> Self:
        """Reads a header page.

        Raises:
            ValueError: what is wrong with it, as the end of a sentence.
        """
        if page[: len(MAGIC)] != MAGIC[: len(page)] or not page:
            raise ValueError("is not a replay buffer")
        if len(page) < HEADER_BYTES:
            raise ValueError("is cut off within its header")
        _, version, obs_dim, action_dim, row_words, capacity = FIXED_FIELDS.unpack_from(
            page
        )
        if version not in READABLE:
            raise ValueError(
                f"has replay format version {version}; this program reads versions "
                f"{READABLE[0]} to {FORMAT_VERSION}"
            )
        (checksum,) = CHECKSUM.unpack_from(page, FIXED_FIELDS.size)
        if checksum != zlib.crc32(page[: FIXED_FIELDS.size]):
            raise ValueError("is damaged: the checksum of its header does not match")
        layout = cls(obs_dim, action_dim, capacity, version)
        if row_words != layout.row_words:
            raise ValueError(
                f"is damaged: rows of {row_words} words, not {layout.row_words}"
            )
        if file_bytes != layout.file_bytes:
            raise ValueError(
                f"is damaged: it is {file_bytes} bytes long, not {layout.file_bytes}"
            )
        return layout


class Counters:
    """The counters of a file's header, each with its complement."""

    def __init__(self, path: Path, file: io.FileIO) -> None:
        self._path = path
        self._file = file

    @property
    def words(self) -> tuple[int, ...]:
        """The counters and their complements, as they are in the file now.

        Raises:
            RunError: the file ends within its header.
        """
        content = os.pread(self._file.fileno(), COUNTER_WORDS.size, COUNTERS.start)
        if len(content) < COUNTER_WORDS.size:
            raise became_shorter(self._path)
        return COUNTER_WORDS.unpack(content)

    def read(self, counter: int) -> int:
        """A counter, whole: read again while its complement differs."""
        for _ in range(READS):
            words = self.words
            if words[COPY[counter]] == words[counter] ^ ALL_ONES:
                break
        return words[counter]

    def both(self, counter: int) -> tuple[int, int]:
        """A counter, and what its complement says; the same where that is missing."""
        words = self.words
        value, copy = words[counter], words[COPY[counter]]
        return value, copy ^ ALL_ONES if copy else value

    def store(self, counters: dict[int, int]) -> None:
        """Stores counters and their complements, all or none; needs the lock."""
        words = [*self.words]
        for counter, value in counters.items():
            words[counter], words[COPY[counter]] = value, value ^ ALL_ONES
        write_all(self._file.fileno(), COUNTER_WORDS.pack(*words), COUNTERS.start)


def became_shorter(path: Path) -> RunError:
    return RunError(f"{path}: is damaged: it became shorter")


def file_bytes(obs_dim: int, action_dim: int, capacity: int) -> int:
    """The size of a new buffer's file, in bytes.

    Raises:
        ValueError: a dimension or the capacity is out of range.
    """
    return Layout(obs_dim, action_dim, capacity).file_bytes


def is_finite(value: np.ndarray | float) -> bool:
    """Whether it is finite also as float32, in which it is stored."""
    return bool(np.all(np.abs(value) <= np.finfo(np.float32).max))


def pack(transitions: Batch[np.ndarray], layout: Layout) -> np.ndarray:
    """Checks a batch and lays it out as rows [B, words], frame numbers still open."""
    count = len(transitions.reward) if np.ndim(transitions.reward) else 0
    if count > layout.capacity:
        raise ValueError(f"{count} transitions, but the capacity is {layout.capacity}")
    rows = np.empty((count, layout.row_words), "<u4")
    floats = rows.view("<f4")
    where = columns(layout.obs_dim, layout.action_dim)
    for name, places in where.items():
        field = np.asarray(getattr(transitions, name))
        width = places.stop - places.start
        scalar = name in ("reward", "terminated")
        shape = (count,) if scalar else (count, width)
        if field.shape != shape:
            raise ValueError(f"{name} has shape {field.shape}, not {shape}")
        if field.dtype.kind not in "fiub":
            raise ValueError(f"{name} has type {field.dtype}, not real numbers")
        with np.errstate(over="ignore"):  # becomes infinite, which is refused below
            floats[:, places] = field.reshape(count, width)
        if not np.isfinite(floats[:, places]).all():
            raise ValueError(f"{name} has a value that is not finite")
    terminated = floats[:, where["terminated"]]
    if not ((terminated == 0) | (terminated == 1)).all():
        raise ValueError("terminated has a value other than 0 and 1")
    return rows


def unpack(rows: np.ndarray, layout: Layout) -> Batch[np.ndarray]:
    """Takes the fields out of rows [B, words]."""
    parts = fields(rows.view("<f4"), layout.obs_dim, layout.action_dim)
    return Batch(*(np.ascontiguousarray(part) for part in parts))


def write_origin(rows: np.ndarray, origin: Origin | None, turn: int) -> None:
    """Writes where packed rows come from; the vector step is the buffer's to say."""
    words = rows[:, -TRAILER_WORDS - ORIGIN_WORDS : -TRAILER_WORDS]
    words[:] = 0
    if origin is not None:
        for column, values in enumerate(origin[:4]):
            words[:, column] = values
    words[:, 4:].view("<u8")[:, 0] = turn


def origin_of(rows: np.ndarray) -> Origin:
    words = rows[:, -TRAILER_WORDS - ORIGIN_WORDS : -TRAILER_WORDS]
    turn = np.ascontiguousarray(words[:, 4:]).view("<u8")[:, 0].astype(np.int64)
    env, episode, step, truncated = words[:, :4].T.astype(np.int64)
    return Origin(env, episode, step, truncated, turn)


def seal(rows: np.ndarray, first: int) -> None:
    """Writes frame numbers, from `first` on, and checksums into packed rows."""
    frame_numbers(rows)[:] = np.arange(first, first + len(rows))
    rows[:, -1] = checksums(rows)


def sound(rows: np.ndarray, first: int) -> np.ndarray:
    """Says for each row [B, words] whether it is the whole row of its frame [B]."""
    expected = np.arange(first, first + len(rows))
    return (frame_numbers(rows) == expected) & (checksums(rows) == rows[:, -1])


def frame_numbers(rows: np.ndarray) -> np.ndarray:
    """The frame numbers [...] stored in rows [..., words]; a view."""
    return rows[..., -3:-1].view("<i8")[..., 0]


def checksums(rows: np.ndarray) -> np.ndarray:
    """The CRC-32 of each row [B, words] but its last word."""
    content, row_bytes = bytes_of(rows), 4 * rows.shape[1]
    return np.fromiter(
        (
            zlib.crc32(content[start : start + row_bytes - 4])
            for start in range(0, len(content), row_bytes)
        ),
        np.uint32,
        len(rows),
    )


def bytes_of(rows: np.ndarray) -> memoryview:
    return rows.reshape(-1).view(np.uint8).data


def write_all(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


@contextmanager
def new_file(folder: Path, layout: Layout) -> Iterator[int]:
    """Makes a file of the full size; it gets its name only when the block is done.

    Yields:
        its descriptor; the header says that the buffer is empty.

    Raises:
        FileExistsError: the name is taken, now or at the end of the block.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / DATA_NAME
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if path.exists():
        raise FileExistsError(f"{path}: exists already")
    try:
        with named(path), open(temporary, "wb", buffering=0) as file:
            os.ftruncate(file.fileno(), layout.file_bytes)
            write_all(file.fileno(), layout.header(intent=0, frames=0), 0)
            yield file.fileno()
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike a rename, replaces nothing
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(folder)


def good_frames(descriptor: int, layout: Layout) -> tuple[int, int]:
    """The longest run of frames, (first, end), of which a file has good rows.

    Nothing but the rows themselves is trusted, neither header nor the file's length.
    """
    found: list[np.ndarray] = []
    for first in range(0, layout.capacity, layout.chunk_rows):
        count = min(layout.chunk_rows, layout.capacity - first)
        content = os.pread(
            descriptor,
            count * layout.row_bytes,
            HEADER_BYTES + first * layout.row_bytes,
        )
        whole = len(content) // layout.row_bytes
        if whole == 0:
            break
        rows = np.frombuffer(content, "<u4", whole * layout.row_words)
        rows = rows.reshape(whole, layout.row_words)
        frames, slots = frame_numbers(rows), np.arange(first, first + whole)
        in_place = (frames >= 0) & (frames % layout.capacity == slots)
        found.append(frames[in_place & (checksums(rows) == rows[:, -1])])
    frames = np.sort(np.concatenate(found)) if found else np.zeros(0, int)
    if frames.size == 0:
        return 0, 0
    breaks = np.flatnonzero(np.diff(frames) != 1) + 1
    runs = np.split(frames, breaks)
    longest = max(runs, key=lambda run: (len(run), run[-1]))
    return int(longest[0]), int(longest[-1]) + 1
