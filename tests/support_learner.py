"""What the tests of the learners need: a learner with one weight, runs, and questions.

The learners run in this process, with tiny nets. A learner asks `stop` before each
update and while it waits: through that a test sees it, feeds it frames and ends it.
"""

import csv

import numpy as np
import pytest
import tensorflow as tf
from support import append_frames, open_run

from steve import nn
from steve.learner import Learner
from steve.running.child import Context
from steve.settings.roles import VALUERL
from steve.settings.seeds import Stream
from steve.storage import checkpoint

BEFORE = 4  # frames_before_learning
PACE = {
    "batch_size": 4,
    "replay_size": 1000,
    "frames_before_learning": BEFORE,
    "frames_per_update": False,
    "epoch_every_n": 3,
    "log_every_n": 2,
}
TINY = {"hidden_dim": 4, "layers": 2}
TINY_MODEL = {
    "transition_hidden_dim": 4,
    "aux_hidden_dim": 4,
    "transition_layers": 2,
    "aux_layers": 2,
}


class Killed(BaseException):
    """Ends a learner where it stands, as SIGKILL does."""


class Script:
    """A `stop` whose answers a test writes: `over` is asked until it says yes."""

    def __init__(self):
        self.over = lambda: False
        self.asked = 0
        self._stopped = False

    def __call__(self):
        self.asked += 1
        assert self.asked < 2_000, "it does not end"
        self._stopped = self._stopped or self.over()
        return self._stopped


class FakeLearner(Learner):
    """Has one weight; its metrics are the update's number and what it was given."""

    name = VALUERL
    batch_stream = Stream.VALUERL_BATCH

    def __init__(self, context, metric_names=("number", "oldest")):
        settings = context.run.config.policy_config
        super().__init__(context, settings, metric_names)
        self.weight = tf.Variable([float(context.seed)])
        self.optimizer = nn.Adam([self.weight], 0.1)
        self.number = tf.Variable(0.0)
        self.bad_metric_at = tf.Variable(-1.0)  # the update's number
        self.bad_weight_at = tf.Variable(-1.0)
        self.events = []

    def variables(self):
        return {"weight": self.weight, "number": self.number} | nn.prefixed(
            {"adam": self.optimizer.named_variables()}
        )

    def train_step(self, batch):
        number = self.number.assign_add(1.0)
        bad = tf.constant(np.nan)
        gradient = tf.where(number == self.bad_weight_at, bad, number)
        self.optimizer.apply([gradient[None]])
        return {
            "number": tf.where(number == self.bad_metric_at, bad, number),
            "oldest": tf.reduce_min(batch.reward),
        }

    def start(self):
        if not self.wait_for_frames():
            return False
        self.start_clock()
        self.publish_epoch()
        return True

    def begin_epoch(self):
        self.events.append(("begin", self.epoch, self.updates))
        return True

    def publish(self):
        state = checkpoint.load(self.folders.state(self.name)).metadata
        assert (state["epoch"], state["updates"]) == (self.epoch, self.updates)
        self.events.append(("publish", self.epoch, self.updates))


def open_fake(tmp_path, frames=BEFORE + 1, policy_config=None, **keys):
    """A run for the FakeLearner that has enough frames, and its replay buffer."""
    keys["policy_config"] = PACE | (policy_config or {})
    run, board, replay = open_run(tmp_path, **keys)
    append_frames(replay, frames)
    return run, board, replay


def open_model(tmp_path, model_config=None, frames=BEFORE + 1, **keys):
    """A run with a world model, whose learners need no more frames."""
    keys.setdefault("policy_config", PACE | TINY)
    model_config = PACE | TINY_MODEL | {"pretrain_n": False} | (model_config or {})
    run, board, replay = open_run(tmp_path, model_config=model_config, **keys)
    append_frames(replay, frames)
    return run, board, replay


def build(run, board, kind=FakeLearner, seed=0):
    return kind(Context(run, kind.name, seed, board, Script()))


def drive(learner, over=lambda: False):
    """Runs a learner until `over()`; it is asked as `stop` is."""
    learner.context.stop.over = over
    learner.run()


def train(learner, updates):
    """Runs a learner and stops it after so many updates of all launches."""
    drive(learner, lambda: learner.updates >= updates)


def kill(learner, when):
    """Runs a learner and kills it at the first question at which `when()` holds."""

    def over():
        if when():
            raise Killed
        return False

    with pytest.raises(Killed):
        drive(learner, over)


def kill_at(learner, updates):
    kill(learner, lambda: learner.updates >= updates)


class Feeder:
    """Says how many updates were done whenever the learner waits; gives it a frame."""

    def __init__(self, learner, replay, rounds):
        self._learner, self._replay, self._rounds = learner, replay, rounds
        self._updates = None  # at the last question, if no frame came since
        self.waited_at = []  # updates

    def __call__(self):
        if self._learner.updates != self._updates:
            self._updates = self._learner.updates
            return False
        self.waited_at.append(self._updates)
        self._updates = None
        append_frames(self._replay, 1)
        return len(self.waited_at) == self._rounds


def traces_of(learner):
    return learner.updater.call.experimental_get_tracing_count()


def state_of(learner):
    return checkpoint.load(learner.folders.state(learner.name))


def log_of(learner):
    path = learner.folders.learner_log(learner.name)
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def column(learner, name):
    return [float(row[name]) for row in log_of(learner)]


def values_of(variables):
    return {name: variable.numpy() for name, variable in variables.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def assert_unequal(found, expected):
    assert any(not np.array_equal(found[name], expected[name]) for name in expected)


def numbered(run):
    names = run.folders.checkpoints.glob(f"{VALUERL}-*.safetensors")
    return sorted(int(path.stem.partition("-")[2]) for path in names)


def damage(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
