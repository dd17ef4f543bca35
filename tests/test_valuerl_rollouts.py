"""Imagined rollouts, and the targets and losses of them, one row at a time.

The slow functions here are written from SPEC sections 4 and 5 with one loop per index
and one row at a time; they share no code with what they check. O = 2, A = 1.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from support_valuerl import (
    ALGORITHMS,
    DISCOUNT,
    DRAWN,
    ENSEMBLES,
    REWARD_SCALE,
    build,
    fixed_members,
    make_constant,
    random_batch,
    slow_target,
)


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


def test_the_model_is_told_which_step_it_imagines(monkeypatch):
    """So that a stochastic one does not repeat its noise at each step."""
    built = build({}, horizon=3)
    make_constant(built.world_model.transition, [0.0, 0.0])
    original = type(built.world_model).next_obs

    def next_obs(self, obs, action, members, step):
        return original(self, obs, action, members, step) + 10.0**step

    monkeypatch.setattr(type(built.world_model), "next_obs", next_obs)
    batch = random_batch()
    imagined = built.imagine(batch, fixed_members(built))
    for h, moved in enumerate((0, 1, 11)):
        for m in range(2):
            np.testing.assert_allclose(
                imagined.obs[:, h, m], batch.next_obs + moved, rtol=1e-5
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
    taking, member_of = [4, 1, 0], [4, 4, 1, 0]  # rows 0 and 1 to member 4 ..
    batch = random_batch()
    sampled = fixed_members(built, **members, taking=taking)
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
    built.policy.biases[-1].assign([[2.0]])  # far from where tanh changes nothing
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
