"""The world-model learner: pretraining, limits, losses."""

import numpy as np
import pytest
import support_env
import tensorflow as tf
from support_learner import (
    BEFORE,
    PACE,
    TINY,
    Feeder,
    assert_same,
    build,
    column,
    drive,
    kill,
    open_model,
    state_of,
    traces_of,
    train,
    values_of,
)

from steve.replay import Batch
from steve.running import progress
from steve.settings.extensions import WORLD_MODELS, WorldModelKind
from steve.settings.roles import VALUERL, WORLDMODEL
from steve.settings.schema import WorldModelConfig
from steve.storage import checkpoint
from steve.worldmodel import WorldModel
from steve.worldmodel_learner import WorldmodelLearner, trial_fault

pytestmark = pytest.mark.usefixtures("nobody_sleeps")


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


def test_the_last_frame_does_not_end_the_pretraining(tmp_path):
    """The value learner waits for its model, also in a run without a pace."""
    frames = BEFORE + 1
    run, board, _ = open_model(tmp_path, {"pretrain_n": 10}, total_frames=frames)
    learner = build(run, board, WorldmodelLearner)
    drive(learner, lambda: learner.pretrained == 4)
    assert run.folders.models.numbers() == []
    resumed = build(run, board, WorldmodelLearner)
    drive(resumed)
    assert (resumed.pretrained, resumed.updates, resumed.epoch) == (10, 0, 1)
    assert run.folders.models.numbers() == [0]


@pytest.mark.parametrize(
    ("expansion", "kept"), [({"rollout_len": 1}, [0, 3, 6, 9]), (None, [9])]
)
def test_models_that_no_value_learner_takes_up_are_not_kept(tmp_path, expansion, kept):
    """With one, it is the value learner that drops them."""
    policy = PACE | TINY | {"value_expansion": expansion}
    run, board, _ = open_model(tmp_path, policy_config=policy)
    train(build(run, board, WorldmodelLearner), 10)
    assert run.folders.models.numbers() == kept


def test_the_value_learners_hours_end_the_world_model_learner(tmp_path):
    learner = build(*open_model(tmp_path, total_hours=1.0)[:2], WorldmodelLearner)

    def over():
        learner.context.board[VALUERL]["hours"] = 0.9 if learner.updates < 4 else 1.1
        return False

    drive(learner, over)
    state = state_of(learner).metadata
    assert (state["epoch"], state["updates"]) == (3, 4)


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


def test_a_resumed_world_model_learns_what_an_uninterrupted_one_does(
    tmp_path,
):
    learned = []
    for stops in ([7], [2, 7]):
        run, board, _ = open_model(tmp_path / str(len(stops)))
        for stop in stops:
            learner = build(run, board, WorldmodelLearner)
            train(learner, stop)
        learned.append(values_of(learner.variables()))
    assert_same(*learned)


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


def test_the_display_expects_the_metrics_that_the_learner_logs():
    shown = [name for name in WorldModel.metric_names if name not in progress.NOT_SHOWN]
    assert shown == list(progress.EXPECTED[WORLDMODEL])


def test_a_model_whose_publication_a_kill_prevented_is_published_on_restore(tmp_path):
    run, board, _ = open_model(tmp_path)
    learner = build(run, board, WorldmodelLearner)
    kill(learner, lambda: learner.epoch == 2)
    published = run.folders.models.path(3)
    published.unlink()
    build(run, board, WorldmodelLearner).restore()
    assert checkpoint.digest(published) == checkpoint.digest(
        run.folders.state(WORLDMODEL)
    )


def test_calls_of_several_updates_end_with_the_pretraining(tmp_path):
    keys = {"pretrain_n": 10, "updates_per_call": 4}
    rare = {"log_every_n": 100, "epoch_every_n": 100}
    run, board, _ = open_model(tmp_path, keys | rare)
    learner = build(run, board, WorldmodelLearner)
    drive(learner, lambda: learner.epoch == 1)
    assert learner.pretrained == 10


# A trial of a user's kind


class NarrowObs(WorldModel):
    def next_obs(self, obs, action, members, step):
        return super().next_obs(obs, action, members, step)[..., :1]


class RewardInFloat64(WorldModel):
    def rewards(self, next_obs, obs, action, members):
        return tf.zeros([1, obs.shape[0]], tf.float64)


class RewardNotFinite(WorldModel):
    def rewards(self, next_obs, obs, action, members):
        return tf.fill([1, obs.shape[0]], np.nan)


class RewardByNumpy(WorldModel):
    def rewards(self, next_obs, obs, action, members):
        return np.zeros([1, len(obs.numpy())], np.float32)


class NoProbability(WorldModel):
    def termination_prob(self, next_obs, obs, action, members):
        return obs[..., 0] * 2


class UnknownMetric(WorldModel):
    metric_names = ("total_loss", "mean_chnage")


class LossOfNothing(WorldModel):
    def losses(self, batch, assignment):
        losses = super().losses(batch, assignment)
        return {name: tf.stop_gradient(loss) for name, loss in losses.items()}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (WorldModel, None),
        (NarrowObs, "gives float32 of shape (1, 3, 1) as next_obs, not float32 of "),
        (RewardInFloat64, "gives float64 of shape (1, 3) as rewards, not float32"),
        (RewardNotFinite, "gives numbers that are not finite: rewards"),
        (RewardByNumpy, "failed when it was tried (AttributeError: "),
        (NoProbability, "gives a termination_prob of "),
        (UnknownMetric, "gives no mean_chnage in its update, which metric_names has"),
        (LossOfNothing, "failed when it was tried (ValueError: the loss does not dep"),
    ],
)
def test_a_users_world_model_is_tried_as_the_learners_use_it(monkeypatch, kind, said):
    monkeypatch.setitem(WORLD_MODELS, "mine", WorldModelKind("mine", kind, {}))
    sizes = {"transition_hidden_dim": 8, "aux_hidden_dim": 8, "batch_size": 8}
    found = trial_fault(WorldModelConfig(kind="mine", **sizes), 4, 2)
    assert (found is None) if said is None else found.startswith(said)
    if kind is RewardByNumpy:
        assert "; test_worldmodel_learner.py, line " in found
