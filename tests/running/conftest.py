"""Fixtures of the tests of running/."""

import pytest
from support_shown import Clock


@pytest.fixture
def seconds(monkeypatch):
    """The clock of the display and of the progress, which a test sets."""
    return Clock(monkeypatch)
