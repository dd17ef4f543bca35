"""The value learner: its epochs, the world models that it takes up, its policies."""

import numpy as np
import pytest
import tensorflow as tf
from support import append_frames, publish_policy, waits_of
from support_learner import (
    BEFORE,
    PACE,
    TINY,
    TINY_MODEL,
    Feeder,
    assert_same,
    assert_unequal,
    build,
    column,
    damage,
    drive,
    kill,
    numbered,
    open_fake,
    open_model,
    state_of,
    traces_of,
    train,
    values_of,
)

from steve.replay import Batch, ReplayBuffer
from steve.running import pace, progress
from steve.settings.roles import VALUERL, WORLDMODEL
from steve.storage import checkpoint
from steve.storage.board import Wait
from steve.storage.checkpoint import CheckpointError
from steve.storage.digests import append_digest, read_digests
from steve.storage.record import read_run
from steve.util import file_stamp
from steve.valuerl_learner import METRIC_NAMES, MOST_UNEVALUATED, ValueRLLearner
from steve.worldmodel import WorldModel

pytestmark = pytest.mark.usefixtures("nobody_sleeps")
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
    path, updates = run.folders.state(WORLDMODEL), 3 * max(0, epoch - 1)
    metadata = {"epoch": epoch, "updates": updates}
    checkpoint.publish(path, tensors, metadata, keep_previous=True)
    if epoch > 0:
        run.folders.models.add(updates, path)


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
        self.saved = []  # the states that went before

    def learn(self, count):
        self.models_used.append(value_of_model(self) if self.world_model else None)
        return super().learn(count)

    def publish(self):
        self.saved.append(state_of(self).tensors)
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
    for nets in [*learner.saved, *(nets for _, _, nets in learner.published)]:
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
    damage(run.folders.models.path(3))
    learner = build(run, board, WatchedLearner)
    train(learner, 1)
    assert learner.models_used == [0.5]
    assert "the one before is used instead" in capsys.readouterr().out


# In a paced run

EACH_FRAME = {"frames_per_update": 1.0}


def open_paced(tmp_path, **keys):
    return open_value(
        tmp_path, model_config=EACH_FRAME, policy_config=EACH_FRAME, **keys
    )


def waiting(learner, do):
    """A question that calls `do` whenever the learner has waited for a while."""
    seen = {"updates": None, "asked": 0}

    def over():
        seen["asked"] = seen["asked"] + 1 if seen["updates"] == learner.updates else 0
        seen["updates"] = learner.updates
        assert learner.epoch < 50, "it never waits"
        if seen["asked"] < 5:
            return False
        seen["asked"] = 0
        return do()

    return over


def test_each_epoch_has_the_world_model_of_as_many_updates(tmp_path):
    """Also where newer ones are there, and in every epoch."""
    run, board, _ = open_paced(tmp_path, frames=100)
    for epoch in range(1, 8):
        publish_model(run, epoch / 8, epoch)
    learner = build(run, board, WatchedLearner)
    train(learner, 12)
    assert learner.models_used == [(1 + updates // 3) / 8 for updates in range(12)]
    assert "not_reproducible" not in read_run(run.folders)


def test_a_world_model_that_is_not_there_yet_is_waited_for(tmp_path):
    run, board, _ = open_paced(tmp_path, frames=100)
    publish_model(run, 1 / 8, 1)
    learner = build(run, board, WatchedLearner)
    waited_at = []

    def publish_next():
        waited_at.append(learner.updates)
        publish_model(run, (1 + len(waited_at)) / 8, 1 + len(waited_at))
        return len(waited_at) == 4

    drive(learner, waiting(learner, publish_next))
    assert waited_at == [3, 6, 9, 12]
    assert waits_of(board, VALUERL) == {Wait.MODEL}
    assert learner.models_used == [(1 + updates // 3) / 8 for updates in range(12)]


def test_a_world_model_that_will_not_come_any_more_is_said(tmp_path):
    run, board, _ = open_paced(tmp_path, frames=100)
    for epoch in (1, 3):
        publish_model(run, epoch / 8, epoch)
    board[WORLDMODEL]["ready"], board[WORLDMODEL]["updates"] = 1, 9
    learner = build(run, board, WatchedLearner)
    train(learner, 9)
    assert learner.models_used == [1 / 8] * 6 + [3 / 8] * 3
    (reason,) = read_run(run.folders)["not_reproducible"]
    assert "there is no world model of 3 updates" in reason["why"]


def test_policies_stay_while_an_interactor_can_need_them(tmp_path):
    run, board, replay = open_value(
        tmp_path,
        expansion=False,
        policy_config=EACH_FRAME,
        evaluator_config={"count": 0},
    )
    learner = build(run, board, WatchedLearner)
    drive(learner, Feeder(learner, replay, 60))
    frames = checkpoint.load(run.folders.policy).metadata["frames"]
    step = run.config.agent_config.batch_size
    needed = pace.policy_for(run.config, frames - step)
    assert needed < learner.updates - 9  # interactors are as slow as may be
    there = run.folders.policies.numbers()
    # For a learner that resumes from the state before the last, two epochs more.
    assert there == list(range(needed - 6, learner.updates + 1, 3))


def test_policies_stay_until_they_are_evaluated_and_the_learner_waits(tmp_path):
    run, board, _ = open_value(tmp_path, expansion=False, evaluator_config={"count": 1})
    learner = build(run, board, WatchedLearner)
    stood = []

    def evaluate_some():
        stood.append(learner.epoch - int(board["evaluator0"]["epoch"]))
        first = 3 * int(board["evaluator0"]["epoch"])  # updates of the next epoch
        assert set(range(first, learner.updates, 3)) <= set(
            run.folders.policies.numbers()
        )
        board["evaluator0"]["epoch"] += 7
        return len(stood) == 3

    drive(learner, waiting(learner, evaluate_some))
    assert stood == [MOST_UNEVALUATED + 1] * 3
    assert waits_of(board, VALUERL) == {Wait.EVALUATORS}


def test_digests_of_epochs_after_the_state_are_cut_on_a_resume(tmp_path):
    run, board, _ = open_value(
        tmp_path, expansion=False, policy_config=EACH_FRAME, frames=100
    )
    train(build(run, board, WatchedLearner), 4)
    lines = read_digests(run.folders.digests)
    assert [line.updates for line in lines] == [0, 3]
    append_digest(run.folders.digests, lines[-1]._replace(epoch=3, updates=6))
    build(run, board, WatchedLearner).restore()
    assert read_digests(run.folders.digests) == lines


@pytest.mark.parametrize("left", ["a torn line", "no line", "no policy"])
def test_a_kill_between_state_and_digest_leaves_no_trace(tmp_path, left):
    """The state comes first, then the policy, then the line of the epoch."""
    run, board, _ = open_value(
        tmp_path, expansion=False, policy_config=EACH_FRAME, frames=100
    )
    learner = build(run, board, WatchedLearner)
    kill(learner, lambda: learner.epoch == 3)
    folders = run.folders
    whole = folders.digests.read_bytes()
    tensors = checkpoint.digest(folders.policy)
    lines = whole.splitlines(keepends=True)
    torn = lines[-1][:70] if left == "a torn line" else b""
    folders.digests.write_bytes(b"".join(lines[:-1]) + torn)
    if left == "no policy":
        folders.policies.path(6).unlink()
        before = checkpoint.load(folders.policies.path(3))
        checkpoint.publish(folders.policy, before.tensors, before.metadata)
    build(run, board, WatchedLearner).restore()
    assert folders.digests.read_bytes() == whole
    assert checkpoint.digest(folders.policy) == tensors
    assert checkpoint.digest(folders.policies.path(6)) == tensors
    assert "not_reproducible" not in read_run(folders)


# What it publishes, and where it resumes


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


def test_a_resumed_value_learner_learns_what_an_uninterrupted_one_does(
    tmp_path,
):
    learned = []
    for stops in ([7], [2, 7]):
        run, board, _ = open_value(tmp_path / str(len(stops)), expansion=False)
        for stop in stops:
            learner = build(run, board, ValueRLLearner)
            train(learner, stop)
        learned.append(values_of(learner.variables()))
    assert_same(*learned)


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
    stamp = file_stamp(path)
    other = build(run, board, WatchedLearner, seed=1)
    other.restore()
    if found in ("same", "newer"):
        assert file_stamp(path) == stamp
        return
    policy = checkpoint.load(path)
    assert policy.metadata["epoch"] == 2
    state = state_of(learner).tensors
    np.testing.assert_array_equal(policy.tensors["policy/b1"], state["policy/b1"][0])


def test_the_first_speed_does_not_count_the_wait_for_the_world_model(
    tmp_path, clock, monkeypatch
):
    policy = {"log_every_n": 4}
    run, board, _ = open_value(tmp_path, policy_config=policy, expansion=False)
    learner = build(run, board, WatchedLearner)
    begin = learner.begin_epoch

    def begin_late():
        clock.now += 0 if learner.epoch else 100
        return begin()

    def over():
        clock.now += 0.5
        return learner.updates == 4

    monkeypatch.setattr(learner, "begin_epoch", begin_late)
    drive(learner, over)
    (speed,) = column(learner, "updates_per_s")
    assert 1 < speed < 3


def test_a_policy_that_was_killed_before_it_got_its_number_gets_it(tmp_path):
    run, board, _ = open_value(tmp_path, expansion=False)
    train(build(run, board, WatchedLearner), 4)  # unpaced: no digests tell of it
    number = max(run.folders.policies.numbers())
    path = run.folders.policies.path(number)
    path.unlink()
    build(run, board, WatchedLearner, seed=1).restore()
    assert checkpoint.load(path).metadata["epoch"] == 2


@pytest.mark.parametrize("found", ["none", "pretraining"])
@pytest.mark.parametrize("paced", [False, True])
def test_without_a_world_model_a_value_learner_does_not_continue(
    tmp_path, found, paced
):
    pace = {"frames_per_update": 0.5} if paced else {}
    run, board, replay = open_value(tmp_path, policy_config=pace, model_config=pace)
    append_frames(replay, 10)
    publish_model(run, 0.5)
    train(build(run, board, WatchedLearner), 2)
    run.folders.state(WORLDMODEL).unlink()
    path = run.folders.models.path(0)
    path.unlink()
    if found == "pretraining":
        publish_model(run, 0.25, epoch=0)
    wanted = path if paced else path.parent
    with pytest.raises(CheckpointError, match=rf"{wanted}: there is no ") as raised:
        build(run, board, WatchedLearner).restore()
    assert str(raised.value).endswith(("checkpoint here", "model to resume with"))


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


def test_the_display_expects_the_metrics_that_the_learner_logs():
    shown = [name for name in METRIC_NAMES if name not in progress.NOT_SHOWN]
    assert shown == list(progress.EXPECTED[VALUERL])


def test_world_models_stay_while_a_resume_can_need_them_and_no_longer(tmp_path):
    run, board, _ = open_paced(tmp_path, frames=100, evaluator_config={"count": 0})
    for epoch in range(1, 9):
        publish_model(run, epoch / 8, epoch)
    learner = build(run, board, WatchedLearner)
    train(learner, 20)
    # That of the epoch before, and those of two epochs before that.
    oldest = learner.model_updates - 9
    assert run.folders.models.numbers() == list(range(oldest, 22, 3))
    assert oldest > 0


def test_policies_stay_while_one_of_several_interactors_can_need_them(tmp_path):
    run, board, replay = open_value(
        tmp_path,
        expansion=False,
        policy_config=EACH_FRAME,
        evaluator_config={"count": 0},
        agent_config={"count": 2, "batch_size": 4, "reload_every_n": 3},
    )
    learner = build(run, board, WatchedLearner)
    drive(learner, Feeder(learner, replay, 60))
    frames = checkpoint.load(run.folders.policy).metadata["frames"]
    needed = pace.policy_for(run.config, frames - 2 * 4 * 3)
    assert run.folders.policies.numbers()[0] == needed - 6


def test_hours_that_end_before_the_first_world_model_end_the_wait_for_it(
    tmp_path, clock
):
    run, board, _ = open_value(tmp_path, total_hours=0.5)
    learner = build(run, board, WatchedLearner)

    def over():
        clock.now += 100
        return False

    drive(learner, over)
    assert (learner.epoch, learner.updates) == (0, 0)
