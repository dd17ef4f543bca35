"""How many floating-point operations an update needs: its matrix products.

A product of [R, I] and [I, F] counts 2 R I F. A net on R rows costs `forward` in one
direction; the gradients of its weights cost as much again, and so do those of its
inputs, except in the first layer, where nobody asks for them. Everything but the
products (activations, Adam, the regulariser) is left out, so that a share of the
machine's limit is never flattered by work that is no product.

Letters as in valuerl.py: B batch, H horizon, M transition, N reward, L Q members.
"""

from dataclasses import dataclass
from itertools import pairwise

from steve.settings.schema import Config, Ensemble, WorldModelConfig

SINGLE = Ensemble(ensemble_size=1, train_sample_count=1, eval_sample_count=1)


@dataclass(frozen=True)
class Net:
    """The sizes of one feed-forward net."""

    in_dim: int
    hidden_dim: int
    out_dim: int
    layers: int

    def forward(self, rows: int) -> float:
        """The net's products on so many rows."""
        widths = [self.in_dim, *[self.hidden_dim] * (self.layers - 1), self.out_dim]
        return 2.0 * rows * sum(a * b for a, b in pairwise(widths))

    def training(self, rows: int) -> float:
        """Forward, and the gradients of the weights."""
        first_out = self.hidden_dim if self.layers > 1 else self.out_dim
        return 3 * self.forward(rows) - 2.0 * rows * self.in_dim * first_out


def model_nets(
    model: WorldModelConfig, obs_dim: int, action_dim: int
) -> tuple[Net, Net]:
    """One transition net, and one of the termination and reward nets."""
    transition = Net(
        obs_dim + action_dim,
        model.transition_hidden_dim,
        obs_dim,
        model.transition_layers,
    )
    aux = Net(2 * obs_dim + action_dim, model.aux_hidden_dim, 1, model.aux_layers)
    return transition, aux


def valuerl_flop(
    config: Config, obs_dim: int, action_dim: int, shared: bool = True
) -> float:
    """One update of policy and Q.

    Args:
        config: of the run.
        obs_dim: O.
        action_dim: A.
        shared: s_0 is the same for all transition members, so what depends on it
            alone is counted once; False counts it for every member.
    """
    settings, model = config.policy_config, config.world_model_config
    members = settings.bayesian or SINGLE
    policy = Net(obs_dim, settings.hidden_dim, action_dim, settings.layers)
    q = Net(obs_dim + action_dim, settings.hidden_dim, 1, settings.layers)
    batch, values = settings.batch_size, members.eval_sample_count

    policy_loss = policy.training(batch) + 2 * values * q.forward(batch)
    flop = policy_loss + q.training(batch)
    if settings.value_expansion is None:
        return flop + policy.forward(batch) + values * q.forward(batch)

    sizes = model.bayesian
    transitions = sizes.transition.eval_sample_count if sizes else 1
    rewards = sizes.reward.eval_sample_count if sizes else 1
    horizon = settings.value_expansion.rollout_len
    transition, aux = model_nets(model, obs_dim, action_dim)
    imagined = transitions * horizon * batch  # rows
    first = batch if shared else transitions * batch
    flop += transition.forward(imagined) + (1 + rewards) * aux.forward(imagined)
    flop += policy.forward(first + imagined) + values * q.forward(first + imagined)
    if settings.value_expansion.tdk_trick:
        starts = imagined - transitions * batch  # (s_1, a_1) .. (s_{H-1}, a_{H-1})
        flop += q.training(first + starts)
    return flop


def worldmodel_flop(config: Config, obs_dim: int, action_dim: int) -> float:
    """One update of the world model; each sample is given to one member."""
    model = config.world_model_config
    transition, aux = model_nets(model, obs_dim, action_dim)
    return transition.training(model.batch_size) + 2 * aux.training(model.batch_size)
