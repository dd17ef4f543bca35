"""How far a run is, read from its files: for the terminal and the closing lines."""

import math
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from ..replay import ReplayBuffer
from ..settings.roles import LAUNCHER, VALUERL, WORLDMODEL, learners, process_names
from ..storage.board import FINAL_EPISODES, Board
from ..storage.folders import Run
from ..storage.scores import Scores
from ..storage.tables import NO_METRICS, LogFollower

RATE_WINDOW = 30.0  # seconds over which the speed for "time left" is taken

# Sums and regularisers, which say little; the other metrics of a log are shown.
NOT_SHOWN = {"total_loss", "reg_loss", "policy_reg_loss"}
# Shown with no value until the first line of a log is there.
EXPECTED: dict[str, tuple[str, ...]] = {
    VALUERL: ("q_loss", "policy_loss", "model_usage"),
    WORLDMODEL: ("transition_loss", "termination_loss", "reward_loss"),
}


@dataclass(frozen=True)
class LearnerProgress:
    """One learner's counters and the metrics that are shown.

    Attributes:
        pretraining: updates that pretraining takes in all; 0 without it.
        has_logged: whether speed and metrics are known, which its log's lines bring.
    """

    name: str
    updates: int
    pretrained: int
    pretraining: int
    updates_per_s: float
    epoch: int
    metrics: dict[str, float]

    @property
    def has_logged(self) -> bool:
        return self.updates_per_s > 0


class Progress:
    """Everything that is shown, read from the run's files."""

    def __init__(self, run: Run, board: Board, replay: ReplayBuffer) -> None:
        self._run = run
        self._board = board
        self._replay = replay
        self._scores = Scores(run)
        self._logs = {
            name: LogFollower(run.folders.learner_log(name))
            for name in learners(run.config)
        }
        self._history: deque[tuple[float, int]] = deque()  # when, frames
        self._started = time.monotonic()

    @property
    def frames(self) -> int:
        return self._replay.frames

    @property
    def total_frames(self) -> int | None:
        return self._run.config.total_frames

    @property
    def subject(self) -> str:
        """Which algorithm learns what."""
        config = self._run.config
        return f"{config.algorithm} on {config.env.name}"

    @property
    def share(self) -> float | None:
        """How much of the run is done, by the nearer limit; None without a limit."""
        total_hours = self._run.config.total_hours
        shares = [self.frames / self.total_frames] if self.total_frames else []
        shares += [self.hours / total_hours] if total_hours else []
        return min(1.0, max(shares)) if shares else None

    @property
    def elapsed(self) -> float:
        """Seconds since this launch."""
        return time.monotonic() - self._started

    @property
    def hours(self) -> float:
        """Hours of learning, over all launches."""
        return float(self._board[VALUERL]["hours"])

    @property
    def phase(self) -> str:
        if self._board[LAUNCHER]["phase"] == FINAL_EPISODES:
            return "final evaluation"
        if self._board[VALUERL]["epoch"]:
            return "learning"
        config = self._run.config
        starts = [each.frames_before_learning for each in learners(config).values()]
        first = max(starts)
        if self.frames <= first:
            return f"collecting the first {first:,} frames"
        if config.has_model and not self._board[WORLDMODEL]["epoch"]:
            return "pretraining the world model"
        return "preparing to learn"

    def learners(self) -> list[LearnerProgress]:
        return [self._learner(name) for name in learners(self._run.config)]

    def _learner(self, name: str) -> LearnerProgress:
        row, config = self._board[name], self._run.config
        logged = self._logs[name]() or dict.fromkeys(EXPECTED[name], math.nan)
        metrics = {
            key: value
            for key, value in logged.items()
            if key not in NO_METRICS and key not in NOT_SHOWN
        }
        if not config.logs_usage:
            metrics.pop("model_usage", None)  # always 0
        learns_model = name == WORLDMODEL
        return LearnerProgress(
            name=name,
            updates=int(row["updates"]),
            pretrained=int(row["pretrained"]),
            pretraining=config.model_section.pretrain_n if learns_model else 0,
            updates_per_s=logged.get("updates_per_s", 0.0),
            epoch=int(row["epoch"]),
            metrics=metrics,
        )

    def scores(self) -> list[tuple[int, float]]:
        """(epoch, score) of the last evaluation episodes."""
        self._scores.refresh()
        return list(self._scores.rows)

    def random_score(self) -> float | None:
        """Mean score of random actions, measured by each evaluator at the end of a
        run with a limit; None before that."""
        measured = [
            float(self._board[name]["random_score"])
            for name in process_names(self._run.config)
            if name.startswith("evaluator")
        ]
        known = [score for score in measured if not np.isnan(score)]
        return float(np.mean(known)) if known else None

    def dropped(self) -> int:
        """Transitions lost to failing environments, in this launch."""
        return sum(
            int(self._board[name]["dropped"])
            for name in process_names(self._run.config)
        )

    def seconds_left(self) -> float | None:
        """By the speed of the last half minute; None without a limit, or behind it."""
        if self._board[LAUNCHER]["phase"] == FINAL_EPISODES:
            return None
        estimates = []
        now = time.monotonic()
        self._history.append((now, self.frames))
        while len(self._history) > 2 and now - self._history[0][0] > RATE_WINDOW:
            self._history.popleft()
        since, frames = self._history[0]
        if self.total_frames is not None and self.frames > frames:
            missing = max(0, self.total_frames - self.frames)
            estimates.append(missing * (now - since) / (self.frames - frames))
        if self._run.config.total_hours is not None:
            estimates.append(max(0.0, self._run.config.total_hours - self.hours) * 3600)
        return min(estimates, default=None)
