"""Replay buffers of format 1, whose rows do not say where they come from."""

import numpy as np
import pytest
from support_replay import (
    ACTION_DIM,
    OBS_DIM,
    live_values,
    rows,
    values_of,
)

from steve import replay
from steve.replay import ReplayBuffer
from steve.replay_file import HEADER_BYTES, Layout, Origin, pack, seal
from steve.storage.salvage import salvage

ROW_BYTES = 4 * (2 * OBS_DIM + ACTION_DIM + 2 + 3)
SIZES = (OBS_DIM, ACTION_DIM)


def of_format_1(folder, frames, capacity=100):
    """The file that version 1.0 left behind, byte by byte by its own rules."""
    layout = Layout(*SIZES, capacity, version=1)
    assert layout.row_bytes == ROW_BYTES
    folder.mkdir(parents=True, exist_ok=True)
    content = bytearray(layout.file_bytes)
    content[:HEADER_BYTES] = layout.header(frames, frames)
    live = np.arange(max(0, frames - capacity), frames)
    packed = pack(rows(live), layout)
    seal(packed, int(live[0]) if live.size else 0)
    for frame, row in zip(live, packed, strict=True):
        start = position(frame, capacity)
        content[start : start + ROW_BYTES] = row.tobytes()
    (folder / "replay.bin").write_bytes(content)
    return ReplayBuffer.open(folder, writable=True)


def position(frame, capacity=100):
    return HEADER_BYTES + int(frame) % capacity * ROW_BYTES


def damage(folder, *places):
    content = bytearray((folder / "replay.bin").read_bytes())
    for place in places:
        content[place] ^= 0x40
    (folder / "replay.bin").write_bytes(content)


@pytest.fixture(params=[40, 130])
def frames(request):
    return request.param


def test_it_is_read_and_sampled(tmp_path, frames):
    buffer = of_format_1(tmp_path, frames)
    assert (buffer.frames, buffer.size) == (frames, min(frames, 100))
    assert live_values(buffer) == list(range(max(0, frames - 100), frames))
    drawn = values_of(buffer.sample(900, 1000, np.random.default_rng(0)))
    assert set(drawn) == set(range(buffer.oldest, frames))
    drawn = values_of(buffer.sample(900, 5, np.random.default_rng(0), end=35))
    assert set(drawn) == set(range(30, 35))


def test_it_says_of_no_row_where_it_comes_from(tmp_path, frames):
    buffer = of_format_1(tmp_path, frames)
    assert not buffer.has_origins
    with pytest.raises(ValueError, match="rows of format 1 do not say it"):
        buffer.origins(frames - 1, 1)
    assert buffer.step_boundary(frames - 3) == frames - 3


def test_it_is_appended_to_as_it_is(tmp_path, frames):
    buffer = of_format_1(tmp_path, frames)
    size = (tmp_path / "replay.bin").stat().st_size
    origin = Origin(*np.ones((5, 3), int))
    for start in range(frames, frames + 30, 3):
        assert buffer.append(rows(np.arange(start, start + 3)), origin=origin)
    assert (tmp_path / "replay.bin").stat().st_size == size
    again = ReplayBuffer.open(tmp_path, writable=True)
    assert not again.has_origins
    assert again.recover() == 0
    assert live_values(again) == list(range(max(0, frames - 70), frames + 30))


def test_it_counts_turns_and_refuses_an_append_out_of_turn(tmp_path, frames):
    buffer = of_format_1(tmp_path, frames)
    assert buffer.turn == 0
    for turn in range(3):
        assert not buffer.append(rows([0]), turn=turn + 1)
        assert buffer.append(rows([frames + turn]), turn=turn)
    again = ReplayBuffer.open(tmp_path, writable=True)
    again.settle_turn()
    assert again.recover() == 0
    assert again.turn == 3


def test_recover_drops_no_more_than_the_bad_rows(tmp_path, frames):
    buffer = of_format_1(tmp_path, frames)
    oldest = buffer.oldest
    buffer.close()
    damage(tmp_path, position(frames - 7))
    buffer = ReplayBuffer.open(tmp_path, writable=True)
    assert buffer.recover() == 7
    assert live_values(buffer) == list(range(oldest, frames - 7))
    assert buffer.append(rows([frames - 7]))
    assert live_values(buffer)[-1] == frames - 7


def test_a_copy_is_of_format_1_too(tmp_path, frames):
    buffer = of_format_1(tmp_path / "a", frames)
    buffer.append(rows([frames]))
    buffer.copy_to(tmp_path / "whole")
    buffer.copy_to(tmp_path / "part", frames=frames - 2)
    for name, end, turn in (("whole", frames + 1, 1), ("part", frames - 2, 0)):
        copy = ReplayBuffer.open(tmp_path / name, writable=True)
        assert not copy.has_origins
        assert copy.turn == turn
        assert copy.recover() == 0
        assert live_values(copy) == list(range(buffer.oldest, end))
        assert copy.append(rows([end]))
        assert copy.digest(end, end + 1) == copy.digest(end, end + 1)


@pytest.mark.parametrize("configured", [100, 250])
def test_salvage_finds_its_rows_whatever_the_capacity_is_now(
    tmp_path, frames, configured
):
    of_format_1(tmp_path, frames).close()
    damage(tmp_path, 0, 12, 30)
    kept, aside = salvage(tmp_path, *SIZES, configured)
    assert kept == min(frames, 100)
    assert aside.exists()
    buffer = ReplayBuffer.open(tmp_path, writable=True)
    assert not buffer.has_origins
    assert (buffer.capacity, buffer.turn) == (100, 0)
    assert buffer.recover() == 0
    assert live_values(buffer) == list(range(max(0, frames - 100), frames))
    assert buffer.append(rows([frames]))


def test_salvage_of_the_present_format_is_of_that_format(tmp_path, frames):
    buffer = ReplayBuffer.create(tmp_path, *SIZES, 100)
    for start in range(0, frames, 10):
        buffer.append(rows(np.arange(start, start + 10)), turn=start // 10)
    buffer.close()
    damage(tmp_path, 0, 12, 30)
    for configured in (100, 250):
        kept, _ = salvage(tmp_path, *SIZES, configured)
        assert kept == min(frames, 100)
        buffer = ReplayBuffer.open(tmp_path, writable=True)
        assert buffer.has_origins
        assert buffer.recover() == 0
        assert buffer.turn == frames // 10
        assert live_values(buffer) == list(range(max(0, frames - 100), frames))


def test_a_version_of_the_future_is_refused(tmp_path):
    layout = Layout(*SIZES, 100, version=3)
    content = layout.header(0, 0) + bytes(layout.file_bytes - HEADER_BYTES)
    (tmp_path / "replay.bin").write_bytes(content)
    with pytest.raises(replay.UserError, match=r"version 3; .* reads versions 1 to 2"):
        ReplayBuffer.open(tmp_path)
