"""Evaluators: run whole episodes with the greedy policy and record their scores.

The policy runs in NumPy. An evaluator never imports TensorFlow: that would cost each
process half a gigabyte, and TensorFlow cannot live in one process with MuJoCo's
renderer.
"""

import math
import time
from functools import partial

import numpy as np

from ..running.child import Context
from ..settings.roles import LAUNCHER
from ..storage.board import FINAL_EPISODES
from ..storage.scores import ScoreFile, counter
from ..util import wait_until
from .policy import Policy, PolicyReader, random_actions
from .safe_env import SafeEnv

LOST_AT_THE_END = 20  # episodes that an evaluator loses before it gives up on the rest


# -- evaluators --------------------------------------------------------------------


def evaluate(context: Context) -> None:
    """An evaluator's main function: whole episodes with the greedy policy."""
    Evaluator(context).run()


class Evaluator:
    """Runs episodes for each published policy and records their scores.

    `episodes_per_policy` episodes of a policy, then it waits for a newer one (0:
    without end); at the end of a run with a limit, `final_episodes` of the last one.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        config = context.run.config
        self._settings = config.evaluator_config
        self._final_episodes = config.final_episodes
        self._row = context.board[context.name]
        self._reader = PolicyReader(context)
        self._rng = np.random.default_rng(context.seed)
        self._envs = []
        for _ in range(self._settings.batch_size):
            self._envs.append(SafeEnv(config.env, self._rng, context.name, self._lose))
            self._beat()
        self._scores = ScoreFile(context.run.folders.scores, self._row)
        self._scores.settle()
        self._lost_at_the_end = 0  # episodes

    def run(self) -> None:
        """Evaluates until asked to stop, or until the final episodes are done."""
        while not self._stopping():
            final = self._is_final()
            policy = self._reader.refresh()
            missing = self._missing(policy, final)
            if final and self._lost_at_the_end >= LOST_AT_THE_END:
                print(
                    f"{missing} of the final episodes are given up: transitions were "
                    f"lost in each of {self._lost_at_the_end}",
                    flush=True,
                )
                return
            if missing == 0 and final:
                self._row["random_score"] = self._random_score()
                return
            if missing and policy is not None:
                self._run_episodes(policy, missing, final)
            else:
                wait_until(lambda: self._stopping() or self._has_work())

    def _lose(self) -> None:
        self._row["dropped"] += 1

    def _is_final(self) -> bool:
        return int(self._context.board[LAUNCHER]["phase"]) == FINAL_EPISODES

    def _beat(self) -> None:
        self._row["heartbeat"] = time.monotonic()

    def _started(self, env: SafeEnv) -> np.ndarray:
        """The first observation of a new episode, [O]."""
        obs = env.reset()
        self._beat()
        return obs

    def _stopping(self) -> bool:
        self._beat()
        return self._context.stop()

    def _has_work(self) -> bool:
        return self._is_final() or self._missing(self._reader.refresh(), False) > 0

    def _missing(self, policy: Policy | None, final: bool) -> int:
        """How many episodes of this policy are still to be run."""
        if policy is None:
            return 0
        if not final and self._settings.episodes_per_policy == 0:
            return len(self._envs)
        wanted = self._final_episodes if final else self._settings.episodes_per_policy
        counted = int(self._row[counter(final)])
        done = counted if self._row["epoch"] == policy.epoch else 0
        return max(0, wanted - done)

    def _random_score(self) -> float:
        """Mean score of `final_episodes` episodes with uniformly random actions.

        NaN where the run has no final episodes, or was stopped meanwhile. The mean is
        of fewer where LOST_AT_THE_END episodes are lost.
        """
        env = self._envs[0]
        scores: list[float] = []
        for _ in range(self._final_episodes + LOST_AT_THE_END):
            if len(scores) == self._final_episodes:
                break
            env.reset()
            score, step = 0.0, None
            while step is None or not step.over:
                if self._stopping():
                    return math.nan
                action = random_actions(1, self._context.run.action_dim, self._rng)
                step = env.step(action[0])
                if step is None:
                    break
                score += step.reward
            else:
                scores.append(score)
        return float(np.mean(scores)) if scores else math.nan

    def _run_episodes(self, policy: Policy, count: int, final: bool) -> None:
        """One episode in each of up to `count` environments, side by side.

        An episode with a lost transition has no score: it is run again.
        """
        envs = self._envs[:count]
        obs = [self._started(env) for env in envs]
        scores = [0.0] * len(envs)
        running = list(range(len(envs)))
        while running:
            if self._stopping():
                return
            actions = policy.greedy(np.stack([obs[i] for i in running]))
            for i, action in zip(list(running), actions, strict=True):
                step = envs[i].step(action)
                self._beat()
                if step is None:
                    running.remove(i)
                    self._lost_at_the_end += final
                    continue
                obs[i] = step.obs
                scores[i] += step.reward
                if step.over:
                    running.remove(i)
                    self._context.store(
                        partial(self._scores.record, policy, scores[i], final)
                    )
