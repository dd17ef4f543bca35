"""How far a run is, read from its files: for the terminal and the closing lines."""

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..replay import ReplayBuffer
from ..settings.roles import (
    LAUNCHER,
    VALUERL,
    WORLDMODEL,
    evaluators,
    learners,
    process_names,
)
from ..storage.board import FINAL_EPISODES, Board
from ..storage.folders import Run
from ..storage.scores import LAST_SCORES, Scores
from ..storage.tables import NO_METRICS, LogFollower
from .pace import updates_for

RATE_WINDOW = 30.0  # seconds over which the speeds for "time left" are taken
FRAMES = "frames"  # next to the learners' names, among what is counted
COLLECTING = "collecting the first frames"
PRETRAINING = "pretraining the world model"
LOADING = "loading what was learned"
LEARNING = "learning"

# Sums and regularisers, which say little; the other metrics of a log are shown.
NOT_SHOWN = {"total_loss", "reg_loss", "policy_reg_loss"}
# Shown with no value until the first line of a log is there.
EXPECTED: dict[str, tuple[str, ...]] = {
    VALUERL: ("q_loss", "policy_loss", "model_usage"),
    WORLDMODEL: ("transition_loss", "termination_loss", "reward_loss"),
}


@dataclass(frozen=True)
class Phase:
    """What a run is doing.

    Attributes:
        name: of the phase.
        done, total: how far it is, in `unit`; a total of 0: nothing is counted.
        unit: "frames", "updates" or "episodes".
    """

    name: str
    done: int = 0
    total: int = 0
    unit: str = ""

    def __str__(self) -> str:
        if not self.total:
            return self.name
        return f"{self.name}, {self.done:,} of {self.total:,} {self.unit}"


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
        self._scores = Scores(run.folders.scores)
        self._final = Scores(run.folders.final_scores)
        self._logs = {
            name: LogFollower(run.folders.learner_log(name))
            for name in learners(run.config)
        }
        self._history: deque[tuple[float, Mapping[str, int]]] = deque()  # when, counts
        self._observed: str | None = None  # the phase that the history is of
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
        """How much of the run is done, by the nearer limit; None without a limit.

        A limit of frames counts in updates, pretraining included, of the learners that
        keep a pace; without one in frames.
        """
        if self._board[LAUNCHER]["phase"] == FINAL_EPISODES:
            return 1.0
        shares = []
        if totals := self._totals():
            counts = self._counts()
            done = sum(min(counts[name], total) for name, total in totals.items())
            shares.append(done / max(1, sum(totals.values())))
        if total_hours := self._run.config.total_hours:
            shares.append(min(1.0, self.hours / total_hours))
        return max(shares, default=None)

    def _totals(self) -> dict[str, int]:
        """What a limit of frames asks for, by what is counted; empty without one."""
        config = self._run.config
        if config.total_frames is None:
            return {}
        totals = {
            name: self._pretraining(name) + updates_for(config, settings)
            for name, settings in learners(config).items()
            if settings.frames_per_update is not False
        }
        return totals or {FRAMES: config.total_frames}

    def _counts(self) -> dict[str, int]:
        """How far what is counted is: frames, and updates with pretraining."""
        return {FRAMES: self.frames} | {
            name: int(self._board[name]["updates"] + self._board[name]["pretrained"])
            for name in self._logs
        }

    def _pretraining(self, name: str) -> int:
        """Updates of a learner's pretraining."""
        if name != WORLDMODEL:
            return 0
        return self._run.config.model_section.pretrain_n or 0  # false: none

    @property
    def elapsed(self) -> float:
        """Seconds since this launch."""
        return time.monotonic() - self._started

    @property
    def hours(self) -> float:
        """Hours of learning, over all launches."""
        return float(self._board[VALUERL]["hours"])

    @property
    def phase(self) -> Phase:
        """What the run is doing, and how far that is."""
        config, board = self._run.config, self._board
        if board[LAUNCHER]["phase"] == FINAL_EPISODES:
            total = config.final_episodes * config.evaluator_config.count
            self._final.refresh()
            last = int(board[VALUERL]["epoch"])
            done = sum(epoch == last for epoch, _ in self._final.rows)
            return Phase("final evaluation", done, total, "episodes")
        if self._run.launch and not self.are_ready():
            return Phase(LOADING)
        if board[VALUERL]["epoch"]:
            return Phase(LEARNING)
        starts = [each.frames_before_learning for each in learners(config).values()]
        first = max(starts)
        if self.frames <= first:
            return Phase(COLLECTING, self.frames, first, FRAMES)
        total = self._pretraining(WORLDMODEL) if config.has_model else 0
        if total and not board[WORLDMODEL]["epoch"]:
            done = int(board[WORLDMODEL]["pretrained"])
            if not done:
                return Phase("preparing to pretrain the world model")
            return Phase(PRETRAINING, done, total, "updates")
        return Phase("preparing to learn")

    def are_ready(self) -> bool:
        """Whether each learner's counters are those that it has restored."""
        return all(self._board[name]["ready"] for name in self._logs)

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
        return LearnerProgress(
            name=name,
            updates=int(row["updates"]),
            pretrained=int(row["pretrained"]),
            pretraining=self._pretraining(name),
            updates_per_s=logged.get("updates_per_s", 0.0),
            epoch=int(row["epoch"]),
            metrics=metrics,
        )

    def scores(self) -> list[tuple[int, float]]:
        """(epoch, score) of the last evaluation episodes."""
        self._scores.refresh()
        return self._scores.rows[-LAST_SCORES:]

    @property
    def scores_file(self) -> Path:
        """The table of all scores."""
        return self._run.folders.scores

    def course(self) -> list[float]:
        """The scores of all evaluation episodes of the run, oldest first."""
        self._scores.refresh()
        return [score for _, score in self._scores.rows]

    def random_score(self) -> float | None:
        """Mean score of random actions, measured by each evaluator at the end of a
        run with a limit; None before that."""
        measured = [
            float(self._board[name]["random_score"])
            for name in evaluators(self._run.config)
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
        """Of the run, to the nearer limit, by the speeds of the last half minute.

        None without a limit and outside of learning: before it the learners' speeds
        are not known. The final episodes are not counted.
        """
        if self._observe().name != LEARNING:
            return None
        estimates = []
        counted = [self._seconds_to(*each) for each in self._totals().items()]
        known = [seconds for seconds in counted if seconds is not None]
        if counted and len(known) == len(counted):
            estimates.append(max(known))
        if self._run.config.total_hours is not None:
            estimates.append(max(0.0, self._run.config.total_hours - self.hours) * 3600)
        return min(estimates, default=None)

    def seconds_left_in_phase(self) -> float | None:
        """Of a phase before learning, as above; None where that is not known."""
        phase = self._observe()
        if phase.name == COLLECTING:
            return self._seconds_to(FRAMES, phase.total)
        if phase.name == PRETRAINING:
            return self._seconds_to(WORLDMODEL, phase.total)
        return None

    def _observe(self) -> Phase:
        """The phase; adds the counts of now to those of its last half minute."""
        phase = self.phase
        if phase.name != self._observed:  # another one's speed says nothing of it
            self._history.clear()
            self._observed = phase.name
        if self._run.launch and not self.are_ready():
            return phase  # a learner that restores its counters jumps
        now = time.monotonic()
        self._history.append((now, self._counts()))
        while len(self._history) > 2 and now - self._history[0][0] > RATE_WINDOW:
            self._history.popleft()
        return phase

    def _seconds_to(self, name: str, total: int) -> float | None:
        """Until a count is at its total; None while it does not move."""
        if not self._history:
            return None
        (since, before), (now, counts) = self._history[0], self._history[-1]
        missing, gained = total - counts[name], counts[name] - before[name]
        if missing <= 0:
            return 0.0
        return missing * (now - since) / gained if gained > 0 else None
