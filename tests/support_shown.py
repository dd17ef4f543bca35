"""A run whose files a test fills, for the tests of what is shown of a run."""

import io

import numpy as np
import support_env
from rich.console import Console
from support import make_config, make_run

from steve.replay import Batch, ReplayBuffer
from steve.running import display
from steve.running.display import plain_line, render
from steve.running.progress import Progress
from steve.settings.roles import VALUERL, WORLDMODEL
from steve.storage.board import Board
from steve.storage.tables import append_row
from steve.valuerl_learner import METRIC_NAMES as VALUE_METRICS
from steve.worldmodel import WorldModel

HEADER = "hours,epochs,frames,score\n"


class Clock:
    """Monotonic seconds of the display, which pass when a test says so."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(display.time, "monotonic", lambda: self.now)


class Shown:
    """A run whose files a test fills, and the progress that is read from them."""

    def __init__(self, tmp_path, model, launch=0, **keys):
        self.run = make_run(make_config(tmp_path, model, **keys), launch=launch)
        self.board = Board.create(self.run.folders.board, self.run.config)
        self._replay = ReplayBuffer.create(
            self.run.folders.replay, support_env.OBS_DIM, 1, 10_000_000
        )
        self.progress = Progress(self.run, self.board, self._replay)

    def add_frames(self, count):
        obs = np.zeros((count, support_env.OBS_DIM))
        zeros = np.zeros(count)
        self._replay.append(Batch(obs, zeros[:, None], zeros, obs, zeros))

    def fill(self, learner, metrics, updates_per_s=0.0, **fields):
        """The counters on the board; speed and metrics as a line of its log."""
        row = self.board[learner]
        for field, value in fields.items():
            row[field] = value
        names = {VALUERL: VALUE_METRICS, WORLDMODEL: WorldModel.metric_names}[learner]
        values = dict(zip(names, metrics, strict=False))
        if updates_per_s:
            line = {"updates": fields.get("updates", 0), "updates_per_s": updates_per_s}
            append_row(self.run.folders.learner_log(learner), {**line, **values})

    def add_scores(self, text):
        with open(self.run.folders.scores, "a") as file:
            file.write(text)

    def line(self):
        line = plain_line(self.progress)
        assert "\n" not in line
        return line

    def table(self, width, title="experiment"):
        console = Console(
            record=True, width=width, force_terminal=True, file=io.StringIO()
        )
        console.print(render(self.progress, title))
        text = console.export_text()
        assert max(len(line) for line in text.splitlines()) <= width
        return text


def busy(tmp_path, **keys):
    """A long run of STEVE, in full swing; its numbers are wide."""
    expansion = {"rollout_len": 3, "steve_reweight": True}
    keys["policy_config"] = {"value_expansion": expansion}
    shown = Shown(tmp_path, model=True, **keys)
    shown.add_frames(12_000)
    shown.fill(
        VALUERL,
        [123.456, -7654.321, 9, 0.4567],
        updates=4_000_123,
        epoch=8001,
        hours=12.0,
        updates_per_s=123.45,
    )
    shown.fill(
        WORLDMODEL,
        [9, 0.01234, 1.234e-05, 67.89],
        updates=3_999_876,
        pretrained=10_000,
        epoch=8000,
        updates_per_s=98.76,
    )
    return shown
