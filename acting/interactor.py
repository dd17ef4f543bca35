"""Interactors: step environments with the exploring policy, append to the replay.

The policy runs in NumPy. An interactor never imports TensorFlow: that would cost each
process half a gigabyte.
"""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..batch import Batch
from ..replay import ReplayBuffer
from ..replay_file import IMPORTED, Origin
from ..running.child import STARTUP_GRACE, Context
from ..running.pace import frame_limit, policy_for
from ..settings.roles import Kind
from ..settings.seeds import Stream, generator, seed_of
from ..storage.board import Wait
from ..util import RunError, wait_until
from .actor import Actor
from .policy import Policy, random_actions
from .remote_env import RemoteEnv
from .safe_env import SafeEnv, Step, close_all

TOO_MANY_LOST = 100  # transitions, of twice as many steps


def interact(context: Context) -> None:
    """An interactor's main function: steps environments, appends to the replay."""
    Interactor(context).run()


class Interactor(Actor):
    """Steps B environments; in a paced run each vector step at its turn.

    Turn v is that of interactor v mod count. What a step does is a function of
    counters: which policy acts, of the frames at which the step begins; what is drawn,
    of the turn; how an episode begins, of the environment's and the episode's number.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context, Kind.INTERACTOR)
        self._agent = self._config.agent_config
        self._replay = ReplayBuffer.open(context.run.folders.replay, writable=True)
        self._policy_turn = -1  # at which the policy was last looked up
        size = self._agent.batch_size
        self._envs: list[SafeEnv | RemoteEnv] = []
        context.ends.callback(self.close)
        self._make_envs(size)
        self._numbers = self._number * size + np.arange(size)  # [B], of all
        self._episodes = np.zeros(size, int)
        self._steps = np.zeros(size, int)  # of the running episodes
        self._obs = np.zeros((size, context.run.obs_dim))
        # Whether the transition was lost, of each of the last steps.
        remembered = max(2 * TOO_MANY_LOST, size)
        self._lost: deque[bool] = deque(maxlen=remembered)
        self._too_many = remembered // 2

    def _make_envs(self, size: int) -> None:
        env_config, name = self._config.env, self._context.name
        callbacks = self._lose, self._note_failure
        for i in range(size):
            if self._agent.vectorization == "async":
                seed = self._context.seed
                modules = self._context.run.env_modules
                env = RemoteEnv(env_config, modules, name, *callbacks, seed, i)
                self._envs.append(env)
            else:
                self._envs.append(SafeEnv(env_config, name, *callbacks))
            self._stopping()
        for env in self._remote_envs():  # at the same time, each in its own process
            self._row["heartbeat"] = time.monotonic() + STARTUP_GRACE
            env.wait_until_made()
            self._stopping()

    def _remote_envs(self) -> list[RemoteEnv]:
        return [env for env in self._envs if isinstance(env, RemoteEnv)]

    def close(self) -> None:
        """Closes the environments."""
        super().close()
        for env in self._remote_envs():
            env.begin_close()
        close_all(self._envs)

    # -- the loop ----------------------------------------------------------------------

    def run(self) -> None:
        """Steps and appends until asked to stop."""
        self._replay.settle_turn()
        turn = self._first_turn(self._replay.turn)
        self._resume_episodes(turn)
        while (frames := self._wait_for_turn(turn)) is not None:
            action = self._act(turn, frames)
            if action is None or not self._step(turn, action):
                return
            turn += self._agent.count

    def _first_turn(self, turns: int) -> int:
        """The first turn of this process, where so many are stored.

        Turns of a paced run are taken one after the other. Without a pace each
        interactor counts its own, and one may have done all that are stored: it
        begins behind these, so that no turn's draws are made twice (with the same
        `agent_config.count`).
        """
        count = self._agent.count
        if not self._config.is_paced:
            return self._number + turns * count
        return turns + (self._number - turns) % count

    def _wait_for_turn(self, turn: int) -> int | None:
        """Waits until a step may begin.

        Other interactors may still be at the steps before, if these can change
        nothing in what this one does.

        Returns:
            the frames at which it begins; None: the process was asked to stop.
        """
        found: list[int] = []

        def missing() -> Wait | None:
            self._beat()
            frames = self._frames_at(turn)
            size = self._agent.batch_size
            if frames is not None and frames + size <= self._frame_limit():
                found.append(frames)
            if found or self._context.stop():
                return None
            return Wait.TURN if frames is None else Wait.PACE

        wait_until(self._context.while_there_is(missing))
        return found[0] if found and not self._context.stop() else None

    def _frames_at(self, turn: int) -> int | None:
        """The frames at which a step begins, as far as that matters; None: unknown."""
        if not self._config.is_paced:
            return self._replay.frames
        earlier = turn - self._replay.turn
        fewest = self._replay.frames
        most = fewest + earlier * self._agent.batch_size
        if earlier <= 0 or self._choice(fewest) == self._choice(most):
            return most
        return None

    def _choice(self, frames: int) -> object:
        """What acts in a step: a policy by its updates, or None: chance."""
        if frames < self._agent.full_random_n:
            return None
        return policy_for(self._config, frames)

    def _frame_limit(self) -> float:
        return frame_limit(self._config, self._context.board)

    def _act(self, turn: int, frames: int) -> np.ndarray | None:
        """The actions of a step, [B, A]; None: the process was asked to stop."""
        rng = generator(self._config.seed, Stream.ACTION, turn)
        if self._config.is_paced:
            policy = self._policy_at(turn, frames)
            if self._context.stop():
                return None
        else:
            since = turn // self._agent.count % self._agent.reload_every_n
            if since == 0 or self._policy_turn < 0:
                self._policy_turn = turn
                self._reader.refresh()
            policy = self._reader.policy
        if policy is None or frames < self._agent.full_random_n:
            action_dim = self._context.run.action_dim
            return random_actions(self._agent.batch_size, action_dim, rng)
        return policy.explore(self._obs, self._config.policy_config.explore_chance, rng)

    def _policy_at(self, turn: int, frames: int) -> Policy | None:
        """The policy of a step in a paced run; None: random actions, or stopped."""
        own = turn // self._agent.count
        since = own % self._agent.reload_every_n
        if since == 0 or self._policy_turn < 0:
            self._policy_turn = turn - since * self._agent.count
            at = self._frames_of(self._policy_turn, turn, frames) if since else frames
            self._wanted = policy_for(self._config, at)
        if self._wanted is None or frames < self._agent.full_random_n:
            return None
        self._wait(self._has_policy, Wait.POLICY)
        return self._reader.policy

    def _has_policy(self) -> bool:
        """Whether the wanted policy is loaded; one that is gone is replaced."""
        assert self._wanted is not None
        if self._reader.load(self._wanted) is not None:
            return True
        policies = self._context.run.folders.policies
        there = policies.numbers()
        if not there or there[-1] < self._wanted or self._wanted in there:
            return False
        self._note_nondeterminism(f"the policy of {self._wanted} updates is gone")
        self._wanted = policies.nearest(self._wanted)
        return self._reader.load(self._wanted) is not None

    def _frames_of(self, turn: int, now: int, frames: int) -> int:
        """The frames at which a turn began, where turn `now` begins at `frames`.

        The rows say it or, where they are gone, their number: each turn has one of
        every environment, unless transitions were lost. A dataset was before all turns.
        """
        replay, size = self._replay, self._agent.batch_size
        there = range(replay.oldest, min(frames, replay.frames))
        if replay.has_origins and there and self._turn_of(there[0]) <= turn:
            began = there[0] + bisect_left(there, turn, key=self._turn_of)
            return max(began, replay.imported)
        if frames in (0, now * size):
            return min(frames, turn * size)
        self._note_nondeterminism(
            "at which frames the policy was chosen is not known any more"
        )
        return frames

    def _turn_of(self, frame: int) -> int:
        return int(self._replay.origins(frame, 1).turn[0])

    def _step(self, turn: int, action: np.ndarray) -> bool:
        """One step of every environment, stored; False: stopped before that."""
        taken = step_all(self._envs, self._obs, action, self._beat)
        self._check_losses(taken.kept)
        origin = Origin(
            self._numbers[taken.kept],
            self._episodes[taken.kept],
            self._steps[taken.kept],
            taken.truncated,
            np.zeros(len(taken.kept), int),  # the replay buffer's to say
        )
        self._steps += 1
        self._obs = np.array(taken.next_obs)
        over = [int(i) for i in np.flatnonzero(taken.over)]
        for i in over:
            env = self._envs[i]
            if isinstance(env, RemoteEnv):
                env.begin_reset(self._seed_of(i, int(self._episodes[i]) + 1))
        for i in over:
            self._begin_episode(i, int(self._episodes[i]) + 1)
        expected = turn if self._config.is_paced else None
        count = len(taken.kept)

        def has_turn() -> bool:
            if expected not in (None, self._replay.turn):
                return False
            return self._replay.frames + count <= self._frame_limit()

        # The limit is checked again under the lock: unpaced, another interactor may
        # have used the room up.
        while not self._context.store(
            lambda: self._replay.append(
                taken.batch, self._frame_limit(), origin=origin, turn=expected
            )
        ):
            self._wait(has_turn, Wait.TURN)
            if self._context.stop():
                return False
        return True

    def _check_losses(self, kept: np.ndarray) -> None:
        """Counts the environments whose transition was lost, and the others.

        Args:
            kept: the numbers of the others, of this interactor's.

        Raises:
            RunError: it was the last of too many losses.
        """
        lost = np.ones(len(self._envs), bool)
        lost[kept] = False
        self._lost.extend(lost.tolist())
        if lost.any() and (count := sum(self._lost)) >= self._too_many:
            raise RunError(
                f"{self._context.name}: {count} of the last {len(self._lost)} steps of "
                f"{self._config.env.name} gave no transition that is finite; the run "
                "stops. Correct the environment"
            )

    # -- episodes ----------------------------------------------------------------------

    def _begin_episode(self, i: int, episode: int) -> None:
        self._episodes[i], self._steps[i] = episode, 0
        self._obs[i] = self._envs[i].reset(self._seed_of(i, episode))
        self._beat()

    def _seed_of(self, i: int, episode: int) -> int:
        number = int(self._numbers[i])
        return seed_of(self._config.seed, Stream.EPISODE, number, episode)

    def _resume_episodes(self, turn: int) -> None:
        """Brings each environment to where the stored rows left it.

        The episode is begun again by its seed, and the stored actions are repeated.
        """
        if not self._replay.has_origins:
            for i in range(len(self._numbers)):
                self._begin_episode(i, self._turns_between(-1, turn))
            return
        begin = self._rows_of_episodes()
        rows = self._replay.origins(begin, self._replay.frames - begin)
        for i, number in enumerate(self._numbers):
            if self._stopping():
                return
            mine = np.flatnonzero(rows.env == number)
            if mine.size == 0:  # each turn was an episode, as far as the rows say it
                # Before a row of a dataset there are only others.
                if begin and not (rows.env[:1] == IMPORTED).any():
                    self._note_nondeterminism(
                        f"how many episodes environment {number} had is not known"
                    )
                self._begin_episode(i, self._turns_between(-1, turn))
                continue
            last = mine[-1]
            episode, turns = int(rows.episode[last]), int(rows.turn[last])
            frame = begin + int(last)
            over = rows.truncated[last] or self._replay.read(frame, 1).terminated[0]
            # Turns without a row are lost transitions, each the end of an episode.
            following = int(bool(over)) + self._turns_between(turns, turn)
            if not self._config.is_paced:
                following = 1
            if following or not self._repeat(i, begin + mine, rows, begin):
                self._begin_episode(i, episode + max(1, following))

    def _rows_of_episodes(self) -> int:
        """The first frame that a running episode can have."""
        replay, agent = self._replay, self._agent
        longest = self._config.env.max_frames * agent.count * agent.batch_size
        return max(replay.oldest, replay.frames - longest - agent.batch_size)

    def _turns_between(self, turn: int, end: int) -> int:
        """This interactor's turns after `turn` and before `end`, one of its own."""
        return len(range(end - self._agent.count, turn, -self._agent.count))

    def _repeat(self, i: int, frames: np.ndarray, rows: Origin, begin: int) -> bool:
        """Repeats the stored steps of an environment's running episode.

        Args:
            i: the environment, of this interactor's.
            frames: all its frames.
            rows: where the frames from `begin` come from.
            begin: as above.

        Returns:
            False where they are not all there, or give other observations: what is
            stored then stays as it is, and the run cannot be repeated. True also if
            the process was asked to stop: it then stores nothing more.
        """
        episode = int(rows.episode[frames[-1] - begin])
        frames = frames[rows.episode[frames - begin] == episode]
        steps = rows.step[frames - begin]
        if np.array_equal(steps, np.arange(len(steps))):
            self._begin_episode(i, episode)
            if self._repeats(i, frames):
                self._steps[i] = len(steps)
                return True
        self._note_nondeterminism(
            f"environment {self._numbers[i]} did not repeat its stored steps"
        )
        return False

    def _repeats(self, i: int, frames: np.ndarray) -> bool:
        """Whether an environment gives again what is stored, as far as one asks."""
        for frame in frames:
            if self._stopping():
                return True
            row = self._replay.read(int(frame), 1)
            if not np.array_equal(row.obs[0], self._obs[i].astype(np.float32)):
                return False
            step = self._envs[i].step(row.action[0])
            if step is None or step.over or not _equals(step, row):
                return False
            self._obs[i] = step.obs
        return True

    # -- for others --------------------------------------------------------------------

    def _frames(self) -> int:
        return self._replay.frames


def _equals(step: Step, row: Batch[np.ndarray]) -> bool:
    """Whether a step gave what was stored, bit by bit."""
    return bool(
        np.array_equal(row.next_obs[0], step.obs.astype(np.float32))
        and row.reward[0] == np.float32(step.reward)
        and row.terminated[0] == step.terminated
    )


class VectorStep(NamedTuple):
    """What one step of B environments gave.

    Attributes:
        batch: the transitions, B less those that were lost.
        kept: which environments they are of.
        truncated: 1 for each of them whose episode was truncated and not terminated.
        over: for each environment, whether its episode is over or lost, [B].
        next_obs: the observations that follow; meaningless where it is over, [B, O].
    """

    batch: Batch[np.ndarray]
    kept: np.ndarray
    truncated: np.ndarray
    over: np.ndarray
    next_obs: np.ndarray


def step_all(
    envs: Sequence[SafeEnv | RemoteEnv],
    obs: np.ndarray,
    action: np.ndarray,
    beat: Callable[[], None],
) -> VectorStep:
    """One step of every environment.

    A truncated episode is no termination: `terminated` is the environment's own.
    `next_obs` is the true last observation of an episode, never the first of the next
    one.

    Args:
        envs: B environments.
        obs: their observations, [B, O].
        action: [B, A] in [-1, 1].
        beat: called after each step of an environment, to show life.
    """
    for env, one_action in zip(envs, action, strict=True):
        if isinstance(env, RemoteEnv):
            env.begin_step(one_action)
    taken = []
    for env, one_action in zip(envs, action, strict=True):
        taken.append(env.step(one_action))
        beat()
    kept = np.array([i for i, step in enumerate(taken) if step is not None], int)
    steps = [step for step in taken if step is not None]
    next_obs = np.array(obs)
    for i, step in zip(kept, steps, strict=True):
        next_obs[i] = step.obs
    batch = Batch(
        obs=obs[kept].astype(np.float32),
        action=action[kept],
        reward=np.array([step.reward for step in steps], np.float32),
        next_obs=next_obs[kept].astype(np.float32),
        terminated=np.array([step.terminated for step in steps], np.float32),
    )
    return VectorStep(
        batch=batch,
        kept=kept,
        truncated=np.array(
            [step.truncated and not step.terminated for step in steps], int
        ),
        over=np.array([step is None or step.over for step in taken]),
        next_obs=next_obs,
    )
