"""Gradients, draws and updates of value expansion."""

import numpy as np
import pytest
import tensorflow as tf
from support_valuerl import (
    ALGORITHMS,
    DRAWN,
    REWARD_SCALE,
    build,
    every_algorithm,
    fixed_members,
    make_constant,
    optimizers,
    random_batch,
    values_of,
)

from steve import nn
from steve.valuerl import policy_loss, pre_tanh_loss, q_loss

UPDATE = 0  # its number

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
    sampled = built.sample(nn.seed_tensor(0), UPDATE, 8)
    assert len(set(sampled.q_members.numpy())) == 5
    assert len(set(sampled.q_assignment.members.numpy())) == 3
    assert len(set(sampled.model.transition.numpy())) == 2
    assert len(set(sampled.model.reward.numpy())) == 3


def test_all_members_are_drawn_as_none_and_ddpg_draws_no_model():
    sampled = build({}).sample(nn.seed_tensor(0), UPDATE, 8)
    assert sampled.q_members is None
    assert sampled.model == (None, None)
    assert build(None).sample(nn.seed_tensor(0), UPDATE, 8).model is None


def test_a_traced_draw_differs_from_update_to_update():
    built = build({}, ensembles=DRAWN)
    draw = tf.function(lambda n: built.sample(nn.fold_in(nn.seed_tensor(0), n), n, 8))
    seen = [draw(tf.constant(number)) for number in range(30)]
    assert len({tuple(c.q_members.numpy()) for c in seen}) > 10
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
        number = adams[0].steps.read_value()
        seed = nn.fold_in(nn.seed_tensor(0), number)
        return built.update(batch, built.sample(seed, number, 6), *adams)

    for number in range(5):
        batch = random_batch(6, number)
        metrics = step(batch)
        if number < 2:
            seed = nn.fold_in(nn.seed_tensor(0), number)
            sampled = untraced.sample(seed, tf.constant(number), 6)
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
        random_batch(), built.sample(nn.seed_tensor(0), UPDATE, 4), *optimizers(built)
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
        random_batch(), built.sample(nn.seed_tensor(0), UPDATE, 4), *optimizers(built)
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


@pytest.mark.parametrize("horizon", [1, 3])
def test_starts_behind_a_termination_are_the_same_under_xla(horizon):
    """XLA may turn sums with 1 round, and 1e-8 disappears in them."""
    built = build({"tdk_trick": True, "steve_reweight": True}, horizon=horizon)
    batch = random_batch(8)._replace(terminated=tf.constant([1.0, 0.0] * 4))

    def targets():
        return built.targets(built.imagine(batch, fixed_members(built)))

    compiled = tf.function(targets, jit_compile=True, autograph=False)()
    for ours, plain in zip(compiled, targets(), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)
    assert not compiled[0].numpy()[::2, 1:].any()
