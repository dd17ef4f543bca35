"""results/value_errors.py: the parts of a target's error, with tiny nets."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from support import PROJECT

from steve.acting.policy import Policy
from steve.analysis.trained import load_checkpoint
from steve.envwrap import make_env, sizes_of
from steve.replay import Batch, ReplayBuffer
from steve.settings.loading import load
from steve.settings.schema import Config
from steve.storage import checkpoint
from steve.valuerl import Task, ValueRL
from steve.worldmodel import WorldModel

DISCOUNT, SCALE, HORIZON = 0.5, 2.0, 2
STEPS = 25  # discount^25 = 3e-8
STARTS = 4
MEMBERS = 3


@pytest.fixture
def value_errors(monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT / "results"))
    import value_errors

    monkeypatch.setattr(value_errors, "STEPS", STEPS)
    return value_errors


def tiny(members: int | None = None, model: bool = True) -> dict:
    """A configuration on HalfCheetah: STEVE's ensembles or single nets; or DDPG."""
    keys = ("ensemble_size", "train_sample_count", "eval_sample_count")
    ensemble = members and dict.fromkeys(keys, members)
    content = {
        "env": {
            "name": "HalfCheetah-v1",
            "discount": DISCOUNT,
            "reward_scale": SCALE,
        },
        "policy_config": {"hidden_dim": 8, "layers": 2, "bayesian": ensemble},
    }
    if model:
        expansion = {"rollout_len": HORIZON, "tdk_trick": True}
        content["policy_config"]["value_expansion"] = expansion
        content["model_config"] = {
            "transition_hidden_dim": 8,
            "transition_layers": 2,
            "aux_hidden_dim": 8,
            "aux_layers": 2,
            "bayesian": ensemble and {"transition": ensemble, "reward": ensemble},
        }
    return content


class Run:
    """A checkpoint of new nets, some of whose tensors are shifted.

    Args:
        folder: where it is published.
        content: the configuration.
        shifts: by tensor, what is added to it.
    """

    def __init__(self, folder: Path, content: dict, **shifts: float) -> None:
        folder.mkdir(exist_ok=True)
        self.config = config = Config.model_validate(content)
        self.env = make_env(config.env)
        self.sizes = sizes_of(self.env)
        self.start = np.stack([self._after(n) for n in range(1, STARTS + 1)])
        generator = tf.random.Generator.from_seed(0)
        dims = self.sizes.obs_dim, self.sizes.action_dim
        states, self.model = {}, None
        if config.has_model:
            self.model = WorldModel(config.world_model_config, *dims, generator)
            states["worldmodel"] = self.model
        self.nets = states["valuerl"] = ValueRL(
            config.policy_config, Task(*dims, DISCOUNT, SCALE), generator, self.model
        )
        for name, nets in states.items():
            variables = nets.named_variables()
            if name == "worldmodel":  # small steps, to states that can be simulated
                variables["transition/w1"].assign(0.1 * variables["transition/w1"])
            for tensor, shift in shifts.items():
                if (variable := variables.get(tensor.replace("__", "/"))) is not None:
                    variable.assign_add(tf.fill(variable.shape, shift))
            tensors = {n: v.numpy() for n, v in variables.items()}
            metadata = {"updates": 1, "epoch": 1, "frames": 1, "hours": 0.0}
            checkpoint.publish(folder / f"{name}.safetensors", tensors, metadata)
        self.trained = load_checkpoint(folder, config)
        self.policy = Policy(self.trained.policy, *dims)

    def _after(self, steps: int) -> np.ndarray:
        """A state some random steps from a start."""
        rng = np.random.default_rng(steps)
        self.env.reset(seed=1)
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


@pytest.mark.parametrize("members", [None, MEMBERS], ids=["single nets", "ensembles"])
def test_the_parts_are_those_of_a_rollout_by_hand(value_errors, tmp_path, members):
    """Row b follows transition member b mod M; rewards and Q are means over members."""
    run = Run(tmp_path, tiny(members))
    errors = value_errors.value_errors(run.config, run.trained, run.start)
    for row, start in enumerate(run.start):
        value, total, obs = run.value(start), 0.0, tf.constant(start[None], tf.float32)
        for h in range(HORIZON + 1):
            inputs = tf.concat([obs, run.nets.action(obs)], -1)[None]
            q = np.mean(run.nets.target_q(inputs))
            critic = DISCOUNT**h * (q - run.value(obs[0].numpy()))
            everything = total + DISCOUNT**h * q - value
            parts = [part[row, h] for part in errors[1:]]
            np.testing.assert_allclose(errors.value[row, h], value)
            np.testing.assert_allclose(parts[2], critic, atol=1e-4)
            np.testing.assert_allclose(sum(parts), everything, atol=1e-4)
            member = row % (members or 1)
            following = obs + run.model.transition(inputs)[member]
            reward = run.model.reward(tf.concat([following[None], inputs], -1))
            total += DISCOUNT**h * SCALE * np.mean(reward)
            obs = following


def test_each_fault_shows_in_its_own_part(value_errors, tmp_path):
    found = {}
    for name, shifts in {
        "none": {},
        "rewards": {"reward__b1": 1.0},
        "critic": {"target_q__b1": 1.0},
    }.items():
        run = Run(tmp_path / name, tiny(), **shifts)
        found[name] = value_errors.value_errors(run.config, run.trained, run.start)
    shifts = {
        "rewards": SCALE * np.array([0.0, 1.0, 1.5]),  # 1, then 1 + discount
        "critic": DISCOUNT ** np.arange(HORIZON + 1),
    }
    for name, shift in shifts.items():
        for part in ("rewards", "states", "critic"):
            change = getattr(found[name], part) - getattr(found["none"], part)
            expected = np.tile(shift if part == name else 0 * shift, (STARTS, 1))
            np.testing.assert_allclose(change, expected, atol=1e-5)


def test_without_a_model_all_is_the_critics(value_errors, tmp_path):
    run = Run(tmp_path, tiny(model=False))
    errors = value_errors.value_errors(run.config, run.trained, run.start)
    obs = tf.constant(run.start, tf.float32)
    q = run.nets.target_q(tf.concat([obs, run.nets.action(obs)], -1)[None])[0]
    values = np.array([[run.value(start)] for start in run.start])
    np.testing.assert_allclose(errors.critic, q - values, atol=1e-4)
    assert not errors.rewards.any()
    assert not errors.states.any()


def call(value_errors, monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["value_errors.py", *map(str, arguments)])
    return value_errors.main()


def test_the_table_of_a_run(value_errors, tmp_path, monkeypatch, capsys):
    run = Run(tmp_path / "checkpoints", tiny())
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps({"updates": tiny()}))
    dims = run.sizes.obs_dim, run.sizes.action_dim
    with ReplayBuffer.create(tmp_path / "checkpoints/replay", *dims, 10) as replay:
        none = np.zeros(STARTS)
        actions = np.zeros([STARTS, dims[1]])
        replay.append(Batch(run.start, actions, none, run.start, none))
    arguments = config, tmp_path / "checkpoints", "--states"
    assert call(value_errors, monkeypatch, *arguments, 3) == 0
    lines = capsys.readouterr().out.splitlines()
    header = "| h | V(s_0) | T_h - V(s_0) | rewards | states | critic |"
    assert lines[0] == header
    assert [line.split()[1] for line in lines[2:]] == ["0", "1", "2"]
    assert call(value_errors, monkeypatch, *arguments, 1) == 2
    assert capsys.readouterr().err == "value_errors.py: --states 1: at least 2\n"
    (tmp_path / "checkpoints/worldmodel.safetensors").unlink()
    assert call(value_errors, monkeypatch, *arguments, 3) == 2
    assert "there is no worldmodel.safetensors" in capsys.readouterr().err


def test_means_and_standard_errors_by_hand(value_errors):
    """Of 1 and 3: mean 2, deviation sqrt(2), standard error 1."""
    zeros, some = np.zeros([2, 1]), np.array([[1.0], [3.0]])
    errors = value_errors.Errors(10 * some, zeros, some, 2 * some)
    (row,) = value_errors.table(errors).splitlines()[2:]
    cells = ["0", "20.0 +- 10.0", "6.0 +- 3.0", "0.0 +- 0.0", "2.0 +- 1.0"]
    assert row == f"| {' | '.join(cells)} | 4.0 +- 2.0 |"


@pytest.mark.parametrize("name", ["halfcheetah", "swimmer"])
def test_the_simulator_starts_where_the_observation_says(value_errors, name):
    env = make_env(load(PROJECT / f"config/cpu/{name}/ddpg0.json").config.env)
    obs, _ = env.reset(seed=3)
    for action in np.random.default_rng(0).uniform(-1, 1, (5, *env.action_space.shape)):
        following, reward, *_ = env.step(action)
        other = make_env(load(PROJECT / f"config/cpu/{name}/ddpg0.json").config.env)
        other.reset(seed=4)
        np.testing.assert_allclose(value_errors.put(other, obs), obs, atol=1e-12)
        again, same, *_ = other.step(action)
        np.testing.assert_allclose(again, following, atol=1e-4)
        np.testing.assert_allclose(same, reward, atol=1e-4)
        obs = following


def test_environments_that_end_are_refused(value_errors, tmp_path, capsys, monkeypatch):
    config = PROJECT / "config/cpu/hopper/steve0.json"
    assert call(value_errors, monkeypatch, config, tmp_path) == 2
    assert capsys.readouterr().err.endswith("only for HalfCheetah-v1 and Swimmer-v1\n")
