"""The learners: pacing, epochs, logs, hours, limits, states, and what they take up.

They run in this process, with tiny nets. A learner asks `stop` before each update and
while it waits: through that a test sees it, feeds it frames and ends it.
"""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import support_env
import tensorflow as tf
from support import append_frames, open_run, publish_policy, read_events

from steve import learner as learner_module
from steve import nn
from steve.learner import Learner, updates_per_call
from steve.replay import Batch, ReplayBuffer
from steve.running import progress
from steve.running.child import Context
from steve.settings.roles import VALUERL, WORLDMODEL
from steve.storage import checkpoint
from steve.storage.checkpoint import CheckpointError
from steve.util import RunError
from steve.valuerl_learner import ValueRLLearner
from steve.worldmodel import WorldModel
from steve.worldmodel_learner import WorldmodelLearner

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


class Clock:
    """A monotonic clock that stands still until a test moves it."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture(autouse=True)
def _nobody_sleeps(monkeypatch):
    def ask_on(condition):
        while not condition():
            pass

    monkeypatch.setattr(learner_module, "wait_until", ask_on)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(learner_module, "time", SimpleNamespace(monotonic=clock))
    return clock


class FakeLearner(Learner):
    """Has one weight; its metrics are the update's number and what it was given."""

    name = VALUERL
    metric_names = ("number", "oldest")

    def __init__(self, context):
        super().__init__(context, context.run.config.policy_config)
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


def traces_of(learner):
    return learner._updater.call.experimental_get_tracing_count()


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


def damage(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


# Pacing


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


@pytest.mark.parametrize(
    ("frames_per_update", "updates"),
    [
        # with 4, 5, 6 .. frames: the number of all u with frames > 4 + pace * u
        (4.0, [0, 1, 1, 1, 1, 2, 2, 2, 2, 3]),
        (2.5, [0, 1, 1, 2, 2, 2, 3, 3, 4, 4]),
        (1.0, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (0.25, [0, 4, 8, 12, 16, 20, 24, 28, 32, 36]),
    ],
)
def test_update_u_comes_as_soon_as_its_frames_are_there(
    tmp_path, frames_per_update, updates
):
    pace = {"frames_per_update": frames_per_update}
    run, board, replay = open_fake(tmp_path, BEFORE, pace)
    learner = build(run, board)
    feeder = Feeder(learner, replay, len(updates))
    drive(learner, feeder)
    assert feeder.waited_at == updates


@pytest.mark.parametrize("block", [2, 3, 4, 32])
def test_calls_of_several_updates_keep_the_pace(tmp_path, block):
    pace = {"frames_per_update": 0.25, "updates_per_call": block, "epoch_every_n": 1000}
    run, board, replay = open_fake(tmp_path, BEFORE, pace | {"log_every_n": 1000})
    learner = build(run, board)
    feeder = Feeder(learner, replay, 5)
    drive(learner, feeder)
    assert feeder.waited_at == [0, 4, 8, 12, 16]


def test_a_call_ends_where_a_log_line_an_epoch_or_a_backup_is_due(tmp_path):
    pace = {
        "updates_per_call": 4,
        "epoch_every_n": 6,
        "log_every_n": 5,
        "backup_every_n": 13,
    }
    run, board, _ = open_fake(tmp_path, policy_config=pace)
    learner = build(run, board)
    seen = []
    learn = learner.learn
    learner.learn = lambda count: seen.append((learner.updates, count)) or learn(count)
    drive(learner, lambda: learner.updates >= 18)
    assert seen == [
        *[(0, 4), (4, 1), (5, 1), (6, 4)],
        *[(10, 1), (11, 1), (12, 1), (13, 1), (14, 1), (15, 1), (16, 1), (17, 1)],
    ]
    assert column(learner, "updates") == [5, 10, 15]
    assert column(learner, "number") == [3, 8, 13]  # the means of 1..5, 6..10, 11..15
    assert [e[1:] for e in learner.events if e[0] == "publish"][:3] == [
        (1, 0),
        (2, 6),
        (3, 12),
    ]
    assert run.folders.numbered_state(VALUERL, 13).exists()


def test_the_pace_goes_on_after_a_restart(tmp_path):
    run, board, replay = open_fake(tmp_path, BEFORE + 5, {"frames_per_update": 1.0})
    train(build(run, board), 3)
    learner = build(run, board)
    feeder = Feeder(learner, replay, 3)
    drive(learner, feeder)
    assert feeder.waited_at == [5, 6, 7]


def test_without_pace_no_frames_are_awaited_but_the_first(tmp_path):
    run, board, replay = open_fake(tmp_path, BEFORE)
    learner = build(run, board)

    def over():
        if learner.context.stop.asked == 10:
            assert learner.epoch == 0
            append_frames(replay, 1)
        return learner.updates == 50

    drive(learner, over)
    assert replay.frames == BEFORE + 1


def test_a_batch_is_of_the_newest_replay_size_transitions(tmp_path):
    small = {"replay_size": 8, "log_every_n": 1}
    run, board, _ = open_fake(tmp_path, 100, small, model=True)
    assert run.config.replay_capacity > 100
    learner = build(run, board)
    train(learner, 50)
    assert min(column(learner, "oldest")) == 92


@pytest.mark.parametrize(
    ("on_cpu", "given", "pace", "expected"),
    [
        (True, None, 0.25, 1),
        (True, 4, 0.25, 4),
        (False, None, 0.25, 16),
        (False, None, 1.0, 8),
        (False, None, 20.0, 1),
        (False, None, False, 16),
        (False, 2, False, 2),
    ],
)
def test_a_gpu_gets_several_updates_in_a_call(tmp_path, on_cpu, given, pace, expected):
    keys = {"frames_per_update": pace, "updates_per_call": given}
    run, _, _ = open_fake(tmp_path, policy_config=keys)
    settings = run.config.policy_config
    found = updates_per_call(run.config, settings, on_cpu)
    assert found == expected


def test_the_graph_is_built_once_and_before_the_learner_counts_as_ready(tmp_path):
    run, board, replay = open_fake(tmp_path, BEFORE)
    learner = build(run, board)

    def over():
        assert board[VALUERL]["ready"]
        assert traces_of(learner) == 1
        append_frames(replay, 1)
        return learner.updates == 5

    assert not board[VALUERL]["ready"]
    drive(learner, over)


def test_a_heartbeat_comes_while_it_waits_and_while_it_learns(tmp_path, clock):
    run, board, replay = open_fake(tmp_path, BEFORE)
    learner = build(run, board)

    def over():
        assert board[VALUERL]["heartbeat"] == clock.now
        clock.now += 1
        if learner.context.stop.asked == 5:
            append_frames(replay, 1)
        return learner.updates == 5

    drive(learner, over)


# Epochs, log, hours


def test_an_epoch_begins_every_epoch_every_n_updates_and_is_saved_then_published(
    tmp_path,
):
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board)
    train(learner, 7)
    assert learner.events == [
        ("publish", 1, 0),
        ("begin", 1, 3),
        ("publish", 2, 3),
        ("begin", 2, 6),
        ("publish", 3, 6),
    ]
    assert (board[VALUERL]["epoch"], board[VALUERL]["updates"]) == (3, 7)


def test_a_log_line_has_the_means_since_the_last_one(tmp_path, clock):
    run, board, _ = open_fake(tmp_path, policy_config={"log_every_n": 4})
    learner = build(run, board)

    def over():
        clock.now += 0.5
        return learner.updates == 10

    drive(learner, over)
    assert list(log_of(learner)[0]) == [
        *("hours", "epoch", "updates", "frames", "updates_per_s", "number", "oldest")
    ]
    assert column(learner, "updates") == [4, 8]
    assert column(learner, "number") == [2.5, 6.5]  # of 1, 2, 3, 4 and 5, 6, 7, 8
    assert column(learner, "epoch") == [2, 3]
    assert column(learner, "frames") == [5, 5]
    assert column(learner, "updates_per_s") == [2, 2]
    assert column(learner, "hours") == pytest.approx([2 / 3600, 4 / 3600], abs=1e-6)
    assert board[VALUERL]["metrics"][0] == 6.5
    assert board[VALUERL]["updates_per_s"] == 2


def assert_events_are_the_log(learner, step):
    """Each value of each line is there, once, under the step that `step(line)` is."""
    events = read_events(learner.folders.events(learner.name))
    lines = log_of(learner)
    columns = [key for key in lines[0] if key not in ("updates", "pretrained")]
    assert set(events) == {f"{learner.name}/{column}" for column in columns}
    for column in columns:
        expected = [(step(line), np.float32(line[column])) for line in lines]
        assert events[f"{learner.name}/{column}"] == expected


def test_the_lines_of_the_log_are_events_each_once_also_after_a_kill(tmp_path):
    # Saved at 12; what was logged at 14, 16 and 18 was done in vain and is done again.
    pace = {"epoch_every_n": 12, "log_every_n": 2}
    run, board, _ = open_fake(tmp_path, policy_config=pace)
    killed = build(run, board)
    kill_at(killed, 18)
    assert_events_are_the_log(killed, lambda line: int(line["updates"]))
    assert column(killed, "updates")[-1] == 18
    learner = build(run, board)
    train(learner, 16)
    assert column(learner, "updates") == [2, 4, 6, 8, 10, 12, 14, 16]
    assert_events_are_the_log(learner, lambda line: int(line["updates"]))


def test_where_no_events_are_wanted_there_are_none(tmp_path):
    run, board, _ = open_fake(tmp_path, tensorboard=False)
    learner = build(run, board)
    train(learner, 5)
    assert column(learner, "updates") == [2, 4]
    assert not (run.folders.log / "events").exists()


def test_a_fault_of_the_events_is_said_once_and_the_run_goes_on(tmp_path, capsys):
    run, board, _ = open_fake(tmp_path)
    (run.folders.log / "events").write_text("in the way")
    learner = build(run, board)
    train(learner, 7)
    assert column(learner, "updates") == [2, 4, 6]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{run.folders.events(VALUERL)}: Not a directory; TensorBoard gets" in said


def test_means_are_over_the_interval_also_after_a_restart(tmp_path):
    run, board, _ = open_fake(tmp_path, policy_config={"log_every_n": 4})
    train(build(run, board), 6)
    learner = build(run, board)
    train(learner, 12)
    assert column(learner, "updates") == [4, 8, 12]
    # those of the second launch: 7, 8, then 9, 10, 11, 12
    assert column(learner, "number")[1:] == [7.5, 10.5]


def test_hours_are_those_of_learning_over_all_launches(tmp_path, clock):
    run, board, replay = open_fake(tmp_path, BEFORE)

    def launch(updates):
        learner = build(run, board)

        def over():
            clock.now += 10
            if learner.context.stop.asked == 4:
                append_frames(replay, 1)
            return learner.updates == updates

        drive(learner, over)
        return state_of(learner).metadata["hours"] * 3600

    # Four questions come before the start: no learning. Then one before each update
    # and the one that ends it.
    assert launch(6) == pytest.approx(70)
    clock.now += 1e6
    assert launch(8) == pytest.approx(100)
    assert board[VALUERL]["hours"] * 3600 == pytest.approx(100)


# The end


@pytest.mark.parametrize(
    ("epoch_every_n", "frames_per_update", "published"),
    [
        (3, 1.0, [(1, 0), (2, 3), (3, 4)]),
        (2, 1.0, [(1, 0), (2, 2), (3, 4)]),  # nothing is left to publish
        (6, 0.25, [(1, 0), (2, 6), (3, 12), (4, 16)]),
        (6, 4.0, [(1, 0), (2, 1)]),
    ],
)
def test_at_total_frames_all_updates_are_done_and_the_last_ones_are_published(
    tmp_path, epoch_every_n, frames_per_update, published
):
    pace = {"epoch_every_n": epoch_every_n, "frames_per_update": frames_per_update}
    run, board, _ = open_fake(tmp_path, BEFORE + 4, pace, total_frames=BEFORE + 4)
    learner = build(run, board)
    drive(learner)
    assert [event[1:] for event in learner.events if event[0] == "publish"] == published
    state = state_of(learner).metadata
    assert (state["epoch"], state["updates"]) == published[-1]


def test_without_pace_total_frames_end_it_at_once(tmp_path):
    run, board, replay = open_fake(tmp_path, total_frames=20)
    learner = build(run, board)

    def over():
        if learner.updates == 4 and replay.frames < 20:
            append_frames(replay, 20 - replay.frames)
        return False

    drive(learner, over)
    assert learner.events[-1] == ("publish", 3, 4)


def test_total_hours_end_it(tmp_path, clock):
    run, board, _ = open_fake(tmp_path, total_hours=45 / 3600)
    learner = build(run, board)

    def over():
        clock.now += 10
        return False

    drive(learner, over)
    assert learner.events[-1] == ("publish", 3, 5)  # 50 s: the first above 45


def test_the_value_learners_hours_end_the_world_model_learner(tmp_path):
    learner = build(*open_model(tmp_path, total_hours=1.0)[:2], WorldmodelLearner)

    def over():
        learner.context.board[VALUERL]["hours"] = 0.9 if learner.updates < 4 else 1.1
        return False

    drive(learner, over)
    state = state_of(learner).metadata
    assert (state["epoch"], state["updates"]) == (3, 4)


def test_a_limit_that_comes_before_the_first_epoch_ends_it(tmp_path, clock):
    run, board, _ = open_fake(tmp_path, frames=BEFORE, total_hours=1.0)
    board[VALUERL]["hours"] = 2.0

    class Idle(FakeLearner):
        def tick(self):
            """Leaves the board as it is."""

    learner = build(run, board, Idle)
    drive(learner)
    assert learner.events == []
    assert state_of(learner).metadata["epoch"] == 0


def test_a_stop_saves_the_state_and_is_no_epoch(tmp_path):
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board)
    train(learner, 5)
    assert learner.events[-1] == ("publish", 2, 3)
    state = state_of(learner)
    assert state.metadata["updates"] == 5
    assert state.metadata["published_updates"] == 3
    assert state.metadata["epoch"] == 2
    assert_same(state.tensors, values_of(learner.variables()))


def test_what_a_stop_left_unpublished_is_published_at_the_limit_of_the_next_launch(
    tmp_path,
):
    run, board, replay = open_fake(tmp_path, total_frames=20)
    train(build(run, board), 5)
    append_frames(replay, 15)
    learner = build(run, board)
    drive(learner)
    assert learner.events == [("publish", 3, 5)]
    again = build(run, board)
    drive(again)
    assert again.events == []


def test_a_stop_before_the_first_epoch_leaves_a_state_to_start_from(tmp_path):
    run, board, replay = open_fake(tmp_path, frames=0)
    learner = build(run, board)
    drive(learner, lambda: learner.context.stop.asked == 3)
    assert state_of(learner).metadata["epoch"] == 0
    append_frames(replay, BEFORE + 1)
    again = build(run, board)
    train(again, 1)
    assert again.events == [("publish", 1, 0)]


# States


def test_a_restore_gives_back_tensors_optimiser_and_counters(tmp_path, clock):
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board)

    def over():
        clock.now += 10
        return learner.updates == 4

    drive(learner, over)
    other = build(run, board, seed=7)
    assert_unequal(values_of(other.variables()), values_of(learner.variables()))
    other.restore()
    assert_same(values_of(other.variables()), values_of(learner.variables()))
    assert other.optimizer.named_variables()["m0"].numpy() != 0
    assert other.optimizer.named_variables()["steps"].numpy() == 4
    assert (other.updates, other.epoch) == (4, 2)
    assert other.seconds == pytest.approx(50)
    train(other, 6)
    assert other.events == [("begin", 2, 6), ("publish", 3, 6)]


def test_a_state_of_other_nets_is_not_taken_up(tmp_path):
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board)
    train(learner, 3)
    state = state_of(learner)
    more = {**state.tensors, "adam/m9": np.zeros(1, np.float32)}
    path = run.folders.state(VALUERL)
    checkpoint.publish(path, more, state.metadata)
    with pytest.raises(CheckpointError, match="1 unknown \\(adam/m9\\)"):
        build(run, board).restore()


def test_without_a_state_nothing_is_restored(tmp_path):
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board, seed=7)
    learner.restore()
    assert (learner.updates, learner.epoch) == (0, 0)
    assert learner.weight.numpy() == 7


def test_it_goes_on_from_the_previous_state_when_the_newest_is_damaged(
    tmp_path, capsys
):
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board)
    train(learner, 7)  # states of 6 and 7 updates
    damage(learner.folders.state(VALUERL))
    other = build(run, board)
    other.restore()
    assert (other.updates, other.epoch) == (6, 3)
    assert other.number.numpy() == 6
    assert "valuerl.previous.safetensors is used instead" in capsys.readouterr().out


def test_with_both_states_damaged_it_does_not_start_anew(tmp_path):
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board)
    train(learner, 7)
    path = learner.folders.state(VALUERL)
    damage(path)
    damage(checkpoint.previous_path(path))
    with pytest.raises(CheckpointError, match=r"valuerl\.previous\.safetensors"):
        build(run, board).restore()


def test_a_state_of_other_sizes_is_refused(tmp_path):
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board)
    learner.weight = tf.Variable([1.0, 2.0])
    learner.save_state()
    with pytest.raises(CheckpointError, match=r"weight \[2\] instead of \[1\]"):
        build(run, board).restore()


@pytest.mark.parametrize(
    "torn", ["", "0.1", "0.1,2,6,5,1.0,6.", "0.1,1,3,5,1.0,3,0", "\0\0\0"]
)
def test_log_lines_after_the_restored_state_and_torn_ones_are_cut(tmp_path, torn):
    run, board, _ = open_fake(tmp_path, policy_config={"log_every_n": 1})
    learner = build(run, board)
    kill_at(learner, 5)
    assert column(learner, "updates") == [1, 2, 3, 4, 5]
    path = learner.folders.learner_log(VALUERL)
    before = path.read_text().splitlines(keepends=True)
    path.write_text("".join(before) + torn)
    other = build(run, board)
    other.restore()
    assert other.updates == 3
    assert path.read_text() == "".join(before[:4])  # with the header
    train(other, 6)
    assert column(other, "updates") == [1, 2, 3, 4, 5, 6]


def test_a_log_without_anything_to_cut_stays_as_it_is(tmp_path):
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board)
    train(learner, 6)
    stamp = checkpoint.stamp(learner.folders.learner_log(VALUERL))
    build(run, board).restore()
    assert checkpoint.stamp(learner.folders.learner_log(VALUERL)) == stamp


@pytest.mark.parametrize(
    ("log_every_n", "updates"),
    [
        (1, 100),  # the log line of the same update shows it
        (2, 100),  # the next log line does
        (50, 100),  # the state at the end of the epoch
        (50, 5),  # a stop before either
    ],
)
def test_a_metric_that_is_not_finite_ends_the_run_and_spares_the_last_state(
    tmp_path, log_every_n, updates
):
    run, board, _ = open_fake(tmp_path, policy_config={"log_every_n": log_every_n})
    learner = build(run, board)
    learner.bad_metric_at.assign(5.0)
    with pytest.raises(RunError) as raised:
        train(learner, updates)
    path = learner.folders.state(VALUERL)
    assert "valuerl: number is nan" in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert state_of(learner).metadata["updates"] == 3
    assert checkpoint.load(checkpoint.previous_path(path)).metadata["updates"] == 0
    assert max(column(learner, "updates"), default=0) <= 5


def test_a_weight_that_is_not_finite_ends_the_run_and_spares_the_last_state(tmp_path):
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board)
    learner.bad_weight_at.assign(5.0)
    with pytest.raises(RunError, match="weight") as raised:
        train(learner, 100)
    assert str(learner.folders.state(VALUERL)) in str(raised.value)
    assert state_of(learner).metadata["updates"] == 3


# Numbered backups


def numbered(run):
    names = run.folders.checkpoints.glob(f"{VALUERL}-*.safetensors")
    return sorted(int(path.stem.partition("-")[2]) for path in names)


def test_every_backup_every_n_updates_a_numbered_state_stays(tmp_path):
    run, board, _ = open_fake(tmp_path, policy_config={"backup_every_n": 4})
    train(build(run, board), 9)
    assert numbered(run) == [4, 8]
    state = checkpoint.load(run.folders.numbered_state(VALUERL, 4))
    assert (state.metadata["updates"], state.tensors["number"]) == (4, 4)
    assert state.metadata["frames"] == BEFORE + 1
    train(build(run, board), 13)
    assert numbered(run) == [4, 8, 12]


def test_a_state_is_published_when_its_transitions_are_on_the_disk(
    tmp_path, monkeypatch
):
    """Else a power failure could leave a state that knows more than the replay."""
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board)
    order, publish = [], checkpoint.publish

    def note_publish(path, *arguments, **options):
        order.append(path.name)
        return publish(path, *arguments, **options)

    monkeypatch.setattr(learner.replay, "sync", lambda: order.append("sync"))
    monkeypatch.setattr(checkpoint, "publish", note_publish)
    train(learner, 7)
    assert learner.epoch == 3
    state = run.folders.state(VALUERL).name
    assert order == ["sync", state] * (len(order) // 2)
    assert order.count("sync") >= learner.epoch


def test_a_backup_that_a_kill_prevented_is_made_on_restore(tmp_path, monkeypatch):
    run, board, replay = open_fake(tmp_path, policy_config={"backup_every_n": 3})
    learner = build(run, board)

    def die():
        raise Killed

    monkeypatch.setattr(learner, "backup", die)
    with pytest.raises(Killed):
        train(learner, 100)
    assert numbered(run) == []
    build(run, board).restore()
    assert numbered(run) == [3]
    path = run.folders.numbered_state(VALUERL, 3)
    state = checkpoint.load(path)
    assert_same(state.tensors, state_of(learner).tensors)

    append_frames(replay, 5)
    build(run, board).restore()
    assert checkpoint.load(path).metadata == state.metadata  # its frames, not today's


# The world-model learner


def open_model(tmp_path, model_config=None, frames=BEFORE + 1, **keys):
    """A run with a world model, whose learners need no more frames."""
    keys.setdefault("policy_config", PACE | TINY)
    model_config = PACE | TINY_MODEL | {"pretrain_n": False} | (model_config or {})
    run, board, replay = open_run(tmp_path, model_config=model_config, **keys)
    append_frames(replay, frames)
    return run, board, replay


def test_the_world_model_is_published_after_pretraining_that_is_no_update(tmp_path):
    run, board, _ = open_model(tmp_path, {"pretrain_n": 10})
    learner = build(run, board, WorldmodelLearner)
    seen = []

    def over():
        path = run.folders.state(WORLDMODEL)
        state = checkpoint.load(path).metadata if path.exists() else {}
        saved = (state.get("epoch"), state.get("pretrained"))
        seen.append((learner.pretrained, learner.updates, learner.epoch, *saved))
        return learner.updates == 4

    drive(learner, over)
    # (pretrained, updates, epoch), then epoch and pretrained of the state on the disk
    assert seen[1:] == [  # the first: waiting for frames
        *((n, 0, 0, None, None) for n in range(3)),
        *((n, 0, 0, 0, n // 3 * 3) for n in range(3, 10)),
        *((10, n, 1, 1, 10) for n in range(3)),
        *((10, n, 2, 2, 10) for n in range(3, 5)),
    ]
    assert board[WORLDMODEL]["pretrained"] == 10
    assert board[WORLDMODEL]["updates"] == 4


def test_events_count_the_updates_of_pretraining_too(tmp_path):
    run, board, _ = open_model(tmp_path, {"pretrain_n": 5, "log_every_n": 2})
    learner = build(run, board, WorldmodelLearner)
    train(learner, 4)
    assert_events_are_the_log(
        learner, lambda line: int(line["updates"]) + int(line["pretrained"])
    )
    assert [row["pretrained"] for row in log_of(learner)] == ["2", "4", "5", "5"]


def test_pretraining_needs_no_frames_but_the_first(tmp_path):
    paced = {"pretrain_n": 10, "frames_per_update": 1.0}
    run, board, replay = open_model(tmp_path, paced)
    learner = build(run, board, WorldmodelLearner)
    feeder = Feeder(learner, replay, 2)
    drive(learner, lambda: learner.epoch == 1 and feeder())
    assert learner.pretrained == 10
    assert feeder.waited_at == [1, 2]


def test_the_hours_end_in_pretraining_too(tmp_path):
    """They are counted by the value learner, which waits for the first model."""
    run, board, _ = open_model(tmp_path, {"pretrain_n": 10}, total_hours=0.5)
    learner = build(run, board, WorldmodelLearner)

    def over():
        board[VALUERL]["hours"] = 0.5 if learner.pretrained == 4 else 0.4
        return False

    drive(learner, over)
    assert (learner.pretrained, learner.epoch) == (4, 0)
    assert state_of(learner).metadata["pretrained"] == 4


def test_without_pretraining_the_initial_weights_are_published_at_once(tmp_path):
    run, board, _ = open_model(tmp_path)
    learner = build(run, board, WorldmodelLearner)
    initial = values_of(learner.model.named_variables())
    drive(learner, lambda: learner.epoch == 1)
    state = state_of(learner)
    assert state.metadata["epoch"] == 1
    assert state.metadata["updates"] == state.metadata["pretrained"] == 0
    assert_same({name: state.tensors[name] for name in initial}, initial)


@pytest.mark.parametrize("killed", [False, True])
def test_pretraining_goes_on_where_its_last_state_is(tmp_path, clock, killed):
    run, board, _ = open_model(tmp_path, {"pretrain_n": 10})
    learner = build(run, board, WorldmodelLearner)

    def ending():
        clock.now += 10
        return learner.pretrained == 8

    if killed:
        kill(learner, ending)
    else:
        drive(learner, ending)
    saved = 6 if killed else 8
    state = state_of(learner)
    assert (state.metadata["epoch"], state.metadata["pretrained"]) == (0, saved)
    # Ten seconds before each; a stop has another question at its end.
    assert state.metadata["hours"] * 3600 == pytest.approx(60 if killed else 90)

    other = build(run, board, WorldmodelLearner, seed=1)
    other.restore()
    assert_same(values_of(other.variables()), state.tensors)
    other = build(run, board, WorldmodelLearner, seed=1)
    first = []

    def over():
        first.append(other.pretrained)
        return other.updates == 1

    drive(other, over)
    assert first[0] == saved
    assert other.pretrained == 10
    lines = column(other, "pretrained")
    assert lines == sorted(set(lines)) == [2, 4, 6, 8, 10]
    assert other.optimizer.named_variables()["steps"].numpy() == 11


def append_linear(replay, count):
    """A system in which everything is linear in observation and action."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(count, support_env.OBS_DIM))
    action = rng.uniform(-1, 1, size=(count, support_env.ACTION_DIM))
    next_obs = 0.5 * obs[:, ::-1] + action
    reward = obs[:, 0] - 2 * action[:, 0]
    terminated = (next_obs[:, 0] > 0).astype(float)
    replay.append(Batch(obs, action, reward, next_obs, terminated))


def test_the_losses_fall_and_the_graph_is_built_once(tmp_path):
    settings = {"batch_size": 64, "learning_rate": 0.01, "log_every_n": 100}
    settings |= {"transition_hidden_dim": 16, "aux_hidden_dim": 16}
    run, board, replay = open_model(
        tmp_path, {**settings, "epoch_every_n": 1000}, frames=0
    )
    append_linear(replay, 500)
    learner = build(run, board, WorldmodelLearner)
    train(learner, 600)
    for name, share in (("transition", 0.1), ("reward", 0.1), ("termination", 0.5)):
        losses = column(learner, f"{name}_loss")
        assert losses[-1] < share * losses[0], name
    assert traces_of(learner) == 1


# The value learner


EXPANSION = {"value_expansion": {"rollout_len": 1}}


def open_value(tmp_path, expansion=True, **keys):
    """A run for a value learner, with a world model unless it is plain DDPG."""
    settings = keys.pop("policy_config", {})
    policy_config = PACE | TINY | (EXPANSION if expansion else {}) | settings
    if expansion:
        return open_model(tmp_path, policy_config=policy_config, **keys)
    return open_fake(tmp_path, policy_config=policy_config, **keys)


def publish_model(run, value, epoch=1):
    """Publishes a world model that has `value` for all its weights."""
    model = WorldModel(
        run.config.world_model_config,
        run.obs_dim,
        run.action_dim,
        tf.random.Generator.from_seed(0),
    )
    tensors = {
        name: np.full(variable.shape, value, np.float32)
        for name, variable in model.named_variables().items()
    }
    tensors["adam/steps"] = np.array(0)
    path = run.folders.state(WORLDMODEL)
    checkpoint.publish(path, tensors, {"epoch": epoch}, keep_previous=True)


def value_of_model(learner):
    values = [v.numpy() for v in learner.world_model.named_variables().values()]
    assert len({*np.concatenate([value.ravel() for value in values])}) == 1
    return values[0].flat[0]


class WatchedLearner(ValueRLLearner):
    """Notes the world model of every update, and the nets whenever one is published."""

    def __init__(self, context):
        super().__init__(context)
        self.models_used = []
        self.published = []

    def learn(self, count):
        self.models_used.append(value_of_model(self) if self.world_model else None)
        return super().learn(count)

    def publish(self):
        super().publish()
        nets = values_of(self.valuerl.named_variables())
        self.published.append((self.epoch, self.updates, nets))


def net(nets, name):
    """The variables of one net, by their names in it."""
    start = f"{name}/"
    return {k.removeprefix(start): v for k, v in nets.items() if k.startswith(start)}


def test_the_configurations_constants_reach_targets_and_losses(tmp_path):
    """By hand: Q is 0 everywhere, the target Q 2 and the action before tanh 3."""
    run, board, _ = open_value(
        tmp_path,
        expansion=False,
        env={"discount": 0.5, "reward_scale": 3.0},
        policy_config={"pre_tanh_penalty": 0.01},
    )
    learner = build(run, board, ValueRLLearner)
    variables = learner.valuerl.named_variables()
    for variable in variables.values():
        variable.assign(tf.zeros_like(variable))
    variables["target_q/b1"].assign(tf.fill(variables["target_q/b1"].shape, 2.0))
    variables["policy/b1"].assign(tf.fill(variables["policy/b1"].shape, 3.0))
    obs, reward = tf.zeros([4, run.obs_dim]), tf.constant([1.0, 1.0, 5.0, 5.0])
    terminated = tf.constant([0.0, 1.0, 0.0, 1.0])
    batch = Batch(obs, tf.zeros([4, run.action_dim]), reward, obs, terminated)
    metrics = learner.train_step(batch)
    targets = [3 * 1 + 0.5 * 2, 3 * 1, 3 * 5 + 0.5 * 2, 3 * 5]
    expected = np.mean([0.5 * target**2 for target in targets])
    assert float(metrics["q_loss"]) == pytest.approx(expected)
    assert float(metrics["policy_reg_loss"]) == pytest.approx(0.01 * 3**2)


def test_it_waits_for_a_published_world_model_and_not_for_one_in_pretraining(tmp_path):
    run, board, _ = open_value(tmp_path)
    learner = build(run, board, WatchedLearner)

    def over():
        asked = learner.context.stop.asked
        if asked == 10:
            publish_model(run, 0.25, epoch=0)
        if asked == 20:
            assert learner.epoch == 0
            assert not run.folders.policy.exists()
            publish_model(run, 0.5)
        return learner.updates == 1

    drive(learner, over)
    assert learner.models_used == [0.5]
    assert board[VALUERL]["models"] == 1


def test_hours_start_with_the_first_frames_not_with_the_world_model(tmp_path, clock):
    run, board, replay = open_value(tmp_path, frames=BEFORE)
    learner = build(run, board, WatchedLearner)

    def over():
        clock.now += 10
        if learner.context.stop.asked == 5:
            append_frames(replay, 1)
        if learner.context.stop.asked == 9:
            publish_model(run, 0.5)
        return learner.updates == 0 and learner.epoch == 1

    drive(learner, over)
    policy = checkpoint.load(run.folders.policy)
    assert policy.metadata["hours"] * 3600 == pytest.approx(40)


def test_a_stop_while_it_waits_for_the_world_model_is_obeyed(tmp_path):
    run, board, _ = open_value(tmp_path)
    learner = build(run, board, WatchedLearner)
    drive(learner, lambda: learner.context.stop.asked == 10)
    assert state_of(learner).metadata["epoch"] == 0
    assert not run.folders.policy.exists()
    publish_model(run, 0.5)
    again = build(run, board, WatchedLearner)
    train(again, 1)
    assert [found[:2] for found in again.published] == [(1, 0)]


def test_target_q_is_q_in_the_first_epoch_and_at_every_new_one(tmp_path):
    run, board, _ = open_value(tmp_path, expansion=False)
    learner = build(run, board, WatchedLearner)
    for variable in learner.valuerl.q.variables:
        variable.assign_add(tf.ones_like(variable))
    untrained = values_of(learner.valuerl.named_variables())
    targets = []

    def over():
        targets.append(net(values_of(learner.valuerl.named_variables()), "target_q"))
        return learner.updates == 8

    drive(learner, over)
    assert [found[:2] for found in learner.published] == [(1, 0), (2, 3), (3, 6)]
    for _, _, nets in learner.published:
        assert_same(net(nets, "target_q"), net(nets, "q"))
    assert_same(net(learner.published[0][2], "policy"), net(untrained, "policy"))
    assert_same(net(learner.published[0][2], "q"), net(untrained, "q"))
    # One question is before the start; then one comes before each update.
    by_updates = targets[1:]
    for updates in range(8):
        same_epoch = by_updates[updates // 3 * 3]
        assert_same(by_updates[updates], same_epoch)
    assert_unequal(by_updates[2], by_updates[3])


def test_a_world_model_is_taken_up_at_the_next_epoch_and_not_before(tmp_path):
    run, board, _ = open_value(tmp_path)
    publish_model(run, 0.5)
    learner = build(run, board, WatchedLearner)

    def over():
        if learner.updates == 1:
            publish_model(run, 0.25, epoch=2)
        if learner.updates == 2:
            publish_model(run, 0.125, epoch=3)
        return learner.updates == 9

    drive(learner, over)
    assert learner.models_used == [0.5] * 3 + [0.125] * 6
    assert learner.models == board[VALUERL]["models"] == 2
    assert column(learner, "models") == [1, 2, 2, 2]  # after 2, 4, 6, 8 updates
    assert traces_of(learner) == 1


def test_a_damaged_world_model_is_passed_over_for_the_one_before(tmp_path, capsys):
    run, board, _ = open_value(tmp_path)
    publish_model(run, 0.5)
    publish_model(run, 0.25, epoch=2)
    damage(run.folders.state(WORLDMODEL))
    learner = build(run, board, WatchedLearner)
    train(learner, 1)
    assert learner.models_used == [0.5]
    assert "worldmodel.previous.safetensors is used instead" in capsys.readouterr().out


def test_the_published_policy_is_that_of_the_state(tmp_path):
    run, board, _ = open_value(tmp_path, expansion=False)
    learner = build(run, board, WatchedLearner)
    train(learner, 6)
    policy, state = checkpoint.load(run.folders.policy), state_of(learner)
    members = {k: v for k, v in state.tensors.items() if k.startswith("policy/")}
    assert_same(policy.tensors, {name: v[0] for name, v in members.items()})
    assert policy.tensors["policy/w0"].shape == (run.obs_dim, 4)
    assert (policy.metadata["epoch"], policy.metadata["updates"]) == (3, 6)
    assert policy.metadata["frames"] == BEFORE + 1


def test_a_restored_value_learner_has_the_newest_world_model_before_it_learns(
    tmp_path,
):
    run, board, _ = open_value(tmp_path)
    publish_model(run, 0.5)
    learner = build(run, board, WatchedLearner)
    train(learner, 4)
    publish_model(run, 0.25, epoch=2)
    other = build(run, board, WatchedLearner, seed=1)
    other.restore()
    assert value_of_model(other) == 0.25
    assert_same(values_of(other.variables()), values_of(learner.variables()))
    assert other.models == 2


@pytest.mark.parametrize("found", ["none", "older", "damaged", "same", "newer"])
def test_a_restored_value_learner_publishes_a_policy_that_is_due(tmp_path, found):
    run, board, _ = open_value(tmp_path, expansion=False)
    learner = build(run, board, WatchedLearner)
    train(learner, 4)  # epoch 2
    path = run.folders.policy
    if found == "none":
        path.unlink()
    elif found == "damaged":
        damage(path)
    elif found != "same":
        publish_policy(path, 0.5, epoch={"older": 1, "newer": 3}[found])
    stamp = checkpoint.stamp(path)
    other = build(run, board, WatchedLearner, seed=1)
    other.restore()
    if found in ("same", "newer"):
        assert checkpoint.stamp(path) == stamp
        return
    policy = checkpoint.load(path)
    assert policy.metadata["epoch"] == 2
    state = state_of(learner).tensors
    np.testing.assert_array_equal(policy.tensors["policy/b1"], state["policy/b1"][0])


@pytest.mark.parametrize("found", ["none", "pretraining"])
def test_without_a_world_model_a_value_learner_does_not_go_on(tmp_path, found):
    run, board, _ = open_value(tmp_path)
    publish_model(run, 0.5)
    train(build(run, board, WatchedLearner), 4)
    path = run.folders.state(WORLDMODEL)
    path.unlink()
    if found == "pretraining":
        publish_model(run, 0.25, epoch=0)
    with pytest.raises(CheckpointError, match="no published world model") as raised:
        build(run, board, WatchedLearner).restore()
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("model", [False, True])
def test_ddpg_needs_no_world_model(tmp_path, model):
    folder = {"model_config": PACE | TINY_MODEL} if model else {}
    run, board, _ = open_value(tmp_path, expansion=False, **folder)
    train(build(run, board, WatchedLearner), 1)
    other = build(run, board, WatchedLearner)
    train(other, 4)
    assert other.world_model is None
    assert state_of(other).metadata["models"] == 0


def test_where_it_is_asked_for_a_backup_has_a_copy_of_the_replay_buffer(tmp_path):
    backups = {"backup_every_n": 3}
    run, board, replay = open_value(
        tmp_path, expansion=False, policy_config=backups, keep_all_replay_buffers=True
    )
    learner = build(run, board, WatchedLearner)

    def over():
        append_frames(replay, 1)
        return learner.updates == 6

    drive(learner, over)
    assert numbered(run) == [3, 6]
    for updates in (3, 6):
        state = checkpoint.load(run.folders.numbered_state(VALUERL, updates))
        with ReplayBuffer.open(run.folders.numbered_replay(updates)) as copy:
            assert copy.frames == state.metadata["frames"]
            assert copy.read(0, copy.frames).reward.tolist() == [*range(copy.frames)]
    # A restore makes the backup of 6 updates again and leaves its copy alone.
    append_frames(replay, 1)
    build(run, board, WatchedLearner).restore()
    with ReplayBuffer.open(run.folders.numbered_replay(6)) as copy:
        assert copy.frames == replay.frames - 2


def test_else_the_replay_buffer_is_not_copied(tmp_path):
    backups = {"backup_every_n": 3}
    run, board, _ = open_value(tmp_path, expansion=False, policy_config=backups)
    train(build(run, board, WatchedLearner), 4)
    assert numbered(run) == [3]
    assert not run.folders.numbered_replay(3).exists()


@pytest.mark.parametrize("learner", [ValueRLLearner, WorldmodelLearner])
def test_the_display_reads_each_metric_where_the_learner_puts_it(learner):
    shown = progress.SHOWN[learner.name]
    assert shown == {name: learner.metric_names.index(name) for name in shown}
