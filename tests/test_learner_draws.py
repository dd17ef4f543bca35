"""What learners draw for an update, and what reaches their optimisers."""

import numpy as np
import pytest
import tensorflow as tf
from support import append_frames
from support_learner import (
    BEFORE,
    PACE,
    TINY,
    assert_same,
    build,
    open_model,
    train,
    values_of,
)

from steve import nn
from steve.batch import Batch, fields
from steve.settings.seeds import generator
from steve.valuerl_learner import ValueRLLearner
from steve.worldmodel_learner import WorldmodelLearner

pytestmark = pytest.mark.usefixtures("nobody_sleeps")

B = 8
KINDS = [ValueRLLearner, WorldmodelLearner]
SOME = {"ensemble_size": 4, "train_sample_count": 3, "eval_sample_count": 2}
ALL = {"ensemble_size": 3, "train_sample_count": 3, "eval_sample_count": 3}
EXPANSION = {"rollout_len": 1, "steve_reweight": True}


def open_both(tmp_path, sizes=SOME, expansion=EXPANSION, seed=0, **settings):
    """A run of both learners with ensembles of the same sizes."""
    settings = {"batch_size": B} | settings
    return open_model(
        tmp_path,
        {"bayesian": {"transition": sizes, "reward": sizes}, **settings},
        policy_config=PACE
        | TINY
        | {"bayesian": sizes, "value_expansion": expansion, **settings},
        seed=seed,
    )


def build_one(tmp_path, kind, seed=0, **keys):
    return build(*open_both(tmp_path, **keys)[:2], kind, seed)


def batch_of(learner, scale=1.0):
    """A batch of random transitions, their rewards times `scale`."""
    run = learner.context.run

    def normal(*shape):
        return tf.constant(rng.normal(size=(B, *shape)), tf.float32)

    rng = np.random.default_rng(0)
    obs, action = normal(run.obs_dim), tf.tanh(normal(run.action_dim))
    return Batch(obs, action, scale * normal(), obs + 0.1, tf.zeros([B]))


# Batches


def rewards_of_batches(learner, updates):
    """The rewards, which are numbers of frames, of each update's batch."""
    seen, run, context = [], learner.updater.run, learner.context.run

    def watched(batches, count):
        rows = fields(batches.numpy(), context.obs_dim, context.action_dim)
        seen.extend(rows.reward[:count].tolist())
        run(batches, count)

    learner.updater.run = watched
    train(learner, updates)
    return seen


def batches_of(tmp_path, kind, block=1, seed=0, pace=False):
    """The rewards of eight batches or more; a paced run has frames beyond them."""
    keys = {"updates_per_call": block, "frames_per_update": pace}
    run, board, replay = open_both(tmp_path, expansion=None, seed=seed, **keys)
    append_frames(replay, 500)
    seen = rewards_of_batches(build(run, board, kind), 8)
    expected = []
    for step in range(len(seen)):
        rng = generator(seed, kind.batch_stream, step)
        end = BEFORE + step + 1 if pace else None  # at one frame for each update
        expected.append(replay.sample(B, 1000, rng, end).reward)
    np.testing.assert_array_equal(seen, expected)
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("block", "pace"), [(1, False), (3, False), (3, 1.0)])
def test_every_update_has_a_batch_of_its_own(tmp_path, kind, block, pace):
    """In a paced run it is of the frames that the update needs, not of all."""
    seen = batches_of(tmp_path, kind, block, pace=pace)
    assert len(seen) >= 8
    assert len({tuple(rewards) for rewards in seen}) == len(seen)


def test_learners_and_runs_of_another_seed_have_other_batches(tmp_path):
    found = [
        batches_of(tmp_path / f"{kind.name}{seed}", kind, seed=seed)
        for kind in KINDS
        for seed in (0, 1)
    ]
    assert len({tuple(map(tuple, seen)) for seen in found}) == 4


def test_pretraining_and_updates_have_batches_of_their_own(tmp_path):
    pace = {"frames_per_update": 20.0, "frames_before_learning": 50}
    keys = {"pretrain_n": 5, "batch_size": B, **pace}
    run, board, replay = open_model(tmp_path, keys, policy_config=PACE | TINY | pace)
    append_frames(replay, 500)
    seen = rewards_of_batches(build(run, board, WorldmodelLearner), 5)
    assert len(seen) == 10
    assert len({tuple(rewards) for rewards in seen}) == 10
    assert max(map(max, seen[:5])) < 50, "pretraining is on the first frames"
    assert max(map(max, seen[5:])) > 50


# Members, rows and initial weights


def drawn_of(learner, updates=12):
    """The members that each of some updates drew, for each of its purposes."""
    drawn = {}

    def note(purpose, members):
        numbers = None if members is None else tuple(members.numpy().tolist())
        drawn.setdefault(purpose, []).append(numbers)

    if isinstance(learner, ValueRLLearner):
        update = learner.valuerl.update

        def watched(batch, sampled, *optimizers):
            note("q targets", sampled.q_members)
            note("q rows", sampled.q_assignment.members)
            note("transition targets", sampled.model.transition)
            note("reward targets", sampled.model.reward)
            return update(batch, sampled, *optimizers)

        learner.valuerl.update = watched
    else:
        update = learner.model.update

        def watched(batch, assignment, optimizer):
            note("transition rows", assignment.transition.members)
            note("reward rows", assignment.reward.members)
            return update(batch, assignment, optimizer)

        learner.model.update = watched
    batch = batch_of(learner)
    for _ in range(updates):
        learner.train_step(batch)
    return drawn


@pytest.mark.parametrize("kind", KINDS)
def test_every_update_draws_its_members_and_rows(tmp_path, kind):
    drawn = drawn_of(build_one(tmp_path / "0", kind))
    for purpose, members in drawn.items():
        # Of at least 12 possible draws with their order; 12 fair ones give 7.8.
        assert len(set(members)) >= 4, purpose
    firsts = {tuple(m[:2] for m in members) for members in drawn.values()}
    assert len(firsts) == len(drawn), "each draws by itself"
    assert drawn_of(build_one(tmp_path / "1", kind, seed=1)) != drawn


@pytest.mark.parametrize("kind", KINDS)
def test_where_all_members_train_the_rows_that_remain_go_round(tmp_path, kind):
    drawn = drawn_of(build_one(tmp_path, kind, sizes=ALL), updates=4)
    rounds = [(0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 1, 2)]
    by_rows = [members for purpose, members in drawn.items() if "rows" in purpose]
    assert by_rows == [rounds] * len(by_rows)


@pytest.mark.parametrize("kind", KINDS)
def test_initial_weights_are_those_of_the_process_seed(tmp_path, kind):
    run, board, _ = open_both(tmp_path)
    first, again, other = (
        values_of(build(run, board, kind, seed).variables()) for seed in (3, 3, 4)
    )
    assert_same(again, first)
    weights = [name for name in first if "/w" in name]
    assert weights
    for name in weights:
        assert not (first[name] == other[name]).any(), name


# Optimisers


def optimizers_of(learner):
    if isinstance(learner, ValueRLLearner):
        return [learner.policy_optimizer, learner.q_optimizer]
    return [learner.optimizer]


def nets_of(learner):
    if isinstance(learner, ValueRLLearner):
        return [learner.valuerl.policy, learner.valuerl.q]
    return [learner.model.transition, learner.model.termination, learner.model.reward]


def gradients_of(learner, batch):
    """The gradients of the next update, for each optimiser."""
    number = optimizers_of(learner)[-1].steps.read_value()
    seed = nn.fold_in(nn.seed_tensor(learner.context.seed), number)
    if isinstance(learner, ValueRLLearner):
        sampled = learner.valuerl.sample(seed, number, B)
        return learner.valuerl.gradients(batch, sampled)[:2]
    assignment = learner.model.sample_assignment(seed, number, B)
    return [learner.model.gradients(batch, assignment)[0]]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_optimisers_as_they_are(tmp_path, kind):
    """Neither clipped nor scaled, however large: m = 0.1 g after the first step."""
    learner, scale = build_one(tmp_path, kind, sizes=ALL), 1e5
    batch = batch_of(learner, scale)
    gradients = gradients_of(learner, batch)
    learner.train_step(batch)
    for optimizer, expected in zip(optimizers_of(learner), gradients, strict=True):
        moments = optimizer.named_variables()
        for i, gradient in enumerate(expected):
            wanted = 0.1 * tf.convert_to_tensor(gradient).numpy()
            rounding = 1e-5 * np.abs(wanted).max()
            np.testing.assert_allclose(
                moments[f"m{i}"], wanted, rtol=1e-4, atol=rounding
            )
    largest = max(float(tf.reduce_max(tf.abs(g))) for g in gradients[-1])
    assert largest > 0.01 * scale


@pytest.mark.parametrize("kind", KINDS)
def test_the_learning_rate_is_that_of_the_configuration(tmp_path, kind):
    """Adam's first step has the length of the rate wherever there is a gradient."""
    rate = 0.02
    learner = build_one(tmp_path, kind, sizes=ALL, learning_rate=rate)
    before = [[v.numpy() for v in net.variables] for net in nets_of(learner)]
    learner.train_step(batch_of(learner))
    for net, values in zip(nets_of(learner), before, strict=True):
        steps = [
            np.abs(variable.numpy() - value).max()
            for variable, value in zip(net.variables, values, strict=True)
        ]
        assert max(steps) == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_learner_learns_on_as_if_nothing_had_been(tmp_path, kind):
    """Also the moments of its optimisers are those of the state."""
    found = []
    for parts in ([7], [4, 7]):
        run, board, replay = open_both(tmp_path / str(len(parts)), expansion=None)
        append_frames(replay, 100)
        for number, updates in enumerate(parts):
            learner = build(run, board, kind, seed=0)
            if number:
                for optimizer in optimizers_of(learner):
                    assert not optimizer.named_variables()["m0"].numpy().any()
            train(learner, updates)
        assert learner.updates == 7
        moments = [values_of(each.named_variables()) for each in optimizers_of(learner)]
        found.append([values_of(learner.variables()), *moments])
    for whole, resumed in zip(*found, strict=True):
        assert_same(resumed, whole)
    assert found[0][1]["m0"].any()
