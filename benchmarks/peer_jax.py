"""The updates in JAX: one compiled program with donated state, K updates in a scan.

The members of an ensemble are products of their own (`batched` False: a net is a list
of members) or one batched product (True: a net has stacked weights).

Dimension letters as in valuerl.py; the batch is the last axis here, and only what
differs between members has a members' axis longer than 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn import relu, sigmoid, softplus
from peer_work import TRAINED, Parameters, Work, layers_of

from steve.batch import Batch
from steve.settings.roles import VALUERL

REACH_EPSILON = 1e-8
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class State(NamedTuple):
    """What an update changes: parameters and Adam's moments, all of one structure."""

    trained: Any
    first: Any
    second: Any
    steps: jax.Array


# -- nets -------------------------------------------------------------------------


def mlp(layers: Any, x: jax.Array, bias: Callable = lambda b: b) -> jax.Array:
    for w, b in layers[:-1]:
        x = relu(x @ w + bias(b))
    w, b = layers[-1]
    return x @ w + bias(b)


def apply(net: Any, x: jax.Array) -> jax.Array:
    """All members: [E or 1, R, I] -> [E, R, F]."""
    if isinstance(net[0], tuple):
        return mlp(net, x, lambda b: b[:, None])
    rows = [x[0]] * len(net) if x.shape[0] == 1 else x
    return jnp.stack([mlp(member, r) for member, r in zip(net, rows, strict=True)])


def apply_assigned(net: Any, x: jax.Array, strided: bool) -> jax.Array:
    """To each row its member: [B, ..., I] -> [B, ..., F]."""
    members = net[0][0].shape[0] if isinstance(net[0], tuple) else len(net)
    *rows, in_dim = x.shape
    share = rows[0] // members
    if strided:
        x = jnp.swapaxes(x.reshape(share, members, -1), 0, 1)
    y = apply(net, x.reshape(members, -1, in_dim))
    if strided:
        y = jnp.swapaxes(y.reshape(members, share, -1), 0, 1)
    return y.reshape(*rows, -1)


# -- losses -----------------------------------------------------------------------


def value_loss(
    work: Work, trained: Any, fixed: Any, batch: Batch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The sum of both losses; each net's gradient is that of its own loss."""
    frozen = lax.stop_gradient(trained)
    imagined = imagine(work, frozen["policy"], fixed, batch)
    targets, reached, usage = targets_of(work, imagined)

    pre_tanh = apply(trained["policy"], batch.obs[None])[0]
    inputs = jnp.concatenate([batch.obs, jnp.tanh(pre_tanh)], -1)
    policy_loss = -jnp.mean(apply(frozen["q"], inputs[None]))
    reg_loss = work.pre_tanh_penalty * jnp.mean(jnp.square(pre_tanh))

    q, strided = trained["q"], "q" in work.strided
    inputs = jnp.concatenate([batch.obs, batch.action], -1)
    predicted = [apply_assigned(q, inputs, strided)[:, 0]]
    if work.tdk:
        first, *later = imagined.states
        predicted.append(apply_assigned(q, first[0], strided)[:, 0])
        if later:
            later = jnp.stack(later, 2)  # [M, B, H-1, O+A]
            values = apply_assigned(q, jnp.swapaxes(later, 0, 1), strided)[..., 0]
            predicted += list(jnp.mean(values, axis=1).T)
    errors = jnp.square(jnp.stack(predicted) - targets)  # [J, B]
    q_loss = jnp.mean(reached * 0.5 * errors)
    losses = {
        "q_loss": q_loss,
        "policy_loss": policy_loss,
        "policy_reg_loss": reg_loss,
        "model_usage": usage,
    }
    return policy_loss + reg_loss + q_loss, losses


class Imagined(NamedTuple):
    """Lists over the steps h = 0 .. H; at h = 0 nothing differs between members."""

    rewards: list[jax.Array]  # [N, M, B]
    continue_probs: list[jax.Array]  # C_h, [M, B]
    values: list[jax.Array]  # [L, M, B]
    states: list[jax.Array]  # (s_h, a_h) of h < H, [M, B, O+A]


def imagine(work: Work, policy: Any, fixed: Any, batch: Batch) -> Imagined:
    """The rollout; rewards, terminations and values of all its steps at once."""

    def act(obs: jax.Array) -> jax.Array:
        rows = obs.reshape(1, -1, obs.shape[-1])
        return jnp.tanh(apply(policy, rows)).reshape(*obs.shape[:-1], -1)

    obs = batch.next_obs[None]
    states = [jnp.concatenate([obs, act(obs)], -1)]
    observations = [obs]
    for _ in range(work.horizon):
        obs = obs + apply(fixed["transition"], states[-1])  # [M, B, O]
        observations.append(obs)
        states.append(jnp.concatenate([obs, act(obs)], -1))

    values = [apply(fixed["target_q"], states[0])]  # [L, B, 1]
    values[0] = values[0].reshape(-1, 1, batch.reward.shape[0])
    rewards = [batch.reward[None, None]]
    # XLA would make (1 + REACH_EPSILON) - d of the denominator below: 0 at d = 1.
    going_on = [lax.optimization_barrier(1.0 - batch.terminated[None])]
    if work.horizon:
        models, size = states[1].shape[:2]
        wide = [jnp.broadcast_to(states[0], states[1].shape), *states[1:]]
        before = jnp.stack(wide[:-1], 1)  # [M, H, B, O+A]
        after = jnp.stack(observations[1:], 1)
        inputs = jnp.concatenate([after, before], -1)
        inputs = inputs.reshape(models, -1, inputs.shape[-1])  # [M, H*B, 2 O + A]
        flat = inputs.reshape(1, -1, inputs.shape[-1])
        shape = -1, models, work.horizon, size
        reward = apply(fixed["reward"], flat).reshape(shape)  # [N, M, H, B]
        ended = sigmoid(apply(fixed["termination"], inputs)).reshape(shape[1:])
        later = jnp.stack(wide[1:], 1)
        value = apply(fixed["target_q"], later.reshape(1, -1, later.shape[-1]))
        value = value.reshape(shape)  # [L, M, H, B]
        for h in range(work.horizon):
            rewards.append(reward[:, :, h])
            going_on.append(going_on[-1] * (1.0 - ended[:, h]))
            values.append(value[:, :, h])
    return Imagined(rewards, going_on, values, states[:-1])


def targets_of(
    work: Work, imagined: Imagined
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Targets of the starts [J, B], the probabilities of reaching them, the usage."""
    going_on, discount = imagined.continue_probs, work.discount
    reached = [jnp.ones_like(going_on[0]), *going_on[:-1]]
    targets, usage = [], jnp.zeros(())
    for start in range(work.starts):
        fixed = work.fixed_weights(work.horizon + 1 - start)
        relative = 1.0 / (reached[start] + REACH_EPSILON)
        total, means, variances = 0.0, [], []
        for k, h in enumerate(range(start, work.horizon + 1)):
            factor = work.reward_scale * discount**k * reached[h] * relative
            total = total + factor * imagined.rewards[h]
            bootstrap = discount ** (k + 1) * going_on[h] * relative
            bootstrap = bootstrap * imagined.values[h]
            if fixed is None:
                candidates = total[None] + bootstrap[:, None]  # [L, N, M, B]
                means.append(jnp.mean(candidates, (0, 1, 2)))
                variances.append(jnp.var(candidates, (0, 1, 2)))
            else:
                means.append(jnp.mean(total, (0, 1)) + jnp.mean(bootstrap, (0, 1)))
        if fixed is None:
            inverse = 1.0 / (jnp.stack(variances) + work.epsilon)  # [H+1-j, B]
            weights = inverse / jnp.sum(inverse, 0)
            if start == 0:
                usage = 1.0 - jnp.mean(weights[0])
            targets.append(jnp.sum(weights * jnp.stack(means), 0))
        else:
            targets.append(sum(w * m for w, m in zip(fixed, means, strict=True) if w))
    probabilities = jnp.stack([jnp.mean(r, 0) for r in reached[: work.starts]])
    return jnp.stack(targets), probabilities, usage


def model_loss(
    work: Work, trained: Any, fixed: Any, batch: Batch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The world model's losses, and their sum."""
    before = jnp.concatenate([batch.obs, batch.action], -1)
    after = jnp.concatenate([batch.next_obs, before], -1)

    def predict(net: str, x: jax.Array, like: str) -> jax.Array:
        return apply_assigned(trained[net], x, like in work.strided)

    change = predict("transition", before, "transition")
    logit = predict("termination", after, "transition")[:, 0]
    reward = predict("reward", after, "reward")[:, 0]
    squared = jnp.square(batch.next_obs - batch.obs - change)
    squares = sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(trained))
    losses = {
        "transition_loss": 0.5 * jnp.mean(jnp.sum(squared, -1)),
        "termination_loss": jnp.mean(softplus(logit) - batch.terminated * logit),
        "reward_loss": 0.5 * jnp.mean(jnp.square(batch.reward - reward)),
        "reg_loss": work.weight_decay * 0.5 * squares,
    }
    total = sum(losses.values())
    return total, {"total_loss": total, **losses}


def adam(state: State, gradients: Any, rate: float) -> State:
    """One step in the form of TensorFlow 1."""
    steps = state.steps + 1
    step = steps.astype(jnp.float32)
    rate = rate * jnp.sqrt(1 - BETA2**step) / (1 - BETA1**step)
    first = jax.tree.map(lambda m, g: m + (1 - BETA1) * (g - m), state.first, gradients)
    second = jax.tree.map(
        lambda v, g: v + (1 - BETA2) * (g * g - v), state.second, gradients
    )
    trained = jax.tree.map(
        lambda w, m, v: w - rate * m / (jnp.sqrt(v) + EPSILON),
        state.trained,
        first,
        second,
    )
    return State(trained, first, second, steps)


# -- the update -------------------------------------------------------------------


class JaxUpdate:
    """An update in JAX (`peer_work.Update`).

    Args:
        work: the update.
        parameters: of all nets.
        block: K; above 1 a call is a scan.
        batched: how the members of an ensemble are computed.
    """

    def __init__(
        self, work: Work, parameters: Parameters, block: int, batched: bool
    ) -> None:
        self.block, self._batched = block, batched
        names = {name.partition("/")[0] for name in parameters}
        nets = {name: self._net(parameters, name) for name in names}
        trained = {name: nets.pop(name) for name in TRAINED[work.learner]}
        self._fixed = nets if work.learner == VALUERL else {}
        zeros = jax.tree.map(jnp.zeros_like, trained)
        again = jax.tree.map(jnp.zeros_like, trained)
        self._state = State(trained, zeros, again, jnp.zeros((), jnp.int32))

        def loss(trained: Any, fixed: Any, batch: Batch) -> tuple[jax.Array, dict]:
            function = value_loss if work.learner == VALUERL else model_loss
            return function(work, trained, fixed, batch)

        self._gradients = jax.jit(jax.grad(loss, has_aux=True))

        def update(fixed: Any, state: State, batch: Batch) -> tuple[State, dict]:
            gradients, losses = jax.grad(loss, has_aux=True)(
                state.trained, fixed, batch
            )
            return adam(state, gradients, work.learning_rate), losses

        def call(state: State, fixed: Any, batches: Batch) -> tuple[State, dict]:
            if block == 1:
                return update(fixed, state, Batch(*(part[0] for part in batches)))
            return lax.scan(lambda s, b: update(fixed, s, b), state, batches)

        self._call = jax.jit(call, donate_argnums=0)
        self._losses: dict[str, jax.Array] = {}

    def _net(self, parameters: Parameters, name: str) -> Any:
        layers = layers_of(parameters, name)
        if self._batched:
            return [(jnp.array(w), jnp.array(b)) for w, b in layers]
        members = len(layers[0][0])
        return [
            [(jnp.array(w[k]), jnp.array(b[k])) for w, b in layers]
            for k in range(members)
        ]

    def _named(self, nets: Any) -> Parameters:
        named = {}
        for name, net in nets.items():
            layers = net
            if not self._batched:
                layers = [
                    tuple(np.stack(parts) for parts in zip(*layer, strict=True))
                    for layer in zip(*net, strict=True)
                ]
            for i, (w, b) in enumerate(layers):
                named[f"{name}/w{i}"], named[f"{name}/b{i}"] = map(np.asarray, (w, b))
        return named

    def run(self, batches: Batch[np.ndarray]) -> None:
        self._state, self._losses = self._call(self._state, self._fixed, batches)

    def finish(self) -> None:
        jax.block_until_ready((self._state, self._losses))

    def gradients(
        self, batch: Batch[np.ndarray]
    ) -> tuple[Parameters, dict[str, float]]:
        gradients, losses = self._gradients(self._state.trained, self._fixed, batch)
        return self._named(gradients), {n: float(x) for n, x in losses.items()}

    def parameters(self) -> Parameters:
        return self._named(self._state.trained)
