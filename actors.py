"""Interactors, which gather transitions, and evaluators, which record scores.

Both use the policy in NumPy and never import TensorFlow: it would cost each process
half a gigabyte, and it cannot live beside MuJoCo's renderer.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import portalocker

import checkpoint
from checkpoint import CheckpointError
from policy import Policy, random_actions
from process import Context
from replay import Batch, ReplayBuffer
from safeenv import SafeEnv
from schema import Config
from status import (
    FINAL_EPISODES,
    LAUNCHER,
    VALUERL,
    Board,
    learners,
)
from util import cut_torn_line, named, wait_until, write_whole

CSV_HEADER = b"hours,epochs,frames,score\n"
VECTOR_STEPS_AHEAD = 2
LOST_AT_THE_END = 20  # episodes that an evaluator loses before it gives up on the rest


def frame_limit(config: Config, board: Board) -> float:
    """How many frames there may be now (SPEC section 2, pacing).

    frames <= frames_before_learning + frames_per_update * updates + 2 vector steps

    for each learner that paces; one that does not (`frames_per_update` false) is
    waited for only until its process is ready. Before its first epoch the value
    learner waits for the world model, so until then the later start counts for both.
    No vector step begins at `total_frames` or later.
    """
    step = config.agent_config.batch_size
    settings_of = learners(config)
    latest = max(each.frames_before_learning for each in settings_of.values())

    limits = [math.inf]
    if config.total_frames is not None:
        limits.append(config.total_frames + step - 1)
    for name, settings in settings_of.items():
        row = board[name]
        waiting = name == VALUERL and not row["epoch"]
        first = latest if waiting else settings.frames_before_learning
        band = first + VECTOR_STEPS_AHEAD * step
        if settings.frames_per_update is not False:
            limits.append(band + settings.frames_per_update * int(row["updates"]))
        elif not row["ready"]:
            limits.append(band)
    return min(limits)


class PolicyReader:
    """The newest published policy; the file is read only when it has changed."""

    def __init__(self, context: Context) -> None:
        self._path = context.run.folders.policy
        self._sizes = context.run.obs_dim, context.run.action_dim
        self._stamp: object = None
        self.policy: Policy | None = None

    def refresh(self) -> Policy | None:
        """Takes up a newly published policy; returns the newest, None before any.

        A damaged file is named in the process's output and passed over: the value
        learner publishes the policy anew when the run is resumed.
        """
        stamp = checkpoint.stamp(self._path)
        if stamp is not None and stamp != self._stamp:
            self._stamp = stamp
            try:
                self.policy = Policy(checkpoint.load(self._path), *self._sizes)
            except CheckpointError as error:
                print(error, flush=True)
        return self.policy


# -- interactors -------------------------------------------------------------------


def interact(context: Context) -> None:
    """An interactor's main function: steps environments, appends to the replay."""
    config = context.run.config
    agent = config.agent_config
    board, row = context.board, context.board[context.name]
    rng = np.random.default_rng(context.seed)
    replay = ReplayBuffer.open(context.run.folders.replay, writable=True)
    reader = PolicyReader(context)

    def beat() -> None:
        row["heartbeat"] = time.monotonic()

    def lose() -> None:
        row["dropped"] += 1

    envs, obs = [], []
    for _ in range(agent.batch_size):
        envs.append(SafeEnv(config.env, rng, context.name, lose))
        obs.append(envs[-1].reset())
        beat()
    obs = np.stack(obs)
    steps = 0

    def room() -> bool:
        beat()
        allowed = frame_limit(config, board)
        return context.stop() or replay.frames + agent.batch_size <= allowed

    while not context.stop():
        wait_until(room)
        if context.stop():
            break
        if steps % agent.reload_every_n == 0:
            reader.refresh()
        steps += 1
        if reader.policy is None or replay.frames < agent.full_random_n:
            action = random_actions(agent.batch_size, context.run.action_dim, rng)
        else:
            action = reader.policy.explore(
                obs, config.policy_config.explore_chance, rng
            )
        transitions, obs = step_all(envs, obs, action, beat)
        # Another interactor may have used the room up: the limit is checked again
        # under the lock.
        while not context.store(
            lambda batch=transitions: replay.append(batch, frame_limit(config, board))
        ):
            wait_until(room)
            if context.stop():
                return


def step_all(
    envs: list[SafeEnv], obs: np.ndarray, action: np.ndarray, beat: Callable[[], None]
) -> tuple[Batch, np.ndarray]:
    """One step of every environment; those whose episode ended start a new one.

    A cut episode is no termination: `terminated` is the environment's own. `next_obs`
    is the true last observation of an episode, never the first of the next one.

    Args:
        envs: B environments.
        obs: their observations, [B, O].
        action: [B, A] in [-1, 1].
        beat: called after each step and reset of an environment, to show life.

    Returns:
        (the transitions, B less those that were lost; the observations to go on from,
        [B, O]).
    """
    taken = []
    for env, one_action in zip(envs, action, strict=True):
        taken.append(env.step(one_action))
        beat()
    kept = [i for i, step in enumerate(taken) if step is not None]
    next_obs = np.empty((len(kept), obs.shape[1]), np.float32)
    for row, i in enumerate(kept):
        next_obs[row] = taken[i].obs
    batch = Batch(
        obs=obs[kept].astype(np.float32),
        action=action[kept],
        reward=np.array([taken[i].reward for i in kept], np.float32),
        next_obs=next_obs,
        terminated=np.array([taken[i].terminated for i in kept], np.float32),
    )
    going_on = []
    for env, step in zip(envs, taken, strict=True):
        going_on.append(env.reset() if step is None or step.over else step.obs)
        beat()
    return batch, np.stack(going_on)


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
            if missing:
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
        counted = int(self._row[_counter(final)])
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
                        lambda score=scores[i]: self._scores.record(
                            policy, score, final
                        )
                    )


def _counter(final: bool) -> str:
    """The field of the status board that counts such episodes."""
    return "final_episodes" if final else "episodes"


class ScoreFile:
    """The scores' csv, written by all evaluators, each row once (SPEC section 9).

    Before it appends, an evaluator notes on the status board which row it is about to
    write and where. If it is killed on the way, its successor sees by that whether
    the row is there, so that no episode is recorded twice.
    """

    def __init__(self, path: Path, row: np.void) -> None:
        self._path = path
        self._row = row

    def record(self, policy: Policy, score: float, final: bool) -> None:
        """Appends one finished episode and counts it."""
        line = f"{policy.hours:.6f},{policy.epoch},{policy.frames},{score!r}\n".encode()
        row = self._row
        with self._opened() as file:
            # Under the lock, the writer of a torn line is dead.
            if cut_torn_line(file) == 0:
                write_whole(file, CSV_HEADER)
            if row["epoch"] != policy.epoch:
                # In this order: a kill on the way must not leave old counts behind.
                row["episodes"] = row["final_episodes"] = 0
                row["epoch"] = policy.epoch
            row["pending"], row["phase"] = line, final
            row["pending_count"] = row[_counter(final)] + 1
            row["offset"] = file.tell()
            write_whole(file, line)
            self._count()

    def settle(self) -> None:
        """Counts the row that a predecessor was killed over, if it is there."""
        row = self._row
        if int(row["offset"]) < 0:
            return
        with self._opened() as file:
            cut_torn_line(file)
            line = bytes(row["pending"])
            file.seek(int(row["offset"]))
            if file.read(len(line)) == line:
                self._count()
            row["offset"] = -1

    def _count(self) -> None:
        """Counts the pending row; doing it twice changes nothing."""
        self._row[_counter(bool(self._row["phase"]))] = self._row["pending_count"]
        self._row["offset"] = -1

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """The file, locked against the other evaluators until it is closed."""
        with named(self._path), open(self._path, "ab+", buffering=0) as file:
            portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE)
            yield file
