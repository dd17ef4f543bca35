"""Evaluators: run whole episodes with the greedy policy and record their scores.

The policy runs in NumPy. An evaluator never imports TensorFlow: that would cost each
process half a gigabyte, and TensorFlow cannot live in one process with MuJoCo's
renderer.
"""

import math

import numpy as np

from ..running.child import Context
from ..settings.roles import LAUNCHER, Kind, evaluators
from ..settings.seeds import Stream, generator, seed_of
from ..storage.board import FINAL_EPISODES, Wait
from ..storage.scores import Position, ScoreFile
from .actor import Actor
from .policy import Policy, random_actions
from .safe_env import SafeEnv, close_all

# Episodes; then those of the policy, or the final ones, are given up.
LOST_IN_A_ROW = 20
FINAL_ONES = -1  # in place of an epoch on the board: the final episodes are given up


def evaluate(context: Context) -> None:
    """An evaluator's main function: whole episodes with the greedy policy."""
    Evaluator(context).run()


class Evaluator(Actor):
    """Runs episodes of published policies and records their scores.

    Of every `every_n_epochs`-th policy each evaluator runs `episodes_per_policy`
    episodes; at the end of a run with a limit, `final_episodes` of the last one.
    Episode k of a policy is evaluator k mod count's. Where no order is kept
    (`every_n_epochs` false, or `episodes_per_policy` 0: without end), an evaluator
    takes the newest policy each time.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context, Kind.EVALUATOR)
        config = self._config
        self._settings = config.evaluator_config
        self._epochs: dict[int, int] = {}  # of the policies seen, by their updates
        self._envs: list[SafeEnv] = []
        context.ends.callback(self.close)
        for _ in range(self._settings.batch_size):
            env = SafeEnv(config.env, context.name, self._lose, self._note_failure)
            self._envs.append(env)
            self._stopping()
        folders, count = context.run.folders, self._settings.count
        per_policy = self._settings.episodes_per_policy * count
        self._scores = ScoreFile(folders.scores, per_policy)
        self._final = ScoreFile(folders.final_scores, config.final_episodes * count)
        self._lost_in_a_row = 0  # episodes

    def close(self) -> None:
        """Closes the environments."""
        super().close()
        close_all(self._envs)

    def run(self) -> None:
        """Evaluates until asked to stop, or until the final episodes are done."""
        if self._settings.in_order:
            self._evaluate_in_order()
        else:
            self._evaluate_newest()
        if not self._stopping():
            self._evaluate_last()

    # -- policies in their order -------------------------------------------------------

    def _evaluate_in_order(self) -> None:
        """Returns at the end of the run, when all policies are scored, or stopped."""
        self._row["epoch"] = self._scored_before()
        while not self._stopping():
            is_last = self._is_final()  # asked first: then no further policy comes
            policy = self._next_policy()
            if policy is None and is_last:
                return
            if policy is None:
                self._wait(self._has_work, Wait.PACE)
                continue
            position = self._scores.position()
            there = position.rows if position.epoch == policy.epoch else 0
            episodes = self._own(self._settings.episodes_per_policy)
            done = self._run_episodes(policy, episodes, Stream.EVALUATION, there)
            if not done and self._stopping():
                return
            self._row["epoch"] = policy.epoch

    def _scored_before(self) -> int:
        """The last epoch whose own episodes are all in the file."""
        position = self._scores.position()
        last = max(self._own(self._settings.episodes_per_policy))
        return max(0, position.epoch - (last >= position.rows))

    def _own(self, episodes: int) -> list[int]:
        """This evaluator's episodes of a policy."""
        count = self._settings.count
        return list(range(self._number, episodes * count, count))

    def _has_work(self) -> bool:
        return self._is_final() or self._next_policy() is not None

    def _next_policy(self) -> Policy | None:
        """The next policy to be scored; None where it is not there yet."""
        scored = int(self._row["epoch"])
        for updates in self._context.run.folders.policies.numbers():
            epoch = self._epochs.get(updates)
            if epoch is not None and (epoch <= scored or not self._is_chosen(epoch)):
                continue
            policy = self._reader.load(updates)
            if policy is None:
                continue  # removed meanwhile: it has been scored
            self._epochs[updates] = policy.epoch
            if self._is_chosen(policy.epoch) and policy.epoch > scored:
                return policy
        return None

    def _is_chosen(self, epoch: int) -> bool:
        return (epoch - 1) % int(self._settings.every_n_epochs) == 0

    def _is_next(self, position: Position, policy: Policy, episode: int) -> bool:
        """Whether a row comes next in the file of scores."""
        given_up = self._given_up()
        if policy.epoch <= given_up:
            return True
        if position.epoch == policy.epoch:
            return position.rows == episode
        if given_up and min(self._of_all("epoch")) < given_up:
            return False  # others may have rows of that policy
        wanted = self._settings.episodes_per_policy * self._settings.count
        # Rows of a policy that is gone, in a run of version 1.0, or no longer chosen
        # stay as they are.
        there = position.epoch in self._epochs.values()
        there = there and self._is_chosen(position.epoch)
        complete = position.rows >= wanted or not there or position.epoch <= given_up
        return episode == 0 and position.epoch < policy.epoch and complete

    # -- the newest policy, where no order is kept -------------------------------------

    def _evaluate_newest(self) -> None:
        """Returns at the end of the run, or when asked to stop."""
        while not (self._stopping() or self._is_final()):
            policy = self._reader.refresh()
            episodes = self._missing(policy)
            if policy is None or not episodes:
                self._wait(lambda: self._is_final() or self._news(), Wait.PACE)
                continue
            done = int(self._row["episodes"]) + len(episodes)
            if not self._run_episodes(policy, episodes, Stream.EVALUATION):
                self._row["episodes"] = done  # given up, or the process ends

    def _news(self) -> bool:
        return bool(self._missing(self._reader.refresh()))

    def _missing(self, policy: Policy | None) -> list[int]:
        """This evaluator's next episodes of the newest policy."""
        if policy is None:
            return []
        if self._row["epoch"] != policy.epoch:
            self._row["episodes"] = 0
            self._row["epoch"] = policy.epoch
        done, count = int(self._row["episodes"]), self._settings.count
        wanted = self._settings.episodes_per_policy or done + len(self._envs)
        return [self._number + n * count for n in range(done, wanted)]

    # -- the end of the run ------------------------------------------------------------

    def _evaluate_last(self) -> None:
        """The final episodes of the last policy, and the score of random actions."""
        policy, episodes = self._reader.refresh(), self._config.final_episodes
        if policy is not None:
            position = self._final.position()
            done = position.rows if position.epoch == policy.epoch else 0
            own = self._own(episodes)
            if not self._run_episodes(policy, own, Stream.FINAL_EPISODE, done):
                return
        self._row["random_score"] = self._random_score()

    def _may_end_file(self, position: Position, policy: Policy, episode: int) -> bool:
        """Whether a row comes next in the file of final scores."""
        if min(self._of_all("gave_up")) == FINAL_ONES:
            return True
        done = position.rows if position.epoch == policy.epoch else 0
        return episode == done

    def _given_up(self) -> float:
        """The last epoch of whose policy a row may never come; 0: there is none."""
        epochs = self._of_all("gave_up")
        return math.inf if FINAL_ONES in epochs else max(epochs)

    def _of_all(self, field: str) -> list[int]:
        """What all evaluators have in a field of the board."""
        board = self._context.board
        return [int(board[name][field]) for name in evaluators(self._config)]

    def _random_score(self) -> float:
        """Mean score of `final_episodes` episodes with uniformly random actions.

        NaN where the run has no final episodes, or was stopped meanwhile. The mean is
        of fewer where more than LOST_IN_A_ROW episodes are lost.
        """
        seed, env = self._config.seed, self._envs[0]
        scores: list[float] = []
        for k in range(self._config.final_episodes + LOST_IN_A_ROW):
            if len(scores) == self._config.final_episodes:
                break
            stream = Stream.RANDOM_SCORE, self._number, k
            env.reset(seed_of(seed, *stream))
            rng = generator(seed, *stream)
            score, step = 0.0, None
            while step is None or not step.over:
                if self._stopping():
                    return math.nan
                action = random_actions(1, self._context.run.action_dim, rng)
                step = env.step(action[0])
                if step is None:
                    break
                score += step.reward
            else:
                scores.append(score)
        return float(np.mean(scores)) if scores else math.nan

    # -- episodes ----------------------------------------------------------------------

    def _run_episodes(
        self, policy: Policy, episodes: list[int], stream: Stream, done: int = 0
    ) -> bool:
        """Runs episodes, as many side by side as there are environments.

        The first `done` of a policy have their rows already. One of them is run again
        next to others that have none: the last digits of an action depend on how many
        observations the policy gets together.

        Returns:
            False where the process was asked to stop, or where episodes are given up.
        """
        size = len(self._envs)
        for first in range(0, len(episodes), size):
            part = episodes[first : first + size]
            if part[-1] < done:
                continue
            scores = self._scores_of(policy, part, stream)
            if scores is None:
                return False
            for episode, score in zip(part, scores, strict=True):
                if episode < done:
                    continue
                if not self._record(policy, episode, score, stream):
                    return False
        return True

    def _record(
        self, policy: Policy, episode: int, score: float, stream: Stream
    ) -> bool:
        """Writes a row when it is its turn; False: stopped before that."""
        if stream is Stream.FINAL_EPISODE:
            file, is_next = self._final, self._may_end_file
        else:
            file, is_next = self._scores, self._is_next
            if not self._settings.in_order:
                # First: a kill in between loses a row, but never doubles one.
                self._row["episodes"] += 1
                self._context.store(
                    lambda: self._context.board.keep(self._context.name)
                )
                is_next = lambda *_: True  # noqa: E731

        def written() -> bool:
            return self._context.store(
                lambda: file.record(
                    policy, score, lambda at: is_next(at, policy, episode)
                )
            )

        return self._wait(written, Wait.TURN)

    def _scores_of(
        self, policy: Policy, episodes: list[int], stream: Stream
    ) -> list[float] | None:
        """The scores of episodes that are run side by side.

        None where the process was asked to stop, or where episodes are given up.

        An episode with a lost transition has no score: it is run again, with another
        seed.
        """
        attempts = dict.fromkeys(episodes, 0)
        scores = dict.fromkeys(episodes, 0.0)
        obs: dict[int, np.ndarray] = {}
        env_of = dict(zip(episodes, self._envs, strict=False))

        def begin(episode: int) -> None:
            counters = policy.updates, episode, attempts[episode]
            obs[episode] = env_of[episode].reset(
                seed_of(self._config.seed, stream, *counters)
            )
            scores[episode] = 0.0
            self._beat()

        for episode in episodes:
            begin(episode)
        running = list(episodes)
        while running:
            if self._stopping():
                return None
            actions = policy.greedy(np.stack([obs[episode] for episode in running]))
            for episode, action in zip(list(running), actions, strict=True):
                step = env_of[episode].step(action)
                self._beat()
                if step is None:
                    if self._gives_up(policy, stream):
                        return None
                    attempts[episode] += 1
                    begin(episode)
                    continue
                obs[episode] = step.obs
                scores[episode] += step.reward
                if step.over:
                    running.remove(episode)
                    self._lost_in_a_row = 0
        return list(scores.values())

    def _gives_up(self, policy: Policy, stream: Stream) -> bool:
        """Counts a lost episode; True where there were too many in a row."""
        self._lost_in_a_row += 1
        if self._lost_in_a_row < LOST_IN_A_ROW:
            return False
        self._lost_in_a_row = 0
        is_final = stream is Stream.FINAL_EPISODE
        self._row["gave_up"] = FINAL_ONES if is_final else policy.epoch
        print(
            "episodes have no score and are given up: transitions were lost in each of "
            f"{LOST_IN_A_ROW}",
            flush=True,
        )
        self._note_nondeterminism("rows of scores are missing")
        return True

    # -- for others --------------------------------------------------------------------

    def _frames(self) -> int:
        policy = self._reader.policy
        return policy.frames if policy else 0

    def _is_final(self) -> bool:
        return int(self._context.board[LAUNCHER]["phase"]) == FINAL_EPISODES
