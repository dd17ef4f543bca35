"""Rows of the scores' csv, and an evaluator that only writes such rows.

The tests start the latter as a process, which imports this module.
"""

from types import SimpleNamespace

from steve.storage.board import Board
from steve.storage.scores import CSV_HEADER, ScoreFile


def policy_of(epoch=1, hours=0.25, frames=1000):
    return SimpleNamespace(epoch=epoch, hours=hours, frames=frames)


def line_of(policy, score):
    return f"{policy.hours:.6f},{policy.epoch},{policy.frames},{score!r}\n".encode()


BEFORE = CSV_HEADER + line_of(policy_of(), 1.0)


def killed_over(row, csv, score, content, final=False):
    """Sets up what an evaluator with one recorded episode leaves when it is killed."""
    row["epoch"], row["episodes"], row["final_episodes"] = 1, 1, 0
    row["pending"], row["phase"] = line_of(policy_of(), score), final
    row["pending_count"] = 1 if final else 2
    row["offset"] = len(BEFORE)
    csv.write_bytes(content)


def record_many(folder, number, count, offset):
    """An evaluator process: `count` rows of 50 to a policy, each score once."""
    board = Board.open(folder / "status.bin")
    scores = ScoreFile(folder / "experiment.greedy.csv", board[f"evaluator{number}"])
    scores.settle()
    for i in range(count):
        scores.record(policy_of(epoch=1 + i // 50), float(offset + i), False)
