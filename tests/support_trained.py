"""Small nets, their checkpoints, and made-up episodes for the tests of analysis."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from steve.analysis.episodes import Episode
from steve.envwrap import EnvSizes
from steve.settings.schema import Config
from steve.storage import checkpoint
from steve.valuerl import Task, ValueRL
from steve.worldmodel import WorldModel

SIZES = EnvSizes(2, 1)


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
    valuerl = ValueRL(config.policy_config, Task(*sizes), generator, model)
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


def forward(net, member: int, x: np.ndarray) -> np.ndarray:
    """One member of a net, one matrix after the other."""
    layers = list(zip(net.weights, net.biases, strict=True))
    for i, (w, b) in enumerate(layers):
        x = x @ w.numpy()[member].astype(np.float64) + b.numpy()[member]
        x = np.maximum(x, 0) if i < len(layers) - 1 else x
    return x
