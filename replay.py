"""The replay buffer: one ring of transitions in a file, shared by processes.

Interactors append, learners sample (SPEC section 2); nothing but the filesystem
connects them. Storage only: no TensorFlow, no pacing rule, no process.

`replay.bin` is a header page and then `capacity` rows. Frame f, the f-th
transition ever appended, lies in row f mod capacity:

    obs [O], next_obs [O], action [A], reward, terminated     float32
    environment, episode, step within it, cut                 uint32
    vector step                                               uint64
    f                                                         uint64
    CRC-32 of everything before it in the row                 uint32

The second and third line say where a row comes from (`Origin`): by them a resume
finds the episodes that were running. Format 1 lacks them; its files are read and
appended to as they are.

The header holds two counters that say what is in the ring, and their complements,
which show a damaged one. `frames` counts the transitions that are completely stored;
`intent` is raised before rows are written and never falls:

    append:  lock; intent = max(intent, frames + B); write rows;
             frames += B, turn += 1; unlock
    live:    frames f with  max(0, intent - capacity) <= f < frames

So the rows of a writer that dies on the way do not count, the rows that it may have
overwritten do not count either, and whoever comes next simply continues at `frames`.
Readers take no lock. They copy rows out of a memory map and read `intent` again: a
row that is still live then was whole when it was copied, any other is drawn again.

A third counter, `turn`, is the number of the next vector step, where the run keeps an
order: it is raised together with `frames`, and the rows themselves say where it has
to be.

All is written by pwrite, where a full disk is an error; a store through a map would
end the process by a signal. The counters lie in one cache line and go out together,
each before its complement: a reader that catches a word half copied sees that the two
differ, and reads again.

Appends exclude each other by a portalocker lock on `replay.lock`, which the kernel
releases when its holder dies. Several processes may hold the buffer, each with its
own object, opened after any fork. The folder must be on a local filesystem: readers
rely on a memory map that shows what other processes wrote, in their order.
"""

import hashlib
import io
import math
import mmap
import os
import shutil
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import portalocker

from .batch import Batch, columns, fields, row_width
from .util import (
    RunError,
    UserError,
    first_free,
    fsync_folder,
    named,
    regular_opener,
)

DATA_NAME = "replay.bin"
LOCK_NAME = "replay.lock"
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
MAX_DRAWS = 1000
NO_ROWS = np.empty((0, 0), np.uint32)
IMPORTED = (1 << 32) - 1  # in place of the number of an environment


class Draw(NamedTuple):
    """How one batch is drawn.

    Attributes:
        rng: its generator.
        end: it comes from the frames before this one; None: from all.
    """

    rng: np.random.Generator
    end: int | None


class Origin(NamedTuple):
    """Where B transitions come from, whole numbers [B] each.

    Attributes:
        env: the environment's number among those of all interactors; IMPORTED of rows
            that are a dataset's.
        episode: of that environment, from 0 on.
        step: of that episode, from 0 on.
        cut: 1 where the episode was cut after it (truncation), else 0.
        turn: the vector step, which counts over all interactors.
    """

    env: np.ndarray
    episode: np.ndarray
    step: np.ndarray
    cut: np.ndarray
    turn: np.ndarray


@dataclass(frozen=True)
class _Layout:
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


def is_finite(value: np.ndarray | float) -> bool:
    """Whether it is finite also as float32, in which it is stored."""
    return bool(np.all(np.abs(value) <= np.finfo(np.float32).max))


def file_bytes(obs_dim: int, action_dim: int, capacity: int) -> int:
    """The size of a new buffer's file, in bytes.

    Raises:
        ValueError: a dimension or the capacity is out of range.
    """
    return _Layout(obs_dim, action_dim, capacity).file_bytes


class ReplayBuffer:
    """A ring of the newest `capacity` transitions; see the module for the rules.

    Use `create` or `open`. An object belongs to one thread of one process.
    """

    def __init__(self, path: Path, layout: _Layout, writable: bool) -> None:
        self._path = path
        self._layout = layout
        self._writable = writable
        # Unbuffered: only its descriptor is used, with pread and pwrite.
        self._file = open(path, "rb+" if writable else "rb", buffering=0)  # noqa: SIM115
        self.fell_short = False  # a draw was to come from rows that are gone
        self._lock_file: io.FileIO | None = None
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._rows = np.frombuffer(self._map, "<u4", offset=HEADER_BYTES)
        self._rows = self._rows.reshape(layout.capacity, layout.row_words)

    @classmethod
    def create(
        cls, folder: Path, obs_dim: int, action_dim: int, capacity: int
    ) -> "ReplayBuffer":
        """Makes an empty buffer and opens it for writing.

        The file has its full size from the start but takes disk space only as rows
        come.

        Raises:
            FileExistsError: the folder has a replay buffer already.
            ValueError: a dimension or the capacity is out of range.
        """
        with _new_file(folder, _Layout(obs_dim, action_dim, capacity)):
            pass
        return cls.open(folder, writable=True)

    @classmethod
    def open(cls, folder: Path, *, writable: bool = False) -> "ReplayBuffer":
        """Opens an existing buffer, whatever other processes do with it.

        Reads the header only, so it takes no time; `recover` looks at the rows.

        Raises:
            UserError: there is none, or it is foreign, damaged, or of another
                version; one line that names the file.
        """
        path = folder / DATA_NAME
        try:
            with open(path, "rb", opener=regular_opener) as file:
                page = file.read(HEADER_BYTES)
                layout = _Layout.parse(page, os.fstat(file.fileno()).st_size)
            buffer = cls(path, layout, writable)
        except FileNotFoundError:
            raise UserError(f"{path}: there is no replay buffer here") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be opened: {error.strerror}") from None
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
        try:
            buffer._check_counters()
        except UserError:
            buffer.close()
            raise
        return buffer

    @classmethod
    def salvage(
        cls, folder: Path, obs_dim: int, action_dim: int, capacity: int
    ) -> tuple[int, Path] | None:
        """Makes a buffer of the good rows of a file that cannot be opened.

        To be called while no other process uses it. Of the rows that lie where they
        belong with a matching checksum the longest unbroken run is taken over. The
        damaged file stays, under another name.

        Args:
            folder: where it is.
            obs_dim, action_dim, capacity: what the damaged header should say.

        Returns:
            (rows taken over, where the damaged file is now), or None if there is no
            good row; then nothing is changed.
        """
        path = folder / DATA_NAME
        workplace = folder / "salvaged"
        if workplace.exists():
            shutil.rmtree(workplace)  # of an attempt that was killed
        with open(path, "rb", opener=regular_opener) as file:
            layout, (start, end) = _best_layout(
                file.fileno(), _Layout(obs_dim, action_dim, capacity)
            )
            capacity = layout.capacity
            if layout.has_origins and not _ends_at(file.fileno(), layout, end):
                end = _begin_of_last_step(file.fileno(), layout, start, end)
            if start == end:
                return None
            with _new_file(workplace, layout) as descriptor:
                for slot in {frame % capacity for frame in range(start, end)}:
                    offset = HEADER_BYTES + slot * layout.row_bytes
                    row = os.pread(file.fileno(), layout.row_bytes, offset)
                    _write_all(descriptor, row, offset)
                header = layout.header(max(end, start + capacity if start else 0), end)
                _write_all(descriptor, header, 0)
        aside = first_free(path, ".damaged")
        os.link(path, aside)
        os.replace(workplace / DATA_NAME, path)
        workplace.rmdir()
        fsync_folder(folder)
        return end - start, aside

    def _check_counters(self) -> None:
        frames = -1
        while frames != self.frames:  # until no append falls in between
            frames, intent = self.frames, self._read(INTENT)
        reserved = self._read(RESERVED)
        fits = frames <= intent <= frames + self.capacity and intent <= MAX_COUNT
        if not fits or reserved > self.capacity:
            raise UserError(
                f"{self._path}: is damaged: counters {frames}, {intent}, {reserved} "
                f"do not fit together"
            )

    def _read(self, counter: int) -> int:
        """A counter, whole: read again while its complement differs."""
        for _ in range(READS):
            words = self._counters
            if words[COPY[counter]] == words[counter] ^ ALL_ONES:
                break
        return words[counter]

    @property
    def _counters(self) -> tuple[int, ...]:
        """The counters and their complements, as they are now; as `_read_rows`."""
        content = os.pread(self._file.fileno(), COUNTER_WORDS.size, COUNTERS.start)
        if len(content) < COUNTER_WORDS.size:
            raise self._shorter()
        return COUNTER_WORDS.unpack(content)

    def _shorter(self) -> RunError:
        return RunError(f"{self._path}: is damaged: it became shorter")

    def _store(self, counters: dict[int, int]) -> None:
        """Stores counters and their complements, all or none; needs the lock."""
        words = [*self._counters]
        for counter, value in counters.items():
            words[counter], words[COPY[counter]] = value, value ^ ALL_ONES
        content = COUNTER_WORDS.pack(*words)
        _write_all(self._file.fileno(), content, COUNTERS.start)

    def _mend_counters(self) -> None:
        """Decides where a counter and its complement differ.

        One of them is damaged, or a process of version 1.0 was killed between its two
        stores; in a file of an earlier program all complements are missing. `frames`
        is the higher one: rows that are not there are found when the rows are verified.
        `intent` is the lower one: it is stored before any row that it announces.
        """
        frames, copy = self._both(FRAMES)
        limit = max(self._both(INTENT)) if frames != copy else frames
        frames = max((n for n in (frames, copy) if n <= limit), default=frames)
        possible = [n for n in self._both(INTENT) if 0 <= n - frames <= self.capacity]
        intent = min(possible, default=self._counters[INTENT])
        self._store({FRAMES: frames, INTENT: intent})

    def _both(self, counter: int) -> tuple[int, int]:
        """A counter, and what its complement says; the same where that is missing."""
        value, copy = self._counters[counter], self._counters[COPY[counter]]
        return value, copy ^ ALL_ONES if copy else value

    @property
    def obs_dim(self) -> int:
        return self._layout.obs_dim

    @property
    def action_dim(self) -> int:
        return self._layout.action_dim

    @property
    def capacity(self) -> int:
        return self._layout.capacity

    @property
    def frames(self) -> int:
        """Transitions ever appended, by all processes."""
        return self._read(FRAMES)

    @property
    def turn(self) -> int:
        """The number of the next vector step, where the run keeps their order."""
        return self._read(TURN)

    @property
    def has_origins(self) -> bool:
        """Whether the rows say where they come from; not in files of format 1."""
        return self._layout.has_origins

    @property
    def imported(self) -> int:
        """How many of the first frames are a dataset's; 0 where none is left."""
        oldest, frames = self._window()
        if not self.has_origins:
            return 0
        envs = self.origins(oldest, frames - oldest).env
        count = int(np.count_nonzero(envs == IMPORTED))
        return oldest + count if count else 0

    @property
    def oldest(self) -> int:
        """The lowest frame number that can still be read."""
        return self._window()[0]

    @property
    def size(self) -> int:
        """How many rows can be read: min(frames, capacity), less what was lost.

        Lost are the rows that a running append, or one that was killed, overwrites,
        and what `recover` gave up.
        """
        oldest, frames = self._window()
        return frames - oldest

    def _window(self) -> tuple[int, int]:
        """Returns the first live frame and the one after the last."""
        while True:
            frames = self.frames
            oldest = max(0, self._read(INTENT) - self.capacity)
            if frames == self.frames:
                return min(oldest, frames), frames

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Excludes the writers of all processes (and copies)."""
        if self._lock_file is None:
            self._lock_file = open(self._path.with_name(LOCK_NAME), "ab", buffering=0)  # noqa: SIM115
        portalocker.lock(self._lock_file, portalocker.LockFlags.EXCLUSIVE)
        try:
            yield
        finally:
            portalocker.unlock(self._lock_file)

    def _require_writable(self) -> None:
        if not self._writable:
            raise ValueError(f"{self._path}: was opened for reading only")

    def append(
        self,
        transitions: Batch[np.ndarray],
        frame_limit: float = math.inf,
        *,
        origin: Origin | None = None,
        turn: int | None = None,
    ) -> bool:
        """Stores B transitions, all or none.

        Args:
            transitions: B rows, 0 <= B <= capacity; converted to float32.
            frame_limit: nothing is stored if `frames` would exceed it. The check is
                made under the lock, so it holds for all writers together.
            origin: where they come from; its `turn` is not used. None: all zero.
            turn: the number of this vector step. Nothing is stored unless it is the
                next one. None: it takes the next number.

        Returns:
            True if the rows are stored; they then survive the death of any process.
            False if `frame_limit` or `turn` forbids it.

        Raises:
            ValueError: a field has a wrong shape or type or a value that is not
                finite (it would ruin the run unseen); names the field.
            OSError: the disk is full; nothing was stored, a later append may succeed.
        """
        self._require_writable()
        rows = _pack(transitions, self._layout)
        count = len(rows)
        with named(self._path), self._locked():
            frames, next_turn = self.frames, self.turn
            if frames + count > frame_limit or turn not in (None, next_turn):
                return False
            self._reserve(min(frames + count, self.capacity))
            if self.has_origins:
                _write_origin(rows, origin, next_turn)
            _seal(rows, frames)
            # `intent` may be ahead already, by a writer that was killed: the rows
            # that one overwrote do not come back.
            self._store({INTENT: max(self._read(INTENT), frames + count)})
            for first, part in self._stretches(frames, frames + count):
                start = first - frames
                self._write(self._file.fileno(), first, rows[start : start + part])
            self._store({FRAMES: frames + count, TURN: next_turn + 1})
        return True

    def settle_turn(self) -> None:
        """Counts the vector step of a writer that was killed before it counted it."""
        self._require_writable()
        with self._locked():
            self._store({TURN: max(self.turn, self._turn_after(self.frames))})

    def _mend_turn(self) -> None:
        """Decides where the turn and its complement differ, or the rows know better."""
        least, turn = self._turn_after(self.frames), self.turn
        copy = self._counters[COPY[TURN]]
        if copy:  # else the file is of an earlier program
            both = turn, copy ^ ALL_ONES
            turn = min((n for n in both if least <= n <= MAX_COUNT), default=least)
        self._store({TURN: max(turn, least)})

    def _turn_after(self, frames: int) -> int:
        """The vector step that follows the row before frame `frames`; 0: unknown."""
        if not self.has_origins or frames <= self.oldest:
            return 0
        return int(self.origins(frames - 1, 1).turn[0]) + 1

    def origins(self, first_frame: int, count: int) -> Origin:
        """Where the frames from `first_frame` come from, in order.

        Raises:
            ValueError: the file is of format 1.
        """
        if not self.has_origins:
            raise ValueError(f"{self._path}: rows of format 1 do not say it")
        wanted = np.arange(first_frame, first_frame + count)
        return _origin_of(self._rows[wanted % self.capacity])

    def step_boundary(self, frames: int) -> int:
        """The end of the last whole vector step within the first `frames` frames.

        It is `frames` itself where the file does not say otherwise.
        """
        oldest, committed = self._window()
        if not self.has_origins or not oldest < frames < committed:
            return frames
        turn = self.origins(frames - 1, 2).turn
        if turn[0] != turn[1]:
            return frames
        return self._begin_of_step(frames)

    def _begin_of_step(self, frames: int) -> int:
        """The first frame of the vector step that the row before `frames` is of."""
        oldest, last = self.oldest, self.origins(frames - 1, 1).turn[0]
        while frames > oldest and self.origins(frames - 1, 1).turn[0] == last:
            frames -= 1
        return frames

    def digest(self, first_frame: int, end: int) -> str:
        """The SHA-256 of the rows from `first_frame` to before `end`, in hexadecimal.

        Raises:
            IndexError: some are not there yet, or no longer.
        """
        self._check_there(first_frame, end - first_frame)
        digest = hashlib.sha256()
        for first, count in self._stretches(first_frame, end):
            start = first % self.capacity
            digest.update(_bytes_of(self._rows[start : start + count]))
        self._check_there(first_frame, end - first_frame)  # none overwritten meanwhile
        return digest.hexdigest()

    def _check_there(self, first_frame: int, count: int) -> None:
        oldest, frames = self._window()
        if count < 0 or not oldest <= first_frame <= first_frame + count <= frames:
            raise IndexError(
                f"{self._path}: has frames {oldest} to {frames - 1}, "
                f"not {first_frame} to {first_frame + count - 1}"
            )

    def _reserve(self, rows: int) -> None:
        """Gets disk space for the first `rows` rows, a chunk ahead of the need.

        With it a full disk shows before anything is overwritten. If a process dies
        before the counter is raised, the same space is asked for again: no harm.
        """
        reserved = self._read(RESERVED)
        if rows <= reserved:
            return
        chunk = self._layout.chunk_rows
        until = min(math.ceil(rows / chunk) * chunk, self.capacity)
        os.posix_fallocate(
            self._file.fileno(),
            HEADER_BYTES + reserved * self._layout.row_bytes,
            (until - reserved) * self._layout.row_bytes,
        )
        self._store({RESERVED: until})

    def _stretches(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Cuts frames first..end into (first, count) parts contiguous in the file."""
        while first < end:
            to_wrap = self.capacity - first % self.capacity
            count = min(end - first, to_wrap, self._layout.chunk_rows)
            yield first, count
            first += count

    def _offset(self, frame: int) -> int:
        return HEADER_BYTES + frame % self.capacity * self._layout.row_bytes

    def _write(self, descriptor: int, first: int, rows: np.ndarray) -> None:
        """Writes contiguous rows to their place in this file, or a copy of it."""
        _write_all(descriptor, _bytes_of(rows), self._offset(first))

    def sample(
        self,
        batch_size: int,
        newest: int,
        rng: np.random.Generator,
        end: int | None = None,
    ) -> Batch[np.ndarray]:
        """Draws transitions uniformly, with replacement; never a torn one.

        Args:
            batch_size: B, > 0.
            newest: draws come from the newest min(newest, size) rows; > 0.
            rng: the caller's generator.
            end: draws come from the frames before this one, as if there were no
                others yet; None: from all.

        Raises:
            ValueError: the buffer has no rows.
            RunError: rows in the file are damaged.
        """
        rows = self.sample_rows(batch_size, newest, [Draw(rng, end)])[0]
        return _unpack(rows, self._layout)

    def sample_rows(
        self,
        batch_size: int,
        newest: int,
        draws: Sequence[Draw],
    ) -> np.ndarray:
        """Draws K batches, each as `sample` does, in one pass over the file.

        Args:
            batch_size: B, > 0.
            newest: as in `sample`.
            draws: one for each batch.

        Returns:
            float32 [K, B, O + O + A + 2]; `batch.fields` takes them apart.

        Raises:
            ValueError, RunError: as `sample`.
        """
        rows, whole = self._draw(batch_size, newest, draws)
        for k in np.flatnonzero(~whole.all(axis=1)).tolist():
            self._draw_again(rows[k], whole[k], newest, draws[k])
        return rows[..., : -self._layout.extra_words].view("<f4")

    def _draw_again(
        self,
        rows: np.ndarray,
        whole: np.ndarray,
        newest: int,
        draw: Draw,
    ) -> None:
        """Draws the rows [B, words] that are not whole [B] until all are."""
        for _ in range(MAX_DRAWS):
            self.fell_short |= draw.end is not None
            missing = np.flatnonzero(~whole)
            found, sound = self._draw(missing.size, newest, [draw])
            rows[missing], whole[missing] = found[0], sound[0]
            if whole.all():
                return
        raise RunError(f"{self._path}: is damaged: rows have wrong frame numbers")

    def _draw(
        self,
        batch_size: int,
        newest: int,
        draws: Sequence[Draw],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Copies random rows [K, B, words] and says which of them are whole [K, B]."""
        oldest, frames = self._window()
        picked = np.stack(
            [self._pick(oldest, frames, batch_size, newest, draw) for draw in draws]
        )
        rows = self._rows[picked % self.capacity]
        # Only now: what is live after the copy was not being overwritten during it.
        still_live = picked >= self._read(INTENT) - self.capacity
        return rows, still_live & (_frame_numbers(rows) == picked)

    def _pick(
        self, oldest: int, frames: int, batch_size: int, newest: int, draw: Draw
    ) -> np.ndarray:
        """Draws frame numbers [B] among those from `oldest` to before `frames`."""
        rng, end = draw
        limit = frames if end is None else min(end, frames)
        if end is not None and limit <= oldest < frames:  # they are all gone
            self.fell_short, limit = True, frames
        first = max(0, limit - newest)
        if oldest > first:
            self.fell_short |= end is not None
            first = oldest
        if first >= limit:
            raise ValueError(f"{self._path}: has no rows to sample")
        return rng.integers(first, limit, size=batch_size)

    def read(self, first_frame: int, count: int) -> Batch[np.ndarray]:
        """Returns the transitions with the frame numbers from `first_frame`, in order.

        Raises:
            IndexError: some are not there yet, or no longer.
            RunError: a row is damaged; names its frame number.
        """
        wanted = np.arange(first_frame, first_frame + count)
        rows = self._rows[wanted % self.capacity]
        self._check_there(first_frame, count)  # after the copy, as in _draw
        bad = np.flatnonzero(~_sound(rows, first_frame))
        if bad.size:
            raise RunError(
                f"{self._path}: is damaged: row of frame {first_frame + bad[0]}"
            )
        return _unpack(rows, self._layout)

    def sync(self) -> None:
        """Makes everything appended so far survive a power failure."""
        with named(self._path):
            os.fdatasync(self._file.fileno())

    def recover(self) -> int:
        """Verifies all rows; keeps the longest unbroken run of good ones.

        To be called when a run opens the buffer, while no other process uses it. A
        row is good if its checksum matches and its frame number is the expected one.
        After a killed process all live rows are. A power failure can leave bad ones
        at both ends, because the disk need not have taken the header and the rows in
        order: new rows that the header counts may be missing (then `frames` falls),
        and old ones may be overwritten by rows it does not count yet (then `oldest`
        rises). A bad row in the middle (a fault of the disk) costs the shorter side.
        The bytes of dropped rows stay in the file until appends overwrite them.

        Returns:
            how many live rows were dropped; frames `oldest` to `frames` - 1 remain.

        Raises:
            UserError: no live row is good, but others are: the counters are wrong,
                and `salvage` finds the rows.
        """
        self._require_writable()
        with self._locked():
            self._mend_counters()
            self._check_counters()
            oldest, frames = self._window()
            bad = [oldest - 1]
            for first, count in self._stretches(oldest, frames):
                sound = _sound(self._read_rows(first, count), first)
                bad.extend((first + np.flatnonzero(~sound)).tolist())
            bad.append(frames)
            start, end = _longest_run(bad)
            if start == end and oldest < frames and self._has_good_rows():
                raise UserError(f"{self._path}: is damaged: its counters fit no row")
            if start < end < frames and self.has_origins:
                # Perhaps in the midst of a vector step: it is done again as a whole.
                end = max(start, self._begin_of_step(end))
            if start == end:  # nothing is left: count from the oldest again
                start = end = oldest
            found = {FRAMES: end}
            if start > oldest:
                found[INTENT] = start + self.capacity
            self._store(found)
            if end < frames:
                self._store({TURN: self._turn_after(end)})
            self._mend_turn()
        return (frames - oldest) - (end - start)

    def _has_good_rows(self) -> bool:
        first, end = _good_frames(self._file.fileno(), self._layout)
        return first < end

    def _read_rows(self, first: int, count: int) -> np.ndarray:
        """Reads rows by pread: a bad disk is an OSError, where a map would kill."""
        rows = np.empty((count, self._layout.row_words), "<u4")
        content, offset = _bytes_of(rows), self._offset(first)
        while content:
            got = os.preadv(self._file.fileno(), [content], offset)
            if got == 0:
                raise self._shorter()
            content, offset = content[got:], offset + got
        return rows

    def truncate(self, frames: int) -> None:
        """Goes back to an earlier frame count, as a resume from a backup does.

        Raises:
            ValueError: there are not so many frames, or the ring has overwritten
                the rows before it.
        """
        self._require_writable()
        with self._locked():
            self._check_end(frames)
            self._store({FRAMES: frames, TURN: self._turn_after(frames)})
            self.sync()

    def _check_end(self, frames: int) -> None:
        oldest, committed = self._window()
        if not oldest <= frames <= committed:
            raise ValueError(
                f"{self._path}: cannot go back to {frames} frames; "
                f"possible are {oldest} to {committed}"
            )

    def copy_to(self, folder: Path, frames: int | None = None) -> None:
        """Makes a buffer in another folder with the rows of this one.

        Writers wait meanwhile. The copy appears under its name only when it is
        complete and on the disk; rows never written take no space in it.

        Args:
            folder: where; made if missing.
            frames: the copy ends at this frame count (None: at the present one).

        Raises:
            FileExistsError: the folder has a replay buffer already.
            ValueError: `frames` cannot be had, as for `truncate`.
        """
        with _new_file(folder, self._layout) as descriptor, self._locked():
            oldest, committed = self._window()
            end = committed if frames is None else frames
            self._check_end(end)
            for first, count in self._stretches(oldest, end):
                self._write(descriptor, first, self._read_rows(first, count))
            turn = self.turn if end == committed else self._turn_after(end)
            header = self._layout.header(self._read(INTENT), end, turn)
            _write_all(descriptor, header, 0)

    def close(self) -> None:
        """Closes the files; a second call does nothing."""
        self._rows = NO_ROWS  # or the map could not be closed
        self._map.close()
        self._file.close()
        if self._lock_file is not None:
            self._lock_file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _write_all(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


@contextmanager
def _new_file(folder: Path, layout: _Layout) -> Iterator[int]:
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
            _write_all(file.fileno(), layout.header(intent=0, frames=0), 0)
            yield file.fileno()
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike a rename, replaces nothing
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(folder)


def _longest_run(bad: list[int]) -> tuple[int, int]:
    """The longest (first, end) between bad frames; of equal ones the newest."""
    return max(
        ((left + 1, right) for left, right in pairwise(bad)),
        key=lambda run: (run[1] - run[0], run[1]),
    )


def _ends_at(descriptor: int, layout: _Layout, frames: int) -> bool:
    """Whether the row of frame `frames` was never written, or in the last lap."""
    offset = HEADER_BYTES + frames % layout.capacity * layout.row_bytes
    content = os.pread(descriptor, layout.row_bytes, offset)
    if len(content) < layout.row_bytes:
        return False
    row = np.frombuffer(content, "<u4")[None]
    return not row.any() or bool(_checksums(row)[0] == row[0, -1])


def _begin_of_last_step(descriptor: int, layout: _Layout, start: int, end: int) -> int:
    """The first of good frames that is of the last vector step.

    That step may not be whole; it is done again. Where it is all there is, it stays.
    """
    turns = []
    for frame in range(end - 1, start - 1, -1):
        offset = HEADER_BYTES + frame % layout.capacity * layout.row_bytes
        row = np.frombuffer(os.pread(descriptor, layout.row_bytes, offset), "<u4")
        turns.append(int(_origin_of(row[None]).turn[0]))
        if turns[-1] != turns[0]:
            return frame + 1
    return end


def _best_layout(descriptor: int, expected: _Layout) -> tuple[_Layout, tuple[int, int]]:
    """The layout under which a file has most good rows, and their frames.

    Tried are the expected one and those whose length fits the file: a file of format
    1, or of another capacity.
    """
    layouts = []
    content = os.fstat(descriptor).st_size - HEADER_BYTES
    for version in reversed(READABLE):
        layout = replace(expected, version=version)
        capacity, rest = divmod(content, layout.row_bytes)
        if rest == 0 and 1 <= capacity <= MAX_CAPACITY:
            layouts.append(replace(layout, capacity=capacity))
    layouts += [expected, replace(expected, version=1)]
    found = [(layout, _good_frames(descriptor, layout)) for layout in layouts]
    return max(found, key=lambda each: each[1][1] - each[1][0])


def _good_frames(descriptor: int, layout: _Layout) -> tuple[int, int]:
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
        frames, slots = _frame_numbers(rows), np.arange(first, first + whole)
        in_place = (frames >= 0) & (frames % layout.capacity == slots)
        found.append(frames[in_place & (_checksums(rows) == rows[:, -1])])
    frames = np.sort(np.concatenate(found)) if found else np.zeros(0, int)
    if frames.size == 0:
        return 0, 0
    breaks = np.flatnonzero(np.diff(frames) != 1) + 1
    runs = np.split(frames, breaks)
    longest = max(runs, key=lambda run: (len(run), run[-1]))
    return int(longest[0]), int(longest[-1]) + 1


def _pack(transitions: Batch[np.ndarray], layout: _Layout) -> np.ndarray:
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


def _unpack(rows: np.ndarray, layout: _Layout) -> Batch[np.ndarray]:
    """Takes the fields out of rows [B, words]."""
    parts = fields(rows.view("<f4"), layout.obs_dim, layout.action_dim)
    return Batch(*(np.ascontiguousarray(part) for part in parts))


def _write_origin(rows: np.ndarray, origin: Origin | None, turn: int) -> None:
    """Writes where packed rows come from; the vector step is the buffer's to say."""
    words = rows[:, -TRAILER_WORDS - ORIGIN_WORDS : -TRAILER_WORDS]
    words[:] = 0
    if origin is not None:
        for column, values in enumerate(origin[:4]):
            words[:, column] = values
    words[:, 4:].view("<u8")[:, 0] = turn


def _origin_of(rows: np.ndarray) -> Origin:
    words = rows[:, -TRAILER_WORDS - ORIGIN_WORDS : -TRAILER_WORDS]
    turn = np.ascontiguousarray(words[:, 4:]).view("<u8")[:, 0].astype(np.int64)
    env, episode, step, cut = words[:, :4].T.astype(np.int64)
    return Origin(env, episode, step, cut, turn)


def _bytes_of(rows: np.ndarray) -> memoryview:
    return rows.reshape(-1).view(np.uint8).data


def _frame_numbers(rows: np.ndarray) -> np.ndarray:
    """The frame numbers [...] stored in rows [..., words]; a view."""
    return rows[..., -3:-1].view("<i8")[..., 0]


def _checksums(rows: np.ndarray) -> np.ndarray:
    """The CRC-32 of each row [B, words] but its last word."""
    content, row_bytes = _bytes_of(rows), 4 * rows.shape[1]
    return np.fromiter(
        (
            zlib.crc32(content[start : start + row_bytes - 4])
            for start in range(0, len(content), row_bytes)
        ),
        np.uint32,
        len(rows),
    )


def _seal(rows: np.ndarray, first: int) -> None:
    """Writes frame numbers, from `first` on, and checksums into packed rows."""
    _frame_numbers(rows)[:] = np.arange(first, first + len(rows))
    rows[:, -1] = _checksums(rows)


def _sound(rows: np.ndarray, first: int) -> np.ndarray:
    """Says for each row [B, words] whether it is the whole row of its frame [B]."""
    expected = np.arange(first, first + len(rows))
    return (_frame_numbers(rows) == expected) & (_checksums(rows) == rows[:, -1])
