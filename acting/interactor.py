"""Interactors: step environments with the exploring policy, append to the replay.

The policy runs in NumPy. An interactor never imports TensorFlow: that would cost each
process half a gigabyte.
"""

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from ..batch import Batch
from ..replay import ReplayBuffer
from ..running.child import Context
from ..running.pace import frame_limit
from ..settings.schema import Config
from ..storage.board import Board
from ..util import wait_until
from .policy import PolicyReader, random_actions
from .safe_env import SafeEnv

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

    envs, first_obs = [], []
    for _ in range(agent.batch_size):
        envs.append(SafeEnv(config.env, rng, context.name, lose))
        first_obs.append(envs[-1].reset())
        beat()
    obs = np.stack(first_obs)  # [B, O]
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
        append = partial(_append, replay, transitions, config, board)
        while not context.store(append):
            wait_until(room)
            if context.stop():
                return


def _append(
    replay: ReplayBuffer, batch: Batch[np.ndarray], config: Config, board: Board
) -> bool:
    """Stores transitions where the pace has room for them; whether it had."""
    return replay.append(batch, frame_limit(config, board))


def step_all(
    envs: list[SafeEnv], obs: np.ndarray, action: np.ndarray, beat: Callable[[], None]
) -> tuple[Batch[np.ndarray], np.ndarray]:
    """One step of every environment; those whose episode ended start a new one.

    A cut episode is no termination: `terminated` is the environment's own. `next_obs`
    is the true last observation of an episode, never the first of the next one.

    Args:
        envs: B environments.
        obs: their observations, [B, O].
        action: [B, A] in [-1, 1].
        beat: called after each step and reset of an environment, to show life.

    Returns:
        (the transitions, B less those that were lost; the next
        observations, [B, O]).
    """
    taken = []
    for env, one_action in zip(envs, action, strict=True):
        taken.append(env.step(one_action))
        beat()
    kept = [i for i, step in enumerate(taken) if step is not None]
    steps = [step for step in taken if step is not None]
    next_obs = np.empty((len(steps), obs.shape[1]), np.float32)
    for row, step in enumerate(steps):
        next_obs[row] = step.obs
    batch = Batch(
        obs=obs[kept].astype(np.float32),
        action=action[kept],
        reward=np.array([step.reward for step in steps], np.float32),
        next_obs=next_obs,
        terminated=np.array([step.terminated for step in steps], np.float32),
    )
    following = []
    for env, result in zip(envs, taken, strict=True):
        if result is None or result.over:
            following.append(env.reset())
        else:
            following.append(result.obs)
        beat()
    return batch, np.stack(following)
