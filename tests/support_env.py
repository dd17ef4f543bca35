"""An environment that counts, for tests that ask where every transition went.

Named in `env.module`, so that child processes register it too.
"""

import time

import gymnasium
import numpy as np
from gymnasium import spaces

NAME = "Counting-v0"
OBS_DIM, ACTION_DIM = 3, 1

# What all environments of this process did; a test empties them.
steps: list[tuple[int, int, int]] = []  # what each step observed
finished_scores: list[float] = []


class CountingEnv(gymnasium.Env):
    """Observes (its number, the episode's number, steps in it), exact in float32.

    Its number is drawn at each seeded reset. The reward is the action, so that a
    transition shows which action led to it and a score shows who acted.

    Args:
        length: steps of an episode.
        ending: "termination", "truncation" or "both": how it ends.
        pause: seconds that each step takes.
        luck: adds to each reward a number in [0, 1] that is drawn at a seeded reset,
            so that a score shows the seed too.
        repeatable: observes episode 0 always, so that an episode that is begun again
            by its seed observes the same.
    """

    def __init__(
        self,
        length: int = 5,
        ending: str = "termination",
        pause: float = 0.0,
        luck: bool = False,
        repeatable: bool = False,
    ) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (OBS_DIM,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)
        self.length = length
        self.ending = ending
        self.pause = pause
        self.luck = luck
        self.repeatable = repeatable
        self.gain = 0.0
        self.number = 0
        self.episode = -1
        self.step_number = 0
        self.score = 0.0

    def _observed(self) -> np.ndarray:
        episode = 0 if self.repeatable else self.episode
        return np.array([self.number, episode, self.step_number], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.number = int(self.np_random.integers(1, 2**24))
            self.gain = float(self.np_random.random()) if self.luck else 0.0
        self.episode += 1
        self.step_number = 0
        self.score = 0.0
        return self._observed(), {}

    def step(self, action):
        self.step_number += 1
        time.sleep(self.pause)
        reward = float(action[0]) + self.gain
        self.score += reward
        over = self.step_number >= self.length
        if over:
            finished_scores.append(self.score)
        steps.append((self.number, self.episode, self.step_number))
        terminated = over and self.ending in ("termination", "both")
        truncated = over and self.ending in ("truncation", "both")
        return self._observed(), reward, terminated, truncated, {}


gymnasium.register(NAME, CountingEnv)


# Wrappers, for `env.wrappers`.


class AddedReward(gymnasium.RewardWrapper):
    def __init__(self, env, amount):
        super().__init__(env)
        self._amount = amount

    def reward(self, reward):
        return reward + self._amount


class ScaledReward(gymnasium.RewardWrapper):
    def __init__(self, env, factor):
        super().__init__(env)
        self._factor = factor

    def reward(self, reward):
        return reward * self._factor


class Skipping(gymnasium.Wrapper):
    """Repeats each action."""

    def __init__(self, env, steps):
        super().__init__(env)
        self._steps = steps

    def step(self, action):
        for _ in range(self._steps):
            stepped = self.env.step(action)
        return stepped


class Shortened(gymnasium.ObservationWrapper):
    """Gives fewer numbers than its space has."""

    def observation(self, observation):
        return observation[:1]


class PushedCart(gymnasium.ActionWrapper):
    """CartPole with a force in [-1, 1], of which only the sign counts."""

    def __init__(self, env):
        super().__init__(env)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def action(self, action):
        return int(action[0] > 0)
