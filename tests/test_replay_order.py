"""Where the rows of the replay buffer come from: origins, vector steps, digests."""

import hashlib
import os

import numpy as np
import pytest
from support_replay import (
    ROW_BYTES,
    filled,
    live_values,
    new,
    row_position,
    rows,
    values_of,
)

from steve.replay import ReplayBuffer
from steve.replay_file import TURN, Origin

SIZE = 4  # environments of the vector steps below


def origin_of(turn, size=SIZE):
    """Of a vector step: environment i in episode turn // 3, cut at its end."""
    env = np.arange(size) + 10
    step = np.full(size, turn % 3)
    return Origin(env, np.full(size, turn // 3), step, step == 2, np.zeros(size))


def take_step(buffer, turn=None, size=SIZE):
    number = buffer.turn if turn is None else turn
    values = np.arange(buffer.frames, buffer.frames + size)
    return buffer.append(rows(values), origin=origin_of(number, size), turn=turn)


def stepped(folder, steps, capacity=100):
    buffer = new(folder, capacity)
    for turn in range(steps):
        assert take_step(buffer, turn)
    return buffer


def reopened(buffer):
    folder = buffer._path.parent
    buffer.close()
    return ReplayBuffer.open(folder, writable=True)


def damage(buffer, *frames):
    with open(buffer._path, "r+b") as file:
        for frame in frames:
            file.seek(row_position(frame, buffer.capacity) + 3)
            file.write(b"\x55")


def as_before_the_count(buffer):
    """A writer is killed when its rows count and before its vector step does."""
    buffer._counters.store({TURN: buffer.turn - 1})


# Origins


@pytest.mark.parametrize("capacity", [100, 10])
def test_rows_say_where_they_come_from(tmp_path, capacity):
    buffer = stepped(tmp_path, 7, capacity)
    first, count = buffer.oldest, buffer.size
    for view in (buffer, ReplayBuffer.open(tmp_path)):
        found = view.origins(first, count)
        frames = np.arange(first, first + count)
        np.testing.assert_array_equal(found.env, frames % SIZE + 10)
        np.testing.assert_array_equal(found.turn, frames // SIZE)
        np.testing.assert_array_equal(found.episode, frames // SIZE // 3)
        np.testing.assert_array_equal(found.step, frames // SIZE % 3)
        np.testing.assert_array_equal(found.truncated, frames // SIZE % 3 == 2)
        assert view.has_origins
    assert live_values(buffer) == list(range(first, first + count))


def test_rows_appended_without_an_origin_are_zero_but_for_their_turn(tmp_path):
    buffer = stepped(tmp_path, 2)
    buffer.append(rows([8, 9]))
    assert [part.tolist() for part in buffer.origins(8, 2)] == [[0, 0]] * 4 + [[2, 2]]


def test_numbers_beyond_32_bits_of_turns_are_kept(tmp_path):
    buffer = new(tmp_path)
    buffer._counters.store({TURN: 2**40})
    assert take_step(buffer, 2**40)
    assert set(buffer.origins(0, SIZE).turn) == {2**40}
    assert buffer.turn == 2**40 + 1


# Turns


def test_every_append_is_a_turn_whether_or_not_it_names_one(tmp_path):
    buffer = new(tmp_path)
    for turn in range(6):
        assert buffer.turn == turn
        assert take_step(buffer, turn if turn % 2 else None)
    assert ReplayBuffer.open(tmp_path).turn == 6


def test_a_vector_step_whose_rows_were_all_lost_is_a_turn_too(tmp_path):
    buffer = stepped(tmp_path, 2)
    assert buffer.append(rows([]), turn=2)
    assert (buffer.frames, buffer.turn) == (2 * SIZE, 3)
    buffer = reopened(buffer)
    assert buffer.recover() == 0
    buffer.settle_turn()
    assert buffer.turn == 3


@pytest.mark.parametrize("turn", [0, 2, 4, 100])
def test_an_append_out_of_turn_stores_nothing(tmp_path, turn):
    buffer = stepped(tmp_path, 3)
    before = (tmp_path / "replay.bin").read_bytes()
    if turn != 3:
        assert not buffer.append(rows([7, 8]), turn=turn)
    assert (buffer.frames, buffer.turn) == (3 * SIZE, 3)
    assert (tmp_path / "replay.bin").read_bytes() == before
    assert take_step(buffer, 3)


def test_a_frame_limit_keeps_the_turn(tmp_path):
    buffer = stepped(tmp_path, 3)
    assert not buffer.append(rows([1]), frame_limit=12, turn=3)
    assert buffer.turn == 3
    assert buffer.append(rows([1]), frame_limit=13, turn=3)
    assert buffer.turn == 4


@pytest.mark.parametrize("mend", ["settle_turn", "recover"])
def test_the_step_of_a_writer_that_was_killed_before_it_counted_is_counted(
    tmp_path, mend
):
    buffer = stepped(tmp_path, 3)
    as_before_the_count(buffer)
    buffer = reopened(buffer)
    assert (buffer.frames, buffer.turn) == (3 * SIZE, 2)
    getattr(buffer, mend)()
    assert (buffer.frames, buffer.turn) == (3 * SIZE, 3)
    getattr(buffer, mend)()
    assert buffer.turn == 3
    assert not take_step(buffer, 2)  # it is not done a second time
    assert take_step(buffer, 3)
    np.testing.assert_array_equal(
        buffer.origins(0, 16).turn, np.repeat(np.arange(4), 4)
    )


def test_a_failing_write_does_not_use_up_the_turn(tmp_path, monkeypatch):
    buffer = stepped(tmp_path, 3)

    def failing(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", failing)
        with pytest.raises(OSError, match="No space left"):
            take_step(buffer, 3)
    assert buffer.turn == 3
    buffer = reopened(buffer)
    buffer.settle_turn()
    assert buffer.turn == 3
    assert take_step(buffer, 3)


def test_settling_an_empty_buffer_changes_nothing(tmp_path):
    buffer = new(tmp_path)
    buffer.settle_turn()
    assert buffer.turn == 0


# Whole vector steps


@pytest.mark.parametrize(
    ("frame", "left"),
    [(23, 5), (20, 4), (19, 4), (17, 4), (16, 3), (12, 2)],
    # 24 frames in steps of 4: the step with the first bad row goes, and the one before
    # it where the bad row is its neighbour, since it cannot be seen that it is whole.
)
def test_after_damage_at_the_end_recover_goes_back_by_whole_vector_steps(
    tmp_path, frame, left
):
    buffer = stepped(tmp_path, 6)
    damage(buffer, *range(frame, 24))
    buffer = reopened(buffer)
    assert buffer.recover() == 24 - left * SIZE
    assert (buffer.frames, buffer.turn) == (left * SIZE, left)
    assert live_values(buffer) == list(range(left * SIZE))
    for turn in range(left, 6):  # the same steps once more
        assert take_step(buffer, turn)
    assert buffer.recover() == 0
    np.testing.assert_array_equal(
        buffer.origins(0, 24).turn, np.repeat(np.arange(6), 4)
    )


def test_damage_at_the_beginning_costs_no_vector_step_at_the_end(tmp_path):
    buffer = stepped(tmp_path, 6)
    damage(buffer, 0, 5)
    buffer = reopened(buffer)
    assert buffer.recover() == 6
    assert (buffer.oldest, buffer.frames, buffer.turn) == (6, 24, 6)


def test_recover_never_lowers_the_turn_of_a_whole_buffer(tmp_path):
    buffer = stepped(tmp_path, 3)
    buffer.append(rows([]), turn=3)
    buffer = reopened(buffer)
    assert buffer.recover() == 0
    assert buffer.turn == 4


def test_where_all_is_damaged_the_turns_begin_again(tmp_path):
    buffer = stepped(tmp_path, 3)
    damage(buffer, *range(12))
    buffer = reopened(buffer)
    assert buffer.recover() == 12
    assert (buffer.frames, buffer.turn) == (0, 0)
    assert take_step(buffer, 0)


def test_the_step_boundary_is_the_end_of_the_last_whole_step(tmp_path):
    buffer = stepped(tmp_path, 4)
    buffer.append(rows([16]), turn=4)  # three of its rows are lost
    take_step(buffer, 5)
    found = [buffer.step_boundary(frames) for frames in range(22)]
    assert found == [
        *(0, 0, 0, 0),
        *(4, 4, 4, 4),
        *(8, 8, 8, 8),
        *(12, 12, 12, 12),
        *(16, 17, 17, 17, 17, 21),
    ]


def test_a_shorter_copy_has_the_turn_of_its_end(tmp_path):
    buffer = stepped(tmp_path, 6)
    buffer.copy_to(tmp_path / "whole")
    buffer.copy_to(tmp_path / "part", frames=12)
    buffer.copy_to(tmp_path / "empty", frames=0)
    for name, turn in (("whole", 6), ("part", 3), ("empty", 0)):
        copy = ReplayBuffer.open(tmp_path / name, writable=True)
        assert copy.turn == turn
        assert copy.recover() == 0
        assert take_step(copy, turn)
        assert copy.origins(copy.frames - 1, 1).turn[0] == turn


# Digests


def test_a_digest_is_that_of_the_rows_wherever_they_lie(tmp_path):
    small, large = (stepped(tmp_path / f"{n}", 7, n) for n in (10, 100))
    for first, end in ((18, 28), (20, 21), (19, 19), (18, 25)):
        content = (tmp_path / "100" / "replay.bin").read_bytes()
        expected = hashlib.sha256(
            b"".join(
                content[row_position(f, 100) : row_position(f, 100) + ROW_BYTES]
                for f in range(first, end)
            )
        ).hexdigest()
        assert small.digest(first, end) == large.digest(first, end) == expected
    assert large.digest(0, 4) != large.digest(4, 8)


def test_a_digest_differs_with_the_content_and_with_the_origin(tmp_path):
    digests = set()
    for name, values, turn in (("a", [1, 2], 0), ("b", [1, 3], 0), ("c", [1, 2], 1)):
        buffer = new(tmp_path / name)
        buffer.append(rows(values), origin=origin_of(3 * turn, 2))
        digests.add(buffer.digest(0, 2))
    assert len(digests) == 3


def test_a_digest_of_rows_that_are_gone_or_not_there_yet_is_an_error(tmp_path):
    buffer = stepped(tmp_path, 7, capacity=10)  # frames 18 .. 27
    for first, end in ((17, 20), (27, 29), (20, 19)):
        with pytest.raises(IndexError):
            buffer.digest(first, end)


# Batches of an update


@pytest.mark.parametrize(("end", "newest"), [(40, 10), (40, 1000), (1, 5), (90, 90)])
def test_a_draw_before_an_end_is_a_function_of_generator_and_end(tmp_path, end, newest):
    buffer, drawn = new(tmp_path), []
    for start in range(0, 100, 10):
        buffer.append(rows(np.arange(start, start + 10)))
        if buffer.frames >= end:
            rng = np.random.default_rng(8)
            drawn.append(values_of(buffer.sample(2000, newest, rng, end)))
            assert drawn[-1].min() >= max(0, end - newest)
            assert drawn[-1].max() < end
    assert len(drawn) > 1
    for values in drawn[1:]:
        np.testing.assert_array_equal(values, drawn[0])
    assert set(drawn[0]) == set(range(max(0, end - newest), end))
    assert not buffer.fell_short


def test_the_same_rows_are_drawn_in_a_ring_of_another_capacity(tmp_path):
    drawn = []
    for capacity, frames in ((30, 60), (100, 100), (41, 71)):
        buffer = filled(tmp_path / str(capacity), frames, capacity)
        rng = np.random.default_rng(8)
        drawn.append(values_of(buffer.sample(50, 20, rng, end=55)).tolist())
        assert not buffer.fell_short
    assert drawn[0] == drawn[1] == drawn[2]


def test_a_draw_without_an_end_is_of_all_that_is_there(tmp_path):
    buffer = filled(tmp_path, 60)
    drawn = values_of(buffer.sample(500, 10, np.random.default_rng(0)))
    assert set(drawn) == set(range(50, 60))
    assert not buffer.fell_short


def test_a_draw_from_rows_that_are_gone_says_so(tmp_path):
    buffer = filled(tmp_path, 130, capacity=100)  # frames 30 .. 129
    rng = np.random.default_rng(0)
    assert set(values_of(buffer.sample(999, 10, rng, end=40))) == set(range(30, 40))
    assert not buffer.fell_short
    drawn = values_of(buffer.sample(999, 20, rng, end=40))
    assert set(drawn) == set(range(30, 40))
    assert buffer.fell_short


def test_a_draw_without_an_end_never_falls_short(tmp_path):
    buffer = filled(tmp_path, 130, capacity=100)
    buffer.sample(10, 1000, np.random.default_rng(0))
    assert not buffer.fell_short


def test_a_draw_whose_rows_are_all_gone_takes_others_and_says_so(tmp_path):
    buffer = filled(tmp_path, 130, capacity=100)
    assert not buffer.fell_short
    buffer.sample(1, 10, np.random.default_rng(0), end=30)
    assert buffer.fell_short
