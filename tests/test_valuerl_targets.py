"""Candidate targets, weights and losses as functions: by hand, and by identities.

The slow functions here are written from SPEC sections 4 and 5 with one loop per index
and one row at a time; they share no code with what they check. O = 2, A = 1.
"""

import numpy as np
import pytest
import tensorflow as tf
from support_valuerl import DISCOUNT, REWARD_SCALE, every_algorithm, slow_target

from steve.settings.schema import ValueExpansion
from steve.valuerl import (
    candidate_targets,
    continue_prob,
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


def expansion(horizon=2, **keys):
    return ValueExpansion(rollout_len=horizon, **keys)


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


def test_continue_prob_is_that_of_all_steps_so_far():
    result = continue_prob(tf.constant([[[0.0], [0.5], [0.25]], [[1.0], [0.5], [0]]]))
    np.testing.assert_array_equal(result[..., 0], [[1, 0.5, 0.375], [0, 0, 0]])


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


def test_targets_of_another_shape_than_q_are_refused():
    with pytest.raises(ValueError, match="incompatible"):
        q_loss(tf.zeros((3, 1)), tf.zeros(3), tf.ones((3, 1)))


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
