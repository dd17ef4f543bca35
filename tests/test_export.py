"""The exported policy acts as ours does, without a module of ours."""

import json
import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import tensorflow as tf
from support import PROJECT

from steve import envwrap, export
from steve.acting.policy import Policy
from steve.running import devices
from steve.settings.schema import Config
from steve.storage import checkpoint

PAGE = PROJECT / "docs" / "policies.md"
HIDDEN = 8


@pytest.fixture(autouse=True)
def own_process_state(monkeypatch, tmp_path):
    """What a call changes for its process is as before afterwards."""
    monkeypatch.setenv(devices.VARIABLE, "-1")
    monkeypatch.chdir(tmp_path)


class Lab:
    """A configuration, and a checkpoint of a policy for its environment."""

    def __init__(self, root: Path, name: str, rescale: bool) -> None:
        env = {"name": name, "rescale_actions": rescale}
        content = {"env": env, "policy_config": {"hidden_dim": HIDDEN, "layers": 3}}
        self.config = Config.model_validate(content)
        self.config_file = root / "config.json"
        self.config_file.write_text(json.dumps({"updates": content}))
        self.checkpoint = root / "policy.safetensors"
        self.sizes = envwrap.measure(self.config.env)
        rng = np.random.default_rng(0)
        widths = [self.sizes.obs_dim, HIDDEN, HIDDEN, self.sizes.action_dim]
        tensors = {}
        for i in range(3):
            shape = (widths[i], widths[i + 1])
            tensors[f"policy/w{i}"] = rng.normal(0, 0.5, shape).astype(np.float32)
            tensors[f"policy/b{i}"] = rng.normal(0, 0.1, shape[1]).astype(np.float32)
        metadata = {"updates": 7, "epoch": 1, "frames": 70, "hours": 0.5}
        checkpoint.publish(self.checkpoint, tensors, metadata)
        state = checkpoint.load(self.checkpoint)
        self.policy = Policy(state, self.sizes.obs_dim, self.sizes.action_dim)

    def call(self, out: Path, *options: str) -> int:
        command = [str(self.config_file), str(self.checkpoint), "--out", str(out)]
        return export.main([*command, *options])

    def observations(self) -> np.ndarray:
        rng = np.random.default_rng(1)
        return rng.normal(size=(50, self.sizes.obs_dim)).astype(np.float32)

    def our_actions(self, obs: np.ndarray) -> np.ndarray:
        """What reaches the environment itself, as in training and evaluation."""
        raw = gymnasium.make(self.config.env.name)
        env = envwrap.AgentActions(raw, self.config.env.rescale_actions)
        return np.stack([env.action(action) for action in self.policy.greedy(obs)])

    def our_score(self) -> float:
        env = envwrap.make_env(self.config.env)
        obs, _ = env.reset(seed=0)
        score, over = 0.0, False
        while not over:
            action = self.policy.greedy(obs[None])[0]
            obs, reward, terminated, truncated, _ = env.step(action)
            score, over = score + reward, terminated or truncated
        return score


def documented_example() -> str:
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return next(text for text in examples if "policy.npz" in text)


def test_the_example_of_the_page_acts_as_our_policy_does(tmp_path):
    lab = Lab(tmp_path, "InvertedPendulum-v5", rescale=True)
    assert lab.call(tmp_path / "output" / "policy") == 0
    np.save(tmp_path / "obs.npy", lab.observations())
    asked = '\nprint([act(o).tolist() for o in np.load("obs.npy")])'
    done = subprocess.run(
        [sys.executable, "-I", "-c", documented_example() + asked],  # -I: none of ours
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    score, actions = done.stdout.splitlines()
    assert float(score) == lab.our_score()
    expected = lab.our_actions(lab.observations())
    assert np.ptp(expected) > 2  # of -3 .. 3: the comparison means something
    np.testing.assert_allclose(json.loads(actions), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "rescale"),
    [("Pendulum-v1", True), ("Pendulum-v1", False), ("InvertedPendulum-v5", True)],
)
def test_the_saved_model_acts_as_our_policy_does(tmp_path, name, rescale, capfd):
    lab = Lab(tmp_path, name, rescale)
    out = tmp_path / "new" / "folder"
    assert lab.call(out) == 0
    output = capfd.readouterr()
    assert output.err == ""
    assert "7 updates, 70 frames" in output.out
    obs = lab.observations()
    expected = lab.our_actions(obs)
    loaded = tf.saved_model.load(str(out / "saved_model"))
    np.testing.assert_allclose(loaded.act(obs)["action"], expected, 1e-5, 1e-5)
    served = loaded.signatures["serving_default"](obs=tf.constant(obs))
    np.testing.assert_allclose(served["action"], expected, 1e-5, 1e-5)


def test_the_arrays_say_what_they_are_and_are_no_pickles(tmp_path):
    lab = Lab(tmp_path, "Pendulum-v1", rescale=True)
    assert lab.call(tmp_path / "out") == 0
    with np.load(tmp_path / "out/policy.npz", allow_pickle=False) as arrays:
        content = {name: arrays[name].tolist() for name in arrays}
    nets = {f"{kind}{i}" for kind in "wb" for i in range(3)}
    assert nets < set(content)
    rest = {name: value for name, value in content.items() if name not in nets}
    assert rest == {
        "layers": 3,
        "environment": "Pendulum-v1",
        "updates": 7,
        "frames": 70,
        "offset": [0.0],
        "scale": [2.0],
        "low": [-2.0],
        "high": [2.0],
    }


def test_a_dataset_of_another_configuration_than_the_runs_is_noted(
    tmp_path, capsys, monkeypatch
):
    """The configuration says in which units the actions are written."""
    lab = Lab(tmp_path, "Pendulum-v1", rescale=True)
    (tmp_path / "run" / "checkpoints" / "replay").mkdir(parents=True)
    (tmp_path / "run" / "log").mkdir()
    merged = lab.config.model_dump(mode="json", by_alias=True)
    (tmp_path / "run" / "log" / "hps.json").write_text(json.dumps(merged))
    monkeypatch.setattr(export, "write_minari", lambda *arguments: (1, 1))
    words = [str(lab.config_file), str(tmp_path / "run"), "--minari", "a/b-v0"]
    assert export.main(words) == 0
    assert "note: " not in capsys.readouterr().out
    assert export.main([*words, "--set", "env.rescale_actions=false"]) == 0
    assert "env.rescale_actions true there, false here" in capsys.readouterr().out


def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, capsys):
    lab = Lab(tmp_path, "Pendulum-v1", rescale=True)
    there = tmp_path / "there"
    there.mkdir()
    before = sorted(tmp_path.iterdir())
    for out, options, said in (
        (there, [], "is there already"),
        (tmp_path / "new", ["--set", "policy_config.hidden_dim=9"], "do not fit"),
        (tmp_path / "new", ["--set", "env.name=InvertedPendulum-v5"], "do not fit"),
    ):
        assert lab.call(out, *options) == 2
        output = capsys.readouterr()
        assert output.err.count("\n") == 1
        assert said in output.err
        assert sorted(tmp_path.iterdir()) == before
    assert not list(there.iterdir())
    words = [str(lab.config_file), str(lab.checkpoint), "--minari", ""]
    assert export.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1
