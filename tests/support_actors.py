"""Runs for interactors and evaluators, and a `stop` whose answers a test writes."""

import math

import numpy as np
import support_env
from support import make_config, make_run

from steve.replay import ReplayBuffer
from steve.running.child import Context
from steve.settings.roles import learners
from steve.storage.board import Board

REPEATABLE = {"make_kwargs": {"length": 7, "repeatable": True}}
GREEDY = np.float32(np.tanh(np.float32(math.atanh(0.5))))
IDLE = 20  # questions without a step after which a process counts as waiting


class Script:
    """A `stop` whose answers a test writes; asked often, it also is the test's eye.

    Args:
        on_question: called with each question; returns whether to stop.
        on_idle: the same, only once nothing was stepped for `IDLE` questions.
        limit: questions after which the test has failed.
    """

    def __init__(self, on_question=None, on_idle=None, limit=20_000):
        self._on_question = on_question or (lambda: False)
        self._on_idle = on_idle or (lambda: False)
        self._limit = limit
        self._steps = 0
        self._idle = 0
        self.asked = 0
        self.stopped = False

    def __call__(self):
        self.asked += 1
        assert self.asked < self._limit, "it does not end"
        progressed = len(support_env.steps) > self._steps
        self._steps = len(support_env.steps)
        self._idle = 0 if progressed else self._idle + 1
        self.stopped = self.stopped or self._on_question()
        if not self.stopped and self._idle >= IDLE:
            self._idle = 0
            self.stopped = self._on_idle()
        return self.stopped


def new_run(tmp_path, model=False, **keys):
    """A run whose learners are ready and in their first epoch."""
    run = make_run(make_config(tmp_path, model, **keys))
    board = Board.create(run.folders.board, run.config)
    for learner in learners(run.config):
        board[learner]["ready"] = board[learner]["epoch"] = 1
    return run, board


def interacting(tmp_path, model=False, **keys):
    """A run of `new_run` with an empty replay buffer."""
    run, board = new_run(tmp_path, model, **keys)
    return run, board, ReplayBuffer.create(run.folders.replay, 3, 1, 100_000)


def learning(**keys):
    """A value learner's section with an exploration of its own."""
    return {"frames_before_learning": 0, "frames_per_update": False} | keys


def paced(**keys):
    """A value learner's section whose policies are greedy and bound to frames."""
    pace = {"frames_before_learning": 20, "frames_per_update": 1.0}
    return pace | {"epoch_every_n": 10, "explore_chance": 0.0} | keys


def greedy_share(batch):
    """Share of actions that a policy with the action 0.5 took greedily."""
    return float(np.isclose(batch.action[:, 0], GREEDY, atol=1e-6).mean())


def context_of(run, board, name, stop=None, seed=0):
    return Context(run, name, seed, board, stop or Script())
