"""What several tests of an experiment's folder need: its content, and what is said."""

import numpy as np
import support_env

from steve.replay import Batch, ReplayBuffer
from steve.storage import checkpoint
from steve.storage.folders import Run
from steve.storage.opening import open_output
from steve.storage.record import write_json

SIZES = (support_env.OBS_DIM, support_env.ACTION_DIM)
MERGED = {
    "seed": 0,
    "total_frames": 100,
    "env": {"name": "Counting-v0", "discount": 0.99},
    "policy_config": {"batch_size": 512, "log_every_n": 500},
    "agent_config": {"count": 1, "batch_size": 8},
}


def open_now(folders, config):
    """`open_output` as a launch calls it."""
    run = Run(config, folders, *SIZES, launch=0, cpu_learners=True)
    return open_output(run, config.model_dump(mode="json", by_alias=True))


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def transitions(count, first=0):
    values = np.arange(first, first + count, dtype=np.float32)
    return Batch(
        obs=values[:, None] + np.zeros(SIZES[0], np.float32),
        action=np.zeros((count, SIZES[1]), np.float32),
        reward=values,
        next_obs=values[:, None] + np.ones(SIZES[0], np.float32),
        terminated=np.zeros(count, np.float32),
    )


def rewards_in(folder):
    with ReplayBuffer.open(folder) as replay:
        first = replay.oldest
        return replay.read(first, replay.frames - first).reward.tolist()


def save_state(folders, learner, updates, epoch, frames, numbered=True):
    path = folders.state(learner)
    if numbered:
        path = folders.numbered_state(learner, updates)
    tensors = {f"{learner}/w": np.full((2, 3), updates, np.float32)}
    metadata = {"updates": updates, "epoch": epoch, "frames": frames, "hours": 0.5}
    checkpoint.publish(path, tensors, metadata)


def write_rows(path, columns, rows):
    lines = [columns, *rows]
    path.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))


def rows_of(path):
    return [line.split(",") for line in path.read_text().splitlines()]


def former_run(folders, capacity=1000, learners=("valuerl", "worldmodel")):
    """Output of 300 updates and 90 frames; numbered checkpoints at 100 and 200."""
    folders.checkpoints.mkdir(parents=True)
    folders.log.mkdir()
    with ReplayBuffer.create(folders.replay, *SIZES, capacity) as replay:
        for first in range(0, 90, 10):
            replay.append(transitions(10, first))
    for learner in learners:
        lead = 2 if learner == "worldmodel" else 0
        save_state(folders, learner, 100, 5, 30 + lead)
        save_state(folders, learner, 200, 9, 60 + lead)
        save_state(folders, learner, 300, 13, 90, numbered=False)
        rows = [(u / 1000, u // 25, u) for u in (50, 100, 150, 200, 250)]
        write_rows(folders.learner_log(learner), ("hours", "epoch", "updates"), rows)
    rows = [(e / 10, e, 10 * e, -e) for e in (1, 1, 4, 5, 5, 6, 9, 12)]
    write_rows(folders.scores, ("hours", "epochs", "frames", "score"), rows)
    write_json(folders.hyperparameters, MERGED)
    write_json(folders.run, {"experiment": "first", "starts": [{}], "finished": {}})


def save_policy(folders, updates):
    tensors = {"policy/w0": np.ones((3, 1), np.float32)}
    checkpoint.publish(folders.policy, tensors, {"updates": updates, "epoch": 4})


def learned(folders, config, value=1000, model=1000):
    """The folder of a run in its fourth epoch, without what was published."""
    open_now(folders, config)
    save_state(folders, "valuerl", value, 4, 350, numbered=False)
    save_state(folders, "worldmodel", model, 4, 350, numbered=False)
