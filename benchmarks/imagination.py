"""What bfloat16 in imagined rollouts changes: targets, weights, gradients.

    python benchmarks/imagination.py CONFIG.json CHECKPOINT [--rows N]

The same rows of the replay buffer and the same members go through the trained nets
twice, with `imagination_precision` float32 and bfloat16. How much faster it is,
learners.py says: with --set
policy_config.value_expansion.imagination_precision=bfloat16.
"""

from pathlib import Path
from typing import NamedTuple

import harness
import numpy as np

from steve.analysis.trained import build_nets, load_checkpoint
from steve.command_line import OneLineParser
from steve.envwrap import EnvSizes
from steve.replay import ReplayBuffer
from steve.settings.loading import load
from steve.settings.schema import Config
from steve.util import UserError

KEY = "policy_config.value_expansion.imagination_precision"


class Computed(NamedTuple):
    """What one batch gives.

    Attributes:
        targets: [B, J], of the J starts that the algorithm uses.
        weights: of the candidates of the real start, [B, H+1].
        gradient: of Q's loss, all of it in one, [W].
    """

    targets: np.ndarray
    weights: np.ndarray
    gradient: np.ndarray


def compute(config: Config, checkpoint: Path, rows: int) -> Computed:
    """Loads the nets, and computes one batch.

    Raises:
        UserError: the checkpoint does not fit, or has no world model.
    """
    import tensorflow as tf

    from steve import nn
    from steve.batch import Batch

    trained = load_checkpoint(checkpoint, config)
    if trained.critic is None or trained.model is None:
        raise UserError(f"{checkpoint}: has no Q-functions or no world model")
    with ReplayBuffer.open(trained.folder / "replay") as replay:
        sizes = EnvSizes(replay.obs_dim, replay.action_dim)
        drawn = replay.sample(rows, replay.size, np.random.default_rng(0))
    nets = build_nets(config, sizes, trained)
    valuerl, batch = nets.valuerl, Batch(*(tf.constant(part) for part in drawn))
    sampled = valuerl.sample(nn.seed_tensor(0), tf.constant(0), rows)
    imagined = valuerl.imagine(batch, sampled)
    _, gradients, _ = valuerl.gradients(batch, sampled)
    return Computed(
        targets=valuerl.targets(imagined)[0].numpy(),
        weights=valuerl.weights(valuerl.candidates(imagined)).numpy(),
        gradient=np.concatenate([np.ravel(part) for part in gradients]),
    )


def differences(fine: Computed, coarse: Computed) -> dict[str, float]:
    """How far the coarse values are from the fine ones, by what is compared."""
    return {
        "targets: root mean square, in their standard deviations": float(
            np.sqrt(np.mean(np.square(coarse.targets - fine.targets)))
            / np.std(fine.targets)
        ),
        "weights: mean absolute difference": float(
            np.mean(np.abs(coarse.weights - fine.weights))
        ),
        "weights: largest difference of a horizon's mean": float(
            np.max(np.abs(np.mean(coarse.weights - fine.weights, axis=0)))
        ),
        "gradient of Q's loss: relative difference": float(
            np.linalg.norm(coarse.gradient - fine.gradient)
            / np.linalg.norm(fine.gradient)
        ),
    }


def main() -> None:
    parser = OneLineParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", metavar="CONFIG.json")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path)
    parser.add_argument("--rows", type=int, default=512, metavar="N", help="(512)")
    given = parser.parse_args()
    if load(given.config).config.policy_config.value_expansion is None:
        raise UserError(f"{given.config}: has no imagined rollouts")
    if given.rows < 2:
        raise UserError(f"--rows {given.rows}: at least 2")
    fine, coarse = (
        compute(
            load(given.config, overrides=[f"{KEY}={precision}"]).config,
            given.checkpoint,
            given.rows,
        )
        for precision in ("float32", "bfloat16")
    )
    for name, value in differences(fine, coarse).items():
        print(f"{name}: {value:.2g}")


if __name__ == "__main__":
    harness.run(main)
