"""An environment that may fail: what it did wrong is not stored, the run continues.

Simulators diverge, and users' environments raise. A transition that is not finite is
dropped; an environment that raises is built again, so many times in a while. An
observation that does not fit its space is a user's mistake, and ends the run.
"""

import itertools
import math
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from ..envwrap import CLOSE_PATIENCE, close_env, make_env
from ..replay_file import is_finite
from ..settings.schema import Environment
from ..settings.seeds import seed_globals
from ..util import RunError, UserError, one_line

REBUILDS, WINDOW = 5, 600.0  # times, in seconds
SAID = 5  # dropped transitions of which each is said
SHORTEST_CLOSE = 0.05  # seconds that each environment gets at least


class Step(NamedTuple):
    """What one step gave; the observation is the array's own copy."""

    obs: np.ndarray  # [O]
    reward: float
    terminated: bool
    truncated: bool

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated


class SafeEnv:
    """One environment of an interactor or evaluator.

    Args:
        config: the configuration's `env`.
        name: of the process, for messages.
        on_loss: called for each transition that is lost.
        on_failure: called when the environment raised: by chance, perhaps.
    """

    def __init__(
        self,
        config: Environment,
        name: str,
        on_loss: Callable[[], None],
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._name = name
        self._on_loss = on_loss
        self._on_failure = on_failure
        self._dropped = 0  # transitions that were not finite
        self._failed: deque[float] = deque()  # when, monotonic seconds
        self._process = os.getpid()
        self._env = make_env(config)

    def reset(self, seed: int) -> np.ndarray:
        """Starts an episode; the first observation, [O].

        Args:
            seed: of the episode, with 32 bits: of the environment, and of the
                generators that `random` and `np.random` share with everybody. Where
                the environment fails, it is made again and gets another one.

        Raises:
            RunError: the environment fails too often.
            UserError: the environment breaks its contract, which no retry mends.
        """
        for attempt in itertools.count():
            try:
                again = seed_globals(seed, attempt)
                obs, _ = self._env.reset(seed=again)
                obs = np.array(obs)
                if is_finite(obs):
                    return obs
                self._rebuild(ValueError("the first observation is not finite"))
            except UserError:
                raise
            except Exception as error:
                self._rebuild(error)
        raise AssertionError("not reached")

    def step(self, action: np.ndarray) -> Step | None:
        """One step; None where it is lost, and with it the rest of the episode.

        Args:
            action: [A] in [-1, 1].

        Raises:
            RunError: the environment fails too often.
            UserError: the environment breaks its contract, which no retry mends.
        """
        try:
            obs, reward, terminated, truncated, _ = self._env.step(action)
        except UserError:
            raise
        except Exception as error:
            self._on_loss()
            self._rebuild(error)
            return None
        if os.getpid() != self._process:
            # The environment has forked; two processes would store the same rows.
            print(f"{self._name}: a fork that came back from step() ends", flush=True)
            os._exit(1)
        # A copy: an environment may write its next episode into the same array.
        step = Step(np.array(obs), float(reward), bool(terminated), bool(truncated))
        if is_finite(step.obs) and is_finite(step.reward):
            return step
        what = "reward" if is_finite(step.obs) else "observation"
        self._drop(f"{what} not finite")
        return None

    def _drop(self, why: str) -> None:
        """Counts a lost transition; says so of the first ones, then at powers of 10."""
        self._dropped += 1
        if self._dropped <= SAID or math.log10(self._dropped).is_integer():
            count = f" (number {self._dropped:,})" if self._dropped > SAID else ""
            line = f"{self._name}: a transition is dropped: {why}{count}"
            print(line, flush=True)
        self._on_loss()

    def close(self, patience: float = CLOSE_PATIENCE) -> None:
        """Closes the environment; see `envwrap.close_env`."""
        close_env(self._env, patience)

    def _rebuild(self, error: Exception) -> None:
        """Makes the environment again after an error; a failure of that is one more.

        Raises:
            RunError: it was the last of too many errors.
        """
        self._count_failure(error)
        self.close()
        while True:
            try:
                self._env = make_env(self._config)
                return
            except UserError as again:
                self._count_failure(again)

    def _count_failure(self, error: Exception) -> None:
        traceback.print_exception(error)
        self._on_failure()
        now = time.monotonic()
        self._failed.append(now)
        while now - self._failed[0] > WINDOW:
            self._failed.popleft()
        if len(self._failed) > REBUILDS:
            raise RunError(
                f"{self._name}: the environment failed {len(self._failed)} times in "
                f"{WINDOW / 60:g} minutes, last with {type(error).__name__}: "
                f"{one_line(error)}; the run stops"
            )


class Closable(Protocol):
    """An environment here or in a process of its own."""

    def close(self, patience: float) -> None: ...


def close_all(envs: Sequence[Closable]) -> None:
    """Closes environments, all within CLOSE_PATIENCE seconds."""
    give_up = time.monotonic() + CLOSE_PATIENCE
    for done, env in enumerate(envs):
        left = max(0.0, give_up - time.monotonic())
        env.close(left / (len(envs) - done) + SHORTEST_CLOSE)
