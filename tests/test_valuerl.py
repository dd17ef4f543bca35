"""Value expansion: targets, weights, losses, and the update that uses them.

The slow functions here are written from SPEC sections 4 and 5 with one loop per index
and one row at a time; they share no code with what they check. O = 2, A = 1.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from steve import nn
from steve.replay import Batch
from steve.settings.schema import PolicyConfig, ValueExpansion, WorldModelConfig
from steve.valuerl import (
    SampledMembers,
    ValueRL,
    candidate_targets,
    covariance_system,
    covariance_weights,
    horizon_weights,
    policy_loss,
    pre_tanh_loss,
    q_loss,
    reach_prob,
    steve_weights,
    weighted_target,
)
from steve.worldmodel import ModelMembers, WorldModel

ALGORITHMS = {
    "mve": {},
    "mve_tdk": {"tdk_trick": True},
    "mve_mean": {"mean_k_return": True},
    "mve_lambda": {"lambda_return": 0.6},
    "steve": {"steve_reweight": True},
    "steve_cov": {"steve_reweight": True, "covariances": True},
}
DISCOUNT, REWARD_SCALE = 0.9, 0.5


def expansion(horizon=2, **keys):
    return ValueExpansion(rollout_len=horizon, **keys)


def every_algorithm(test):
    return pytest.mark.parametrize("keys", ALGORITHMS.values(), ids=ALGORITHMS)(test)


def inputs(rewards, continues, values):
    """One row and one member each: [H+1] lists to the arguments of the function."""

    def column(numbers, axes):
        return tf.reshape(tf.constant(numbers, tf.float32), [1, -1, *[1] * axes])

    return column(rewards, 2), column(continues, 1), column(values, 2)


def random_parts(seed=0, batch=4, horizon=3, models=2, rewards=3, values=5):
    """Rewards, continue_probs and values of a batch whose first row terminates."""
    rng = np.random.default_rng(seed)
    going_on = rng.uniform(0.2, 1, (batch, horizon + 1, models))
    going_on[:, 0] = (np.arange(batch) > 0)[:, None]
    return (
        tf.constant(rng.normal(size=(batch, horizon + 1, models, rewards)), tf.float32),
        tf.constant(np.cumprod(going_on, axis=1), tf.float32),
        tf.constant(rng.normal(size=(batch, horizon + 1, models, values)), tf.float32),
    )


def slow_target(reward, going_on, value, start, end, discount, reward_scale):
    """T_{j,h} of one row and triple; arguments [H+1] hold r_k, C_k, Q(s_k, a_k)."""

    def reached(k):
        return going_on[k - 1] if k > 0 else 1.0

    relative = reached(start) + 1e-8 if start > 0 else 1.0
    total = 0.0
    for k in range(start, end + 1):
        total += discount ** (k - start) * reached(k) / relative * reward[k]
    bootstrap = discount ** (end - start + 1) * going_on[end] / relative * value[end]
    return reward_scale * total + bootstrap


def slow_candidates(rewards, continue_probs, values, start, discount, reward_scale):
    """[B, H+1-j, M, N, L]."""
    rewards, going_on, values = (
        np.asarray(x, np.float64) for x in (rewards, continue_probs, values)
    )
    rows, steps, models, reward_models = rewards.shape
    q_members = values.shape[-1]
    shape = (rows, steps - start, models, reward_models, q_members)
    result = np.empty(shape)
    for b, i, m, n, member in np.ndindex(*shape):
        result[b, i, m, n, member] = slow_target(
            rewards[b, :, m, n],
            going_on[b, :, m],
            values[b, :, m, member],
            start,
            start + i,
            discount,
            reward_scale,
        )
    return result


# Candidate targets by hand


def test_candidates_of_three_rewards_and_bootstraps():
    parts = inputs([1, 2, 3], [1, 1, 1], [10, 20, 30])
    # T_0 = 1 + 5; T_1 = 1 + 1 + 20/4; T_2 = 1 + 1 + 3/4 + 30/8
    np.testing.assert_allclose(
        candidate_targets(*parts, 0.5, 1.0), [[[6.0], [7.0], [6.5]]]
    )


def test_a_terminal_first_step_leaves_its_reward_alone():
    parts = inputs([1, 2, 3], [0, 0, 0], [10, 20, 30])
    np.testing.assert_allclose(
        candidate_targets(*parts, 0.5, 1.0), [[[1.0], [1.0], [1.0]]]
    )


def test_a_probable_termination_takes_its_part_of_what_follows():
    # d = 0, 1/2, 1/2. T_0 = 1 + 5; T_1 = 1 + 1 + 1/4 1/2 20;
    # T_2 = 1 + 1 + 1/4 1/2 3 + 1/8 1/4 30
    parts = inputs([1, 2, 3], [1, 0.5, 0.25], [10, 20, 30])
    np.testing.assert_allclose(
        candidate_targets(*parts, 0.5, 1.0), [[[6.0], [4.5], [3.3125]]]
    )


@pytest.mark.parametrize(
    ("start", "expected"),
    # T_{1,1} = 2 + 1/2 1/2 20; T_{1,2} = 2 + 1/2 1/2 3 + 1/4 1/4 30;
    # T_{2,2} = 3 + 1/2 1/2 30, given that step 2 was reached
    [(1, [7.0, 4.625]), (2, [10.5])],
)
def test_a_later_start_counts_from_itself(start, expected):
    parts = inputs([1, 2, 3], [1, 0.5, 0.25], [10, 20, 30])
    result = candidate_targets(*parts, 0.5, 1.0, start)
    np.testing.assert_allclose(result[0, :, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("start", [1, 2])
def test_a_start_behind_a_real_termination_has_target_0(start):
    parts = inputs([1, 2, 3], [0, 0, 0], [10, 20, 30])
    np.testing.assert_array_equal(candidate_targets(*parts, 0.5, 1.0, start), 0)


def test_reach_prob_is_one_and_then_the_continue_probs_but_the_last():
    result = reach_prob(tf.constant([[[1.0], [0.5], [0.25]]]))
    np.testing.assert_array_equal(result, [[[1.0], [1.0], [0.5]]])


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_candidates_agree_with_the_formula_written_out(start):
    parts = random_parts()
    result = candidate_targets(*parts, DISCOUNT, REWARD_SCALE, start)
    expected = slow_candidates(*parts, start, DISCOUNT, REWARD_SCALE)
    assert result.shape == (4, 4 - start, 2 * 3 * 5)
    np.testing.assert_allclose(
        result, expected.reshape(result.shape), rtol=1e-5, atol=1e-6
    )


def test_reward_scale_is_linear_and_leaves_the_bootstrap_alone():
    rewards, continues, values = random_parts()
    once, twice, thrice = (
        candidate_targets(rewards, continues, values, DISCOUNT, scale).numpy()
        for scale in (1.0, 2.0, 3.0)
    )
    np.testing.assert_allclose(thrice - twice, twice - once, atol=1e-5)
    no_values = tf.zeros_like(values)
    returns = candidate_targets(rewards, continues, no_values, DISCOUNT, 1.0)
    np.testing.assert_allclose(twice - once, returns, atol=1e-5)


def test_discount_0_leaves_the_first_reward():
    rewards, *others = random_parts()
    result = candidate_targets(rewards, *others, 0.0, 2.0)
    expected = 2 * tf.repeat(tf.reshape(rewards[:, 0], [4, 1, 6]), 5, axis=2)
    np.testing.assert_allclose(result, tf.repeat(expected, 4, axis=1), rtol=1e-6)


# Weights and targets by hand

SAMPLES = tf.constant([[[4.0, 8.0], [6.0, 8.0]]])  # means 6, 7; variances 4, 1


def test_steve_weighs_by_the_inverse_of_the_population_variance():
    weights = steve_weights(SAMPLES, 1e-8)
    np.testing.assert_allclose(weights, [[0.2, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(weighted_target(SAMPLES, weights), [6.8], rtol=1e-6)


def test_the_epsilon_of_steve_is_added_to_the_variance():
    # 1 / (4 + 2), 1 / (1 + 2)
    np.testing.assert_allclose(steve_weights(SAMPLES, 2.0), [[1 / 3, 2 / 3]], rtol=1e-6)


def test_steve_is_uniform_where_all_variances_are_0():
    np.testing.assert_allclose(steve_weights(tf.ones([1, 4, 3]), 1e-8), [[0.25] * 4])


def test_covariance_weights_solve_the_system_with_the_ridge():
    # K = [[8, 4], [4, 2]]; (K + I) w = 1 has w = (-1, 5) / 11, normalised (-1, 5) / 4
    system = covariance_system(SAMPLES, 1.0)
    np.testing.assert_allclose(system, [[[9.0, 4.0], [4.0, 3.0]]])
    weights = covariance_weights(SAMPLES, 1.0)
    np.testing.assert_allclose(weights, [[-0.25, 1.25]], rtol=1e-6)
    np.testing.assert_allclose(weighted_target(SAMPLES, weights), [7.25], rtol=1e-6)


def test_covariance_weights_are_uniform_without_deviations():
    weights = covariance_weights(tf.ones([2, 3, 5]), 0.001)
    np.testing.assert_allclose(weights, [[1 / 3] * 3] * 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("keys", "target"),
    [
        ({}, 6.5),
        ({"tdk_trick": True}, 6.5),
        ({"mean_k_return": True}, 6.5),  # (6 + 7 + 6.5) / 3
        ({"lambda_return": 0.5}, 6.375),  # 1/2 6 + 1/4 7 + 1/4 6.5
        ({"lambda_return": 0.2}, 6.18),  # 0.8 6 + 0.16 7 + 0.04 6.5
        ({"steve_reweight": True}, 6.5),  # one sample each: no variance
    ],
)
def test_each_algorithms_target_of_candidates_6_and_7_and_6_5(keys, target):
    candidates = tf.constant([[[6.0], [7.0], [6.5]]])
    weights = horizon_weights(candidates, expansion(**keys))
    result = weighted_target(candidates, weights).numpy()
    np.testing.assert_allclose(result, [target], rtol=1e-6)


def test_the_keys_of_steve_and_its_covariances_are_obeyed():
    weights = horizon_weights(
        SAMPLES, expansion(1, steve_reweight=True, variance_epsilon=2.0)
    )
    np.testing.assert_allclose(weights, [[1 / 3, 2 / 3]], rtol=1e-6)
    keys = {"steve_reweight": True, "covariances": True, "covariance_ridge": 1.0}
    weights = horizon_weights(SAMPLES, expansion(1, **keys))
    np.testing.assert_allclose(weights, [[-0.25, 1.25]], rtol=1e-6)


def test_the_default_epsilon_and_ridge_are_the_2018_releases():
    # variances 1e-8 and 4e-8: 1 / 2e-8 and 1 / 5e-8
    samples = 1e-4 * tf.constant([[[-1.0, 1.0], [-2.0, 2.0]]])
    weights = horizon_weights(samples, expansion(1, steve_reweight=True))
    np.testing.assert_allclose(weights, [[5 / 7, 2 / 7]], rtol=1e-5)
    # K = [[8, 4], [4, 2]] 1e-4; (K + 0.001 I) w = 1 has w = (8, 14) / 0.02
    samples = 0.01 * tf.constant([[[-2.0, 2.0], [-1.0, 1.0]]])
    keys = {"steve_reweight": True, "covariances": True}
    weights = horizon_weights(samples, expansion(1, **keys))
    np.testing.assert_allclose(weights, [[4 / 11, 7 / 11]], rtol=1e-5)


# Identities


@every_algorithm
def test_weights_sum_to_one_over_horizons(keys):
    candidates = candidate_targets(*random_parts(), DISCOUNT, 1.0)
    weights = horizon_weights(candidates, expansion(3, **keys))
    assert weights.shape == (4, 4)
    np.testing.assert_allclose(tf.reduce_sum(weights, -1), [1.0] * 4, rtol=1e-5)


@every_algorithm
def test_horizon_0_gives_the_one_step_target(keys):
    rewards, continues, values = random_parts(horizon=0)
    candidates = candidate_targets(rewards, continues, values, DISCOUNT, 2.0)
    weights = horizon_weights(candidates, expansion(**keys))
    mean_reward = tf.reduce_mean(rewards, [1, 2, 3])
    mean_value = tf.reduce_mean(continues[:, :, :, None] * values, [1, 2, 3])
    np.testing.assert_allclose(
        weighted_target(candidates, weights),
        2.0 * mean_reward + DISCOUNT * mean_value,
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize(("mix", "horizon"), [(0.0, 0), (1.0, 3)])
def test_lambda_0_gives_the_first_candidate_and_lambda_1_the_last(mix, horizon):
    candidates = candidate_targets(*random_parts(), DISCOUNT, 1.0)
    weights = horizon_weights(candidates, expansion(3, lambda_return=mix))
    np.testing.assert_allclose(
        weighted_target(candidates, weights),
        tf.reduce_mean(candidates[:, horizon], -1),
        rtol=1e-6,
    )


@every_algorithm
@pytest.mark.parametrize("permuted", ["transition", "reward", "q"])
def test_permuting_members_changes_no_target(keys, permuted):
    def target(rewards, continues, values):
        candidates = candidate_targets(rewards, continues, values, DISCOUNT, 1.0)
        return weighted_target(
            candidates, horizon_weights(candidates, expansion(**keys))
        )

    rewards, continues, values = random_parts(models=3)
    expected = target(rewards, continues, values)
    if permuted == "transition":
        order = [2, 0, 1]
        rewards, continues, values = (
            tf.gather(x, order, axis=2) for x in (rewards, continues, values)
        )
    elif permuted == "reward":
        rewards = tf.gather(rewards, [1, 2, 0], axis=3)
    else:
        values = tf.gather(values, [3, 1, 4, 0, 2], axis=3)
    np.testing.assert_allclose(
        target(rewards, continues, values), expected, rtol=1e-3, atol=1e-4
    )


@every_algorithm
def test_a_constant_added_to_all_samples_shifts_the_target_by_it(keys):
    candidates = candidate_targets(*random_parts(), DISCOUNT, 1.0)[1:]

    def target(samples):
        return weighted_target(samples, horizon_weights(samples, expansion(3, **keys)))

    shifted = target(candidates + 3.0) - target(candidates)
    np.testing.assert_allclose(shifted, [3.0] * 3, rtol=1e-3)


def test_steve_prefers_the_candidate_that_the_members_agree_on():
    certain = tf.constant([[[1.0, 1.001], [5.0, -5.0], [2.0, 3.0]]])
    weights = steve_weights(certain, 1e-8).numpy()[0]
    assert weights[0] > 0.999
    assert weights[1] < weights[2]


# Losses by hand


def test_q_loss_is_the_plain_mean_of_weighted_half_squares():
    predicted = tf.constant([[1.0, 2.0], [3.0, 4.0]])
    targets = tf.constant([[0.0, 4.0], [3.0, 0.0]])
    weights = tf.constant([[1.0, 0.5], [1.0, 0.25]])
    # (1/2 1 + 1/2 1/2 4 + 0 + 1/4 1/2 16) / 4, not divided by the sum of the weights
    assert q_loss(predicted, targets, weights).numpy() == pytest.approx(3.5 / 4)


def test_policy_loss_is_minus_the_mean_over_members_and_batch():
    values = tf.constant([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]])
    assert policy_loss(values).numpy() == pytest.approx(-4.0)


def test_pre_tanh_loss_is_the_mean_square_over_batch_and_dimensions():
    actions = tf.constant([[1.0, 3.0], [0.0, -2.0]])
    assert pre_tanh_loss(actions, 0.001).numpy() == pytest.approx(0.001 * 14 / 4)


# The class: builders, and the same computation one row at a time


def sizes(ensemble_size, train=None, evaluation=None):
    return {
        "ensemble_size": ensemble_size,
        "train_sample_count": train or ensemble_size,
        "eval_sample_count": evaluation or ensemble_size,
    }


ENSEMBLES = {"transition": sizes(2), "reward": sizes(3), "q": sizes(5)}
DRAWN = {"transition": sizes(4, 2, 2), "reward": sizes(4, 4, 3), "q": sizes(6, 3, 5)}


def build(keys=None, horizon=3, ensembles=ENSEMBLES, layers=2, seed=0):
    """A ValueRL with random weights and biases; keys None: DDPG, no world model."""
    generator = tf.random.Generator.from_seed(seed)
    model = None
    if keys is not None:
        bayesian = ensembles and {n: ensembles[n] for n in ("transition", "reward")}
        config = WorldModelConfig.model_validate(
            {
                "transition_hidden_dim": 6,
                "aux_hidden_dim": 6,
                "transition_layers": layers,
                "aux_layers": layers,
                "bayesian": bayesian,
            }
        )
        model = WorldModel(config, 2, 1, generator)
    config = PolicyConfig.model_validate(
        {
            "hidden_dim": 6,
            "layers": layers,
            "bayesian": ensembles and ensembles["q"],
            "value_expansion": None
            if keys is None
            else {"rollout_len": horizon, **keys},
        }
    )
    built = ValueRL(config, 2, 1, DISCOUNT, REWARD_SCALE, generator, model)
    for name, variable in all_variables(built).items():
        if "/b" in name:
            variable.assign(0.3 * generator.normal(variable.shape))
    return built


def all_variables(built):
    named = built.named_variables()
    return named | (built.world_model.named_variables() if built.world_model else {})


def values_of(built):
    return {name: v.numpy() for name, v in all_variables(built).items()}


def optimizers(built, rate=3e-4):
    return nn.Adam(built.policy.variables, rate), nn.Adam(built.q.variables, rate)


def random_batch(size=4, seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return tf.constant(rng.normal(size=shape), tf.float32)

    return Batch(
        obs=normal(size, 2),
        action=tf.tanh(normal(size, 1)),
        reward=normal(size),
        next_obs=normal(size, 2),
        terminated=tf.constant(np.arange(size) % 4 == 1, tf.float32),
    )


def make_constant(net, values):
    """Member i returns values[i] in every entry, whatever it is given."""
    for variable in net.variables:
        variable.assign(tf.zeros_like(variable))
    last = net.biases[-1]
    last.assign(np.broadcast_to(np.array(values, np.float32)[:, None], last.shape))


def used(members, net):
    return range(net.ensemble_size) if members is None else members.numpy().tolist()


def slow_net(net, member, *parts):
    """One member on one row, float64; parts are concatenated."""
    x = np.concatenate([np.atleast_1d(part) for part in parts]).astype(np.float64)
    for i, (w, b) in enumerate(zip(net.weights, net.biases, strict=True)):
        x = x @ w.numpy()[member].astype(np.float64) + b.numpy()[member]
        if i < len(net.weights) - 1:
            x = np.maximum(x, 0)
    return x


def slow_action(built, obs):
    return np.tanh(slow_net(built.policy, 0, obs))


def slow_rollout(built, batch, sampled, row, m):
    """States, actions, C_h, rewards [H+1, N], values [H+1, L] of one row and member."""
    model = built.world_model
    states, actions = [batch.next_obs.numpy()[row]], []
    for h in range(built.horizon + 1):
        actions.append(slow_action(built, states[h]))
        if h < built.horizon:
            change = slow_net(model.transition, m, states[h], actions[h])
            states.append(states[h] + change)
    rewards, going_on, values = [], [], []
    for h in range(built.horizon + 1):
        before = (states[h], states[h - 1], actions[h - 1])
        if h == 0:
            terminated = float(batch.terminated[row])
            rewards.append(
                [float(batch.reward[row])] * len(used_rewards(sampled, model))
            )
        else:
            logit = slow_net(model.termination, m, *before)[0]
            terminated = 1 / (1 + math.exp(-logit))
            rewards.append(
                [
                    slow_net(model.reward, n, *before)[0]
                    for n in used_rewards(sampled, model)
                ]
            )
        going_on.append((going_on[-1] if going_on else 1.0) * (1 - terminated))
        members = used(sampled.q_members, built.target_q)
        values.append(
            [slow_net(built.target_q, k, states[h], actions[h])[0] for k in members]
        )
    return SimpleNamespace(
        states=states,
        actions=actions,
        going_on=np.array(going_on),
        rewards=np.array(rewards),
        values=np.array(values),
    )


def used_rewards(sampled, model):
    return used(sampled.model.reward, model.reward)


def slow_imagined(built, batch, sampled):
    """{(row, position of the transition member): rollout}."""
    members = used(sampled.model.transition, built.world_model.transition)
    return {
        (b, i): slow_rollout(built, batch, sampled, b, m)
        for b in range(len(batch.reward))
        for i, m in enumerate(members)
    }


def slow_class_candidates(rollouts, rows, start):
    """[B, H+1-j, M, N, L], with a loop over every index."""
    models = 1 + max(i for _, i in rollouts)
    first = rollouts[0, 0]
    steps, reward_models = first.rewards.shape
    q_members = first.values.shape[1]
    result = np.empty((rows, steps - start, models, reward_models, q_members))
    for b in range(rows):
        for m in range(models):
            rollout = rollouts[b, m]
            for n in range(reward_models):
                for member in range(q_members):
                    for end in range(start, steps):
                        result[b, end - start, m, n, member] = slow_target(
                            rollout.rewards[:, n],
                            rollout.going_on,
                            rollout.values[:, member],
                            start,
                            end,
                            DISCOUNT,
                            REWARD_SCALE,
                        )
    return result


def fixed_members(built, transition=None, reward=None, q=None, order=None, taking=None):
    """The members by number; assignment: `order` cut among the members `taking`.

    By default one row to each of the first four members.
    """

    def constant(numbers):
        return None if numbers is None else tf.constant(numbers)

    taking = taking or list(range(min(4, built.q.ensemble_size)))
    return SampledMembers(
        q_members=constant(q),
        q_assignment=nn.Assignment(
            tf.constant(order or [0, 1, 2, 3]), tf.constant(taking)
        ),
        model=ModelMembers(constant(transition), constant(reward))
        if built.world_model
        else None,
    )


CHOICES = {
    "all_members": (ENSEMBLES, {}),
    "drawn_members": (
        DRAWN,
        {"transition": [3, 1], "reward": [2, 0, 3], "q": [5, 0, 3, 1, 2]},
    ),
    "two_all_the_rest_drawn": (ENSEMBLES | {"q": DRAWN["q"]}, {"q": [4, 1, 0, 3, 5]}),
}


# The class against the slow computation


@pytest.mark.parametrize("start", [0, 1, 3])
@pytest.mark.parametrize(("ensembles", "members"), CHOICES.values(), ids=CHOICES)
def test_imagined_candidates_agree_with_loops_over_rows_and_members(
    ensembles, members, start
):
    built = build({}, horizon=3, ensembles=ensembles)
    batch, sampled = random_batch(), fixed_members(built, **members)
    result = built.candidates(built.imagine(batch, sampled), start)
    rollouts = slow_imagined(built, batch, sampled)
    expected = slow_class_candidates(rollouts, 4, start)
    assert result.shape == (4, 4 - start, 2 * 3 * 5)
    np.testing.assert_allclose(
        result, expected.reshape(result.shape), rtol=1e-4, atol=1e-5
    )


def test_identifiable_members_show_in_every_place():
    """Transition member m adds m + 1, reward member n gives n, Q member l gives 10 l.

    Termination member m has probability 1/2, 1/4. With H = 1 and the real r = 7:
    T_1 = 1/2 7 + 1/2 0.9 n + 0.81 (1 - d_m) 10 l.
    """
    built = build({}, horizon=1)
    model = built.world_model
    make_constant(model.transition, [1.0, 2.0])
    make_constant(model.termination, [0.0, -math.log(3)])
    make_constant(model.reward, [0.0, 1.0, 2.0])
    make_constant(built.target_q, [0.0, 10.0, 20.0, 30.0, 40.0])
    batch = random_batch()._replace(reward=tf.fill([4], 7.0), terminated=tf.zeros([4]))
    imagined = built.imagine(batch, fixed_members(built))
    result = built.candidates(imagined).numpy().reshape(4, 2, 2, 3, 5)
    for m, n, member in np.ndindex(2, 3, 5):
        goes_on = (0.5, 0.75)[m]
        expected = 3.5 + 0.45 * n + 0.81 * goes_on * 10 * member
        np.testing.assert_allclose(result[:, 1, m, n, member], expected, rtol=1e-5)
        np.testing.assert_allclose(result[:, 0, m, n, member], 3.5 + 9 * member)


def test_each_rollout_keeps_its_transition_member():
    built = build({}, horizon=3)
    make_constant(built.world_model.transition, [1.0, 10.0])
    batch = random_batch()
    imagined = built.imagine(batch, fixed_members(built))
    assert imagined.obs.shape == (4, 3, 2, 2)
    for h in range(3):
        for m, step in enumerate((1, 10)):
            np.testing.assert_allclose(
                imagined.obs[:, h, m], batch.next_obs + h * step, rtol=1e-5
            )


def test_imagined_actions_are_the_greedy_ones_of_the_imagined_states():
    built = build({}, horizon=2)
    imagined = built.imagine(random_batch(), fixed_members(built))
    for b, h, m in np.ndindex(4, 2, 2):
        expected = slow_action(built, imagined.obs.numpy()[b, h, m])
        np.testing.assert_allclose(imagined.actions[b, h, m], expected, rtol=1e-4)


@pytest.mark.parametrize("ensembles", [ENSEMBLES, None], ids=["ensembles", "single"])
def test_ddpg_target_is_the_one_step_target(ensembles):
    built = build(None, ensembles=ensembles)
    batch, sampled = random_batch(), fixed_members(built)
    targets, start_weights, usage = built.targets(built.imagine(batch, sampled))
    for b in range(4):
        obs = batch.next_obs.numpy()[b]
        value = np.mean(
            [
                slow_net(built.target_q, k, obs, slow_action(built, obs))[0]
                for k in range(built.target_q.ensemble_size)
            ]
        )
        goes_on = 1 - float(batch.terminated[b])
        expected = REWARD_SCALE * float(batch.reward[b]) + DISCOUNT * goes_on * value
        np.testing.assert_allclose(targets[b], [expected], rtol=1e-4)
    np.testing.assert_array_equal(start_weights, np.ones((4, 1)))
    assert usage.numpy() == 0


@pytest.mark.parametrize(("ensembles", "members"), CHOICES.values(), ids=CHOICES)
def test_tdk_fits_q_at_every_start_of_the_chain(ensembles, members):
    built = build({"tdk_trick": True}, horizon=3, ensembles=ensembles)
    # rows 2, 0 to member 4; row 3 to member 1; row 1 to member 0
    order, taking = [2, 0, 3, 1], [4, 1, 0]
    member_of = {2: 4, 0: 4, 3: 1, 1: 0}
    batch = random_batch()
    sampled = fixed_members(built, **members, order=order, taking=taking)
    rollouts = slow_imagined(built, batch, sampled)
    total = 0.0
    for b in range(4):
        for start in range(4):
            target = slow_class_candidates(rollouts, 4, start)[b, -1].mean()
            if start == 0:
                where = batch.obs.numpy()[b], batch.action.numpy()[b]
                value, weight = slow_net(built.q, member_of[b], *where)[0], 1.0
            else:
                own = [rollouts[b, 0], rollouts[b, 1]]
                value = np.mean(
                    [
                        slow_net(
                            built.q,
                            member_of[b],
                            r.states[start - 1],
                            r.actions[start - 1],
                        )[0]
                        for r in own
                    ]
                )
                weight = np.mean([r.going_on[start - 1] for r in own])
            total += weight * 0.5 * (value - target) ** 2
    _, _, metrics = built.gradients(batch, sampled)
    assert metrics["q_loss"].numpy() == pytest.approx(total / 16, rel=1e-4)


@pytest.mark.parametrize("keys", [ALGORITHMS["steve"], ALGORITHMS["steve_cov"]])
def test_usage_is_one_minus_the_mean_first_weight_for_steve(keys):
    built = build(keys, horizon=2)
    imagined = built.imagine(random_batch(), fixed_members(built))
    _, _, usage = built.targets(imagined)
    weights = built.weights(built.candidates(imagined)).numpy()
    assert weights.shape == (4, 3)
    assert usage.numpy() == pytest.approx(1 - weights[:, 0].mean(), rel=1e-5)
    assert usage.numpy() != 0


@pytest.mark.parametrize("keys", [None, *list(ALGORITHMS.values())[:4]])
def test_usage_is_0_for_every_other_algorithm(keys):
    built = build(keys, horizon=2)
    _, _, metrics = built.gradients(random_batch(), fixed_members(built))
    assert metrics["model_usage"].numpy() == 0


def test_policy_loss_takes_the_drawn_members_and_the_real_observations():
    built = build(None, ensembles=DRAWN)
    batch, members = random_batch(), [4, 1]
    sampled = fixed_members(built, q=members)
    _, _, metrics = built.gradients(batch, sampled)
    values, squares = [], []
    for obs in batch.obs.numpy():
        action = slow_action(built, obs)
        values += [slow_net(built.q, k, obs, action)[0] for k in members]
        squares.append(slow_net(built.policy, 0, obs)[0] ** 2)
    assert metrics["policy_loss"].numpy() == pytest.approx(-np.mean(values), rel=1e-4)
    assert metrics["policy_reg_loss"].numpy() == pytest.approx(
        0.001 * np.mean(squares), rel=1e-4
    )


# Gradients


def same_gradients(ours, expected):
    for one, other in zip(ours, expected, strict=True):
        one, other = tf.convert_to_tensor(one), tf.convert_to_tensor(other)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("keys", [None, *ALGORITHMS.values()])
def test_no_gradient_flows_through_the_target_or_from_one_loss_to_the_other(keys):
    """Each loss by itself, its targets constants, has the very same gradient."""
    built = build(keys, horizon=2)
    batch, sampled = random_batch(), fixed_members(built)
    policy, q, _ = built.gradients(batch, sampled)
    imagined = built.imagine(batch, sampled)
    imagined = imagined._replace(
        obs=None if keys is None else tf.constant(imagined.obs.numpy()),
        actions=None if keys is None else tf.constant(imagined.actions.numpy()),
    )
    targets, weights, _ = (tf.constant(x.numpy()) for x in built.targets(imagined))

    with tf.GradientTape() as tape:
        inputs = tf.concat([batch.obs, batch.action], -1)
        predicted = built.q.apply_assigned(inputs, sampled.q_assignment)
        if keys and keys.get("tdk_trick"):
            later = built.rollout_q(imagined, sampled.q_assignment)
            predicted = tf.concat([predicted, later], axis=1)
        loss = q_loss(predicted, targets, weights)
    same_gradients(q, tape.gradient(loss, built.q.variables))

    with tf.GradientTape() as tape:
        pre_tanh = built.policy(batch.obs[None])[0]
        inputs = tf.concat([batch.obs, tf.tanh(pre_tanh)], -1)
        loss = policy_loss(built.q(inputs[None])[..., 0])
        loss += pre_tanh_loss(pre_tanh, 0.001)
    same_gradients(policy, tape.gradient(loss, built.policy.variables))


@pytest.mark.parametrize("keys", [None, *ALGORITHMS.values()])
def test_only_policy_and_q_move(keys):
    built = build(keys, horizon=2)
    before = values_of(built)
    built.update(random_batch(), fixed_members(built), *optimizers(built))
    for name, value in values_of(built).items():
        moved = (value != before[name]).any()
        assert moved == name.startswith(("policy/", "q/")), name


def test_idle_q_members_have_no_gradient():
    built = build(None, ensembles=DRAWN)
    sampled = fixed_members(built, q=[0, 1], taking=[5, 2])
    _, q, _ = built.gradients(random_batch(), sampled)
    for gradient in q:
        dense = tf.convert_to_tensor(gradient).numpy()
        active = {member for member in range(6) if dense[member].any()}
        assert active <= {5, 2}
    assert active == {5, 2}  # the last layer's bias


def test_the_target_comes_from_target_q_and_the_prediction_from_q():
    built = build(None)
    batch, sampled = random_batch(), fixed_members(built)
    make_constant(built.q, [0.0] * 5)
    make_constant(built.target_q, [1.0] * 5)
    batch = batch._replace(reward=tf.zeros([4]), terminated=tf.zeros([4]))
    _, _, metrics = built.gradients(batch, sampled)
    # targets 0.9: 1/2 0.81
    assert metrics["q_loss"].numpy() == pytest.approx(0.405)


def test_copy_target_makes_the_target_a_copy_that_stays_behind():
    built = build(None)
    built.update_target_network()
    kept = [v.numpy() for v in built.q.variables]
    built.update(random_batch(), fixed_members(built), *optimizers(built))
    for target, q, before in zip(
        built.target_q.variables, built.q.variables, kept, strict=True
    ):
        np.testing.assert_array_equal(target, before)
        assert (q.numpy() != before).any()


def test_update_takes_both_gradients_before_either_step():
    rate = 0.1  # large, so that the order of the steps shows
    keys = ALGORITHMS["mve_tdk"]  # its Q gradient depends on the policy, and vice versa
    batch = random_batch()

    def after(steps):
        built = build(keys, horizon=2)
        steps(built, fixed_members(built), *optimizers(built, rate))
        return np.concatenate(
            [v.numpy().ravel() for v in (*built.policy.variables, *built.q.variables)]
        )

    def by_hand(built, sampled, policy_adam, q_adam):
        policy, q, _ = built.gradients(batch, sampled)
        policy_adam.apply(policy)
        q_adam.apply(q)

    def policy_first(built, sampled, policy_adam, q_adam):
        policy_adam.apply(built.gradients(batch, sampled)[0])
        q_adam.apply(built.gradients(batch, sampled)[1])

    def q_first(built, sampled, policy_adam, q_adam):
        q_adam.apply(built.gradients(batch, sampled)[1])
        policy_adam.apply(built.gradients(batch, sampled)[0])

    ours = after(lambda built, sampled, *adams: built.update(batch, sampled, *adams))
    np.testing.assert_allclose(ours, after(by_hand), atol=1e-6)
    assert np.abs(ours - after(policy_first)).max() > 1e-3
    assert np.abs(ours - after(q_first)).max() > 1e-3


# Draws, graphs, every algorithm


def test_members_and_shares_are_drawn_by_their_counts():
    built = build({}, ensembles=DRAWN)
    sampled = built.sample(nn.seed_of(0), 8)
    assert len(set(sampled.q_members.numpy())) == 5
    assert len(set(sampled.q_assignment.members.numpy())) == 3
    np.testing.assert_array_equal(np.sort(sampled.q_assignment.order), np.arange(8))
    assert len(set(sampled.model.transition.numpy())) == 2
    assert len(set(sampled.model.reward.numpy())) == 3


def test_all_members_are_drawn_as_none_and_ddpg_draws_no_model():
    sampled = build({}).sample(nn.seed_of(0), 8)
    assert sampled.q_members is None
    assert sampled.model == (None, None)
    assert build(None).sample(nn.seed_of(0), 8).model is None


def test_a_traced_draw_differs_from_update_to_update():
    built = build({}, ensembles=DRAWN)
    draw = tf.function(lambda n: built.sample(nn.fold_in(nn.seed_of(0), n), 8))
    seen = [draw(tf.constant(number)) for number in range(30)]
    assert len({tuple(c.q_members.numpy()) for c in seen}) > 10
    assert len({tuple(c.q_assignment.order.numpy()) for c in seen}) == 30
    assert len({tuple(c.q_assignment.members.numpy()) for c in seen}) > 10
    assert len({tuple(c.model.transition.numpy()) for c in seen}) > 5
    assert len({tuple(c.model.reward.numpy()) for c in seen}) > 5


@pytest.mark.parametrize("keys", [None, ALGORITHMS["mve_tdk"], ALGORITHMS["steve_cov"]])
def test_draw_and_update_trace_once_and_do_what_they_do_untraced(keys):
    built = build(keys, horizon=2, ensembles=DRAWN)
    untraced = build(keys, horizon=2, ensembles=DRAWN)  # the same initial weights
    adams, other_adams = optimizers(built), optimizers(untraced)
    traces = []

    @tf.function
    def step(batch):
        traces.append(1)
        seed = nn.fold_in(nn.seed_of(0), adams[0].steps)
        return built.update(batch, built.sample(seed, 6), *adams)

    for seed in range(5):
        batch = random_batch(6, seed)
        metrics = step(batch)
        if seed < 2:
            sampled = untraced.sample(nn.fold_in(nn.seed_of(0), seed), 6)
            expected = untraced.update(batch, sampled, *other_adams)
            for name, value in expected.items():
                np.testing.assert_allclose(
                    metrics[name], value, rtol=1e-3, atol=1e-6, err_msg=name
                )
    assert len(traces) == 1


@pytest.mark.parametrize("horizon", [1, 2, 5])
@pytest.mark.parametrize("ensembles", [DRAWN, None], ids=["ensembles", "single"])
@every_algorithm
def test_one_update_is_finite_and_moves_policy_and_q(keys, ensembles, horizon):
    built = build(keys, horizon=horizon, ensembles=ensembles)
    before = values_of(built)
    metrics = built.update(
        random_batch(), built.sample(nn.seed_of(0), 4), *optimizers(built)
    )
    assert set(metrics) == {"q_loss", "policy_loss", "policy_reg_loss", "model_usage"}
    assert all(np.isfinite(value) for value in metrics.values())
    after = values_of(built)
    assert all(np.isfinite(value).all() for value in after.values())
    for net in ("policy", "q"):
        for name in (f"{net}/w0", f"{net}/b1"):
            assert (after[name] != before[name]).any(), name


@pytest.mark.parametrize("ensembles", [DRAWN, None], ids=["ensembles", "single"])
def test_one_update_of_ddpg_is_finite_and_moves_policy_and_q(ensembles):
    built = build(None, ensembles=ensembles)
    before = values_of(built)
    metrics = built.update(
        random_batch(), built.sample(nn.seed_of(0), 4), *optimizers(built)
    )
    assert all(np.isfinite(value) for value in metrics.values())
    after = values_of(built)
    assert all(np.isfinite(value).all() for value in after.values())
    for name in ("policy/w0", "policy/b1", "q/w0", "q/b1"):
        assert (after[name] != before[name]).any(), name


def test_a_batch_of_terminal_transitions_is_finite():
    built = build(ALGORITHMS["mve_tdk"] | ALGORITHMS["steve"], horizon=2)
    batch = random_batch()._replace(terminated=tf.ones([4]))
    targets, weights, _ = built.targets(built.imagine(batch, fixed_members(built)))
    np.testing.assert_allclose(targets[:, 0], REWARD_SCALE * batch.reward, rtol=1e-6)
    np.testing.assert_array_equal(targets[:, 1:], 0)
    np.testing.assert_array_equal(weights, [[1, 0, 0]] * 4)


def test_variables_have_the_names_of_a_checkpoint():
    built = build(None)
    names = list(built.named_variables())
    assert names[:2] == ["policy/w0", "policy/b0"]
    assert {name.split("/")[0] for name in names} == {"policy", "q", "target_q"}
    assert built.horizon == 0
    assert build({}, horizon=5).horizon == 5
