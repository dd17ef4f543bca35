"""Frames a second of an interactor's environments, in turn and in processes.

    python benchmarks/vectorization.py config/experiments/goodruns/humanoid/steve0.json
    python benchmarks/vectorization.py config/quickstart.json --wait 0.01

The environments of one interactor are stepped with random actions, as
`agent_config.vectorization` "sync" and "async" step them, the two alternating.
"""

import json
import statistics
import time
from typing import Any

import gymnasium
import harness
import numpy as np

from steve.acting.interactor import step_all
from steve.acting.policy import random_actions
from steve.acting.remote_env import RemoteEnv
from steve.acting.safe_env import SafeEnv
from steve.envwrap import measure
from steve.settings.schema import Config

ROUNDS = 5


class Waiting(gymnasium.Wrapper):
    """An environment that waits in each step, as for a simulator elsewhere."""

    def __init__(self, env: gymnasium.Env, seconds: float) -> None:
        super().__init__(env)
        self._seconds = seconds

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict]:
        time.sleep(self._seconds)
        return self.env.step(action)


class Stepped:
    """B environments and where they are."""

    def __init__(self, envs: list[SafeEnv] | list[RemoteEnv], action_dim: int) -> None:
        self._envs = envs
        self._dim = action_dim
        self._rng = np.random.default_rng(0)
        self._resets = len(envs)
        self._obs = np.stack([env.reset(i) for i, env in enumerate(envs)])

    def step(self) -> int:
        """One vector step; how many frames that is."""
        size = len(self._envs)
        action = random_actions(size, self._dim, self._rng)
        taken = step_all(self._envs, self._obs, action, lambda: None)
        self._obs = np.array(taken.next_obs)
        for i in np.flatnonzero(taken.over):
            self._resets += 1
            self._obs[i] = self._envs[i].reset(self._resets)
        return size

    def close(self) -> None:
        for env in self._envs:
            env.close()


def nothing() -> None:
    pass


def made(config: Config, how: str) -> Stepped:
    size = config.agent_config.batch_size
    dim = measure(config.env).action_dim
    if how == "sync":
        envs = [SafeEnv(config.env, how, nothing) for _ in range(size)]
        return Stepped(envs, dim)
    theirs = (config.env, config.module, how, nothing, nothing, 0)
    remote = [RemoteEnv(*theirs, number=i) for i in range(size)]
    for env in remote:
        env.wait_until_made()
    return Stepped(remote, dim)


def main() -> None:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--wait", type=float, default=0.0, help="seconds that each step waits (0)"
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="of each measurement (10)"
    )
    arguments = parser.parse_args()
    overrides = arguments.overrides
    if arguments.wait:
        kwargs = {"seconds": arguments.wait}
        wrapper = {"entry_point": "vectorization:Waiting", "kwargs": kwargs}
        overrides = [*overrides, f"env.wrappers={json.dumps([wrapper])}"]
    with harness.temporary_root() as root:
        config = harness.load(arguments.config, overrides, root)
    rates: dict[str, list[float]] = {"sync": [], "async": []}
    for _ in range(ROUNDS):
        for how, found in rates.items():
            stepped = made(config, how)
            found.append(harness.rate(stepped.step, arguments.seconds / ROUNDS, 1))
            stepped.close()
    medians = {how: statistics.median(found) for how, found in rates.items()}
    result = {
        "frames/s": medians,
        "async / sync": {"ratio": medians["async"] / medians["sync"]},
        "machine": harness.machine()
        | {"config": arguments.config, "environments": config.agent_config.batch_size},
    }
    harness.show(result, arguments.json, arguments.config)


if __name__ == "__main__":
    harness.run(main)
