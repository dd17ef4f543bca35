"""Transitions that follow from one integer each, and replay buffers full of them."""

import numpy as np

from steve.replay import Batch, ReplayBuffer
from steve.replay_file import HEADER_BYTES, Origin

OBS_DIM, ACTION_DIM = 5, 2
ROW_BYTES = 4 * (2 * OBS_DIM + ACTION_DIM + 2 + 6 + 3)
PATIENCE = 30  # seconds until a test gives a process up


def rows(values, obs_dim=OBS_DIM):
    """Transitions that each follow from one integer < 2**22: exact in float32."""
    values = np.asarray(values, np.float64)
    return Batch(
        obs=values[:, None] + np.arange(obs_dim),
        action=values[:, None] / 2 + np.arange(ACTION_DIM),
        reward=-values,
        next_obs=values[:, None] + np.arange(obs_dim) + 0.5,
        terminated=values % 2,
    )


def values_of(batch):
    """The integers a batch was made from, once all its floats agree on them."""
    values = -batch.reward.astype(np.float64)
    expected = rows(values, batch.obs.shape[1])
    for name, field in zip(Batch._fields, batch, strict=True):
        np.testing.assert_array_equal(field, getattr(expected, name), err_msg=name)
    return values.astype(int)


def new(folder, capacity=100, obs_dim=OBS_DIM):
    return ReplayBuffer.create(folder, obs_dim, ACTION_DIM, capacity)


def filled(folder, frames, capacity=100):
    """Frames appended in vector steps of ten; the last one is what remains."""
    buffer = new(folder, capacity)
    for start in range(0, frames, 10):
        assert buffer.append(rows(np.arange(start, min(start + 10, frames))))
    return buffer


def append_episodes(buffer, envs, steps, length=None):
    """Vector steps of some environments, whose episodes are cut after `length` steps.

    By default the episodes are as long as the run. A reward is the frame's number.
    """
    length = length or steps
    for turn in range(steps):
        number = np.arange(buffer.frames, buffer.frames + envs, dtype=np.float32)
        obs = np.zeros((envs, buffer.obs_dim), np.float32)
        action = np.zeros((envs, buffer.action_dim), np.float32)
        same = np.ones(envs, int)
        step = turn % length
        origin = Origin(
            np.arange(envs),
            turn // length * same,
            step * same,
            (step == length - 1) * same,
            0 * same,
        )
        over = np.zeros(envs, np.float32)
        batch = Batch(obs, action, number, obs, over)
        assert buffer.append(batch, origin=origin)


def live_values(buffer):
    return values_of(buffer.read(buffer.oldest, buffer.size)).tolist()


def row_position(frame, capacity=100):
    return HEADER_BYTES + frame % capacity * ROW_BYTES


def finish(*processes):
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
