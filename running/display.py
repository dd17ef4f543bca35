"""What the terminal shows of a run: a table in place, or plain lines in a file."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, zip_longest

from rich.columns import Columns
from rich.console import (
    Console,
    ConsoleOptions,
    Group,
    RenderableType,
    RenderResult,
)
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..settings.roles import VALUERL, WORLDMODEL
from ..storage.scores import LAST_SCORES
from ..util import clock
from .progress import LOADING, LearnerProgress, Progress

REFRESH = 0.5  # seconds, in place
LINE_EVERY = 10.0  # seconds, as plain lines
SCORES_IN_A_ROW = 5
BLOCKS = "▁▂▃▄▅▆▇█"
BAR, NAME_WIDTH, NUMBER_WIDTH = 48, 18, 10  # columns; all fits into 80
CALLED: dict[str, str] = {VALUERL: "value learner", WORLDMODEL: "world model"}


def frames_text(progress: Progress) -> str:
    total = progress.total_frames
    return f"{progress.frames:,}" + (f" of {total:,}" if total else "")


def plain_line(progress: Progress) -> str:
    """One line for a log file."""
    parts = [
        clock(progress.elapsed),
        str(progress.phase),
        f"frames {frames_text(progress)}",
    ]
    is_loading = progress.phase.name == LOADING  # their counters are not theirs yet
    for learner in [] if is_loading else progress.learners():
        text = f"{learner.name} {learner.updates:,} updates"
        if learner.pretrained and not learner.updates:
            text = f"{learner.name} pretraining {learner.pretrained:,} updates"
        if learner.has_logged:
            metrics = " ".join(f"{k} {v:.4g}" for k, v in learner.metrics.items())
            text += f" ({learner.updates_per_s:.1f}/s) {metrics}"
        parts.append(text)
    scores = progress.scores()
    if scores:
        parts.append(
            f"last scores {' '.join(f'{score:.1f}' for _, score in scores[-4:])}"
        )
    if progress.dropped():
        parts.append(f"lost {progress.dropped()} transitions")
    if left := time_left(progress):
        parts.append("left {}{}".format(*left))
    return " | ".join(parts)


def time_left(progress: Progress) -> tuple[str, str] | None:
    """How long the run takes yet, and of what that is told; None: not known.

    Before learning it is told of the phase only.
    """
    if (left := progress.seconds_left()) is not None:
        return clock(left), ""
    if (left := progress.seconds_left_in_phase()) is not None:
        return clock(left), " in this phase"
    return None


def render(progress: Progress, title: str) -> Group:
    """The table that is refreshed in place; all that grows is at its end."""
    head = Text(f"{title}: {progress.subject}", "bold", no_wrap=True)
    return Group(
        head,
        _whole_run(progress),
        "",
        _learners(progress.learners()),
        Text("losses and speeds: from the newest line of each log", "dim"),
        "",
        *_scores(progress.scores()),
        Course(progress.course()),
        *_dropped(progress.dropped()),
    )


def _whole_run(progress: Progress) -> Table:
    """What is happening, how far it is, and how long it takes."""
    table = Table.grid(padding=(0, 2))
    table.add_row("phase", str(progress.phase))
    table.add_row("frames", frames_text(progress))
    left = time_left(progress)
    ahead = ", about {} left{}".format(*left) if left else ""
    table.add_row("time", f"{clock(progress.elapsed)} elapsed{ahead} (h:mm:ss)")
    if progress.share is not None:
        bar = ProgressBar(
            1.0,
            progress.share,
            width=BAR,
            complete_style="green",
            finished_style="green",
        )
        table.add_row("done", Columns([Text(f"{progress.share:4.0%}"), bar]))
    return table


def _learners(learners: list[LearnerProgress]) -> Table:
    """The learners side by side, their metrics as means since the last line logged."""
    table = Table.grid(padding=(0, 2))
    blocks: list[list[tuple[Text, str]]] = []
    for learner in learners:
        table.add_column(min_width=NAME_WIDTH)
        table.add_column(min_width=NUMBER_WIDTH, justify="right")
        table.add_column()  # room between the blocks
        blocks.append([(Text(CALLED[learner.name], "bold"), ""), *_numbers(learner)])
    for cells in zip_longest(*blocks, fillvalue=(Text(), "")):
        row: list[Text | str] = []
        for name, number in cells:
            row += [name, number, ""]
        table.add_row(*row)
    return table


def _numbers(learner: LearnerProgress) -> Iterator[tuple[Text, str]]:
    """Names, in which brackets are no markup, and what stands behind them."""
    yield Text("updates"), f"{learner.updates:,}"
    logged = learner.has_logged
    yield Text("updates per second"), f"{learner.updates_per_s:.1f}" if logged else "-"
    yield Text("epoch"), f"{learner.epoch:,}"
    for name, value in learner.metrics.items():
        yield Text(name), f"{value:.4g}" if logged else "-"
    if learner.pretraining:
        done = f"{learner.pretrained:,} of {learner.pretraining:,}"
        yield Text("pretraining"), done


def _scores(scores: list[tuple[int, float]]) -> Iterator[RenderableType]:
    """The last scores, oldest first, and their mean."""
    if not scores:
        yield "no score yet: no evaluation episode has ended"
        return
    mean = sum(score for _, score in scores) / len(scores)
    yield Text.assemble(
        (f"mean score {mean:.1f}", "bold"),
        f" of the last {len(scores)} episodes (sums of rewards, newest last):",
    )
    table = Table.grid(padding=(0, 2))
    for _ in range(SCORES_IN_A_ROW):
        table.add_column(justify="right")
    shown = [f"{score:.1f}" for _, score in scores]
    for start in range(0, len(shown), SCORES_IN_A_ROW):
        table.add_row(*shown[start : start + SCORES_IN_A_ROW])
    yield table


@dataclass(frozen=True)
class Course:
    """The course of all scores as one line of blocks, as long as there is room.

    Each block is the mean of some scores that follow each other. Nothing is shown where
    the last scores are all that there are, nor where the output has no such characters.
    """

    scores: list[float]

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> RenderResult:
        if len(self.scores) <= LAST_SCORES or options.ascii_only:
            return
        low, high = min(self.scores), max(self.scores)
        ends = f"all {len(self.scores):,}  ", f"  {low:.1f} to {high:.1f}"
        room = options.max_width - sum(map(len, ends))
        if room >= LAST_SCORES:
            yield Text(blocks(self.scores, room).join(ends), no_wrap=True)


def blocks(values: Sequence[float], most: int) -> str:
    """Means of parts of values; the lowest block is the minimum, the highest the
    maximum.

    Args:
        values: at least one.
        most: the number of parts, where there are as many values.
    """
    count = min(most, len(values))
    edges = [len(values) * part // count for part in range(count + 1)]
    low, span = min(values), max(values) - min(values)
    shares = [
        (sum(values[a:b]) / (b - a) - low) / span if span else 0.0
        for a, b in pairwise(edges)
    ]
    return "".join(BLOCKS[round(share * (len(BLOCKS) - 1))] for share in shares)


def _dropped(count: int) -> Iterator[Text]:
    if count:
        yield Text(f"{count} transitions lost to the environment: see log/processes")


def closing_lines(progress: Progress, finished: bool) -> list[str]:
    """What came out of a run, behind an empty line."""
    ending = "finished" if finished else "stopped"
    took = clock(progress.elapsed)
    lines = ["", f"{ending} after {progress.frames:,} frames; this launch took {took}"]
    for learner in progress.learners():
        if finished and not learner.updates:
            lines.append(f"{learner.name} did no update before the limit was reached")
    scores = [score for _, score in progress.scores()]
    if scores:
        mean = sum(scores) / len(scores)
        lines.append(f"score of the last {len(scores)} evaluation episodes: {mean:.1f}")
    elif finished and (lost := progress.dropped()):
        lines.append(
            f"no episode has a score: {lost:,} transitions were lost to the "
            "environment, see log/processes"
        )
    random = progress.random_score()
    if random is not None:
        lines.append(f"score of random actions: {random:.1f}")
    if scores:
        lines.append(f"all scores: {progress.scores_file}")
    return lines


class Display:
    """Shows progress and notes; in place on a terminal, else as lines.

    A terminal that cannot move its cursor (TERM=dumb) gets lines as well.
    """

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._in_place = console.is_terminal and not console.is_dumb_terminal
        self._title = title
        self._live: Live | None = None
        self._shown_at = -float("inf")

    def note(self, line: str) -> None:
        """A line that stays."""
        with self._while_it_is_read():
            if self._in_place:
                self._console.print(
                    line, highlight=False, markup=False, emoji=False, soft_wrap=True
                )
            elif not self._console.quiet:
                # Not by rich, which repeats all that a full disk has refused.
                self._console.file.write(f"{line}\n")
                self._console.file.flush()

    def show(self, progress: Progress, last: bool = False) -> None:
        """Brings the display up to date, if it is time to."""
        now = time.monotonic()
        interval = REFRESH if self._in_place else LINE_EVERY
        if now - self._shown_at < interval and not last:
            return
        self._shown_at = now
        if not self._in_place:
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
        """Nothing that happens to the output ends the run.

        A pipe that nobody reads gets no more. A full disk may lose lines; the next
        one is tried again.
        """
        try:
            yield
        except (BrokenPipeError, SystemExit):  # rich exits on a broken pipe
            self._console.quiet = True
        except OSError:
            pass
