"""The world model: losses, assignment, members, and that it learns.

O = 2, A = 1 wherever nets take part. With one layer a net is linear, so its weights
can be chosen to show what it was given.
"""

import math

import numpy as np
import pytest
import tensorflow as tf

from steve import nn
from steve.replay import Batch
from steve.settings.schema import WorldModelConfig
from steve.worldmodel import (
    ModelAssignment,
    ModelMembers,
    WorldModel,
    reward_loss,
    termination_loss,
    transition_loss,
    weight_penalty,
)

UPDATE = 0  # its number
NETS = ("transition", "termination", "reward")


def ensembles(transition=(3, 3, 3), reward=(4, 4, 4)):
    keys = ("ensemble_size", "train_sample_count", "eval_sample_count")
    return {
        "transition": dict(zip(keys, transition, strict=True)),
        "reward": dict(zip(keys, reward, strict=True)),
    }


def build(bayesian=None, layers=1, seed=0, **settings):
    config = WorldModelConfig.model_validate(
        {
            "transition_hidden_dim": 8,
            "aux_hidden_dim": 8,
            "transition_layers": layers,
            "aux_layers": layers,
            "bayesian": bayesian,
            **settings,
        }
    )
    return WorldModel(config, 2, 1, tf.random.Generator.from_seed(seed))


def make_constant(net, values):
    """Member i returns values[i] in every entry, whatever it is given."""
    for variable in net.variables:
        variable.assign(tf.zeros_like(variable))
    last = net.biases[-1]
    columns = np.array(values, np.float32)[:, None]
    last.assign(np.broadcast_to(columns, last.shape))


def make_linear(net, rows):
    """One layer without bias: every member has these weights, [I, F]."""
    weight, bias = net.variables
    weight.assign(np.broadcast_to(np.array(rows, np.float32), weight.shape))
    bias.assign(tf.zeros_like(bias))


def random_batch(size, seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return tf.constant(rng.normal(size=shape), tf.float32)

    return Batch(
        obs=normal(size, 2),
        action=normal(size, 1),
        reward=normal(size),
        next_obs=normal(size, 2),
        terminated=tf.constant(rng.integers(0, 2, size), tf.float32),
    )


def shares_of(transition, reward):
    """The assignment that gives shares of the rows to these members."""
    return ModelAssignment(
        nn.Assignment(len(transition), tf.constant(transition)),
        nn.Assignment(len(reward), tf.constant(reward), strided=True),
    )


# Losses


def test_transition_loss_sums_over_observations_and_averages_over_the_batch():
    obs = tf.constant([[0.0, 0.0], [1.0, 1.0]])
    next_obs = tf.constant([[1.0, 2.0], [1.0, 4.0]])
    change = tf.constant([[0.0, 1.0], [2.0, 3.0]])
    # errors (1, 1) and (-2, 0): (1/2 * 2 + 1/2 * 4) / 2
    assert transition_loss(obs, next_obs, change).numpy() == pytest.approx(1.5)


def test_termination_loss_is_the_cross_entropy_of_the_logit():
    logit = tf.constant([0.0, math.log(3), math.log(3)])
    loss = termination_loss(tf.constant([1.0, 0.0, 1.0]), logit)
    # probabilities 1/2, 3/4, 3/4: ln 2, ln 4, ln 4/3
    expected = (math.log(2) + math.log(4) + math.log(4 / 3)) / 3
    assert loss.numpy() == pytest.approx(expected, rel=1e-6)


def test_losses_of_unequal_shapes_are_refused():
    rows, table = tf.zeros(3), tf.zeros((3, 1))
    with pytest.raises(ValueError, match="incompatible"):
        reward_loss(rows, table)
    with pytest.raises(ValueError, match="incompatible"):
        transition_loss(tf.zeros((3, 2)), tf.zeros((3, 2)), table)


def test_reward_loss_is_half_the_mean_square():
    loss = reward_loss(tf.constant([1.0, 0.0]), tf.constant([3.0, 1.0]))
    assert loss.numpy() == pytest.approx((4 / 2 + 1 / 2) / 2)


def test_weight_penalty_is_half_the_sum_of_squares():
    variables = [tf.Variable([[1.0, 2.0]]), tf.Variable([3.0])]
    assert weight_penalty(variables, 0.1).numpy() == pytest.approx(0.1 * 14 / 2)


def test_losses_of_constant_nets_and_their_sum():
    model = build(weight_decay=0.01)
    make_constant(model.transition, [1.0])
    make_constant(model.termination, [math.log(3)])
    make_constant(model.reward, [2.0])
    batch = Batch(
        obs=tf.constant([[0.0, 0.0], [5.0, 5.0]]),
        action=tf.zeros([2, 1]),
        reward=tf.constant([2.0, 6.0]),
        next_obs=tf.constant([[1.0, 3.0], [6.0, 6.0]]),
        terminated=tf.constant([1.0, 0.0]),
    )
    losses = model.losses(batch, model.sample_assignment(nn.seed_tensor(0), UPDATE, 2))
    expected = {
        "transition_loss": (0 + 4) / 2 / 2,  # errors (0, 2) and (0, 0)
        "termination_loss": (math.log(4 / 3) + math.log(4)) / 2,
        "reward_loss": (0 + 16) / 2 / 2,
        "reg_loss": 0.01 * (2 * 1 + math.log(3) ** 2 + 4) / 2,
    }
    expected["total_loss"] = sum(expected.values())
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert losses[name].numpy() == pytest.approx(value, rel=1e-5), name


def test_termination_and_reward_see_the_real_next_observation_first():
    model = build(weight_decay=0.0)
    make_constant(model.transition, [100.0])  # a prediction that would show
    shown = [[1.0], [10.0], [100.0], [1000.0], [10000.0]]  # s', s, a in digits
    make_linear(model.reward, shown)
    make_linear(model.termination, shown)
    batch = Batch(
        obs=tf.constant([[3.0, 4.0]]),
        action=tf.constant([[5.0]]),
        reward=tf.constant([54320.0]),
        next_obs=tf.constant([[1.0, 2.0]]),
        terminated=tf.constant([0.0]),
    )
    losses = model.losses(batch, model.sample_assignment(nn.seed_tensor(0), UPDATE, 1))
    assert losses["reward_loss"].numpy() == pytest.approx(1 / 2)  # g = 54321
    # the cross-entropy of a large logit with d = 0 is the logit
    assert losses["termination_loss"].numpy() == pytest.approx(54321)


# Assignment


def test_each_member_sees_exactly_its_rows():
    """The gradient of member k's bias is -1/B times the sum of its rows' targets.

    Row i's target is 2^i, so the sum tells the rows.
    """
    model = build(ensembles(transition=(3, 2, 3), reward=(4, 3, 4)), weight_decay=0.0)
    for name in NETS:
        net = getattr(model, name)
        make_constant(net, [0.0] * net.ensemble_size)
    powers = tf.constant([[2.0**i] for i in range(5)])
    batch = Batch(
        obs=tf.zeros([5, 2]),
        action=tf.zeros([5, 1]),
        reward=powers[:, 0],
        next_obs=tf.repeat(powers, 2, axis=1),
        terminated=tf.zeros([5]),
    )
    # transition: member 2 gets rows 0, 1, 2; member 0 rows 3, 4; member 1 none.
    # reward: member 1 rows 0, 3; member 3 rows 1, 4; member 0 row 2; member 2 none.
    assignment = shares_of([2, 0], [1, 3, 0])
    gradients, _ = model.gradients(batch, assignment)
    of = {
        id(v): tf.convert_to_tensor(g).numpy()
        for v, g in zip(model.variables, gradients, strict=True)
    }
    rows = -5 * of[id(model.transition.biases[-1])]
    np.testing.assert_allclose(rows, [[8 + 16] * 2, [0, 0], [1 + 2 + 4] * 2])
    rows = -5 * of[id(model.reward.biases[-1])]
    np.testing.assert_allclose(rows, [[4], [1 + 8], [0], [2 + 16]])


def test_termination_members_get_the_rows_of_their_transition_members():
    model = build(ensembles(transition=(3, 2, 3), reward=(4, 3, 4)), weight_decay=0.0)
    make_constant(model.termination, [0.0] * 3)
    batch = random_batch(5)._replace(terminated=tf.constant([1.0, 0, 0, 0, 1]))
    assignment = shares_of([2, 0], [1, 3, 0])
    gradients, _ = model.gradients(batch, assignment)
    index = next(
        i for i, v in enumerate(model.variables) if v is model.termination.biases[-1]
    )
    # d/dlogit = p - d with p = 1/2. Member 2: rows 0, 1, 2 with d = 1, 0, 0;
    # member 0: rows 3, 4 with d = 0, 1.
    dense = 5 * tf.convert_to_tensor(gradients[index]).numpy()
    np.testing.assert_allclose(dense, [[0.0], [0.0], [-0.5 + 0.5 + 0.5]], atol=1e-6)


def test_a_loss_is_the_mean_over_all_rows_whichever_member_took_them():
    model = build(ensembles(reward=(4, 3, 4)))
    make_constant(model.reward, [0.0, 1.0, 2.0, 3.0])
    batch = random_batch(5)._replace(reward=tf.zeros([5]))
    assignment = shares_of([0, 1, 2], [3, 0, 2])
    # members 3, 0, 2, 3, 0: (9 + 0 + 4 + 9 + 0) / 2 / 5
    loss = model.losses(batch, assignment)["reward_loss"]
    assert loss.numpy() == pytest.approx(22 / 10)


def test_the_penalty_covers_members_that_take_no_part():
    model = build(ensembles(transition=(3, 1, 3), reward=(4, 1, 4)), weight_decay=0.1)
    for variable in model.variables:
        variable.assign(tf.ones_like(variable))
    entries = sum(variable.shape.num_elements() for variable in model.variables)
    assignment = shares_of([0], [0])
    gradients, losses = model.gradients(random_batch(2), assignment)
    assert losses["reg_loss"].numpy() == pytest.approx(0.1 * entries / 2, rel=1e-5)
    for gradient in gradients:
        idle = tf.convert_to_tensor(gradient).numpy()[1:]
        np.testing.assert_allclose(idle, 0.1, rtol=1e-5)


def test_shares_are_drawn_for_train_sample_count_members():
    model = build(ensembles(transition=(3, 2, 1), reward=(6, 4, 5)))
    assignment = model.sample_assignment(nn.seed_tensor(0), UPDATE, 9)
    for share, size, count in (
        (assignment.transition, 3, 2),
        (assignment.reward, 6, 4),
    ):
        assert len(set(share.members.numpy())) == count
        assert set(share.members.numpy()) <= set(range(size))


def test_each_pair_of_transition_and_reward_members_shares_an_equal_part():
    model = build(ensembles(transition=(4, 4, 4), reward=(4, 4, 4)))
    assignment = model.sample_assignment(nn.seed_tensor(0), UPDATE, 32)
    numbers = tf.range(4, dtype=tf.float32)
    for net in (model.transition, model.reward):
        for variable in net.variables:
            variable.assign(tf.zeros_like(variable))
        last = net.biases[-1]
        last.assign(tf.broadcast_to(numbers[:, None], last.shape))
    transition, reward = (
        net.apply_assigned(tf.zeros([32, net.weights[0].shape[1]]), given)[:, 0]
        for net, given in (
            (model.transition, assignment.transition),
            (model.reward, assignment.reward),
        )
    )
    pairs = list(zip(transition.numpy().tolist(), reward.numpy().tolist(), strict=True))
    assert len(set(pairs)) == 16
    assert all(pairs.count(pair) == 2 for pair in pairs)


# Members in targets


def test_members_are_drawn_for_eval_sample_count():
    model = build(ensembles(transition=(3, 1, 2), reward=(6, 4, 5)))
    members = model.sample_members(nn.seed_tensor(0))
    assert len(set(members.transition.numpy())) == 2
    assert len(set(members.reward.numpy())) == 5
    assert build(ensembles()).sample_members(nn.seed_tensor(0)) == (None, None)
    assert build().sample_members(nn.seed_tensor(0)) == (None, None)


@pytest.mark.parametrize("chosen", [None, [2, 0]])
def test_each_transition_member_goes_on_from_its_own_state(chosen):
    model = build(ensembles())
    make_constant(model.transition, [1.0, 10.0, 100.0])
    members = ModelMembers(None if chosen is None else tf.constant(chosen), None)
    steps = [1, 10, 100] if chosen is None else [100, 1]
    action = tf.zeros([1, 4, 1])
    once = model.next_obs(tf.ones([1, 4, 2]), action, members)
    assert once.shape == (len(steps), 4, 2)
    twice = model.next_obs(once, tf.zeros([len(steps), 4, 1]), members)
    for k, step in enumerate(steps):
        np.testing.assert_allclose(once[k], 1 + step)
        np.testing.assert_allclose(twice[k], 1 + 2 * step)


def test_the_transition_net_gets_the_observation_and_then_the_action():
    model = build()
    make_linear(model.transition, [[1.0, 0.0], [10.0, 0.0], [100.0, 1000.0]])
    result = model.next_obs(
        tf.constant([[[1.0, 2.0]]]),
        tf.constant([[[3.0]]]),
        model.sample_members(nn.seed_tensor(0)),
    )
    np.testing.assert_allclose(result, [[[1 + 321, 2 + 3000]]])


@pytest.mark.parametrize("chosen", [None, [2, 0], [0, 2]])
def test_termination_member_m_judges_the_rollout_of_transition_member_m(chosen):
    model = build(ensembles())
    make_constant(model.termination, [0.0, math.log(3), -math.log(3)])
    probs = [0.5, 0.75, 0.25]
    used = range(3) if chosen is None else chosen
    members = ModelMembers(
        None if chosen is None else tf.constant(chosen), tf.constant([3])
    )
    rows = tf.zeros([len(used), 5, 2])
    result = model.termination_prob(rows, rows, tf.zeros([len(used), 5, 1]), members)
    expected = np.repeat([[probs[m]] for m in used], 5, axis=1)
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_termination_rows_stay_with_their_member():
    model = build(ensembles())
    make_linear(model.termination, [[1.0], [0.0], [0.0], [0.0], [0.0]])
    next_obs = tf.reshape(tf.range(12.0) - 6, [3, 2, 2])
    result = model.termination_prob(
        next_obs, tf.zeros([3, 2, 2]), tf.zeros([3, 2, 1]), ModelMembers(None, None)
    )
    expected = 1 / (1 + np.exp(-next_obs.numpy()[..., 0]))
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize("chosen", [None, [3, 1]])
def test_every_reward_member_judges_every_row(chosen):
    model = build(ensembles())
    make_linear(model.reward, [[1.0], [10.0], [100.0], [1000.0], [10000.0]])
    model.reward.biases[0].assign([[0.1], [0.2], [0.3], [0.4]])
    members = ModelMembers(None, None if chosen is None else tf.constant(chosen))
    result = model.rewards(
        tf.constant([[1.0, 2.0], [0.0, 0.0]]),
        tf.constant([[3.0, 4.0], [0.0, 0.0]]),
        tf.constant([[5.0], [0.0]]),
        members,
    )
    own = [0.1, 0.2, 0.3, 0.4] if chosen is None else [0.4, 0.2]
    np.testing.assert_allclose(result, [[54321 + b, b] for b in own], rtol=1e-6)


# Names and learning


def test_variables_have_the_names_of_a_checkpoint():
    model = build(layers=2)
    named = model.named_variables()
    assert list(named)[:2] == ["transition/w0", "transition/b0"]
    assert list(named)[-1] == "reward/b1"
    assert len(named) == len(model.variables) == 3 * 4
    for ours, theirs in zip(named.values(), model.variables, strict=True):
        assert ours is theirs


def test_update_is_one_step_on_the_gradients_and_returns_the_losses_before_it():
    model, same = (build(ensembles(), layers=2) for _ in range(2))
    batch, assignment = (
        random_batch(8),
        model.sample_assignment(nn.seed_tensor(0), UPDATE, 8),
    )
    losses = model.update(batch, assignment, nn.Adam(model.variables, 0.01))
    gradients, before = same.gradients(batch, assignment)
    nn.Adam(same.variables, 0.01).apply(gradients)
    for name, loss in before.items():
        assert losses[name].numpy() == pytest.approx(loss.numpy(), rel=1e-6)
    for ours, expected in zip(model.variables, same.variables, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-7)


def linear_batch(size, rng):
    """s' = s + 0.5 (s_2, a), r = s_1 - a, d = 1 where s_1 > 1/2."""
    obs, action = rng.uniform(-1, 1, (size, 2)), rng.uniform(-1, 1, (size, 1))
    change = 0.5 * np.concatenate([obs[:, 1:], action], axis=1)
    columns = (
        obs,
        action,
        obs[:, 0] - action[:, 0],
        obs + change,
        (obs[:, 0] > 0.5).astype(float),
    )
    return Batch(*(tf.constant(column, tf.float32) for column in columns))


def test_every_ensemble_learns_a_linear_system_without_retracing():
    model = build(ensembles(), layers=2, seed=1)
    optimizer = nn.Adam(model.variables, 0.01)
    rng = np.random.default_rng(0)

    @tf.function
    def step(batch):
        number = optimizer.steps.read_value()
        seed = nn.fold_in(nn.seed_tensor(0), number)
        assignment = model.sample_assignment(seed, number, 48)
        return model.update(batch, assignment, optimizer)

    first = step(linear_batch(48, rng))
    for _ in range(300):
        last = step(linear_batch(48, rng))
    assert step.experimental_get_tracing_count() == 1
    assert last["transition_loss"] < 0.05 * first["transition_loss"]
    assert last["reward_loss"] < 0.05 * first["reward_loss"]
    assert last["termination_loss"] < 0.4 * first["termination_loss"]
    # All members learnt, not one: each predicts new rows.
    batch = linear_batch(20, rng)
    predicted = model.next_obs(
        batch.obs[None], batch.action[None], ModelMembers(None, None)
    )
    assert np.abs(predicted - batch.next_obs).max() < 0.25
