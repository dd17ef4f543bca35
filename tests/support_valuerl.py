"""What the tests of value expansion need: algorithms, small nets, batches, choices.

O = 2, A = 1. `slow_target` is SPEC section 4 with one loop; it shares no code with what
it checks.
"""

import numpy as np
import pytest
import tensorflow as tf

from steve import nn
from steve.replay import Batch
from steve.settings.schema import PolicyConfig, WorldModelConfig
from steve.valuerl import SampledMembers, Task, ValueRL
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


def every_algorithm(test):
    return pytest.mark.parametrize("keys", ALGORITHMS.values(), ids=ALGORITHMS)(test)


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
    built = ValueRL(config, Task(2, 1, DISCOUNT, REWARD_SCALE), generator, model)
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


def fixed_members(built, transition=None, reward=None, q=None, taking=None):
    """The members by number; assignment: the rows cut among the members `taking`.

    By default one row to each of the first four members.
    """

    def constant(numbers):
        return None if numbers is None else tf.constant(numbers)

    taking = taking or list(range(min(4, built.q.ensemble_size)))
    return SampledMembers(
        q_members=constant(q),
        q_assignment=nn.Assignment(len(taking), tf.constant(taking)),
        model=ModelMembers(constant(transition), constant(reward))
        if built.world_model
        else None,
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
