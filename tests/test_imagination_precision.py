"""`imagination_precision`: bfloat16 in imagined rollouts, float32 everywhere else."""

import numpy as np
import pytest
import tensorflow as tf
from support import open_run
from support_valuerl import build, fixed_members, random_batch

from steve import nn, valuerl_learner
from steve.running.child import Context
from steve.settings.roles import VALUERL
from steve.util import UserError
from steve.valuerl_learner import ValueRLLearner, check_bfloat16
from steve.worldmodel import WorldModel

STEVE = {"steve_reweight": True}
BFLOAT16 = {"imagination_precision": "bfloat16"}


def rounded(x):
    return tf.cast(tf.cast(x, tf.bfloat16), tf.float32)


@pytest.mark.parametrize("limit", [0, 1e12], ids=["one product each", "batched"])
@pytest.mark.parametrize("layers", [1, 2])
def test_products_are_rounded_and_nothing_else(monkeypatch, limit, layers):
    monkeypatch.setattr(nn, "SMALL_PRODUCT", limit)
    net = nn.FeedForward(5, 4, 3, layers, 2, nn.generator_of(1))
    for bias in net.biases:
        bias.assign(tf.random.stateless_normal(bias.shape, (1, 2)))
    x = expected = tf.random.stateless_normal([2, 7, 5], (3, 4))
    for layer, (w, b) in enumerate(zip(net.weights, net.biases, strict=True)):
        expected = rounded(tf.matmul(rounded(expected), rounded(w))) + b[:, None]
        if layer < layers - 1:
            expected = tf.nn.relu(expected)
    found = net.with_compute_dtype(tf.bfloat16)(x)
    # A sum in another order, as without the processor's instructions, may round to
    # the other side: one place of bfloat16, in the first layer of several entries.
    np.testing.assert_allclose(found, expected, rtol=2**-7, atol=2**-6)
    assert not np.array_equal(found, net(x))
    assert net.compute_dtype == tf.float32


def test_rollouts_are_coarser_and_losses_see_float32_nets():
    fine, coarse = build(STEVE), build(STEVE | BFLOAT16)
    batch = random_batch()
    for name, (got, expected) in {
        "policy": (coarse.action(batch.obs), fine.action(batch.obs)),
        "q": (
            coarse.q(tf.concat([batch.obs, batch.action], -1)[None]),
            fine.q(tf.concat([batch.obs, batch.action], -1)[None]),
        ),
    }.items():
        np.testing.assert_array_equal(got, expected, err_msg=name)
    found = coarse.imagine(batch, fixed_members(coarse))
    expected = fine.imagine(batch, fixed_members(fine))
    for name in ("rewards", "continue_probs", "values", "obs", "actions"):
        got, right = getattr(found, name).numpy(), getattr(expected, name).numpy()
        np.testing.assert_allclose(got, right, atol=0.03, rtol=0.03, err_msg=name)
        assert not np.array_equal(got[:, 1:], right[:, 1:]), name
    for type_, is_close in ((tf.bfloat16, True), (tf.float32, False)):
        policy = coarse.policy.with_compute_dtype(type_)
        flat = tf.reshape(found.obs[:, 1:], [1, -1, found.obs.shape[-1]])
        action = tf.reshape(tf.tanh(policy(flat)), found.actions[:, 1:].shape)
        off = np.mean(np.abs(found.actions[:, 1:] - action))
        assert bool(off < 1e-4) == is_close, f"{type_.name}: {off}"
    # What is real stays as it is.
    np.testing.assert_array_equal(found.rewards[:, 0], expected.rewards[:, 0])


def test_rollouts_follow_the_variables_that_are_learned():
    built = build(STEVE | BFLOAT16)
    batch, members = random_batch(), fixed_members(built)
    before = built.imagine(batch, members)
    for net in (built.policy, built.target_q, built.world_model.reward):
        net.biases[-1].assign_add(tf.ones_like(net.biases[-1]))
    after = built.imagine(batch, members)
    for name in ("actions", "values", "rewards"):
        changed = getattr(after, name)[:, 1:] - getattr(before, name)[:, 1:]
        assert np.abs(changed).max() > 0.1, name


@pytest.mark.parametrize(
    ("instructions", "xla", "model", "why"),
    [
        ("avx avx2 avx512_bf16", False, WorldModel, None),
        ("amx_bf16 avx", False, WorldModel, None),
        ("avx avx512f", False, WorldModel, "this processor has no instructions for it"),
        ("avx512_bf16", True, WorldModel, "on a CPU, XLA (policy_config.xla) gains"),
        ("avx512_bf16", False, object, 'world models of the kind "own" have no'),
    ],
)
def test_it_is_refused_where_it_gains_nothing(
    monkeypatch, instructions, xla, model, why
):
    kind = {"instructions": instructions}
    monkeypatch.setattr(valuerl_learner, "processor_kind", lambda: kind)
    if why is None:
        check_bfloat16("own", model, on_cpu=True, xla=xla)
        return
    with pytest.raises(UserError) as raised:
        check_bfloat16("own", model, on_cpu=True, xla=xla)
    assert f"is bfloat16, but {why}" in str(raised.value)


@pytest.mark.parametrize(("capability", "gains"), [((7, 5), False), ((8, 0), True)])
def test_gpus_before_ampere_gain_nothing(monkeypatch, capability, gains):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU"])
    monkeypatch.setattr(
        tf.config.experimental,
        "get_device_details",
        lambda gpu: {"compute_capability": capability},
    )
    if gains:
        check_bfloat16("feed_forward", WorldModel, on_cpu=False, xla=True)
    else:
        with pytest.raises(UserError, match="this GPU multiplies it no faster"):
            check_bfloat16("feed_forward", WorldModel, on_cpu=False, xla=True)


@pytest.mark.parametrize("instructions", ["avx", "avx512_bf16"])
def test_the_value_learner_asks(tmp_path, monkeypatch, instructions):
    kind = {"instructions": instructions}
    monkeypatch.setattr(valuerl_learner, "processor_kind", lambda: kind)
    expansion = {"rollout_len": 1} | STEVE | BFLOAT16
    run, board, _ = open_run(
        tmp_path, model=True, policy_config={"value_expansion": expansion, "xla": False}
    )
    context = Context(run, VALUERL, 0, board, lambda: False)
    if instructions == "avx":
        with pytest.raises(UserError, match="this processor has no instructions"):
            ValueRLLearner(context)
    else:
        learner = ValueRLLearner(context)
        assert learner.valuerl.target_q.compute_dtype == tf.bfloat16
        assert learner.valuerl.world_model.reward.compute_dtype == tf.bfloat16
        assert learner.world_model.reward.compute_dtype == tf.float32
