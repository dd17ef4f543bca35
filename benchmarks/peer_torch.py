"""The updates in PyTorch: eager or compiled by torch.compile, fused Adam in both.

The members of an ensemble are products of their own (`batched` False: each member has
tensors of its own) or one batched product (True: a net has stacked weights).

Dimension letters as in valuerl.py; the batch is the last axis here, and only what
differs between members has a members' axis longer than 1.
"""

import time
from typing import Any, NamedTuple

import numpy as np
import torch
from peer_work import TRAINED, Parameters, Work, layers_of
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from steve.batch import Batch
from steve.settings.roles import VALUERL, WORLDMODEL

REACH_EPSILON = 1e-8
BETAS, EPSILON = (0.9, 0.999), 1e-8
TRIALS = 10  # updates that decide on the number of threads

# A process sees one GPU or none (peers.py).
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# A net of stacked members is one list of layers, another a list of members.
Layers = list[tuple[Tensor, Tensor]]
Net = list[Layers]


def parameter(array: np.ndarray) -> Tensor:
    """A copy on the device."""
    return torch.tensor(array, device=DEVICE)


def on_device(array: np.ndarray) -> Tensor:
    """A part of a batch; on a CPU it is not copied."""
    return torch.from_numpy(array).to(DEVICE)


# -- nets -------------------------------------------------------------------------


def mlp(layers: Layers, x: Tensor) -> Tensor:
    """One net on [R, I], or stacked ones on [E, R, I]."""
    product = torch.addmm if x.dim() == 2 else torch.baddbmm
    for w, b in layers[:-1]:
        x = torch.relu(product(b, x, w))
    w, b = layers[-1]
    return product(b, x, w)


def members_of(net: Net) -> int:
    w = net[0][0][0]
    return w.shape[0] if w.dim() == 3 else len(net)


def apply(net: Net, x: Tensor) -> Tensor:
    """All members: [E or 1, R, I] -> [E, R, F]."""
    x = x.expand(members_of(net), -1, -1)
    if net[0][0][0].dim() == 3:
        return mlp(net[0], x)
    if len(net) == 1:
        return mlp(net[0], x[0])[None]
    return torch.stack([mlp(m, r) for m, r in zip(net, x.unbind(), strict=True)])


def apply_assigned(net: Net, x: Tensor, strided: bool) -> Tensor:
    """To each row its member: [B, ..., I] -> [B, ..., F]."""
    members = members_of(net)
    *rows, in_dim = x.shape
    share = rows[0] // members
    if strided:
        x = x.reshape(share, members, -1).transpose(0, 1)
    y = apply(net, x.reshape(members, -1, in_dim))
    if strided:
        y = y.reshape(members, share, -1).transpose(0, 1)
    return y.reshape(*rows, -1)


def frozen(net: Net) -> Net:
    return [[(w.detach(), b.detach()) for w, b in layers] for layers in net]


# -- losses -----------------------------------------------------------------------


def value_loss(
    work: Work, trained: dict[str, Net], fixed: dict[str, Net], batch: Batch
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of both losses; each net's gradient is that of its own loss."""
    with torch.no_grad():
        imagined = imagine(work, trained["policy"], fixed, batch)
        targets, reached, usage = targets_of(work, imagined)

    pre_tanh = apply(trained["policy"], batch.obs[None])[0]
    inputs = torch.cat([batch.obs, torch.tanh(pre_tanh)], -1)
    policy_loss = -apply(frozen(trained["q"]), inputs[None]).mean()
    reg_loss = work.pre_tanh_penalty * pre_tanh.square().mean()

    q, strided = trained["q"], "q" in work.strided
    inputs = torch.cat([batch.obs, batch.action], -1)
    predicted = [apply_assigned(q, inputs, strided)[:, 0]]
    if work.tdk:
        first, *later = imagined.states
        predicted.append(apply_assigned(q, first[0], strided)[:, 0])
        if later:
            rows = torch.stack(later, 2).transpose(0, 1)  # [B, M, H-1, O+A]
            values = apply_assigned(q, rows, strided)[..., 0]
            predicted += values.mean(1).unbind(1)
    errors = (torch.stack(predicted) - targets).square()  # [J, B]
    q_loss = (reached * 0.5 * errors).mean()
    losses = {
        "q_loss": q_loss,
        "policy_loss": policy_loss,
        "policy_reg_loss": reg_loss,
        "model_usage": usage,
    }
    return policy_loss + reg_loss + q_loss, losses


class Imagined(NamedTuple):
    """Lists over the steps h = 0 .. H; at h = 0 nothing differs between members."""

    rewards: list[Tensor]  # [N, M, B]
    continue_probs: list[Tensor]  # C_h, [M, B]
    values: list[Tensor]  # [L, M, B]
    states: list[Tensor]  # (s_h, a_h) of h < H, [M, B, O+A]


def imagine(work: Work, policy: Net, fixed: dict[str, Net], batch: Batch) -> Imagined:
    """The rollout; rewards, terminations and values of all its steps at once."""

    def act(obs: Tensor) -> Tensor:
        rows = obs.reshape(1, -1, obs.shape[-1])
        return torch.tanh(apply(policy, rows)).reshape(*obs.shape[:-1], -1)

    obs = batch.next_obs[None]
    states = [torch.cat([obs, act(obs)], -1)]
    observations = [obs]
    for _ in range(work.horizon):
        obs = obs + apply(fixed["transition"], states[-1])  # [M, B, O]
        observations.append(obs)
        states.append(torch.cat([obs, act(obs)], -1))

    size = batch.reward.shape[0]
    values = [apply(fixed["target_q"], states[0]).reshape(-1, 1, size)]
    rewards, going_on = [batch.reward[None, None]], [1.0 - batch.terminated[None]]
    if work.horizon:
        models = states[1].shape[0]
        wide = [states[0].expand_as(states[1]), *states[1:]]
        before = torch.stack(wide[:-1], 1)  # [M, H, B, O+A]
        after = torch.stack(observations[1:], 1)
        inputs = torch.cat([after, before], -1)
        inputs = inputs.reshape(models, -1, inputs.shape[-1])  # [M, H*B, 2 O + A]
        flat = inputs.reshape(1, -1, inputs.shape[-1])
        shape = -1, models, work.horizon, size
        reward = apply(fixed["reward"], flat).reshape(shape)  # [N, M, H, B]
        ended = apply(fixed["termination"], inputs).sigmoid().reshape(shape[1:])
        later = torch.stack(wide[1:], 1)
        value = apply(fixed["target_q"], later.reshape(1, -1, later.shape[-1]))
        value = value.reshape(shape)  # [L, M, H, B]
        rewards += reward.unbind(2)
        values += value.unbind(2)
        for ending in ended.unbind(1):
            going_on.append(going_on[-1] * (1.0 - ending))
    return Imagined(rewards, going_on, values, states[:-1])


def targets_of(work: Work, imagined: Imagined) -> tuple[Tensor, Tensor, Tensor]:
    """Targets of the starts [J, B], the probabilities of reaching them, the usage."""
    going_on, discount = imagined.continue_probs, work.discount
    reached = [torch.ones_like(going_on[0]), *going_on[:-1]]
    targets, usage = [], torch.zeros((), device=DEVICE)
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
                variance, mean = torch.var_mean(candidates, (0, 1, 2), correction=0)
                means.append(mean)
                variances.append(variance)
            else:
                means.append(total.mean((0, 1)) + bootstrap.mean((0, 1)))
        if fixed is None:
            inverse = 1.0 / (torch.stack(variances) + work.epsilon)  # [H+1-j, B]
            weights = inverse / inverse.sum(0)
            if start == 0:
                usage = 1.0 - weights[0].mean()
            targets.append((weights * torch.stack(means)).sum(0))
        else:
            targets.append(sum(w * m for w, m in zip(fixed, means, strict=True) if w))
    probabilities = torch.stack([r.mean(0) for r in reached[: work.starts]])
    return torch.stack(targets), probabilities, usage


def model_loss(
    work: Work, trained: dict[str, Net], fixed: dict[str, Net], batch: Batch
) -> tuple[Tensor, dict[str, Tensor]]:
    """The world model's losses, and the sum of those that are differentiated.

    The regulariser's gradient is added by Adam.
    """
    before = torch.cat([batch.obs, batch.action], -1)
    after = torch.cat([batch.next_obs, before], -1)

    def predict(net: str, x: Tensor, like: str) -> Tensor:
        return apply_assigned(trained[net], x, like in work.strided)

    change = predict("transition", before, "transition")
    logit = predict("termination", after, "transition")[:, 0]
    reward = predict("reward", after, "reward")[:, 0]
    with torch.no_grad():
        leaves = [x for net in trained.values() for x in leaves_of(net)]
        squares = torch.stack([x.square().sum() for x in leaves]).sum()
    squared = (batch.next_obs - batch.obs - change).square()
    losses = {
        "transition_loss": 0.5 * squared.sum(-1).mean(),
        "termination_loss": binary_cross_entropy_with_logits(logit, batch.terminated),
        "reward_loss": 0.5 * (batch.reward - reward).square().mean(),
    }
    differentiated = torch.stack(list(losses.values())).sum()
    losses["reg_loss"] = work.weight_decay * 0.5 * squares
    losses["total_loss"] = differentiated.detach() + losses["reg_loss"]
    return differentiated, losses


def leaves_of(net: Net) -> list[Tensor]:
    return [x for layers in net for layer in layers for x in layer]


# -- the update -------------------------------------------------------------------


class TorchUpdate:
    """An update in PyTorch (`peer_work.Update`), one in a call.

    Args:
        work: the update.
        parameters: of all nets.
        batched: how the members of an ensemble are computed.
        compiled: whether torch.compile compiles the losses and their gradients.
    """

    block = 1

    def __init__(
        self, work: Work, parameters: Parameters, batched: bool, compiled: bool
    ) -> None:
        self._batched = batched
        names = {name.partition("/")[0] for name in parameters}
        nets = {name: self._net(parameters, name) for name in sorted(names)}
        self._trained = {name: nets.pop(name) for name in TRAINED[work.learner]}
        fixed = nets if work.learner == VALUERL else {}
        leaves = [x for net in self._trained.values() for x in leaves_of(net)]
        for leaf in leaves:
            leaf.requires_grad_()
        self._decay = work.weight_decay if work.learner == WORLDMODEL else 0.0
        self._adam = torch.optim.Adam(
            leaves, work.learning_rate, BETAS, weight_decay=self._decay, fused=True
        )
        self._steps = 0
        function = value_loss if work.learner == VALUERL else model_loss

        def loss(trained: Any, fixed: Any, batch: Batch) -> tuple[Tensor, dict]:
            return function(work, trained, fixed, batch)

        if compiled:
            loss = torch.compile(loss, fullgraph=True, dynamic=False)
        self._loss = lambda batch: loss(self._trained, fixed, batch)

    def _net(self, parameters: Parameters, name: str) -> Net:
        layers = layers_of(parameters, name)
        members = len(layers[0][0])
        if self._batched and members > 1:  # biases [E, 1, F]
            return [[(parameter(w), parameter(b[:, None])) for w, b in layers]]
        return [
            [(parameter(w[k]), parameter(b[k])) for w, b in layers]
            for k in range(members)
        ]

    def _named(self, nets: dict[str, Net]) -> Parameters:
        named = {}
        for name, net in nets.items():
            for i, layer in enumerate(zip(*net, strict=True)):
                w, b = (
                    np.stack([x.detach().cpu().numpy() for x in parts])
                    for parts in zip(*layer, strict=True)
                )
                named[f"{name}/w{i}"], named[f"{name}/b{i}"] = w, b
        return named

    def run(self, batches: Batch[np.ndarray]) -> None:
        loss, _ = self._loss(Batch(*(on_device(part[0]) for part in batches)))
        self._adam.zero_grad(set_to_none=True)
        loss.backward()
        self._steps += 1
        # In TensorFlow 1's form, epsilon meets the root before its bias is corrected.
        correction = np.sqrt(1 - BETAS[1] ** self._steps)
        self._adam.param_groups[0]["eps"] = EPSILON / float(correction)
        self._adam.step()

    def finish(self) -> None:
        """Waits for a GPU; on a CPU nothing is under way."""
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    def gradients(
        self, batch: Batch[np.ndarray]
    ) -> tuple[Parameters, dict[str, float]]:
        loss, losses = self._loss(Batch(*map(on_device, batch)))
        leaves = [x for net in self._trained.values() for x in leaves_of(net)]
        found = dict(
            zip(map(id, leaves), torch.autograd.grad(loss, leaves), strict=True)
        )
        gradients = {
            name: [
                [tuple(found[id(x)] + self._decay * x for x in layer) for layer in m]
                for m in net
            ]
            for name, net in self._trained.items()
        }
        return self._named(gradients), {n: float(x.detach()) for n, x in losses.items()}

    def parameters(self) -> Parameters:
        return self._named(self._trained)


def choose_threads(update: TorchUpdate, batches: Batch[np.ndarray]) -> None:
    """One thread or all, whichever makes updates faster; small nets need one."""
    seconds = {}
    for threads in (torch.get_num_threads(), 1):
        torch.set_num_threads(threads)
        update.run(batches)
        start = time.perf_counter()
        for _ in range(TRIALS):
            update.run(batches)
        seconds[threads] = time.perf_counter() - start
    torch.set_num_threads(min(seconds, key=lambda threads: seconds[threads]))
