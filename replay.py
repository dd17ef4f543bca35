"""The replay buffer: one ring of transitions in a file, shared by processes.

Interactors append, learners sample (SPEC section 2); nothing but the filesystem
connects them. Storage only: no TensorFlow, no pacing rule, no process. How the bytes
lie in the file is told in `replay_file`.

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
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import portalocker

from .batch import Batch
from .replay_file import (
    DATA_NAME,
    FRAMES,
    HEADER_BYTES,
    IMPORTED,
    INTENT,
    MAX_COUNT,
    ORIGIN_WORDS,
    RESERVED,
    TRAILER_WORDS,
    TURN,
    Counters,
    Layout,
    Origin,
    became_shorter,
    bytes_of,
    frame_numbers,
    good_frames,
    new_file,
    origin_of,
    pack,
    seal,
    sound,
    unpack,
    write_all,
    write_origin,
)
from .util import RunError, UserError, named, regular_opener

LOCK_NAME = "replay.lock"
MAX_DRAWS = 1000
NO_ROWS = np.empty((0, 0), np.uint32)


class Draw(NamedTuple):
    """How one batch is drawn.

    Attributes:
        rng: its generator.
        end: it comes from the frames before this one; None: from all.
    """

    rng: np.random.Generator
    end: int | None


class ReplayBuffer:
    """A ring of the newest `capacity` transitions; see the module for the rules.

    Use `create` or `open`. An object belongs to one thread of one process.
    """

    def __init__(self, path: Path, layout: Layout, writable: bool) -> None:
        self._path = path
        self._layout = layout
        self._writable = writable
        # Unbuffered: only its descriptor is used, with pread and pwrite.
        self._file = open(path, "rb+" if writable else "rb", buffering=0)  # noqa: SIM115
        self._counters = Counters(path, self._file)
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
        with new_file(folder, Layout(obs_dim, action_dim, capacity)):
            pass
        return cls.open(folder, writable=True)

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a folder holds a buffer, in whatever state."""
        return (folder / DATA_NAME).exists()

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
                layout = Layout.parse(page, os.fstat(file.fileno()).st_size)
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

    def _check_counters(self) -> None:
        frames = -1
        while frames != self.frames:  # until no append falls in between
            frames, intent = self.frames, self._counters.read(INTENT)
        reserved = self._counters.read(RESERVED)
        fits = frames <= intent <= frames + self.capacity and intent <= MAX_COUNT
        if not fits or reserved > self.capacity:
            raise UserError(
                f"{self._path}: is damaged: counters {frames}, {intent}, {reserved} "
                f"do not fit together"
            )

    def _mend_counters(self) -> None:
        """Decides where a counter and its complement differ.

        One of them is damaged, or a process of version 1.0 was killed between its two
        stores; in a file of an earlier program all complements are missing. `frames`
        is the higher one: rows that are not there are found when the rows are verified.
        `intent` is the lower one: it is stored before any row that it announces.
        """
        frames, copy = self._counters.both(FRAMES)
        intents = self._counters.both(INTENT)
        limit = max(intents) if frames != copy else frames
        frames = max((n for n in (frames, copy) if n <= limit), default=frames)
        possible = [n for n in intents if 0 <= n - frames <= self.capacity]
        intent = min(possible, default=intents[0])
        reserved = min(self._counters.both(RESERVED))  # more is reserved again
        self._counters.store({FRAMES: frames, INTENT: intent, RESERVED: reserved})

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
        return self._counters.read(FRAMES)

    @property
    def turn(self) -> int:
        """The number of the next vector step, where the run keeps their order."""
        return self._counters.read(TURN)

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

        def is_stepped(frame: int) -> bool:
            return self.origins(frame, 1).env[0] != IMPORTED

        end = oldest + bisect_left(range(oldest, frames), True, key=is_stepped)
        return end if end > oldest else 0

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
            oldest = max(0, self._counters.read(INTENT) - self.capacity)
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
        rows = pack(transitions, self._layout)
        count = len(rows)
        with named(self._path), self._locked():
            frames, next_turn = self.frames, self.turn
            if frames + count > frame_limit or turn not in (None, next_turn):
                return False
            self._reserve(min(frames + count, self.capacity))
            if self.has_origins:
                write_origin(rows, origin, next_turn)
            seal(rows, frames)
            # `intent` may be ahead already, by a writer that was killed: the rows
            # that one overwrote do not come back.
            intent = max(self._counters.read(INTENT), frames + count)
            self._counters.store({INTENT: intent})
            for first, part in self._stretches(frames, frames + count):
                start = first - frames
                self._write(self._file.fileno(), first, rows[start : start + part])
            self._counters.store({FRAMES: frames + count, TURN: next_turn + 1})
        return True

    def settle_turn(self) -> None:
        """Counts the last vector step where a store of the counters was cut short."""
        self._require_writable()
        with self._locked():
            self._counters.store({TURN: max(self.turn, self._turn_after(self.frames))})

    def _mend_turn(self) -> None:
        """Decides where the turn and its complement differ, or the rows know better."""
        least = self._turn_after(self.frames)
        possible = [n for n in self._counters.both(TURN) if least <= n <= MAX_COUNT]
        self._counters.store({TURN: min(possible, default=least)})

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
        ends = self._rows[:, -(ORIGIN_WORDS + TRAILER_WORDS) :]
        return origin_of(ends[wanted % self.capacity])

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
            digest.update(bytes_of(self._rows[start : start + count]))
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
        reserved = self._counters.read(RESERVED)
        if rows <= reserved:
            return
        chunk = self._layout.chunk_rows
        until = min(math.ceil(rows / chunk) * chunk, self.capacity)
        os.posix_fallocate(
            self._file.fileno(),
            HEADER_BYTES + reserved * self._layout.row_bytes,
            (until - reserved) * self._layout.row_bytes,
        )
        self._counters.store({RESERVED: until})

    def _stretches(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Cuts frames first..end into (first, count) parts contiguous in the file."""
        while first < end:
            to_wrap = self.capacity - first % self.capacity
            count = min(end - first, to_wrap, self._layout.chunk_rows)
            yield first, count
            first += count

    def _write(self, descriptor: int, first: int, rows: np.ndarray) -> None:
        """Writes contiguous rows to their place in this file, or a copy of it."""
        write_all(descriptor, bytes_of(rows), self._layout.offset(first))

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
        return unpack(rows, self._layout)

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
            found, intact = self._draw(missing.size, newest, [draw])
            rows[missing], whole[missing] = found[0], intact[0]
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
        still_live = picked >= self._counters.read(INTENT) - self.capacity
        return rows, still_live & (frame_numbers(rows) == picked)

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
        bad = np.flatnonzero(~sound(rows, first_frame))
        if bad.size:
            raise RunError(
                f"{self._path}: is damaged: row of frame {first_frame + bad[0]}"
            )
        return unpack(rows, self._layout)

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
                good = sound(self._read_rows(first, count), first)
                bad.extend((first + np.flatnonzero(~good)).tolist())
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
            if end < frames:
                found[TURN] = self._turn_after(end)
            self._counters.store(found)
            self._mend_turn()
        return (frames - oldest) - (end - start)

    def _has_good_rows(self) -> bool:
        first, end = good_frames(self._file.fileno(), self._layout)
        return first < end

    def _read_rows(self, first: int, count: int) -> np.ndarray:
        """Reads rows by pread: a bad disk is an OSError, where a map would kill."""
        rows = np.empty((count, self._layout.row_words), "<u4")
        content, offset = bytes_of(rows), self._layout.offset(first)
        while content:
            got = os.preadv(self._file.fileno(), [content], offset)
            if got == 0:
                raise became_shorter(self._path)
            content, offset = content[got:], offset + got
        return rows

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
            ValueError: `frames` is not among those that are there.
        """
        with new_file(folder, self._layout) as descriptor, self._locked():
            oldest, committed = self._window()
            end = committed if frames is None else frames
            self._check_end(end)
            for first, count in self._stretches(oldest, end):
                self._write(descriptor, first, self._read_rows(first, count))
            turn = self.turn if end == committed else self._turn_after(end)
            header = self._layout.header(self._counters.read(INTENT), end, turn)
            write_all(descriptor, header, 0)

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


def _longest_run(bad: list[int]) -> tuple[int, int]:
    """The longest (first, end) between bad frames; of equal ones the newest."""
    return max(
        ((left + 1, right) for left, right in pairwise(bad)),
        key=lambda run: (run[1] - run[0], run[1]),
    )
