"""How often MuJoCo puts a simulation that diverged back to its start.

    python benchmarks/self_resets.py
    python benchmarks/self_resets.py output/Hopper-v1/steve0 output/Humanoid-v1/steve0

Without a folder the paper's five MuJoCo environments are stepped with actions drawn
uniformly, and with actions drawn from the corners of their box, as a trained policy
that saturates takes them. With experiments' folders their environments are stepped with
their newest policies, which explore as in training.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np

import steve
from steve.acting.policy import Policy, random_actions
from steve.acting.safe_env import SafeEnv
from steve.environments.mujoco import MUJOCO
from steve.envwrap import measure
from steve.settings.schema import Environment
from steve.storage import checkpoint

Act = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # [O] -> [A]


def lost_transitions(config: Environment, act: Act, frames: int) -> dict[str, int]:
    """Steps an environment; episodes are those of training."""
    lost: list[None] = []
    env = SafeEnv(config, config.name, lambda: lost.append(None))
    rng = np.random.default_rng(0)
    obs, episodes = env.reset(0), 1
    for _ in range(frames):
        step = env.step(act(obs, rng))
        if step is None or step.over:
            obs, episodes = env.reset(episodes), episodes + 1
        else:
            obs = step.obs
    env.close()
    return {"frames": frames, "episodes": episodes, "lost transitions": len(lost)}


def without_policies(frames: int) -> dict[str, Any]:
    result = {}
    for name in MUJOCO:
        config = Environment(name=name)
        dim = measure(config).action_dim
        result[name] = {
            "uniform": lost_transitions(
                config, lambda _, rng, dim=dim: random_actions(1, dim, rng)[0], frames
            ),
            "corners": lost_transitions(
                config, lambda _, rng, dim=dim: rng.choice((-1.0, 1.0), dim), frames
            ),
        }
    return result


def with_policy(folder: str, frames: int) -> dict[str, Any]:
    config = steve.load_run(folder).config
    sizes = measure(config.env)
    state = checkpoint.load(Path(folder) / "checkpoints" / "policy.safetensors")
    policy = Policy(state, sizes.obs_dim, sizes.action_dim)
    chance = config.policy_config.explore_chance

    def act(obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return policy.explore(obs[None], chance, rng)[0]

    return {config.env.name: lost_transitions(config.env, act, frames)}


def main() -> None:
    parser = harness.parser(__doc__.splitlines()[0], config=False)
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="an experiment's")
    parser.add_argument(
        "--frames", type=int, default=100_000, help="of each measurement (100000)"
    )
    arguments = parser.parse_args()
    if arguments.folders:
        result = {f: with_policy(f, arguments.frames) for f in arguments.folders}
    else:
        result = without_policies(arguments.frames)
    result["machine"] = harness.machine()
    harness.show(result, arguments.json, "transitions lost to a simulation's own reset")


if __name__ == "__main__":
    harness.run(main)
