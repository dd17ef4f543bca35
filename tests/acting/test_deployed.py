"""A policy in the environment's own terms: single observations and batches."""

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from gymnasium.vector.utils import batch_space, iterate

from steve import envwrap
from steve.acting.deployed import DeployedPolicy
from steve.settings.interface import Interface
from steve.settings.schema import Environment
from steve.storage.checkpoint import Checkpoint

SPACES = {
    "Dict": spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "b": spaces.Box(-1, 1, (2,))}),
    "Tuple": spaces.Tuple([spaces.Box(-1, 1, (1, 3)), spaces.Box(-1, 1, ())]),
    "Box": spaces.Box(-1, 1, (2, 3)),
    "row": spaces.Box(-1, 1, (1, 4)),
    "flat": spaces.Box(-1, 1, (5,)),
    "number": spaces.Box(-1, 1, ()),
}


class Observed(gymnasium.Env):
    """It shows samples of a space, and has two actions."""

    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, space):
        self.observation_space = space

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.fixture(params=SPACES)
def space(request):
    return SPACES[request.param]


def policy_for(space, published=lambda text: text):
    """A policy of one random layer, which was published with its interface."""
    env = envwrap.adapt(Observed(space), Environment(name="Observed-v0"))
    text = published(envwrap.interface_of(env, 0.5).to_json())
    weights = np.random.default_rng(0).normal(size=(spaces.flatdim(space), 2))
    tensors = {"policy/w0": np.float32(weights), "policy/b0": np.zeros(2, np.float32)}
    state = Checkpoint(tensors, {"epoch": 1, "frames": 0, "hours": 0.0})
    return DeployedPolicy(Path("policy"), state, Interface.from_json(text))


def batch_of(space, count):
    vector = SyncVectorEnv([lambda: Observed(space)] * count)
    return vector.reset(seed=0)[0]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_batch_has_an_action_for_each_of_its_rows(space, count):
    policy, batch = policy_for(space), batch_of(space, count)
    each = iterate(batch_space(space, count), batch)
    expected = [policy.act(row) for row in each]
    assert policy.act(batch).shape == (count, 2)
    np.testing.assert_allclose(policy.act(batch), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(policy.predict(batch)[0], policy.act(batch))
    assert policy.act(batch, deterministic=False).shape == (count, 2)


def test_one_observation_has_one_action(space):
    policy, obs = policy_for(space), space.sample()
    expected = np.atleast_2d(policy.act(spaces.flatten(space, obs)))
    assert policy.act(obs).shape == (2,)
    np.testing.assert_allclose([policy.act(obs)], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(policy.predict(obs)[0], policy.act(obs))


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_an_observation_that_is_not_finite_has_no_action(number):
    policy = policy_for(SPACES["Box"])
    obs = SPACES["Box"].sample()
    obs.flat[-1] = number
    with pytest.raises(ValueError, match="obs has numbers that are not finite"):
        policy.act(obs)


@pytest.mark.parametrize("name", ["Dict", "Tuple", "Box", "flat", "number"])
def test_a_policy_that_was_published_without_shapes_acts(name):
    """For "row", one observation is taken for a flat batch of one."""
    space = SPACES[name]

    def earlier(text):
        content = json.loads(text)
        leaves = [entry[:2] for entry in content["leaves"]]
        return json.dumps({**content, "leaves": leaves})

    policy, old = policy_for(space), policy_for(space, earlier)
    for obs in (space.sample(), batch_of(space, 3)):
        np.testing.assert_array_equal(old.act(obs), policy.act(obs))
