"""The 2018 release's reference vectors: every case agrees, every known fault shows.

The second half puts faults in on purpose, one at a time, and names a case and a
quantity of check_reference that must then be out of tolerance.
"""

import functools
import importlib.util
import runpy
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf
from support import PROJECT

from steve import nn, valuerl, worldmodel
from steve.settings.schema import ValueExpansion
from steve.valuerl import ValueRL
from steve.worldmodel import WorldModel

SCRIPT = PROJECT / "tests" / "programs" / "check_reference.py"
FOLDER = PROJECT / "tests" / "data" / "algorithms"
CASES = sorted(path.stem for path in FOLDER.glob("*.npz"))


@pytest.fixture(scope="module")
def check():
    """check_reference.py as a module."""
    spec = importlib.util.spec_from_file_location("check_reference", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.fixture(scope="module", autouse=True)
def full_float32():
    """On a GPU TensorFloat-32 would round the products to 10 bits."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    yield
    tf.config.experimental.enable_tensor_float_32_execution(before)


# The given cases


def test_all_nineteen_cases_are_there():
    assert len(CASES) == 19


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_2018_release(check, name):
    results = list(check.Case(FOLDER / f"{name}.npz").results())
    assert [r for r in results if not r.passed] == []
    # Nothing was left out: a model adds its losses, gradients and updates.
    compared = {r.quantity for r in results}
    assert {"action_greedy", "policy_loss", "policy_reg_loss", "q_loss"} < compared
    assert {"grad/policy", "grad/q", "after5/q (absolute)"} < compared
    if not name.startswith("ddpg"):
        assert {"target_means", "total_loss", "reg_loss"} < compared
        for net in ("transition", "termination", "reward"):
            assert {f"grad/{net}", f"after5/{net} (absolute)"} < compared


def test_nan_does_not_pass(check, monkeypatch):
    """Not even in a block behind the first: Python's `max` passes over it there."""
    monkeypatch.setattr(valuerl, "REACH_EPSILON", 0.0)  # 0 / 0 in starts j > 0
    results = check.Case(FOLDER / "mve.npz").results()
    failed = {r.quantity for r in results if not r.passed}
    assert "target_means" in failed


# The command line


def run_script(monkeypatch, folder):
    """The exit code of `python tests/programs/check_reference.py FOLDER`."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(folder)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return stop.value.code


def test_exit_code_tells_agreement_from_disagreement_and_from_an_empty_folder(
    tmp_path, monkeypatch, capsys
):
    assert run_script(monkeypatch, tmp_path) == 2
    assert "no .npz file" in capsys.readouterr().err

    shutil.copy(FOLDER / "ddpg.npz", tmp_path)
    assert run_script(monkeypatch, tmp_path) == 0
    printed = capsys.readouterr().out
    assert "all agree" in printed
    assert "FAILED" not in printed

    with np.load(tmp_path / "ddpg.npz") as file:
        arrays = {name: file[name] for name in file.files}
    arrays["grad/policy/w1"][0, 3] += 1e-3 * np.abs(arrays["grad/policy/w1"]).max()
    np.savez(tmp_path / "ddpg.npz", **arrays)
    assert run_script(monkeypatch, tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if line.endswith("FAILED")]
    assert len(failed) == 1
    assert "grad/policy" in failed[0]


# Faults: each takes pytest's monkeypatch and breaks one thing


def optimizer(**settings):
    def put_in(patch):
        patch.setattr(nn, "Adam", functools.partial(nn.Adam, **settings))

    return put_in


class BiasCorrectedAdam:
    """Adam as the paper and TF 2 have it: epsilon meets the corrected root."""

    def __init__(self, variables, rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
        self.variables, self.rate = variables, rate
        self.betas, self.epsilon, self.step = (beta1, beta2), epsilon, 0
        self.moments = [(tf.zeros_like(v), tf.zeros_like(v)) for v in variables]

    def apply(self, gradients):
        self.step += 1
        one, two = self.betas
        for i, (variable, gradient) in enumerate(
            zip(self.variables, gradients, strict=True)
        ):
            gradient = tf.convert_to_tensor(gradient)
            first = one * self.moments[i][0] + (1 - one) * gradient
            second = two * self.moments[i][1] + (1 - two) * gradient**2
            self.moments[i] = first, second
            root = tf.sqrt(second / (1 - two**self.step))
            corrected = first / (1 - one**self.step)
            variable.assign_sub(self.rate * corrected / (root + self.epsilon))


def bias_corrected_epsilon(patch):
    patch.setattr(nn, "Adam", BiasCorrectedAdam)


def no_bias_correction(patch):
    original = tf.raw_ops.ResourceApplyAdam

    def apply(**arguments):
        zero = tf.zeros([])
        original(**arguments | {"beta1_power": zero, "beta2_power": zero})

    patch.setattr(nn.tf.raw_ops, "ResourceApplyAdam", apply)


def pre_tanh_loss_dropped(patch):
    patch.setattr(valuerl, "pre_tanh_loss", lambda pre_tanh, factor: tf.zeros([]))


def pre_tanh_loss_after_tanh(patch):
    original = valuerl.pre_tanh_loss
    patch.setattr(
        valuerl, "pre_tanh_loss", lambda x, factor: original(tf.tanh(x), factor)
    )


def policy_loss_sign(patch):
    patch.setattr(valuerl, "policy_loss", tf.reduce_mean)


def policy_loss_of_one_member(patch):
    patch.setattr(valuerl, "policy_loss", lambda values: -tf.reduce_mean(values[0]))


def q_loss_without_half(patch):
    original = valuerl.q_loss
    patch.setattr(valuerl, "q_loss", lambda *arguments: 2 * original(*arguments))


def weight_penalty_dropped(patch):
    patch.setattr(worldmodel, "weight_penalty", lambda variables, factor: tf.zeros([]))


def weight_penalty_without_biases(patch):
    original = worldmodel.weight_penalty
    patch.setattr(
        worldmodel,
        "weight_penalty",
        lambda variables, factor: original(variables[::2], factor),
    )


def weight_penalty_of_the_drawn_members(patch):
    original = worldmodel.weight_penalty
    patch.setattr(
        worldmodel,
        "weight_penalty",
        lambda variables, factor: original([v[:3] for v in variables], factor),
    )


def transition_loss_averaged_over_observations(patch):
    def loss(obs, next_obs, change):
        return 0.5 * tf.reduce_mean(tf.square(next_obs - obs - change))

    patch.setattr(worldmodel, "transition_loss", loss)


def next_observation_predicted_whole(patch):
    original = worldmodel.transition_loss
    patch.setattr(
        worldmodel,
        "transition_loss",
        lambda obs, next_obs, whole: original(tf.zeros_like(obs), next_obs, whole),
    )


def predicted_next_obs_for_termination_and_reward(patch):
    original = WorldModel.losses

    def losses(self, batch, assignment):
        change = self.transition.apply_assigned(
            tf.concat([batch.obs, batch.action], -1), assignment.transition
        )
        exact = original(self, batch, assignment)
        seen = original(self, batch._replace(next_obs=batch.obs + change), assignment)
        seen["transition_loss"] = exact["transition_loss"]
        seen["total_loss"] = tf.add_n(list(seen.values())) - seen["total_loss"]
        return seen

    patch.setattr(WorldModel, "losses", losses)


def candidates_with(**changes):
    """`candidate_targets` with some arguments replaced."""

    def put_in(patch):
        original = valuerl.candidate_targets

        def faulty(rewards, continue_probs, values, discount, scale, start=0):
            arguments = {
                "rewards": rewards,
                "continue_probs": continue_probs,
                "values": values,
                "discount": discount,
                "reward_scale": scale,
                "start": start,
            }
            changed = {k: f(arguments[k]) for k, f in changes.items()}
            return original(**arguments | changed)

        patch.setattr(valuerl, "candidate_targets", faulty)

    return put_in


def bootstrap_one_step_late(patch):
    """discount^{h+2} in front of the Q value."""
    original = valuerl.candidate_targets

    def faulty(rewards, continue_probs, values, discount, scale, start=0):
        values = discount * values
        return original(rewards, continue_probs, values, discount, scale, start)

    patch.setattr(valuerl, "candidate_targets", faulty)


def reward_after_termination(patch):
    """C_k and not C_{k-1} in front of r_k."""
    patch.setattr(valuerl, "reach_prob", lambda continue_probs: continue_probs)


def no_reach_epsilon(patch):
    patch.setattr(valuerl, "REACH_EPSILON", 0.0)


def steve_weights_with(weight):
    """Weights proportional to `weight` of the variances."""

    def put_in(patch):
        def weights(candidates, epsilon):
            variance = tf.math.reduce_variance(candidates, -1)
            inverse = weight(variance, candidates.shape[-1])
            return inverse / tf.reduce_sum(inverse, -1, keepdims=True)

        patch.setattr(valuerl, "steve_weights", weights)

    return put_in


def ridge_too_large(patch):
    original = valuerl.covariance_system
    patch.setattr(
        valuerl, "covariance_system", lambda c, ridge: original(c, 1.1 * ridge)
    )


def covariances_averaged(patch):
    original = valuerl.covariance_system
    patch.setattr(
        valuerl,
        "covariance_system",
        lambda c, ridge: original(c / tf.sqrt(float(c.shape[-1])), ridge),
    )


def expansion_key(**replaced):
    """Another algorithm's weights, or a constant that is off."""

    def put_in(patch):
        original = valuerl.horizon_weights

        def weights(candidates, expansion):
            return original(candidates, expansion.model_copy(update=replaced))

        patch.setattr(valuerl, "horizon_weights", weights)

    return put_in


def lambda_tail_not_collected(patch):
    """(1 - lambda) lambda^h for h = H too."""

    def weights(candidates, expansion: ValueExpansion):
        count, mix = candidates.shape[1], expansion.lambda_return
        fixed = [(1 - mix) * mix**h for h in range(count)]
        return tf.broadcast_to(tf.constant(fixed), candidates.shape[:2])

    patch.setattr(valuerl, "horizon_weights", weights)


def termination_by_other_members(patch):
    original = WorldModel.termination_prob

    def prob(self, next_obs, obs, action, members):
        members = members._replace(transition=members.transition[::-1])
        return original(self, next_obs, obs, action, members)

    patch.setattr(WorldModel, "termination_prob", prob)


def reward_of_the_state_before(patch):
    original = WorldModel.rewards

    def rewards(self, next_obs, obs, action, members):
        return original(self, obs, next_obs, action, members)

    patch.setattr(WorldModel, "rewards", rewards)


def rollout_from_obs(patch):
    original = ValueRL.imagine

    def imagine(self, batch, sampled):
        return original(self, batch._replace(next_obs=batch.obs), sampled)

    patch.setattr(ValueRL, "imagine", imagine)


def real_termination_ignored(patch):
    original = ValueRL.imagine

    def imagine(self, batch, sampled):
        batch = batch._replace(terminated=tf.zeros_like(batch.terminated))
        return original(self, batch, sampled)

    patch.setattr(ValueRL, "imagine", imagine)


def target_of_q(patch):
    original = ValueRL._target_values

    def values(self, obs, action, sampled):
        own, self.target_q = self.target_q, self.q
        result = original(self, obs, action, sampled)
        self.target_q = own
        return result

    patch.setattr(ValueRL, "_target_values", values)


def all_q_members_in_targets(patch):
    original = ValueRL._target_values
    patch.setattr(
        ValueRL,
        "_target_values",
        lambda self, obs, action, sampled: original(
            self, obs, action, sampled._replace(q_members=None)
        ),
    )


def gradient_through_the_target(patch):
    """Q's loss reaches the policy through the imagined actions."""
    original = ValueRL.gradients

    def gradients(self, batch, sampled):
        policy, q, metrics = original(self, batch, sampled)
        with tf.GradientTape() as tape:
            targets, weights, _ = self.targets(self.imagine(batch, sampled))
            inputs = tf.concat([batch.obs, batch.action], -1)
            predicted = self.q.apply_assigned(inputs, sampled.q_assignment)
            loss = valuerl.q_loss(predicted, targets, weights)
        leak = tape.gradient(loss, self.policy.variables)
        return [g + extra for g, extra in zip(policy, leak, strict=True)], q, metrics

    patch.setattr(ValueRL, "gradients", gradients)


def policy_moves_before_the_q_gradient(patch):
    def update(self, batch, sampled, policy_adam, q_adam):
        policy_adam.apply(self.gradients(batch, sampled)[0])
        q_adam.apply(self.gradients(batch, sampled)[1])

    patch.setattr(ValueRL, "update", update)


def tdk_without_start_weights(patch):
    original = valuerl.q_loss

    def loss(predicted, targets, weights):
        return original(predicted, targets, tf.ones_like(weights))

    patch.setattr(valuerl, "q_loss", loss)


def tdk_weights_one_step_late(patch):
    """C_j and not C_{j-1} as the weight of start j > 0."""
    original = ValueRL.targets

    def targets(self, imagined):
        ours, weights, usage = original(self, imagined)
        reached = tf.reduce_mean(imagined.continue_probs, -1)
        return ours, tf.concat([weights[:, :1], reached[:, 1:]], 1), usage

    patch.setattr(ValueRL, "targets", targets)


def tdk_weights_averaged_over_the_batch(patch):
    original = ValueRL.targets

    def targets(self, imagined):
        ours, weights, usage = original(self, imagined)
        mean = tf.reduce_mean(weights, 0, keepdims=True)
        return ours, tf.broadcast_to(mean, weights.shape), usage

    patch.setattr(ValueRL, "targets", targets)


def tdk_mean_over_the_weights(patch):
    """Divides by the sum of the weights and not by B x (H+1)."""
    original = valuerl.q_loss

    def loss(predicted, targets, weights):
        return original(predicted, targets, weights) / tf.reduce_mean(weights)

    patch.setattr(valuerl, "q_loss", loss)


def tdk_rollout_q_averaged_over_steps(patch):
    """The mean over h and not over the transition members."""

    def rollout_q(self, imagined, assignment):
        inputs = tf.concat([imagined.obs, imagined.actions], -1)
        values = self.q.apply_assigned(inputs, assignment)[..., 0]  # [B, H, M]
        mean = tf.reduce_mean(values[:, :, : self.horizon], axis=1)
        return tf.broadcast_to(mean, [mean.shape[0], self.horizon])

    patch.setattr(ValueRL, "rollout_q", rollout_q)


def tdk_rollout_q_of_the_first_member(patch):
    original = ValueRL.rollout_q

    def rollout_q(self, imagined, assignment):
        first = imagined._replace(
            obs=imagined.obs[:, :, :1], actions=imagined.actions[:, :, :1]
        )
        return original(self, first, assignment)

    patch.setattr(ValueRL, "rollout_q", rollout_q)


def rows_left_in_the_members_order(patch):
    patch.setattr(nn, "_join", lambda shares, assignment: tf.concat(shares, 0))


def shares_in_blocks(patch):
    """Row i to member i div (B / K)."""

    original = nn.FeedForward.apply_assigned
    patch.setattr(
        nn.FeedForward,
        "apply_assigned",
        lambda self, x, assignment: original(
            self, x, assignment._replace(strided=False)
        ),
    )


def usage_never_reported(patch):
    original = ValueRL.targets
    patch.setattr(
        ValueRL,
        "targets",
        lambda self, imagined: (*original(self, imagined)[:2], tf.constant(0.0)),
    )


def greedy_action_without_tanh(patch):
    original = ValueRL.action
    patch.setattr(ValueRL, "action", lambda self, obs: tf.atanh(original(self, obs)))


# fault, a case that shows it, the quantity that must be out of tolerance
FAULTS = [
    (optimizer(epsilon=1e-7), "ddpg", "after5/policy (absolute)"),
    (optimizer(beta2=0.99), "mve", "after5/transition (absolute)"),
    (bias_corrected_epsilon, "ddpg_ensemble", "after5/policy (absolute)"),
    (bias_corrected_epsilon, "mve", "after5/transition (absolute)"),
    (no_bias_correction, "ddpg", "after5/q (absolute)"),
    (greedy_action_without_tanh, "ddpg", "action_greedy"),
    (pre_tanh_loss_dropped, "ddpg", "policy_reg_loss"),
    (pre_tanh_loss_dropped, "ddpg", "grad/policy"),
    (pre_tanh_loss_after_tanh, "ddpg", "policy_reg_loss"),
    (policy_loss_sign, "ddpg", "policy_loss"),
    (policy_loss_sign, "ddpg", "grad/policy"),
    (policy_loss_of_one_member, "ddpg_ensemble", "policy_loss"),
    (q_loss_without_half, "ddpg", "q_loss"),
    (weight_penalty_dropped, "mve", "reg_loss"),
    (weight_penalty_dropped, "mve", "grad/transition"),
    (weight_penalty_without_biases, "mve", "reg_loss"),
    (weight_penalty_of_the_drawn_members, "steve_sampled_members", "reg_loss"),
    (transition_loss_averaged_over_observations, "mve", "transition_loss"),
    (next_observation_predicted_whole, "mve", "transition_loss"),
    (predicted_next_obs_for_termination_and_reward, "mve", "termination_loss"),
    (predicted_next_obs_for_termination_and_reward, "mve", "reward_loss"),
    (shares_in_blocks, "ddpg_ensemble", "q_loss"),
    (shares_in_blocks, "steve_h1", "reward_loss"),
    (rows_left_in_the_members_order, "ddpg_ensemble", "q_loss"),
    (candidates_with(reward_scale=lambda _: 1.0), "steve_reward_scale", "target_means"),
    (candidates_with(discount=lambda _: 1.0), "ddpg", "q_loss"),
    (bootstrap_one_step_late, "mve", "target_means"),
    (reward_after_termination, "mve", "target_means"),
    (real_termination_ignored, "ddpg", "q_loss"),
    (real_termination_ignored, "mve", "target_means"),
    (rollout_from_obs, "mve", "target_means"),
    (reward_of_the_state_before, "mve", "target_means"),
    (termination_by_other_members, "steve_h1", "target_means"),
    (target_of_q, "ddpg", "q_loss"),
    (target_of_q, "mve", "target_means"),
    (all_q_members_in_targets, "steve_sampled_members", "target_means"),
    (gradient_through_the_target, "ddpg", "grad/policy"),
    (gradient_through_the_target, "mve", "grad/policy"),
    (policy_moves_before_the_q_gradient, "ddpg", "after5/q (absolute)"),
    (no_reach_epsilon, "mve_tdk", "q_loss"),
    (tdk_without_start_weights, "mve_tdk", "q_loss"),
    (tdk_weights_one_step_late, "mve_tdk", "q_loss"),
    (tdk_weights_averaged_over_the_batch, "mve_tdk", "q_loss"),
    (tdk_mean_over_the_weights, "mve_tdk", "q_loss"),
    (tdk_rollout_q_averaged_over_steps, "ensemble_mve_tdk", "rollout_q"),
    (tdk_rollout_q_of_the_first_member, "ensemble_mve_tdk", "rollout_q"),
    (expansion_key(mean_k_return=False), "mve_mean", "q_loss"),
    (expansion_key(lambda_return=0.3), "mve_lambda25", "q_loss"),
    (lambda_tail_not_collected, "mve_lambda25", "q_loss"),
    (expansion_key(covariances=False), "steve_cov", "q_loss"),
    (expansion_key(steve_reweight=False), "steve_h1", "q_loss"),
    (steve_weights_with(lambda v, _: 1 / tf.sqrt(v)), "steve_h1", "q_loss"),
    (steve_weights_with(lambda v, _: 1 / (v + 1e-3)), "steve_h1", "q_loss"),
    (ridge_too_large, "steve_cov", "weights (residual)"),
    (covariances_averaged, "steve_cov", "weights (residual)"),
    (usage_never_reported, "steve_h1", "model_use"),
]


def named(fault, case, quantity):
    function = fault.__qualname__.split(".")[0]
    return pytest.param(fault, case, quantity, id=f"{function}-{case}-{quantity}")


@pytest.mark.parametrize(
    ("fault", "name", "quantity"), [named(*entry) for entry in FAULTS]
)
def test_a_fault_is_caught(check, monkeypatch, fault, name, quantity):
    fault(monkeypatch)
    results = check.Case(FOLDER / f"{name}.npz").results()
    # Stops at the quantity: what comes after it costs more than it tells.
    assert any(r.quantity == quantity and not r.passed for r in results)
