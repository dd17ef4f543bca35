"""What the terminal shows of a run: a table in place, or plain lines in a file."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from experiment import Run
from replay import ReplayBuffer
from status import (
    FINAL_EPISODES,
    LAUNCHER,
    VALUERL,
    WORLDMODEL,
    Board,
    process_names,
)
from util import Follower

REFRESH = 0.5  # seconds, in place
LINE_EVERY = 10.0  # seconds, as plain lines
RATE_WINDOW = 30.0  # seconds over which the speed for "time left" is taken
LAST_SCORES = 10

# Shown metrics by position on the status board (the learners' `metric_names`).
SHOWN = {
    VALUERL: {"q_loss": 0, "policy_loss": 1, "model_usage": 3},
    WORLDMODEL: {"transition_loss": 1, "termination_loss": 2, "reward_loss": 3},
}


class Scores:
    """Follows the scores' csv as it grows."""

    def __init__(self, run: Run) -> None:
        self._lines = Follower(run.folders.scores)
        self.rows: deque[tuple[int, float]] = deque(maxlen=LAST_SCORES)  # epoch, score

    def refresh(self) -> None:
        """Reads the complete rows that were added since the last time."""
        for line in self._lines():
            _, epoch, _, score = line.split(",")
            if epoch != "epochs":
                self.rows.append((int(epoch), float(score)))


@dataclass(frozen=True)
class LearnerProgress:
    """One learner's counters and the metrics that are shown."""

    name: str
    updates: int
    pretrained: int
    updates_per_s: float
    epoch: int
    metrics: dict[str, float]


class Progress:
    """Everything that is shown, read from the run's files."""

    def __init__(self, run: Run, board: Board, replay: ReplayBuffer) -> None:
        self._run = run
        self._board = board
        self._replay = replay
        self._scores = Scores(run)
        self._history: deque[tuple[float, int]] = deque()  # when, frames
        self._started = time.monotonic()

    @property
    def frames(self) -> int:
        return self._replay.frames

    @property
    def total_frames(self) -> int | None:
        return self._run.config.total_frames

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
        first = config.policy_config.frames_before_learning
        if config.world_model_config is not None:
            first = max(first, config.world_model_config.frames_before_learning)
        if self.frames <= first:
            return f"collecting the first {first:,} frames"
        if config.has_model and not self._board[WORLDMODEL]["epoch"]:
            return "pretraining the world model"
        return "preparing to learn"

    def learners(self) -> list[LearnerProgress]:
        names = [VALUERL, WORLDMODEL] if self._run.config.has_model else [VALUERL]
        return [self._learner(name) for name in names]

    def _learner(self, name: str) -> LearnerProgress:
        row = self._board[name]
        return LearnerProgress(
            name=name,
            updates=int(row["updates"]),
            pretrained=int(row["pretrained"]),
            updates_per_s=float(row["updates_per_s"]),
            epoch=int(row["epoch"]),
            metrics={key: float(row["metrics"][i]) for key, i in SHOWN[name].items()},
        )

    def scores(self) -> list[tuple[int, float]]:
        """(epoch, score) of the last evaluation episodes."""
        self._scores.refresh()
        return list(self._scores.rows)

    def random_score(self) -> float | None:
        """Mean score of random actions, measured at the end of a run with a limit."""
        if not self._run.config.evaluator_config.count:
            return None
        score = float(self._board["evaluator0"]["random_score"])
        return None if np.isnan(score) else score

    def dropped(self) -> int:
        """Transitions lost to failing environments, in this launch."""
        return sum(
            int(self._board[name]["dropped"])
            for name in process_names(self._run.config)
        )

    def seconds_left(self) -> float | None:
        """By the speed of the last half minute; None without a limit."""
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


def clock(seconds: float | None) -> str:
    """h:mm:ss; "-" for None."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def frames_text(progress: Progress) -> str:
    total = progress.total_frames
    return f"{progress.frames:,}" + (f" of {total:,}" if total else "")


def plain_line(progress: Progress) -> str:
    """One line for a log file."""
    parts = [clock(progress.elapsed), progress.phase, f"frames {frames_text(progress)}"]
    for learner in progress.learners():
        count = f"{learner.updates:,}"
        if learner.pretrained and not learner.updates:
            count = f"pretraining {learner.pretrained:,}"
        metrics = " ".join(f"{k} {v:.4g}" for k, v in learner.metrics.items())
        speed = f"({learner.updates_per_s:.1f}/s)"
        parts.append(f"{learner.name} {count} updates {speed} {metrics}")
    scores = progress.scores()
    if scores:
        parts.append(
            f"last scores {' '.join(f'{score:.1f}' for _, score in scores[-4:])}"
        )
    if progress.dropped():
        parts.append(f"dropped {progress.dropped()} transitions")
    left = progress.seconds_left()
    if left is not None:
        parts.append(f"left {clock(left)}")
    return " | ".join(parts)


def render(progress: Progress, title: str) -> Group:
    """The table that is refreshed in place."""
    head = Text(
        f"{title}  {progress.phase}  frames {frames_text(progress)}  "
        f"elapsed {clock(progress.elapsed)}  left {clock(progress.seconds_left())}"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("learner")
    for column in ("updates", "per second", "epoch"):
        table.add_column(column, justify="right")
    table.add_column("mean over the last log interval", overflow="fold")
    for learner in progress.learners():
        pretrained = f" (+{learner.pretrained:,})" if learner.pretrained else ""
        table.add_row(
            learner.name,
            f"{learner.updates:,}{pretrained}",
            f"{learner.updates_per_s:.1f}",
            str(learner.epoch),
            "  ".join(f"{name} {value:.4g}" for name, value in learner.metrics.items()),
        )
    scores = progress.scores()
    shown = "  ".join(f"{score:.1f}" for _, score in scores) if scores else "none yet"
    epoch = f" (policy of epoch {scores[-1][0]} last)" if scores else ""
    lines = [Text(f"scores{epoch}  {shown}")]
    if progress.dropped():
        lines.append(Text(f"dropped {progress.dropped()} transitions (log/processes)"))
    return Group(head, table, *lines)


class Display:
    """Shows progress and notes; in place on a terminal, else as lines."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._live: Live | None = None
        self._shown_at = -float("inf")

    def note(self, line: str) -> None:
        """A line that stays."""
        with self._while_it_is_read():
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def show(self, progress: Progress, last: bool = False) -> None:
        """Brings the display up to date, if it is time to."""
        now = time.monotonic()
        interval = REFRESH if self._console.is_terminal else LINE_EVERY
        if now - self._shown_at < interval and not last:
            return
        self._shown_at = now
        if not self._console.is_terminal:
            self.note(plain_line(progress))
            return
        with self._while_it_is_read():
            if self._live is None:
                self._live = Live(console=self._console, auto_refresh=False)
                self._live.start()
            self._live.update(render(progress, self._title), refresh=True)

    def close(self) -> None:
        """Leaves the last state on the screen."""
        if self._live is not None:
            with self._while_it_is_read():
                self._live.stop()
            self._live = None

    @contextmanager
    def _while_it_is_read(self) -> Iterator[None]:
        """A terminal or pipe that is gone, or a full disk, must not end the run."""
        try:
            yield
        except (OSError, SystemExit):  # rich exits on a broken pipe
            self._console.quiet = True
