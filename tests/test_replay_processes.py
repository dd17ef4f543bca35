"""The replay buffer of several processes, some of which are killed."""

import math
import multiprocessing
import os
import signal
from itertools import count

import numpy as np
import portalocker
import pytest
from support_replay import (
    PATIENCE,
    ROW_BYTES,
    filled,
    finish,
    live_values,
    new,
    row_position,
    rows,
    values_of,
)

from steve import replay
from steve.batch import fields
from steve.replay import ReplayBuffer
from steve.replay_file import HEADER_BYTES, INTENT

SPAWN = multiprocessing.get_context("spawn")


# Several processes


def write_until(folder, writer, stop):
    """Appends 1 to 6 consistent rows at a time; values rise from writer * 10**6."""
    with ReplayBuffer.open(folder, writable=True) as buffer:
        rng = np.random.default_rng(writer)
        value = writer * 10**6
        while not stop.is_set():
            n = int(rng.integers(1, 7))
            buffer.append(rows(value + np.arange(n), buffer.obs_dim))
            value += n


def test_no_sample_is_torn_while_the_ring_wraps(tmp_path):
    # Rows larger than a page, so that a copy takes long enough to be overtaken.
    buffer = new(tmp_path, capacity=40, obs_dim=1000)
    buffer.append(rows(np.arange(10), 1000))
    reader = ReplayBuffer.open(tmp_path)
    stop = SPAWN.Event()
    writers = [
        SPAWN.Process(target=write_until, args=(tmp_path, writer, stop))
        for writer in (1, 2)
    ]
    for writer in writers:
        writer.start()
    rng, redraws = np.random.default_rng(0), 0
    draw = reader._draw

    def counting_draw(*arguments):
        nonlocal redraws
        drawn, whole = draw(*arguments)
        redraws += not whole.all()
        return drawn, whole

    reader._draw = counting_draw
    try:
        for _ in range(3000):
            values = values_of(reader.sample(16, 40, rng))
            assert ((values % 10**6) < reader.frames).all()
        for batches in count():  # and on, until the races really occurred
            if reader.frames > 50 * 40 and redraws >= 20:
                break
            assert batches < 100_000
            values_of(reader.sample(16, 40, rng))
    finally:
        stop.set()
        finish(*writers)


def write_some(folder, writer, appends, start):
    with ReplayBuffer.open(folder, writable=True) as buffer:
        rng = np.random.default_rng(writer)
        value = writer * 10**6
        start.wait(PATIENCE)
        for _ in range(appends):
            n = int(rng.integers(1, 7))
            assert buffer.append(rows(value + np.arange(n)))
            value += n


def test_four_writers_lose_double_and_reorder_nothing(tmp_path):
    buffer = new(tmp_path, capacity=20_000)
    start = SPAWN.Barrier(4)
    writers = [
        SPAWN.Process(target=write_some, args=(tmp_path, writer, 1000, start))
        for writer in range(4)
    ]
    for writer in writers:
        writer.start()
    finish(*writers)
    values = values_of(buffer.read(0, buffer.frames))
    total = 0
    for writer in range(4):
        own = values[values // 10**6 == writer] % 10**6
        appended = np.random.default_rng(writer).integers(1, 7, size=1000).sum()
        np.testing.assert_array_equal(own, np.arange(appended))
        total += appended
    assert buffer.frames == total
    assert buffer.recover() == 0


def write_to_limit(folder, limit, start):
    with ReplayBuffer.open(folder, writable=True) as buffer:
        start.wait(PATIENCE)
        while buffer.append(rows(np.arange(7)), limit):
            assert buffer.frames <= limit


def test_writers_together_keep_the_frame_limit(tmp_path):
    buffer = new(tmp_path)
    start = SPAWN.Barrier(2)
    writers = [
        SPAWN.Process(target=write_to_limit, args=(tmp_path, 2000, start))
        for _ in range(2)
    ]
    for writer in writers:
        writer.start()
    finish(*writers)
    assert buffer.frames == 2000 // 7 * 7


# Kills


def append_and_die(folder, acknowledged, survives, chance):
    """Appends rows that count on, acknowledging each, until a write kills it.

    The fatal call of pwrite is the one after `survives` others; it writes the part
    `chance` of its bytes first, of the counters whole words.
    """
    pwrite = os.pwrite
    calls = count()

    def deadly_pwrite(descriptor, data, offset):
        if next(calls) < survives:
            return pwrite(descriptor, data, offset)
        cut = int(chance * len(data))
        if offset < HEADER_BYTES:
            cut -= cut % 8  # no copy of memory tears an aligned word
        pwrite(descriptor, data[:cut], offset)
        os.kill(os.getpid(), signal.SIGKILL)

    os.pwrite = deadly_pwrite
    with ReplayBuffer.open(folder, writable=True) as buffer:
        value = buffer.frames
        while True:
            buffer.append(rows(value + np.arange(5)))
            value += 5
            os.write(acknowledged, b"+" * 5)


def append_forever(folder, acknowledged):
    append_and_die(folder, acknowledged, math.inf, 0)


def forked(target, *arguments):
    """Runs `target` in a fork; returns its process number."""
    child = os.fork()
    if child == 0:
        try:
            target(*arguments)
        finally:
            os._exit(1)
    return child


def kill_often(folder, times):
    """Checks after each of several kills that no acknowledged row is missing."""
    rng = np.random.default_rng(0)
    with ReplayBuffer.open(folder) as buffer:
        for round_ in range(times):
            before = buffer.frames
            receiving, sending = os.pipe()
            if round_ % 2:  # at a chosen place in a write
                survives, chance = int(rng.integers(0, 30)), rng.random()
                child = forked(append_and_die, folder, sending, survives, chance)
            else:  # anywhere
                child = forked(append_forever, folder, sending)
            os.close(sending)
            acknowledged = 0
            while received := os.read(receiving, 5):
                acknowledged += len(received)
                if acknowledged > 100:
                    os.kill(child, signal.SIGKILL)
            os.close(receiving)
            _, status = os.waitpid(child, 0)
            assert os.WTERMSIG(status) == signal.SIGKILL
            # The last append may have been stored but not yet acknowledged.
            assert buffer.frames - before - acknowledged in (0, 5)
            kept = range(buffer.oldest, buffer.frames)
            assert len(kept) >= min(buffer.frames, buffer.capacity) - 5
            assert live_values(buffer) == list(kept)
            values_of(buffer.sample(100, 1000, rng))
    with ReplayBuffer.open(folder, writable=True) as buffer:
        assert buffer.recover() == 0


@pytest.mark.parametrize("capacity", [10_000, 64])
def test_a_killed_writer_loses_no_acknowledged_row(tmp_path, capacity):
    new(tmp_path, capacity=capacity).close()
    process = SPAWN.Process(target=kill_often, args=(tmp_path, 20))
    process.start()
    finish(process)


def test_after_a_killed_append_a_smaller_one_brings_no_dead_row_back(tmp_path):
    # Capacity 100, 130 frames; the killed append of 10 has overwritten frames
    # 30 .. 39 in part. After one of 2, frames 32 .. 39 are still dead.
    buffer = filled(tmp_path, 130, capacity=100)
    buffer._counters.store({INTENT: 140})
    torn = np.full(8 * ROW_BYTES, 0xFF, np.uint8)
    os.pwrite(buffer._file.fileno(), torn, row_position(132))
    buffer.append(rows([130, 131]))
    assert live_values(buffer) == list(range(40, 132))
    drawn = values_of(buffer.sample(5000, 1000, np.random.default_rng(0)))
    assert set(drawn) == set(range(40, 132))
    assert buffer.recover() == 0
    buffer.append(rows(np.arange(132, 145)))
    assert live_values(buffer) == list(range(45, 145))


def test_torn_rows_are_drawn_again_in_each_batch_of_a_pass(tmp_path):
    buffer = filled(tmp_path, 20)
    for frame in range(10):
        os.pwrite(buffer._file.fileno(), b"\xff" * ROW_BYTES, row_position(frame))
    draws = [replay.Draw(np.random.default_rng(k), None) for k in range(3)]
    for k, found in enumerate(buffer.sample_rows(50, 1000, draws)):
        drawn = values_of(fields(found, buffer.obs_dim, buffer.action_dim))
        assert set(drawn) == set(range(10, 20))
        alone = buffer.sample(50, 1000, np.random.default_rng(k))
        np.testing.assert_array_equal(drawn, values_of(alone))


def hold_lock(folder, holding):
    with ReplayBuffer.open(folder, writable=True) as buffer, buffer._locked():
        holding.set()
        signal.pause()


def append_one(folder):
    with ReplayBuffer.open(folder, writable=True) as buffer:
        assert buffer.append(rows([10]))


def test_a_killed_lock_holder_blocks_nobody(tmp_path):
    buffer = filled(tmp_path, 10)
    holding = SPAWN.Event()
    holder = SPAWN.Process(target=hold_lock, args=(tmp_path, holding))
    holder.start()
    assert holding.wait(PATIENCE)
    with open(tmp_path / "replay.lock", "ab") as file:
        flags = portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING
        with pytest.raises(portalocker.AlreadyLocked):
            portalocker.lock(file, flags)
    assert buffer.frames == 10  # readers do not wait
    buffer.sample(5, 10, np.random.default_rng(0))
    holder.kill()
    holder.join(PATIENCE)
    writer = SPAWN.Process(target=append_one, args=(tmp_path,))
    writer.start()
    finish(writer)
    assert live_values(buffer) == list(range(11))
