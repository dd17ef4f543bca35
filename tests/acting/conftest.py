"""Fixtures of the tests of acting/."""

import pytest
import support_env

from steve.acting import actor
from steve.acting.safe_env import SafeEnv


def ask_on(condition):
    """`wait_until` without its sleeps."""
    while not condition():
        pass


@pytest.fixture(autouse=True)
def _nothing_was_done_yet_and_nobody_sleeps(monkeypatch):
    monkeypatch.setattr(actor, "wait_until", ask_on)
    support_env.steps.clear()
    support_env.finished_scores.clear()


@pytest.fixture
def seeds(monkeypatch):
    """The seeds of all episodes that were begun."""
    begun = []
    reset = SafeEnv.reset
    monkeypatch.setattr(
        SafeEnv, "reset", lambda env, seed: (begun.append(seed), reset(env, seed))[1]
    )
    return begun
