"""The replay buffer: content, limits, damage, copies, a full disk."""

import errno
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from support_replay import (
    ACTION_DIM,
    OBS_DIM,
    ROW_BYTES,
    filled,
    live_values,
    new,
    row_position,
    rows,
    values_of,
)

from steve import replay, replay_file
from steve.replay import Batch, ReplayBuffer
from steve.replay_file import (
    ALL_ONES,
    CHUNK_BYTES,
    COPY,
    COUNTER_WORDS,
    COUNTERS,
    FIXED_FIELDS,
    FRAMES,
    HEADER_BYTES,
    MAX_CAPACITY,
    MAX_DIM,
    Layout,
)
from steve.storage.locks import is_locked
from steve.storage.salvage import salvage
from steve.util import RunError, UserError


def flip(path, position, bits=1):
    content = bytearray(path.read_bytes())
    content[position] ^= bits
    path.write_bytes(content)


# Content


def test_rows_come_back_as_they_were_appended(tmp_path):
    buffer = new(tmp_path)
    assert (buffer.frames, buffer.size) == (0, 0)
    assert buffer.append(rows([7, 8, 9]))
    assert (buffer.frames, buffer.size) == (3, 3)
    for view in (buffer, ReplayBuffer.open(tmp_path)):
        batch = view.read(0, 3)
        assert values_of(batch).tolist() == [7, 8, 9]
        assert batch.obs.shape == batch.next_obs.shape == (3, OBS_DIM)
        assert batch.action.shape == (3, ACTION_DIM)
        assert batch.reward.shape == batch.terminated.shape == (3,)
        for field in batch:
            assert field.dtype == np.float32
            assert field.flags.c_contiguous
        assert (view.obs_dim, view.action_dim, view.capacity) == (5, 2, 100)


def test_the_words_of_a_row_lie_as_the_format_says(tmp_path):
    """In another order the files of earlier runs would be read as something else."""
    buffer = ReplayBuffer.create(tmp_path, 2, 1, 10)
    fields = ([[1, 2]], [[5]], [6], [[3, 4]], [1])  # in the order of a Batch
    buffer.append(Batch(*(np.array(field, np.float32) for field in fields)))
    content = (tmp_path / "replay.bin").read_bytes()[4096:]
    assert np.frombuffer(content, "<f4", 7).tolist() == [1, 2, 3, 4, 5, 6, 1]


def test_a_full_ring_keeps_the_newest_rows(tmp_path):
    # capacity 7, appends of 3: after n appends frames 3n - 7 .. 3n - 1 remain.
    buffer = new(tmp_path, capacity=7)
    for n in range(1, 20):
        buffer.append(rows(np.arange(3 * n - 3, 3 * n)))
        assert live_values(buffer) == list(range(max(0, 3 * n - 7), 3 * n))
        assert buffer.size == min(buffer.frames, 7)
    with pytest.raises(IndexError, match="has frames 50 to 56, not 49 to 50"):
        buffer.read(49, 2)
    with pytest.raises(IndexError):
        buffer.read(56, 2)


def test_an_append_may_fill_the_whole_ring_but_no_more(tmp_path):
    buffer = filled(tmp_path, 5, capacity=7)
    buffer.append(rows(np.arange(5, 12)))
    assert live_values(buffer) == list(range(5, 12))
    with pytest.raises(ValueError, match="8 transitions, but the capacity is 7"):
        buffer.append(rows(np.arange(8)))
    assert buffer.append(rows([]))
    assert buffer.frames == 12


def test_samples_are_contiguous_float32(tmp_path):
    buffer = filled(tmp_path, 50)
    for size in (1, 64):
        batch = buffer.sample(size, 100, np.random.default_rng(0))
        values_of(batch)
        assert batch.obs.shape == (size, OBS_DIM)
        for field in batch:
            assert field.dtype == np.float32
            assert field.flags.c_contiguous
            assert field.flags.writeable


def test_samples_are_uniform_over_the_newest_rows(tmp_path):
    buffer = filled(tmp_path, 130, capacity=100)
    batch = buffer.sample(50_000, 50, np.random.default_rng(1))
    drawn = np.bincount(values_of(batch), minlength=130)
    assert drawn[:80].sum() == 0
    # Chi-square of 50 equal cells: mean 49, deviation sqrt(2 * 49) = 9.9.
    chi_square = ((drawn[80:] - 1000) ** 2 / 1000).sum()
    assert 49 - 4 * 9.9 < chi_square < 49 + 5 * 9.9  # less: without replacement


def test_a_window_larger_than_the_content_is_all_of_it(tmp_path):
    buffer = filled(tmp_path, 130, capacity=100)
    drawn = values_of(buffer.sample(5000, 10**9, np.random.default_rng(2)))
    assert set(drawn) == set(range(30, 130))


def test_samples_follow_the_generator(tmp_path):
    buffer = filled(tmp_path, 50)
    first, second = (buffer.sample(9, 50, np.random.default_rng(3)) for _ in "ab")
    np.testing.assert_array_equal(first.obs, second.obs)


def test_an_empty_buffer_cannot_be_sampled(tmp_path):
    with pytest.raises(ValueError, match="has no rows to sample"):
        new(tmp_path).sample(1, 1, np.random.default_rng(0))


def test_frame_limit_stores_all_rows_or_none(tmp_path):
    buffer = new(tmp_path)
    assert buffer.append(rows([0, 1, 2]), frame_limit=3)
    assert not buffer.append(rows([3]), frame_limit=3)
    assert not buffer.append(rows([3, 4]), frame_limit=4.5)
    assert buffer.frames == 3
    assert buffer.append(rows([3]), frame_limit=4.5)
    assert live_values(buffer) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", Batch._fields)
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e39])
def test_values_that_are_not_finite_are_refused_by_name(tmp_path, name, bad):
    buffer = filled(tmp_path, 10)
    batch = rows([10, 11])
    getattr(batch, name).flat[-1] = bad  # 1e39 is infinite as float32
    with pytest.raises(ValueError, match=f"^{name} has a value that is not finite"):
        buffer.append(batch)
    assert live_values(buffer) == list(range(10))


@pytest.mark.parametrize("name", Batch._fields)
def test_wrong_shapes_and_types_are_refused_by_name(tmp_path, name):
    buffer, batch = new(tmp_path), rows([1, 2])
    field = getattr(batch, name)
    wrong = {"shape": [field[:1], field[..., None]], "type": [field.astype(str)]}
    for what, fields in wrong.items():
        for bad in fields:
            with pytest.raises(ValueError, match=rf" has {what} "):
                buffer.append(batch._replace(**{name: bad}))
    assert buffer.frames == 0


def test_terminated_is_zero_or_one(tmp_path):
    with pytest.raises(ValueError, match="terminated has a value other than 0 and 1"):
        new(tmp_path).append(rows([1])._replace(terminated=[0.5]))


# Opening


def test_create_refuses_an_existing_buffer(tmp_path):
    filled(tmp_path, 10)
    with pytest.raises(FileExistsError):
        new(tmp_path)
    assert live_values(ReplayBuffer.open(tmp_path)) == list(range(10))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "replay.bin",
        "replay.lock",
    ]


def test_of_two_creators_one_is_refused(tmp_path, monkeypatch):
    fsync = os.fsync

    def overtaken(descriptor):
        monkeypatch.setattr(os, "fsync", fsync)
        (tmp_path / "replay.bin").write_bytes(b"the other's")

    monkeypatch.setattr(os, "fsync", overtaken)
    with pytest.raises(FileExistsError):
        new(tmp_path)
    assert (tmp_path / "replay.bin").read_bytes() == b"the other's"
    assert [path.name for path in tmp_path.iterdir()] == ["replay.bin"]


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, -1, 1), (1, 1, 0), (1 << 30, 1, 1)])
def test_create_refuses_senseless_sizes(tmp_path, sizes):
    with pytest.raises(ValueError, match="must be 1 to"):
        ReplayBuffer.create(tmp_path, *sizes)
    assert list(tmp_path.iterdir()) == []


def test_a_large_buffer_takes_disk_space_only_as_rows_come(tmp_path):
    buffer = new(tmp_path, capacity=10_000_000)
    assert (tmp_path / "replay.bin").stat().st_blocks * 512 < 1 << 20
    buffer.append(rows([1]))
    taken = (tmp_path / "replay.bin").stat().st_blocks * 512
    assert taken < CHUNK_BYTES + (1 << 20)


def test_a_reader_cannot_write(tmp_path):
    filled(tmp_path, 10)
    reader = ReplayBuffer.open(tmp_path)
    for change in (
        lambda: reader.append(rows([1])),
        reader.recover,
    ):
        with pytest.raises(ValueError, match="opened for reading only"):
            change()


def old_version(path):
    """Rewrites the header as a sound one of format version 0."""
    content = bytearray(path.read_bytes())
    fixed = FIXED_FIELDS.size
    struct.pack_into("<I", content, 8, 0)
    struct.pack_into("<I", content, fixed, zlib.crc32(content[:fixed]))
    path.write_bytes(content)


def huge_claim(path):
    """Rewrites the header as a sound one of a far larger buffer."""
    layout = Layout(MAX_DIM, 1, MAX_CAPACITY)
    content = layout.header(5, 5) + path.read_bytes()[HEADER_BYTES:]
    path.write_bytes(content)


DAMAGES = {
    "missing": (lambda path: path.unlink(), "there is no replay buffer here"),
    "empty": (lambda path: path.write_bytes(b""), "is not a replay buffer"),
    "foreign": (lambda path: path.write_bytes(b"x" * 9999), "is not a replay buffer"),
    "magic": (lambda path: flip(path, 0), "is not a replay buffer"),
    "stub": (lambda path: os.truncate(path, 70), "is cut off within its header"),
    "version": (old_version, "has replay format version 0; this program reads"),
    "obs_dim": (lambda path: flip(path, 12), "the checksum of its header"),
    "capacity": (lambda path: flip(path, 24), "the checksum of its header"),
    "checksum": (lambda path: flip(path, 33), "the checksum of its header"),
    "short": (lambda path: os.truncate(path, 9999), "is 9999 bytes long, not 13296"),
    "long": (lambda path: os.truncate(path, 13297), "is 13297 bytes long, not 13296"),
    "huge": (huge_claim, "is 13296 bytes long, not"),
    "intent": (lambda path: flip(path, 65), "counters 50, 306, 100 do not fit"),
    "frames": (lambda path: flip(path, 75), "counters 16777266, 50, 100 do not fit"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_in_one_line(tmp_path, damage):
    filled(tmp_path, 50).close()
    path = tmp_path / "replay.bin"
    harm, message = DAMAGES[damage]
    harm(path)
    for writable in (False, True):
        with pytest.raises(UserError) as caught:
            ReplayBuffer.open(tmp_path, writable=writable)
        assert str(caught.value).startswith(f"{path}: ")
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_closing_twice_is_fine(tmp_path):
    with filled(tmp_path, 10) as buffer:
        pass
    buffer.close()


# Damaged rows


@pytest.mark.parametrize(
    ("bad_frames", "remaining"),
    [
        ([], (30, 130)),
        ([129], (30, 120)),  # the tail, as after a power failure: whole vector steps
        ([120, 122, 125], (30, 110)),
        ([30, 31, 33], (34, 130)),  # old rows overwritten by uncounted new ones
        ([31, 127], (32, 120)),  # both
        ([100], (30, 90)),  # a fault in the middle costs the shorter side
        ([50], (51, 130)),
        ([64, 95], (96, 130)),  # of equal runs the newest stays
    ],
)
@pytest.mark.parametrize("byte", [0, ROW_BYTES - 12, ROW_BYTES - 1])
def test_recover_keeps_the_longest_run_of_good_rows(
    tmp_path, bad_frames, remaining, byte
):
    filled(tmp_path, 130).close()
    for frame in bad_frames:
        flip(tmp_path / "replay.bin", row_position(frame) + byte, 0x40)
    buffer = ReplayBuffer.open(tmp_path, writable=True)
    assert buffer.recover() == 100 - (remaining[1] - remaining[0])
    assert live_values(buffer) == list(range(*remaining))
    assert (buffer.oldest, buffer.frames) == remaining
    assert buffer.recover() == 0
    # It continues there, and in the end the ring is full again.
    end = remaining[1]
    for start in range(end, end + 200, 10):
        buffer.append(rows(np.arange(start, start + 10)))
        drawn = values_of(buffer.sample(100, 1000, np.random.default_rng(start)))
        assert set(drawn) <= set(range(remaining[0], start + 10))
    assert live_values(buffer) == list(range(end + 100, end + 200))


def test_recover_drops_old_rows_that_uncounted_new_ones_replaced(tmp_path):
    # A power failure: the disk has rows 130 .. 139, but the header from before.
    buffer = filled(tmp_path, 130)
    path = tmp_path / "replay.bin"
    header = path.read_bytes()[:HEADER_BYTES]
    buffer.append(rows(np.arange(130, 140)))
    buffer.close()
    path.write_bytes(header + path.read_bytes()[HEADER_BYTES:])
    buffer = ReplayBuffer.open(tmp_path, writable=True)
    assert buffer.recover() == 10
    assert live_values(buffer) == list(range(40, 130))


def test_recover_drops_counted_rows_that_never_reached_the_disk(tmp_path):
    # A power failure: the disk has the header, but old rows in place of 120 .. 129.
    buffer = filled(tmp_path, 120)
    path = tmp_path / "replay.bin"
    before = path.read_bytes()[HEADER_BYTES:]
    buffer.append(rows(np.arange(120, 130)))
    buffer.close()
    path.write_bytes(path.read_bytes()[:HEADER_BYTES] + before)
    buffer = ReplayBuffer.open(tmp_path, writable=True)
    # Whether 110 .. 119 are a whole vector step cannot be seen any more.
    assert buffer.recover() == 20
    assert live_values(buffer) == list(range(30, 110))


def test_recover_of_nothing_but_bad_rows_leaves_an_empty_buffer(tmp_path):
    filled(tmp_path, 50).close()
    path = tmp_path / "replay.bin"
    path.write_bytes(path.read_bytes()[:HEADER_BYTES] + bytes(100 * ROW_BYTES))
    buffer = ReplayBuffer.open(tmp_path, writable=True)
    assert buffer.recover() == 50
    assert (buffer.oldest, buffer.frames, buffer.size) == (0, 0, 0)
    buffer.append(rows([5]))
    assert live_values(buffer) == [5]


def test_a_file_of_an_earlier_program_has_no_complements_and_gets_them(tmp_path):
    # Earlier programs left zeros there, and do again when they continue with a file.
    filled(tmp_path, 130).close()
    path = tmp_path / "replay.bin"
    counters, complements = struct.Struct("<3Q"), slice(88, 112)
    content = bytearray(path.read_bytes())
    content[complements] = bytes(24)
    path.write_bytes(content)
    buffer = ReplayBuffer.open(tmp_path, writable=True)
    assert live_values(buffer) == list(range(30, 130))
    assert buffer.recover() == 0
    content = path.read_bytes()
    values = counters.unpack_from(content, 64)
    assert values[:2] == (130, 130)
    copies = counters.unpack(content[complements])
    assert [~copy % 2**64 for copy in copies] == list(values)
    buffer.append(rows(np.arange(130, 140)))
    assert live_values(buffer) == list(range(40, 140))


def test_recover_works_across_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(replay_file, "CHUNK_BYTES", 7 * ROW_BYTES)
    filled(tmp_path, 130).close()
    flip(tmp_path / "replay.bin", row_position(117))
    buffer = ReplayBuffer.open(tmp_path, writable=True)
    assert buffer.recover() == 20
    assert live_values(buffer) == list(range(30, 110))


def test_every_byte_of_a_row_is_protected(tmp_path):
    filled(tmp_path, 10).close()
    path = tmp_path / "replay.bin"
    for byte in range(ROW_BYTES):
        flip(path, row_position(5) + byte)
        with (
            ReplayBuffer.open(tmp_path) as buffer,
            pytest.raises(UserError, match="row of frame 5"),
        ):
            buffer.read(5, 1)
        flip(path, row_position(5) + byte)
    with ReplayBuffer.open(tmp_path) as buffer:
        assert values_of(buffer.read(5, 1)) == [5]


def test_a_bad_row_is_not_read_or_sampled(tmp_path, monkeypatch):
    filled(tmp_path, 2, capacity=2).close()
    for frame in (0, 1):
        flip(tmp_path / "replay.bin", row_position(frame, 2) + ROW_BYTES - 12)
    buffer = ReplayBuffer.open(tmp_path)
    with pytest.raises(UserError, match="is damaged: row of frame 1"):
        buffer.read(1, 1)
    monkeypatch.setattr(replay, "MAX_DRAWS", 5)
    with pytest.raises(RunError, match="rows have wrong frame numbers"):
        buffer.sample(4, 100, np.random.default_rng(0))


# Copies


def test_a_shorter_copy_continues_where_it_ends(tmp_path):
    whole = filled(tmp_path / "whole", 130, capacity=100)
    for frames in (29, 131):
        with pytest.raises(ValueError, match="possible are 30 to 130"):
            whole.copy_to(tmp_path / "back", frames)
    whole.copy_to(tmp_path / "back", 90)
    buffer = ReplayBuffer.open(tmp_path / "back", writable=True)
    assert live_values(buffer) == list(range(30, 90))
    # Frames 90 .. 129 are written again; rows before 30 do not come back meanwhile.
    for start in range(90, 150, 10):
        buffer.append(rows(np.arange(1000 + start, 1010 + start)))
        assert buffer.oldest == max(30, start + 10 - 100)
        live_values(buffer)
    assert live_values(buffer)[-60:] == list(range(1090, 1150))


@pytest.mark.parametrize("frames", [0, 40, 130])
def test_a_copy_has_the_live_rows(tmp_path, frames):
    buffer = filled(tmp_path / "a", frames, capacity=100)
    buffer.copy_to(tmp_path / "b")
    copy = ReplayBuffer.open(tmp_path / "b", writable=True)
    assert (copy.oldest, copy.frames) == (buffer.oldest, frames)
    assert live_values(copy) == live_values(buffer)
    assert copy.recover() == 0
    copy.append(rows([frames]))
    assert live_values(copy)[-1] == frames
    assert buffer.frames == frames
    with pytest.raises(FileExistsError):
        buffer.copy_to(tmp_path / "b")


def test_a_copy_can_end_earlier(tmp_path):
    buffer = filled(tmp_path / "a", 130, capacity=100)
    buffer.copy_to(tmp_path / "b", frames=77)
    assert live_values(ReplayBuffer.open(tmp_path / "b")) == list(range(30, 77))
    with pytest.raises(ValueError, match="possible are 30 to 130"):
        buffer.copy_to(tmp_path / "c", frames=20)
    assert list((tmp_path / "c").iterdir()) == []


def test_a_copy_of_a_nearly_empty_ring_is_small(tmp_path):
    new(tmp_path / "a", capacity=10_000_000).copy_to(tmp_path / "b")
    assert (tmp_path / "b" / "replay.bin").stat().st_blocks * 512 < 1 << 20


# A full disk


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_stores_nothing_and_later_appends_work(tmp_path, monkeypatch):
    monkeypatch.setattr(replay_file, "CHUNK_BYTES", 20 * ROW_BYTES)
    buffer = filled(tmp_path, 20)
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", full_disk)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                buffer.append(rows([20]))
        assert live_values(buffer) == list(range(20))
    other = ReplayBuffer.open(tmp_path, writable=True)
    assert other.append(rows([20]))  # the lock is free
    assert live_values(buffer) == list(range(21))


def test_a_failing_write_stores_nothing(tmp_path, monkeypatch):
    buffer = filled(tmp_path, 130, capacity=100)
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", full_disk)
        with pytest.raises(OSError, match="No space left"):
            buffer.append(rows(np.arange(130, 140)))
    assert live_values(buffer) == list(range(30, 130))  # nothing was overwritten
    buffer.append(rows([130]))
    assert live_values(buffer) == list(range(31, 131))


def test_short_writes_are_continued(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:33], at))
    assert live_values(filled(tmp_path, 130)) == list(range(30, 130))


# Counters


def set_counters(path, intent, frames):
    counters = (intent, frames, 0)
    copies = (value ^ ALL_ONES for value in counters)
    with open(path, "r+b") as file:
        file.seek(COUNTERS.start)
        file.write(struct.pack("<6Q", *counters, *copies))


@pytest.mark.parametrize("frames", [2**40, 2**53, 2**62, 2**63 + 5, 2**64 - 2])
def test_rows_are_salvaged_where_counters_are_wrong_together(tmp_path, frames):
    path = filled(tmp_path, 12, capacity=16)._path
    set_counters(path, frames, frames)
    with pytest.raises(UserError, match=r"is damaged: .*counters"):
        ReplayBuffer.open(tmp_path, writable=True).recover()
    assert salvage(tmp_path, OBS_DIM, ACTION_DIM, 16)
    with ReplayBuffer.open(tmp_path) as buffer:
        assert live_values(buffer) == list(range(12))


def test_a_counter_half_copied_is_read_again(tmp_path, monkeypatch):
    buffer = filled(tmp_path, 255)

    words = list(buffer._counters.words)
    words[COPY[FRAMES]] = 256 ^ ALL_ONES
    found = [0, 511, 256]  # at first, only one byte has arrived

    def torn(*_):
        words[FRAMES] = found.pop(0)
        return COUNTER_WORDS.pack(*words)

    monkeypatch.setattr(os, "pread", torn)
    assert buffer.frames == 256


@pytest.mark.parametrize("size", [0, 100])
def test_a_file_that_is_cut_while_it_is_open_is_an_error(tmp_path, size):
    buffer = filled(tmp_path, 5)
    os.truncate(buffer._path, size)
    for use in (
        lambda: buffer.frames,
        lambda: buffer.append(rows([1])),
        buffer.recover,
    ):
        with pytest.raises(RunError, match=r"is damaged: it became shorter"):
            use()


def test_a_counter_whose_complement_never_fits_is_read_as_it_is(tmp_path):
    buffer = filled(tmp_path, 5)
    os.pwrite(buffer._file.fileno(), bytes(24), COUNTERS.start + 24)
    assert (buffer.frames, buffer.size) == (5, 5)


@pytest.mark.parametrize("refused", [1, 2, 3])
def test_a_full_disk_at_any_write_of_an_append_stores_nothing(
    tmp_path, monkeypatch, refused
):
    buffer = filled(tmp_path, 8, capacity=100)
    write, calls = os.pwrite, []

    def full(*args):
        calls.append(args)
        if len(calls) == refused:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*args)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left") as caught:
        buffer.append(rows([8, 9]))
    assert caught.value.filename == str(buffer._path)
    assert (buffer.frames, buffer.turn) == (8, 1)
    assert buffer.append(rows([8, 9]), turn=1)
    assert live_values(buffer) == list(range(10))
    assert len(calls) == refused + 3  # counters, rows, counters


def test_what_is_synced_is_on_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    buffer = filled(tmp_path, 8)
    buffer.sync()
    assert synced == [buffer._file.fileno()]


def test_no_file_is_mapped_for_writing(tmp_path):
    # A store to such a map needs a new block on a copy-on-write filesystem; where
    # there is none, the process is killed.
    buffer = filled(tmp_path, 8)
    maps = Path("/proc/self/maps").read_text().splitlines()
    ours = [line.split() for line in maps if str(tmp_path) in line]
    assert ours
    assert not [line for line in ours if "w" in line[1]]
    buffer.close()


def test_writers_wait_while_a_copy_is_made(tmp_path, monkeypatch):
    buffer = filled(tmp_path / "a", 40, capacity=100)
    read, seen = ReplayBuffer._read_rows, []

    def look(self, first, count):
        seen.append(is_locked(tmp_path / "a" / replay.LOCK_NAME))
        return read(self, first, count)

    monkeypatch.setattr(ReplayBuffer, "_read_rows", look)
    buffer.copy_to(tmp_path / "b")
    assert seen == [True]
