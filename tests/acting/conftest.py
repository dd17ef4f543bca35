"""Fixtures of the tests of acting/."""

import pytest
import support_env

from steve.acting import evaluator


def ask_on(condition):
    """`wait_until` without its sleeps."""
    while not condition():
        pass


@pytest.fixture(autouse=True)
def _nothing_was_done_yet_and_nobody_sleeps(monkeypatch):
    monkeypatch.setattr(evaluator, "wait_until", ask_on)
    support_env.steps.clear()
    support_env.finished_scores.clear()
