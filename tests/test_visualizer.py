"""The visualizer: its arithmetic by hand, and whole calls with tiny nets.

Videos are made of an environment written below, which draws without any GL library;
one test, marked gl, renders MuJoCo: python -m pytest -m gl tests/test_visualizer.py
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from steve import visualizer
from steve.acting.policy import Policy
from steve.analysis import inspection, policy_figures, video
from steve.analysis.episodes import Episode, run_episode
from steve.analysis.inspection import EpisodeValues, Errors, ModelError, Predicted
from steve.analysis.trained import build_nets, load_checkpoint, policy_shapes
from steve.analysis.video import EpisodeError
from steve.envwrap import EnvSpec
from steve.running import devices
from steve.settings import loading
from steve.settings.schema import Config, PolicyConfig
from steve.storage import checkpoint
from steve.storage.checkpoint import Checkpoint
from steve.util import UserError, appearing
from steve.valuerl import ValueRL
from steve.worldmodel import WorldModel

PROJECT = Path(__file__).resolve().parents[1]
SIZES = EnvSpec(2, 1)
LENGTH = 9

# In a module of its own, as a child process imports it: it must not meet TensorFlow.
DRAWN_ENV = '''
import os
import sys

import gymnasium
import numpy as np
from gymnasium import spaces


class Drawn(gymnasium.Env):
    """Observes (x, steps / 10); x' = x + a; the reward is x'. Each step is lighter."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}

    def __init__(self, length=9, ends=True, fault=None, render_mode=None):
        assert "tensorflow" not in sys.modules
        if fault == "undrawable" and render_mode:
            raise ValueError("no such mode")
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.length, self.ends, self.fault = length, ends, fault

    def _observed(self):
        return np.array([self.x, self.steps / 10], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.steps = float(self.np_random.uniform(-1, 1)), 0
        return self._observed(), {}

    def step(self, action):
        self.steps += 1
        self.x += float(action[0])
        if self.fault == "raise":
            raise ValueError("two\\nlines")
        if self.fault == "nan":
            self.x = np.nan
        over = self.steps >= self.length
        over = over, False
        terminated, truncated = over if self.ends else over[::-1]
        return self._observed(), self.x, terminated, truncated, {}

    def render(self):
        if self.fault == "abort":
            os.write(2, b"the display is on fire\\n")
            os.abort()
        if self.fault == "no picture":
            return None
        return np.full((31, 401, 3), 20 * self.steps, np.uint8)


gymnasium.register("Drawn-v0", Drawn, max_episode_steps=None)
'''


@pytest.fixture(autouse=True)
def own_process_state(monkeypatch, tmp_path):
    """What a call changes for its process is as before afterwards."""
    monkeypatch.setenv(devices.VARIABLE, "-1")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.chdir(tmp_path)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


# ---- A trained experiment with tiny nets --------------------------------------------


def ensemble(size):
    return {
        "ensemble_size": size,
        "train_sample_count": 1,
        "eval_sample_count": 1,
    }


def content(root: Path, **env) -> dict:
    kwargs = {key: env.pop(key) for key in ("length", "ends", "fault") if key in env}
    return {
        "env": {
            "name": "Drawn-v0",
            "module": "drawn_env",
            "discount": 0.9,
            "reward_scale": 0.5,
            "make_kwargs": kwargs,
            **env,
        },
        "output_root": str(root / "output"),
        "policy_config": {
            "hidden_dim": 8,
            "layers": 2,
            "bayesian": ensemble(2),
            "value_expansion": {"rollout_len": 2, "steve_reweight": True},
        },
        "model_config": {
            "transition_hidden_dim": 8,
            "aux_hidden_dim": 8,
            "transition_layers": 2,
            "aux_layers": 2,
            "bayesian": {"transition": ensemble(3), "reward": ensemble(2)},
        },
    }


def build(config: Config, seed: int = 0) -> tuple[ValueRL, WorldModel]:
    generator = tf.random.Generator.from_seed(seed)
    (obs_dim,), action_dim = config.env.obs_dims or [2], config.env.action_dim or 1
    model = WorldModel(config.world_model_config, obs_dim, action_dim, generator)
    sizes = obs_dim, action_dim, 0.9, 0.5
    valuerl = ValueRL(config.policy_config, *sizes, generator, model)
    for variable in model.named_variables().values():
        variable.assign_add(generator.normal(variable.shape, stddev=0.1))
    return valuerl, model


def publish(folder: Path, config: Config, number: str = "", updates: int = 7) -> None:
    """Publishes what both learners and the policy leave, nets drawn by `updates`."""
    folder.mkdir(parents=True, exist_ok=True)
    valuerl, model = build(config, updates)
    metadata = {"updates": updates, "epoch": 1, "frames": 70, "hours": 0.5}
    states = {"valuerl": valuerl, "worldmodel": model}
    for name, nets in states.items():
        tensors = {n: v.numpy() for n, v in nets.named_variables().items()}
        tensors["policy_adam/m0"] = np.zeros(3, np.float32)  # an optimiser's
        path = folder / f"{name}{number}.safetensors"
        checkpoint.publish(path, tensors, metadata)
    if not number:
        policy = valuerl.policy.named_variables()
        tensors = {f"policy/{n}": v.numpy()[0] for n, v in policy.items()}
        checkpoint.publish(folder / "policy.safetensors", tensors, metadata)


class Lab:
    """A folder with the environment, a configuration, and an experiment."""

    def __init__(self, root: Path, **env) -> None:
        (root / "drawn_env.py").write_text(DRAWN_ENV)
        self.root = root
        self.content = content(root, **env)
        self.config_file = root / "tiny.json"
        self.config_file.write_text(json.dumps({"updates": self.content}))
        self.config = Config.model_validate(self.content)
        self.experiment = root / "output" / "Drawn-v0" / "tiny"
        self.checkpoints = self.experiment / "checkpoints"
        publish(self.checkpoints, self.config)
        (self.experiment / "log").mkdir()
        merged = self.config.model_dump(mode="json", by_alias=True)
        (self.experiment / "log" / "hps.json").write_text(json.dumps(merged))

    def call(self, *options: str, path: Path | None = None) -> int:
        chosen = str(path or self.checkpoints)
        return visualizer.main([str(self.config_file), "cpu", chosen, *options])


@pytest.fixture
def make_lab(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda **env: Lab(tmp_path, **env)


def error_line(capsys) -> str:
    """What the call said on stderr: one line."""
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return text


def make_episode(
    length: int, terminated: bool = True, start: float = 0.0, seed: int = 0
) -> Episode:
    """x' = x + a with actions 0.1, 0.2, ..; the reward is x'."""
    action = 0.1 * np.arange(1, length + 1)
    x = start + np.r_[0.0, np.cumsum(action)]
    clock = np.arange(length + 1) / 10
    states = np.stack([x, clock], axis=1).astype(np.float32)
    return Episode(
        seed,
        states[:-1],
        action[:, None].astype(np.float32),
        x[1:],
        states[1:],
        terminated,
    )


# ---- Arithmetic ---------------------------------------------------------------------


def test_realised_return_by_hand():
    # G_2 = 2*3 = 6, G_1 = 2*2 + 0.5*6 = 7, G_0 = 2*1 + 0.5*7 = 5.5
    rewards = np.array([1.0, 2.0, 3.0])
    returns = inspection.discounted_returns(rewards, 0.5, 2.0)
    assert returns.tolist() == [5.5, 7.0, 6.0]
    # With 8 after the last step: 6 + 4 = 10, 4 + 5 = 9, 2 + 4.5 = 6.5
    returns = inspection.discounted_returns(rewards, 0.5, 2.0, 8.0)
    assert returns.tolist() == [6.5, 9.0, 10.0]


def test_bins_hold_their_lower_edge_and_the_last_one_both():
    weights = np.array([[0.0, 1.0], [0.3, 0.7], [0.29, 0.71], [1 + 1e-7, -1e-7]])
    histogram = inspection.weight_histogram(weights)
    assert histogram.counts.tolist() == [
        [1, 0, 1, 1, 0, 0, 0, 0, 0, 1],
        [1, 0, 0, 0, 0, 0, 0, 2, 0, 1],
    ]
    np.testing.assert_allclose(histogram.edges, np.arange(11) / 10)
    np.testing.assert_allclose(histogram.mean, [1.59 / 4, 2.41 / 4], atol=1e-6)
    assert not histogram.is_open


def test_weights_that_are_not_finite_are_left_out_and_counted():
    weights = np.array([[0.5, 0.5], [np.nan, np.nan], [0.25, 0.75]])
    histogram = inspection.weight_histogram(weights)
    assert histogram.left_out == 1
    assert histogram.counts.sum(axis=1).tolist() == [2, 2]


def test_weights_beyond_one_are_held_by_the_outer_bins():
    column = np.linspace(-50.0, 50.0, 101)
    histogram = inspection.weight_histogram(np.stack([column, 1 - column], axis=1))
    assert histogram.is_open
    assert histogram.counts.sum(axis=1).tolist() == [101, 101]
    low, *_, high = policy_figures.weights_csv(histogram).decode().splitlines()[1:]
    assert low.startswith("-inf,")
    assert high.split(",")[1] == "inf"


def test_stretches_stay_inside_their_episode():
    first, second = make_episode(3), make_episode(2, start=10.0)
    cut = inspection.cut_rollouts([first, second], steps=4)
    assert cut.is_real.sum(axis=1).tolist() == [3, 2, 1, 2, 1]
    np.testing.assert_array_equal(cut.obs[:3], first.obs)
    np.testing.assert_array_equal(cut.next_obs[0, :3], first.next_obs)
    np.testing.assert_array_equal(cut.reward[3, :2], second.reward.astype(np.float32))
    ends = (cut.terminated * cut.is_real).tolist()
    assert ends[0] == [0, 0, 1, 0]
    assert ends[4] == [1, 0, 0, 0]


def test_of_too_many_states_some_are_taken_at_even_distances():
    cut = inspection.cut_rollouts([make_episode(101)], steps=1, most=11)
    assert (cut.obs[:, 1] * 10).round().tolist() == list(range(0, 101, 10))


def identifiable(start_obs: np.ndarray, actions: np.ndarray) -> Predicted:
    """A perfect model, but member m adds 2m to x at every step, m = 0, 1.

    Rewards: x' + 1 and x' + 4 for member 0's x'; terminations 0.25 and 0.75.
    """
    batch, steps = actions.shape[:2]
    k = np.arange(1, steps + 1)
    x = start_obs[:, None, 0] + np.cumsum(actions[..., 0], axis=1)  # [B, K]
    clock = start_obs[:, None, 1] + k / 10
    members = [np.stack([x + 2 * m * k, clock], axis=-1) for m in range(2)]
    return Predicted(
        obs=np.stack(members, axis=2),
        reward=np.stack([x + 1, x + 4], axis=2),
        termination=np.broadcast_to([0.25, 0.75], (batch, steps, 2)),
    )


def test_model_error_of_an_identifiable_model():
    every = [make_episode(4), make_episode(6, terminated=False)]
    errors = inspection.model_error(identifiable, every, steps=3)
    assert errors.count.tolist() == [10, 8, 6]
    # At step k the members are off by 0 and 2k in x and by 0 in the clock: the mean
    # by k in one of two entries, hence k / sqrt(2); their deviation is the same.
    expected = np.array([1, 2, 3]) / np.sqrt(2)
    np.testing.assert_allclose(errors.observation.error, expected, rtol=1e-5)
    np.testing.assert_allclose(errors.observation.spread, expected, rtol=1e-5)
    np.testing.assert_allclose(errors.reward.error, 2.5, rtol=1e-6)
    np.testing.assert_allclose(errors.reward.spread, 1.5, rtol=1e-6)
    # Mean probability 0.5 against 0 or 1.
    np.testing.assert_allclose(errors.termination.error, 0.5)
    np.testing.assert_allclose(errors.termination.spread, 0.25)


def test_error_without_a_model():
    errors = inspection.model_error(identifiable, [make_episode(3)], steps=10)
    assert errors.count.tolist() == [3, 2, 1]  # no longer than the episode
    # x moves by 0.1, 0.2, 0.3, the clock by 0.1; squares over 2 entries.
    moved = np.sqrt((0.01 + 0.04 + 0.09 + 3 * 0.01) / 6)
    np.testing.assert_allclose(errors.observation.trivial[0], moved, rtol=1e-5)
    # Rewards 0.1, 0.3, 0.6: their mean is 1/3. One of three steps is an end.
    deviation = np.std([0.1, 0.3, 0.6])
    np.testing.assert_allclose(errors.reward.trivial[0], deviation, rtol=1e-6)
    np.testing.assert_allclose(errors.termination.trivial[0], np.std([0, 0, 1]))


def test_rollouts_are_independent_of_the_size_of_the_chunks(monkeypatch):
    every = [make_episode(7), make_episode(5)]
    whole = inspection.model_error(identifiable, every, steps=3)
    monkeypatch.setattr(inspection, "ROWS_AT_ONCE", 2)
    parts = inspection.model_error(identifiable, every, steps=3)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)


# ---- The nets -----------------------------------------------------------------------


def forward(net, member: int, x: np.ndarray) -> np.ndarray:
    """One member of a net, one matrix after the other."""
    layers = list(zip(net.weights, net.biases, strict=True))
    for i, (w, b) in enumerate(layers):
        x = x @ w.numpy()[member].astype(np.float64) + b.numpy()[member]
        x = np.maximum(x, 0) if i < len(layers) - 1 else x
    return x


def test_predict_rolls_every_member_along_the_given_actions(tmp_path):
    _, model = build(Config.model_validate(content(tmp_path)))
    rng = np.random.default_rng(0)
    start = rng.normal(size=(4, 2)).astype(np.float32)
    actions = rng.uniform(-1, 1, (4, 3, 1)).astype(np.float32)
    made = inspection.predict(model, start, actions)
    assert made.reward.shape == (4, 3, 6)
    for m in range(3):
        obs = start.astype(np.float64)
        for k in range(3):
            action = actions[:, k]
            after = obs + forward(model.transition, m, np.c_[obs, action])
            inputs = np.c_[after, obs, action]
            logit = forward(model.termination, m, inputs)[:, 0]
            np.testing.assert_allclose(made.obs[:, k, m], after, atol=1e-5)
            np.testing.assert_allclose(
                made.termination[:, k, m], 1 / (1 + np.exp(-logit)), atol=1e-5
            )
            rewards = [forward(model.reward, n, inputs)[:, 0] for n in range(2)]
            for reward in rewards:  # whatever the order of the M N predictions
                distance = np.abs(made.reward[:, k] - reward[:, None]).max(axis=0)
                assert (distance < 1e-5).any()
            obs = after


def direct_weights(valuerl, model, episode, t: int) -> tuple[np.ndarray, float]:
    """STEVE's weights and target at one transition, one loop per member (SPEC 5)."""
    candidates = np.zeros((3, 3 * 2 * 2))
    ends = 1.0 * (episode.terminated and t == episode.length - 1)
    triples = [(m, n, q) for m in range(3) for n in range(2) for q in range(2)]
    for i, (m, n, q) in enumerate(triples):
        obs, going_on = episode.next_obs[t].astype(np.float64), 1.0 - ends
        total = 0.5 * episode.reward[t]
        for h in range(3):
            action = np.tanh(forward(valuerl.policy, 0, obs))
            value = forward(valuerl.target_q, q, np.r_[obs, action])[0]
            candidates[h, i] = total + 0.9 ** (h + 1) * going_on * value
            after = obs + forward(model.transition, m, np.r_[obs, action])
            inputs = np.r_[after, obs, action]
            reward = forward(model.reward, n, inputs)[0]
            total += 0.5 * 0.9 ** (h + 1) * going_on * reward
            going_on *= 1 - 1 / (1 + np.exp(-forward(model.termination, m, inputs)[0]))
            obs = after
    inverse = 1 / (candidates.var(axis=1) + 1e-8)
    weights = inverse / inverse.sum()
    return weights, float(weights @ candidates.mean(axis=1))


@pytest.mark.parametrize("terminated", [True, False])
def test_weights_and_targets_agree_with_a_direct_computation(tmp_path, terminated):
    valuerl, model = build(Config.model_validate(content(tmp_path)))
    episode = make_episode(5, terminated, start=0.3)
    judged = inspection.episode_values(valuerl, episode)
    for t in range(5):
        weights, target = direct_weights(valuerl, model, episode, t)
        np.testing.assert_allclose(judged.weights[t], weights, atol=2e-3)
        np.testing.assert_allclose(judged.target[t], target, atol=1e-4)


def test_values_are_of_the_actions_taken_and_zero_behind_a_termination(tmp_path):
    valuerl, _ = build(Config.model_validate(content(tmp_path)))
    episode = make_episode(4, terminated=False)
    judged = inspection.episode_values(valuerl, episode)
    inputs = np.c_[episode.obs, episode.action]
    q = np.stack([forward(valuerl.q, member, inputs)[:, 0] for member in range(2)])
    np.testing.assert_allclose(judged.value, q.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(judged.value_std, q.std(axis=0), atol=1e-5)
    last = episode.next_obs[-1]
    inputs = np.r_[last, np.tanh(forward(valuerl.policy, 0, last))]
    final = np.mean([forward(valuerl.q, member, inputs) for member in range(2)])
    np.testing.assert_allclose(judged.final_value, final, atol=1e-5)
    ended = inspection.episode_values(valuerl, make_episode(4))
    assert ended.final_value == 0


@pytest.mark.parametrize(
    ("expansion", "said"),
    [
        ({"rollout_len": 2, "steve_reweight": True}, None),
        ({"rollout_len": 2, "tdk_trick": True}, "MVE-TDk"),
        ({"rollout_len": 2, "mean_k_return": True}, "mean-MVE"),
        ({"rollout_len": 2, "lambda_return": 0}, "TD-lambda MVE"),
        ({"rollout_len": 2}, "algorithm is MVE;"),
        (None, "expands no values"),
    ],
)
def test_another_algorithm_gets_steves_weights_and_it_is_said(
    tmp_path, expansion, said
):
    given = content(tmp_path)
    given["policy_config"]["value_expansion"] = expansion
    config = Config.model_validate(given)
    publish(tmp_path, config)
    trained = load_checkpoint(tmp_path, config)
    nets = build_nets(config, SIZES, trained)
    weights = inspection.episode_values(nets.valuerl, make_episode(3)).weights
    assert weights.shape == (3, (expansion or {"rollout_len": 3})["rollout_len"] + 1)
    # Not the last: behind a termination all candidates are the same.
    assert (weights.max(axis=1) > weights.min(axis=1) + 0.01)[:-1].all()
    assert (weights > 0).all()  # MVE's would be 1 at H and else 0
    if said is None:
        assert nets.notes == []
    else:
        assert said in nets.notes[0]


def test_without_ensembles_the_weights_are_uniform_and_it_is_said(tmp_path):
    given = content(tmp_path)
    given["policy_config"]["bayesian"] = given["model_config"]["bayesian"] = None
    config = Config.model_validate(given)
    publish(tmp_path, config)
    trained = load_checkpoint(tmp_path, config)
    nets = build_nets(config, SIZES, trained)
    weights = inspection.episode_values(nets.valuerl, make_episode(3)).weights
    np.testing.assert_allclose(weights, 1 / 3, atol=1e-6)
    assert "uniform" in nets.notes[0]


# ---- Which checkpoint ---------------------------------------------------------------


@pytest.fixture
def config(tmp_path):
    return Config.model_validate(content(tmp_path))


def test_a_folder_gives_its_newest_state_and_the_newest_model(tmp_path, config):
    publish(tmp_path, config, "-5", updates=5)
    publish(tmp_path, config, "-40", updates=40)
    only_numbered = load_checkpoint(tmp_path, config)
    assert only_numbered.path.name == "valuerl-40.safetensors"
    assert only_numbered.model[0].name == "worldmodel-40.safetensors"
    publish(tmp_path, config)
    newest = load_checkpoint(tmp_path, config)
    assert newest.path.name == "valuerl.safetensors"
    assert newest.model[0].name == "worldmodel.safetensors"
    assert newest.notes == []


def test_a_numbered_state_has_the_model_of_its_number_or_none(tmp_path, config):
    publish(tmp_path, config)
    publish(tmp_path, config, "-5", updates=5)
    path = tmp_path / "valuerl-5.safetensors"
    trained = load_checkpoint(path, config)
    assert trained.model[1].metadata["updates"] == 5
    (tmp_path / "worldmodel-5.safetensors").unlink()
    trained = load_checkpoint(path, config)
    assert trained.model is None
    assert "no worldmodel-5.safetensors" in trained.notes[0]


def test_a_policys_values_are_those_beside_it(tmp_path, config):
    publish(tmp_path, config)
    path = tmp_path / "policy.safetensors"
    trained = load_checkpoint(path, config)
    assert trained.critic[0].name == "valuerl.safetensors"
    state = load_checkpoint(tmp_path, config)
    for name, tensor in trained.policy.tensors.items():
        np.testing.assert_array_equal(state.policy.tensors[name], tensor)
    (tmp_path / "valuerl.safetensors").unlink()
    alone = load_checkpoint(path, config)
    assert alone.critic is None
    assert "no values and no weights" in alone.notes[0]


def test_targets_follow_the_policy_that_was_asked_for(tmp_path, config):
    publish(tmp_path, config)
    other = tmp_path / "later"
    publish(other, config, updates=8)
    path = tmp_path / "policy.safetensors"
    (other / "policy.safetensors").replace(path)
    trained = load_checkpoint(path, config)
    assert "of another update" in trained.notes[0]
    nets = build_nets(config, SIZES, trained)
    obs = np.array([[0.3, -0.2]], np.float32)
    asked = Policy(trained.policy, 2, 1).greedy(obs)
    np.testing.assert_allclose(nets.valuerl.action(tf.constant(obs)), asked, atol=1e-6)


def test_a_damaged_newest_state_gives_way_to_the_one_before(tmp_path, config):
    publish(tmp_path, config)
    newest = tmp_path / "valuerl.safetensors"
    newest.rename(checkpoint.previous_path(newest))
    newest.write_bytes(b"torn")
    trained = load_checkpoint(tmp_path, config)
    assert "is used instead" in trained.notes[0]


def test_a_world_model_is_no_policy(tmp_path, config):
    publish(tmp_path, config)
    with pytest.raises(UserError, match="holds no policy"):
        load_checkpoint(tmp_path / "worldmodel.safetensors", config)


def test_the_shapes_expected_of_a_policy_are_those_of_the_net(tmp_path, config):
    publish(tmp_path, config)
    trained = load_checkpoint(tmp_path / "policy.safetensors", config)
    shapes = {name: tensor.shape for name, tensor in trained.policy.tensors.items()}
    assert policy_shapes(config.policy_config, SIZES) == shapes


def test_one_layer_leads_straight_from_observations_to_actions():
    settings = PolicyConfig.model_validate({"layers": 1})
    assert policy_shapes(settings, SIZES) == {
        "policy/w0": (2, 1),
        "policy/b0": (1,),
    }


# ---- Figures ------------------------------------------------------------------------


def judged_episode(length: int, members_agree: bool) -> EpisodeValues:
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(4), length)
    spread = np.zeros(length) if members_agree else np.ones(length)
    value = rng.random(length)
    return EpisodeValues(value, spread, 0.0, value, weights)


@pytest.mark.parametrize("members_agree", [True, False])
def test_only_an_ensemble_is_said_to_have_a_spread(members_agree):
    judged = judged_episode(5, members_agree)
    figure = policy_figures.episode_figure(judged, judged.value, judged.value, "title")
    labels = [line.get_label() for line in figure.axes[-1].lines]
    assert any("1 sd" in label for label in labels) != members_agree


def test_stacked_weights_cover_each_other_without_a_seam():
    judged = judged_episode(6, True)
    figure = policy_figures.episode_figure(judged, judged.value, judged.value, "title")
    bands = figure.axes[0].collections
    orders = [band.get_zorder() for band in bands]
    assert (np.diff(orders) < 0).all()  # w_0 is in front of all
    for h, band in enumerate(bands):
        box = band.get_paths()[0].get_extents()
        top = judged.weights[:, : h + 1].sum(1).max()
        np.testing.assert_allclose([box.x0, box.x1, box.y0, box.y1], [0, 6, 0, top])


def test_a_log_scale_names_the_lines_that_it_cannot_show():
    far_apart = np.array([1e-4, 1e-2])
    zero = Errors(far_apart, far_apart, np.zeros(2))
    other = Errors(far_apart, far_apart, far_apart)
    errors = ModelError(other, other, zero, np.array([9, 9]))
    panels = policy_figures.model_error_figure(errors, 3).axes
    said = [[text.get_text() for text in axes.texts] for axes in panels]
    assert "error without a model: 0" in said[2]
    assert "error without a model: 0" not in said[0] + said[1]


# ---- Where the results go -----------------------------------------------------------


def test_the_default_folder_gets_a_number_when_it_is_taken(make_lab):
    lab = make_lab()
    trained = load_checkpoint(lab.checkpoints, lab.config)
    first = visualizer.choose_folder(None, trained, lab.config)
    assert first == lab.experiment / "visualizer"
    first.mkdir()
    second = visualizer.choose_folder(None, trained, lab.config)
    assert second == lab.experiment / "visualizer-2"


def test_outside_an_experiment_the_results_go_to_the_working_folder(tmp_path, config):
    publish(tmp_path / "elsewhere", config)
    trained = load_checkpoint(tmp_path / "elsewhere", config)
    chosen = visualizer.choose_folder(None, trained, config)
    assert chosen == Path("visualizer-output")


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "new" / "results"

    def fail():
        with appearing(folder) as unfinished:
            (unfinished / "half").touch()
            assert not folder.exists()
            raise EpisodeError("broken")

    with pytest.raises(EpisodeError):
        fail()
    assert list((tmp_path / "new").iterdir()) == []
    with appearing(folder) as unfinished:
        (unfinished / "whole").touch()
    assert [path.name for path in folder.iterdir()] == ["whole"]


# ---- Episodes and pictures ----------------------------------------------------------


class Scripted:
    """Ends after three steps by what it is told; rewards 1, 2, 4."""

    def __init__(self, terminated=True, reward=4.0):
        self._last = terminated, reward

    def reset(self, *, seed):
        self.seed, self._step = seed, 0
        return np.zeros(2), {}

    def step(self, action):
        self._step += 1
        obs = np.full(2, float(self._step))
        if self._step < 3:
            return obs, float(self._step), False, False, {}
        terminated, reward = self._last
        return obs, reward, terminated, not terminated, {}


def constant_policy() -> Policy:
    tensors = {
        "policy/w0": np.zeros((2, 1), np.float32),
        "policy/b0": np.array([0.5], np.float32),
    }
    return Policy(Checkpoint(tensors, {"epoch": 1, "frames": 0, "hours": 0.0}), 2, 1)


@pytest.mark.parametrize("terminated", [True, False])
def test_an_episode_is_what_the_environment_did(terminated):
    env, seen = Scripted(terminated), []
    episode = run_episode(
        env, constant_policy(), 11, lambda env, *rest: seen.append(rest)
    )
    assert env.seed == episode.seed == 11
    assert (episode.length, episode.score) == (3, 7.0)
    assert episode.terminated is terminated
    assert episode.obs[:, 0].tolist() == [0, 1, 2]
    assert episode.next_obs[:, 0].tolist() == [1, 2, 3]
    np.testing.assert_allclose(episode.action, np.tanh(0.5), rtol=1e-6)
    assert seen == [(0, 0.0, False), (1, 1.0, False), (2, 3.0, False), (3, 7.0, True)]


def test_a_reward_that_is_not_finite_is_an_error():
    with pytest.raises(EpisodeError, match="step 3"):
        run_episode(Scripted(reward=np.nan), constant_policy(), 0)


@pytest.mark.parametrize(
    ("speed", "fastest", "stride"),
    [(30, 30, 1), (31, 30, 2), (125, 30, 5), (25, 30, 1), (60, 15, 4), (5, 30, 1)],
)
def test_pictures_are_never_faster_than_asked(speed, fastest, stride):
    assert video.picture_stride(speed, fastest) == stride


def test_a_caption_leaves_the_picture_whole_and_makes_the_sides_even():
    picture = np.full((31, 401, 3), 77, np.uint8)
    frame = video.captioned(picture, "score 1")
    height, width = frame.shape[:2]
    assert height % 2 == width % 2 == 0
    np.testing.assert_array_equal(frame[30:61, :401], picture)
    assert (frame[:30] < 128).any()  # the text
    assert (video.captioned(picture, "")[:30] == 255).all()


@pytest.mark.parametrize(
    ("environ", "libraries", "chosen", "missing"),
    [
        ({}, {"EGL", "OSMesa"}, "egl", None),
        ({}, {"OSMesa"}, "osmesa", None),
        ({"MUJOCO_GL": "osmesa"}, {"EGL", "OSMesa"}, "osmesa", None),
        ({"MUJOCO_GL": "glfw"}, set(), "glfw", None),
        ({"DISPLAY": ":0"}, set(), None, None),
        ({}, set(), "disable", "libegl1 or libosmesa6, and libgl1-mesa-dri"),
        ({"MUJOCO_GL": "egl"}, {"OSMesa"}, "disable", "libegl1, libgl1-mesa-dri"),
        ({"MUJOCO_GL": "osmesa"}, {"EGL"}, "disable", "libosmesa6, libgl1-mesa-dri"),
    ],
)
def test_what_mujoco_draws_with(environ, libraries, chosen, missing):
    found = {name: f"lib{name}.so" for name in libraries}
    said = video.choose_gl(environ, found.get)
    assert environ.get("MUJOCO_GL") == chosen
    assert (said is None) == (missing is None)
    assert missing is None or missing in said


# ---- Whole calls --------------------------------------------------------------------


def frames_of(path: Path) -> np.ndarray:
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return np.stack(
        [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    )


@pytest.fixture(scope="module")
def whole_call(tmp_path_factory):
    """One call with everything, and the same again."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(devices.VARIABLE, "-1")
        patch.syspath_prepend(str(root))
        lab = Lab(root)
        for out in ("first", "second"):
            options = ["--episodes", "3", "--seed", "5", "--out", str(root / out)]
            assert lab.call(*options) == 0
    return lab


def test_a_released_experiment_of_mujoco_can_be_looked_at(tmp_path):
    """As the paper configures it, but for the nets' width."""
    file = "config/experiments/goodruns/hopper/steve0.json"
    narrow = [
        "policy_config.hidden_dim=8",
        "model_config.transition_hidden_dim=8",
        "model_config.aux_hidden_dim=8",
    ]
    publish(tmp_path, loading.load(PROJECT / file, overrides=narrow).config)
    done = subprocess.run(
        [
            *(sys.executable, "visualizer.py", file, "cpu", str(tmp_path)),
            *("--video", "none", "--episodes", "2", "--out", str(tmp_path / "out")),
            *("--set", *narrow),
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"episodes.csv", "weights.csv", "weights.png", "model_error.csv"} <= written
    episodes = (tmp_path / "out" / "episodes.csv").read_text().splitlines()
    assert len(episodes) == 3


def test_a_call_leaves_video_tables_and_pictures(whole_call):
    pictures = {
        f"{name}.{kind}"
        for name in ("weights", "model_error", "episode")
        for kind in ("png", "pdf", "csv")
    }
    names = {path.name for path in (whole_call.root / "first").iterdir()}
    assert names == pictures | {"episodes.csv", "episodes.mp4"}
    for name in names:
        if name.endswith(".png"):
            with Image.open(whole_call.root / "first" / name) as image:
                assert min(image.size) > 500
                assert len(image.convert("L").getcolors(256)) > 10


def test_the_same_seed_gives_the_same_files(whole_call):
    for path in (whole_call.root / "first").iterdir():
        again = whole_call.root / "second" / path.name
        assert path.read_bytes() == again.read_bytes(), path.name


def test_the_video_shows_every_episode_to_its_last_step(whole_call):
    frames = frames_of(whole_call.root / "first" / "episodes.mp4")
    # 50 steps per second: every second one of 0 .. 9, then 9 itself for one second.
    shown = [0, 2, 4, 6, 8] + [LENGTH] * 25
    assert len(frames) == 3 * len(shown)
    brightness = frames[:, 35:60, :400].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(brightness, 20 * np.array(3 * shown), atol=4)
    caption = frames[:, 5:25]
    assert (caption.min(axis=(1, 2, 3)) < 100).all()
    assert np.abs(caption[0].astype(int) - caption[1]).max() > 100  # another text


def test_the_table_of_episodes_is_what_the_policy_earns(whole_call):
    lines = (whole_call.root / "first" / "episodes.csv").read_text().splitlines()
    assert lines[0] == "episode,seed,length,score,ending"
    rows = [line.split(",") for line in lines[1:]]
    assert [row[2] for row in rows] == [str(LENGTH)] * 3
    assert len({row[1] for row in rows}) == 3
    valuerl, _ = build(whole_call.config, 7)
    for row in rows:
        generator = np.random.Generator(np.random.PCG64(int(row[1])))
        x, score = generator.uniform(-1, 1), 0.0
        for step in range(LENGTH):
            obs = np.array([x, step / 10], np.float32)
            x += np.tanh(forward(valuerl.policy, 0, obs))[0]
            score += x
        np.testing.assert_allclose(float(row[3]), score, rtol=1e-4)


def test_the_strip_chart_has_the_realised_return(whole_call):
    text = (whole_call.root / "first" / "episode.csv").read_text().splitlines()
    names = text[0].split(",")
    table = np.array([line.split(",") for line in text[1:]], float)
    reward, returns = (table[:, names.index(n)] for n in ("reward", "return"))
    powers = 0.5 * 0.9 ** np.arange(LENGTH)
    np.testing.assert_allclose(returns[0], powers @ reward, rtol=1e-4)
    weights = table[:, [names.index(f"w_{h}") for h in range(3)]]
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-4)


def test_the_weights_table_counts_every_transition(whole_call):
    lines = (whole_call.root / "first" / "weights.csv").read_text().splitlines()
    assert lines[0] == "low,high,w_0,w_1,w_2"
    table = np.array([line.split(",") for line in lines[1:]], float)
    assert table[:, 2:].sum(axis=0).tolist() == [3 * LENGTH] * 3


def test_a_gif_of_a_cut_episode_without_model_or_values(make_lab, capsys):
    lab = make_lab(ends=False, max_frames=5)
    for learner in ("valuerl", "worldmodel"):
        (lab.checkpoints / f"{learner}.safetensors").unlink()
    out = lab.root / "gif"
    assert lab.call("--episodes", "1", "--video", "gif", "--out", str(out)) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "episode 1: 5 steps, cut, score" in said.out
    assert "median" in said.out
    assert {path.name for path in out.iterdir()} == {"episodes.csv", "episodes.gif"}
    with Image.open(out / "episodes.gif") as image:
        assert image.n_frames > 2  # steps 0, 4, 5; Pillow joins equal ones
        assert image.info["loop"] == 0
        image.seek(image.n_frames - 1)
        grey = np.asarray(image.convert("L"))[40:55, 10:390]
        np.testing.assert_allclose(grey.mean(), 100, atol=6)


def test_another_seed_gives_other_episodes_and_the_configuration_is_compared(
    make_lab, capsys
):
    lab = make_lab()
    common = ["--episodes", "2", "--video", "none", "--set", "env.discount=0.5"]
    assert lab.call("--seed", "1", *common) == 0
    said = capsys.readouterr().out
    assert "env.discount 0.9 there, 0.5 here" in said
    assert "STEVE's weights along the episodes" in said
    without = ["model_config=null", "policy_config.value_expansion=null"]
    assert lab.call("--seed", "2", *common, *without) == 0
    names = {path.name for path in (lab.experiment / "visualizer-2").iterdir()}
    assert names == {"episodes.csv", "episode.csv", "episode.png", "episode.pdf"}
    tables = [
        (lab.experiment / name / "episodes.csv").read_text()
        for name in ("visualizer", "visualizer-2")
    ]
    assert tables[0] != tables[1]


# ---- Mistakes and failures ----------------------------------------------------------


def test_an_out_that_is_there_is_refused(make_lab, capsys):
    lab = make_lab()
    (lab.root / "taken").mkdir()
    assert lab.call("--out", str(lab.root / "taken")) == 2
    assert "pass another --out" in error_line(capsys)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("policy_config.hidden_dim=6", "policy/w0 [2, 8] instead of [2, 6]"),
        ("policy_config.layers=3", "2 missing (policy/w2, ...)"),
        (
            "policy_config.bayesian.ensemble_size=4",
            "q/w0 [2, 3, 8] instead of [4, 3, 8]",
        ),
        ("model_config.aux_hidden_dim=5", "termination/w0 [3, 5, 8] instead of"),
        ("model_config.transition_layers=1", "2 unknown (transition/"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_line(make_lab, capsys, change, said):
    lab = make_lab()
    trained = load_checkpoint(lab.checkpoints, lab.config)
    config = loading.load(lab.config_file, overrides=[change]).config
    with pytest.raises(UserError) as caught:
        visualizer.load_nets("cpu", config, SIZES, trained)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.json", "cpu", "."], "no such file"),
        (["{config}", "cpu", "{root}"], "no policy and no value learner's state"),
        (["{config}", "cpu", "{root}/none"], "there is no checkpoint here"),
        (["{config}", "7", "{root}"], "GPU 7 does not exist"),
        (["{config}", "gpu", "{root}"], 'a whole number or "cpu"'),
        (["{config}", "cpu", "{root}", "--set", "env.nam=x"], "did you mean name"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(make_lab, capsys, arguments, said):
    lab = make_lab()
    before = sorted(lab.root.rglob("*"))
    texts = {"config": lab.config_file, "root": lab.root}
    assert visualizer.main([part.format(**texts) for part in arguments]) == 2
    assert said in error_line(capsys)
    assert sorted(lab.root.rglob("*")) == before


@pytest.mark.parametrize(
    "wrong", [["--episodes", "0"], ["--video", "avi"], ["--seed", "-1"], ["--speed"]]
)
def test_wrong_options_are_one_line(capsys, wrong):
    with pytest.raises(SystemExit) as caught:
        visualizer.main(["a.json", "cpu", "b", *wrong])
    assert caught.value.code == 2
    assert "visualizer.py: " in error_line(capsys)


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("undrawable", 2, "--video none leaves the video out"),
        ("no picture", 2, "gives no pictures"),
        ("abort", 1, "ended (SIGABRT): the display is on fire"),
        ("raise", 1, "ValueError: two lines (drawn_env.py, line"),
        ("nan", 1, "not finite"),
    ],
)
def test_what_happens_to_the_environment_is_one_line(
    make_lab, capfd, fault, code, said
):
    lab = make_lab(fault=fault)
    (lab.checkpoints / "valuerl.safetensors").unlink()
    (lab.checkpoints / "worldmodel.safetensors").unlink()
    assert lab.call("--episodes", "1") == code
    assert said in error_line(capfd)
    left = {path.name for path in lab.experiment.iterdir()}
    assert left == {"checkpoints", "log"}


def test_a_video_without_moviepy_is_refused_before_the_episodes(
    make_lab, capsys, monkeypatch
):
    lab = make_lab()
    monkeypatch.setitem(sys.modules, "moviepy", None)
    assert lab.call() == 2
    assert "pip install moviepy" in error_line(capsys)


def test_mujoco_without_a_gl_library_names_the_debian_packages(
    make_lab, capfd, monkeypatch
):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    lab = make_lab()
    options = ["env.name=InvertedPendulum-v5", "env.module=null", "env.make_kwargs={}"]
    assert lab.call("--set", *options) == 2
    line = error_line(capfd)
    for package in ("libegl1", "libosmesa6", "libgl1-mesa-dri"):
        assert package in line


def test_neither_the_import_nor_the_help_brings_tensorflow():
    code = (
        "import sys\n"
        "from steve import visualizer\n"
        "from steve.analysis import episodes\n"
        "sys.exit('tensorflow' in sys.modules or 'mujoco' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


@pytest.mark.gl
def test_mujoco_is_drawn_beside_a_tensorflow_parent(make_lab):
    lab = make_lab()
    given = {
        "env": {"name": "Hopper-v1", "max_frames": 40},
        "policy_config": {"hidden_dim": 8, "layers": 2},
    }
    lab.config_file.write_text(json.dumps({"updates": given}))
    settings = PolicyConfig.model_validate(given["policy_config"])
    generator = tf.random.Generator.from_seed(0)
    valuerl = ValueRL(settings, 11, 3, 0.99, 1.0, generator)
    tensors = {n: v.numpy() for n, v in valuerl.named_variables().items()}
    metadata = {"updates": 1, "epoch": 1, "frames": 1, "hours": 0.0}
    path = lab.checkpoints / "valuerl.safetensors"
    checkpoint.publish(path, tensors, metadata)
    out = lab.root / "hopper"
    assert lab.call("--episodes", "1", "--out", str(out), path=path) == 0
    frames = frames_of(out / "episodes.mp4")
    assert len(frames) > 25  # at least the last picture's second
    assert frames[0, 40:].std() > 10
