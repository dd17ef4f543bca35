"""Runs with evaluators, in one process; what they recorded."""

import time
from concurrent.futures import ThreadPoolExecutor

from support import publish_policy
from support_actors import Script, context_of, new_run
from support_scores import line_of, policy_of

from steve.acting.evaluator import evaluate
from steve.settings.roles import LAUNCHER
from steve.storage.board import FINAL_EPISODES
from steve.storage.scores import CSV_HEADER

LENGTH = 4  # steps of an episode
ACTIONS = [0.5, -0.25, 0.75]  # of three policies
MANY = 100_000  # questions of an evaluator that waits for another one


def evaluating(tmp_path, luck=False, **settings):
    keys = {"final_episodes": settings.pop("final_episodes", 5)}
    keys["evaluator_config"] = {"count": 1} | settings
    return new_run(tmp_path, env={"length": LENGTH, "luck": luck}, **keys)


def run_evaluator(run, board, number=0, stop=None):
    """Runs one evaluator; by default until it waits."""
    stop = stop or Script(on_idle=lambda: True)
    evaluate(context_of(run, board, f"evaluator{number}", stop))


def run_side_by_side(run, board):
    """Runs all evaluators at once, to the end of the run."""
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    numbers = range(run.config.evaluator_config.count)

    def pause():
        time.sleep(0.001)  # one that waits leaves the interpreter to the others

    with ThreadPoolExecutor() as pool:
        running = [
            pool.submit(run_evaluator, run, board, number, Script(pause, limit=MANY))
            for number in numbers
        ]
        for one in running:
            one.result()


def rows_of(csv):
    """(hours, epoch, frames, score) of each recorded episode."""
    lines = csv.read_text().splitlines() if csv.exists() else []
    assert lines[:1] in ([], ["hours,epochs,frames,score"])
    return [tuple(float(part) for part in line.split(",")) for line in lines[1:]]


def epochs_of(csv):
    return [int(row[1]) for row in rows_of(csv)]


def scores_of(csv):
    return [row[3] for row in rows_of(csv)]


def publish_all(run, actions=ACTIONS):
    for epoch, action in enumerate(actions, start=1):
        publish_policy(run.folders.policy, action, epoch, 100 * epoch, epoch / 4)


def publishing(run, actions):
    """An `on_idle` that publishes the next policy; true once there is none left."""
    upcoming = iter(enumerate(actions, start=1))

    def publish_next():
        epoch, action = next(upcoming, (None, None))
        if epoch is None:
            return True
        publish_policy(run.folders.policy, action, epoch, 100 * epoch, epoch / 4)
        return False

    return publish_next


class Killed(BaseException):
    """Ends an evaluator where it stands, as SIGKILL does."""


def csv_of(*epochs):
    return CSV_HEADER + b"".join(line_of(policy_of(epoch), 1.0) for epoch in epochs)
