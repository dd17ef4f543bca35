"""results/value_errors.py: the parts of a target's error, with tiny nets."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from support import PROJECT

import checkpoint
from envwrap import make_env, sizes_of
from policy import Policy
from schema import Config
from trained import load_trained
from valuerl import ValueRL
from worldmodel import WorldModel

DISCOUNT, SCALE, HORIZON = 0.5, 2.0, 2
STEPS = 25  # discount^25 = 3e-8
STARTS = 3


@pytest.fixture
def value_errors(monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT / "results"))
    import value_errors

    monkeypatch.setattr(value_errors, "STEPS", STEPS)
    return value_errors


def tiny(ensemble: dict | None = None) -> Config:
    return Config.model_validate(
        {
            "env": {
                "name": "HalfCheetah-v1",
                "discount": DISCOUNT,
                "reward_scale": SCALE,
            },
            "policy_config": {
                "hidden_dim": 8,
                "layers": 2,
                "bayesian": ensemble,
                "value_expansion": {"rollout_len": HORIZON, "tdk_trick": True},
            },
            "model_config": {
                "transition_hidden_dim": 8,
                "transition_layers": 2,
                "aux_hidden_dim": 8,
                "aux_layers": 2,
                "bayesian": ensemble and {"transition": ensemble, "reward": ensemble},
            },
        }
    )


class Run:
    """A checkpoint of new nets, some of whose tensors are shifted.

    Args:
        folder: where it is published.
        config: of the run.
        shifts: by tensor, what is added to it.
    """

    def __init__(self, folder: Path, config: Config, **shifts: float) -> None:
        self.config = config
        folder.mkdir(exist_ok=True)
        self.env = make_env(config.env)
        sizes = sizes_of(self.env)
        self.env.reset(seed=1)
        self.start = np.stack([self._after(n) for n in range(1, STARTS + 1)])
        generator = tf.random.Generator.from_seed(0)
        dims = sizes.obs_dim, sizes.action_dim
        self.model = WorldModel(config.world_model_config, *dims, generator)
        self.nets = ValueRL(
            config.policy_config, *dims, DISCOUNT, SCALE, generator, self.model
        )
        for name, nets in (("valuerl", self.nets), ("worldmodel", self.model)):
            tensors = {n: v.numpy() for n, v in nets.named_variables().items()}
            for key, shift in shifts.items():
                if (tensor := key.replace("__", "/")) in tensors:
                    tensors[tensor] = tensors[tensor] + np.float32(shift)
            if name == "worldmodel":  # nothing ends in this environment
                tensors["termination/b1"] = tensors["termination/b1"] - np.float32(50)
            metadata = {"updates": 1, "epoch": 1, "frames": 1, "hours": 0.0}
            checkpoint.publish(folder / f"{name}.safetensors", tensors, metadata)
        self.trained = load_trained(folder, config)
        self.policy = Policy(self.trained.policy, *dims)

    def _after(self, steps: int) -> np.ndarray:
        """A state some random steps from a start."""
        rng = np.random.default_rng(steps)
        for _ in range(steps):
            obs, *_ = self.env.step(rng.uniform(-1, 1, self.env.action_space.shape))
        return obs

    def value(self, obs: np.ndarray) -> float:
        """The discounted return of the greedy policy from a state on."""
        position = np.concatenate([[0.0], obs[:8]])
        obs, value = self.env.get_wrapper_attr("put")(position, obs[8:]), 0.0
        for step in range(STEPS):
            obs, reward, *_ = self.env.step(self.policy.greedy(obs[None])[0])
            value += DISCOUNT**step * SCALE * reward
        return value


def test_the_parts_add_up_to_the_error_of_the_candidate_targets(value_errors, tmp_path):
    run = Run(tmp_path, tiny(), reward__b1=0.3, target_q__b1=5.0)
    errors = value_errors.value_errors(run.config, run.trained, run.start)
    values = [run.value(obs) for obs in run.start]
    np.testing.assert_allclose(errors.value, np.repeat(values, 3).reshape(3, 3))

    nets = run.nets
    obs, total = tf.constant(run.start, tf.float32), np.zeros(STARTS)
    for name, variable in run.model.named_variables().items():
        variable.assign(run.trained.model[1].tensors[name])
    for name, variable in nets.named_variables().items():
        variable.assign(run.trained.critic[1].tensors[name])
    for h in range(HORIZON + 1):
        action = nets.action(obs)
        inputs = tf.concat([obs, action], -1)
        q = nets.target_q(inputs[None])[0, :, 0]
        target = total + DISCOUNT**h * q.numpy()
        parts = errors.rewards[:, h] + errors.states[:, h] + errors.critic[:, h]
        np.testing.assert_allclose(parts, target - values, atol=1e-4)
        following = obs + run.model.transition(inputs[None])[0]
        reward = run.model.reward(tf.concat([following, inputs], -1)[None])[0, :, 0]
        total += DISCOUNT**h * SCALE * reward.numpy()
        obs = following


@pytest.mark.parametrize("ensemble", [None, 3], ids=["single nets", "ensembles"])
def test_each_fault_shows_in_its_own_part(value_errors, tmp_path, ensemble):
    sizes = ensemble and {
        "ensemble_size": ensemble,
        "train_sample_count": ensemble,
        "eval_sample_count": ensemble,
    }
    found = {}
    for name, shifts in {
        "none": {},
        "reward": {"reward__b1": 1.0},
        "critic": {"target_q__b1": 1.0},
    }.items():
        run = Run(tmp_path / name, tiny(sizes), **shifts)
        found[name] = value_errors.value_errors(run.config, run.trained, run.start)
    discounts = DISCOUNT ** np.arange(HORIZON + 1)
    rewards = SCALE * np.array([0.0, 1.0, 1.5])  # 1, then 1 + discount
    for name, part, shift in (
        ("reward", "rewards", rewards),
        ("critic", "critic", discounts),
    ):
        for other in ("rewards", "states", "critic"):
            change = getattr(found[name], other) - getattr(found["none"], other)
            expected = shift if other == part else 0 * shift
            np.testing.assert_allclose(
                change, np.tile(expected, (STARTS, 1)), atol=1e-5
            )


def test_the_simulator_starts_where_the_observation_says(value_errors, tmp_path):
    run = Run(tmp_path, tiny())
    for obs in run.start:
        np.testing.assert_allclose(value_errors.put(run.env, obs), obs, atol=1e-12)


def test_environments_that_end_are_refused(value_errors, tmp_path, capsys, monkeypatch):
    config = str(PROJECT / "config/cpu/hopper/steve0.json")
    monkeypatch.setattr("sys.argv", ["value_errors.py", config, str(tmp_path)])
    assert value_errors.main() == 2
    assert capsys.readouterr().err.endswith("only for HalfCheetah-v1 and Swimmer-v1\n")
