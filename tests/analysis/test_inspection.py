"""What a policy and its nets say about episodes: by hand, and one member at a time."""

import numpy as np
import pytest
from support_trained import build, content, forward, make_episode

from steve.analysis import inspection, policy_figures
from steve.analysis.inspection import Predicted
from steve.settings.schema import Config

pytestmark = pytest.mark.usefixtures("own_process_state")

# Arithmetic


def test_realised_return_by_hand():
    # G_2 = 2*3 = 6, G_1 = 2*2 + 0.5*6 = 7, G_0 = 2*1 + 0.5*7 = 5.5
    rewards = np.array([1.0, 2.0, 3.0])
    returns = inspection.discounted_returns(rewards, 0.5, 2.0)
    assert returns.tolist() == [5.5, 7.0, 6.0]
    # With 8 after the last step: 6 + 4 = 10, 4 + 5 = 9, 2 + 4.5 = 6.5
    returns = inspection.discounted_returns(rewards, 0.5, 2.0, 8.0)
    assert returns.tolist() == [6.5, 9.0, 10.0]


def test_bins_hold_their_lower_edge_and_the_last_one_both():
    weights = np.array([[0.0, 1.0], [0.3, 0.7], [0.29, 0.71], [1 + 1e-7, -1e-7]])
    histogram = inspection.weight_histogram(weights)
    assert histogram.counts.tolist() == [
        [1, 0, 1, 1, 0, 0, 0, 0, 0, 1],
        [1, 0, 0, 0, 0, 0, 0, 2, 0, 1],
    ]
    np.testing.assert_allclose(histogram.edges, np.arange(11) / 10)
    np.testing.assert_allclose(histogram.mean, [1.59 / 4, 2.41 / 4], atol=1e-6)
    assert not histogram.is_open


def test_weights_that_are_not_finite_are_left_out_and_counted():
    weights = np.array([[0.5, 0.5], [np.nan, np.nan], [0.25, 0.75]])
    histogram = inspection.weight_histogram(weights)
    assert histogram.left_out == 1
    assert histogram.counts.sum(axis=1).tolist() == [2, 2]


def test_weights_beyond_one_are_held_by_the_outer_bins():
    column = np.linspace(-50.0, 50.0, 101)
    histogram = inspection.weight_histogram(np.stack([column, 1 - column], axis=1))
    assert histogram.is_open
    assert histogram.counts.sum(axis=1).tolist() == [101, 101]
    low, *_, high = policy_figures.weights_csv(histogram).decode().splitlines()[1:]
    assert low.startswith("-inf,")
    assert high.split(",")[1] == "inf"


def test_stretches_stay_inside_their_episode():
    first, second = make_episode(3), make_episode(2, start=10.0)
    cut = inspection.cut_rollouts([first, second], steps=4)
    assert cut.is_real.sum(axis=1).tolist() == [3, 2, 1, 2, 1]
    np.testing.assert_array_equal(cut.obs[:3], first.obs)
    np.testing.assert_array_equal(cut.next_obs[0, :3], first.next_obs)
    np.testing.assert_array_equal(cut.reward[3, :2], second.reward.astype(np.float32))
    ends = (cut.terminated * cut.is_real).tolist()
    assert ends[0] == [0, 0, 1, 0]
    assert ends[4] == [1, 0, 0, 0]


def test_of_too_many_states_some_are_taken_at_even_distances():
    cut = inspection.cut_rollouts([make_episode(101)], steps=1, most=11)
    assert (cut.obs[:, 1] * 10).round().tolist() == list(range(0, 101, 10))


def identifiable(start_obs: np.ndarray, actions: np.ndarray) -> Predicted:
    """A perfect model, but member m adds 2m to x at every step, m = 0, 1.

    Rewards: x' + 1 and x' + 4 for member 0's x'; terminations 0.25 and 0.75.
    """
    batch, steps = actions.shape[:2]
    k = np.arange(1, steps + 1)
    x = start_obs[:, None, 0] + np.cumsum(actions[..., 0], axis=1)  # [B, K]
    clock = start_obs[:, None, 1] + k / 10
    members = [np.stack([x + 2 * m * k, clock], axis=-1) for m in range(2)]
    return Predicted(
        obs=np.stack(members, axis=2),
        reward=np.stack([x + 1, x + 4], axis=2),
        termination=np.broadcast_to([0.25, 0.75], (batch, steps, 2)),
    )


def test_model_error_of_an_identifiable_model():
    every = [make_episode(4), make_episode(6, terminated=False)]
    errors = inspection.model_error(identifiable, every, steps=3)
    assert errors.rollouts.tolist() == [10, 8, 6]
    # At step k the members are off by 0 and 2k in x and by 0 in the clock: the mean
    # by k in one of two entries, hence k / sqrt(2); their deviation is the same.
    expected = np.array([1, 2, 3]) / np.sqrt(2)
    np.testing.assert_allclose(errors.observation.error, expected, rtol=1e-5)
    np.testing.assert_allclose(errors.observation.spread, expected, rtol=1e-5)
    np.testing.assert_allclose(errors.reward.error, 2.5, rtol=1e-6)
    np.testing.assert_allclose(errors.reward.spread, 1.5, rtol=1e-6)
    # Mean probability 0.5 against 0 or 1.
    np.testing.assert_allclose(errors.termination.error, 0.5)
    np.testing.assert_allclose(errors.termination.spread, 0.25)


def test_error_without_a_model():
    errors = inspection.model_error(identifiable, [make_episode(3)], steps=10)
    assert errors.rollouts.tolist() == [3, 2, 1]  # no longer than the episode
    # x moves by 0.1, 0.2, 0.3, the clock by 0.1; squares over 2 entries.
    moved = np.sqrt((0.01 + 0.04 + 0.09 + 3 * 0.01) / 6)
    np.testing.assert_allclose(errors.observation.trivial[0], moved, rtol=1e-5)
    # Rewards 0.1, 0.3, 0.6: their mean is 1/3. One of three steps is an end.
    deviation = np.std([0.1, 0.3, 0.6])
    np.testing.assert_allclose(errors.reward.trivial[0], deviation, rtol=1e-6)
    np.testing.assert_allclose(errors.termination.trivial[0], np.std([0, 0, 1]))


def test_rollouts_are_independent_of_the_size_of_the_chunks(monkeypatch):
    every = [make_episode(7), make_episode(5)]
    whole = inspection.model_error(identifiable, every, steps=3)
    monkeypatch.setattr(inspection, "ROWS_AT_ONCE", 2)
    parts = inspection.model_error(identifiable, every, steps=3)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)


# The nets


def test_predict_rolls_every_member_along_the_given_actions(tmp_path):
    _, model = build(Config.model_validate(content(tmp_path)))
    rng = np.random.default_rng(0)
    start = rng.normal(size=(4, 2)).astype(np.float32)
    actions = rng.uniform(-1, 1, (4, 3, 1)).astype(np.float32)
    made = inspection.predict(model, start, actions)
    assert made.reward.shape == (4, 3, 6)
    for m in range(3):
        obs = start.astype(np.float64)
        for k in range(3):
            action = actions[:, k]
            after = obs + forward(model.transition, m, np.c_[obs, action])
            inputs = np.c_[after, obs, action]
            logit = forward(model.termination, m, inputs)[:, 0]
            np.testing.assert_allclose(made.obs[:, k, m], after, atol=1e-5)
            np.testing.assert_allclose(
                made.termination[:, k, m], 1 / (1 + np.exp(-logit)), atol=1e-5
            )
            rewards = [forward(model.reward, n, inputs)[:, 0] for n in range(2)]
            for reward in rewards:  # whatever the order of the M N predictions
                distance = np.abs(made.reward[:, k] - reward[:, None]).max(axis=0)
                assert (distance < 1e-5).any()
            obs = after


def direct_weights(valuerl, model, episode, t: int) -> tuple[np.ndarray, float]:
    """STEVE's weights and target at one transition, one loop per member (SPEC 5)."""
    candidates = np.zeros((3, 3 * 2 * 2))
    ends = 1.0 * (episode.terminated and t == episode.length - 1)
    triples = [(m, n, q) for m in range(3) for n in range(2) for q in range(2)]
    for i, (m, n, q) in enumerate(triples):
        obs, going_on = episode.next_obs[t].astype(np.float64), 1.0 - ends
        total = 0.5 * episode.reward[t]
        for h in range(3):
            action = np.tanh(forward(valuerl.policy, 0, obs))
            value = forward(valuerl.target_q, q, np.r_[obs, action])[0]
            candidates[h, i] = total + 0.9 ** (h + 1) * going_on * value
            after = obs + forward(model.transition, m, np.r_[obs, action])
            inputs = np.r_[after, obs, action]
            reward = forward(model.reward, n, inputs)[0]
            total += 0.5 * 0.9 ** (h + 1) * going_on * reward
            going_on *= 1 - 1 / (1 + np.exp(-forward(model.termination, m, inputs)[0]))
            obs = after
    inverse = 1 / (candidates.var(axis=1) + 1e-8)
    weights = inverse / inverse.sum()
    return weights, float(weights @ candidates.mean(axis=1))


@pytest.mark.parametrize("terminated", [True, False])
def test_weights_and_targets_agree_with_a_direct_computation(tmp_path, terminated):
    valuerl, model = build(Config.model_validate(content(tmp_path)))
    episode = make_episode(5, terminated, start=0.3)
    judged = inspection.episode_values(valuerl, episode)
    for t in range(5):
        weights, target = direct_weights(valuerl, model, episode, t)
        np.testing.assert_allclose(judged.weights[t], weights, atol=2e-3)
        np.testing.assert_allclose(judged.target[t], target, atol=1e-4)


def test_values_are_of_the_actions_taken_and_zero_behind_a_termination(tmp_path):
    valuerl, _ = build(Config.model_validate(content(tmp_path)))
    episode = make_episode(4, terminated=False)
    judged = inspection.episode_values(valuerl, episode)
    inputs = np.c_[episode.obs, episode.action]
    q = np.stack([forward(valuerl.q, member, inputs)[:, 0] for member in range(2)])
    np.testing.assert_allclose(judged.value, q.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(judged.value_std, q.std(axis=0), atol=1e-5)
    last = episode.next_obs[-1]
    inputs = np.r_[last, np.tanh(forward(valuerl.policy, 0, last))]
    final = np.mean([forward(valuerl.q, member, inputs) for member in range(2)])
    np.testing.assert_allclose(judged.final_value, final, atol=1e-5)
    ended = inspection.episode_values(valuerl, make_episode(4))
    assert ended.final_value == 0
