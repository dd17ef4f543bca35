"""Rows of the scores' csv, and an evaluator that only writes such rows.

The tests start the latter as a process, which imports this module.
"""

from types import SimpleNamespace

from steve.storage.scores import CSV_HEADER, ScoreFile

EPISODES = 50  # rows of a policy


def policy_of(epoch=1, hours=0.25, frames=1000):
    return SimpleNamespace(epoch=epoch, hours=hours, frames=frames)


def line_of(policy, score):
    return f"{policy.hours:.6f},{policy.epoch},{policy.frames},{score!r}\n".encode()


BEFORE = CSV_HEADER + line_of(policy_of(), 1.0)


def rows_before(position):
    """How many rows a file of sorted rows has."""
    return max(0, position.epoch - 1) * EPISODES + position.rows


def record_in_turn(path, number, count, end):
    """An evaluator process: the rows number, number + count, ... below `end`.

    Each row's score is its number in the file. Started again, it continues where the
    file stands.
    """
    scores = ScoreFile(path, EPISODES)
    there = rows_before(scores.position())
    for n in range(number, end, count):
        if n < there:
            continue
        policy = policy_of(epoch=1 + n // EPISODES)
        while not scores.record(policy, float(n), lambda at, n=n: rows_before(at) == n):
            pass
