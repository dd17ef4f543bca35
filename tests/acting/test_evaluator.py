"""Evaluators: episodes of each policy in order, also after a kill; their seeds."""

from contextlib import suppress

import numpy as np
import pytest
import support_env
from support import TELLING, publish_policy, told, waits_of
from support_actors import IDLE, Script, new_run
from support_evaluators import (
    ACTIONS,
    LENGTH,
    Killed,
    epochs_of,
    evaluating,
    publish_all,
    publishing,
    rows_of,
    run_evaluator,
    run_side_by_side,
    scores_of,
)
from support_scores import line_of, policy_of

from steve.acting import safe_env
from steve.acting.evaluator import Evaluator
from steve.acting.policy import Policy
from steve.envwrap import make_env
from steve.settings.roles import LAUNCHER
from steve.settings.seeds import Stream, seed_of
from steve.storage import checkpoint
from steve.storage.board import FINAL_EPISODES, Wait
from steve.storage.published import Published
from steve.storage.record import read_run
from steve.storage.scores import CSV_HEADER, ScoreFile

# Policies in their order


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("episodes", [1, 3])
def test_each_policy_gets_its_episodes_then_a_newer_one_is_awaited(
    tmp_path, episodes, batch_size
):
    run, board = evaluating(
        tmp_path, episodes_per_policy=episodes, batch_size=batch_size
    )
    run_evaluator(run, board, stop=Script(on_idle=publishing(run, ACTIONS)))
    rows = rows_of(run.folders.scores)
    assert len(rows) == 3 * episodes
    for i, (hours, epoch, frames, score) in enumerate(rows):
        expected = i // episodes + 1
        assert (hours, epoch, frames) == (expected / 4, expected, 100 * expected)
        # The reward is the action, the same in each of the 4 steps.
        assert score == pytest.approx(LENGTH * ACTIONS[expected - 1], abs=1e-5)
    assert len(support_env.steps) == LENGTH * len(rows)
    assert board["evaluator0"]["heartbeat"] > 0
    assert board["evaluator0"]["epoch"] == 3


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("episodes", [1, 3])
def test_policies_that_are_published_at_once_are_all_scored_in_their_order(
    tmp_path, episodes, batch_size
):
    run, board = evaluating(
        tmp_path, episodes_per_policy=episodes, batch_size=batch_size
    )
    # Also 1000 updates come after 500, and 10,000 after 9500.
    actions = np.linspace(-0.5, 0.5, 22)
    publish_all(run, actions)
    run_evaluator(run, board)
    assert epochs_of(run.folders.scores) == list(np.repeat(range(1, 23), episodes))
    expected = LENGTH * np.repeat(actions, episodes)
    np.testing.assert_allclose(scores_of(run.folders.scores), expected, atol=1e-5)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize(("every", "epochs"), [(1, 7), (2, 4), (3, 3), (7, 1)])
def test_of_every_n_policies_the_first_is_scored(tmp_path, every, epochs, at_once):
    run, board = evaluating(tmp_path, every_n_epochs=every, episodes_per_policy=2)
    actions = [0.1 * epoch for epoch in range(1, 8)]
    if at_once:
        publish_all(run, actions)
        run_evaluator(run, board)
    else:
        run_evaluator(run, board, stop=Script(on_idle=publishing(run, actions)))
    chosen = list(range(1, 8, every))
    assert len(chosen) == epochs
    assert epochs_of(run.folders.scores) == list(np.repeat(chosen, 2))
    assert board["evaluator0"]["epoch"] == chosen[-1]


def test_a_policy_that_is_not_chosen_is_read_once(tmp_path, monkeypatch):
    run, board = evaluating(tmp_path, every_n_epochs=5)
    publish_all(run, [0.1, 0.2, 0.3, 0.4, 0.5])
    load, read = checkpoint.load, []
    monkeypatch.setattr(
        checkpoint, "load", lambda path: (read.append(path.name), load(path))[1]
    )
    run_evaluator(run, board)  # asks many times whether the sixth is there
    assert epochs_of(run.folders.scores) == [1]
    assert len(read) == len(set(read)) == 5


def test_a_policy_that_is_removed_while_it_is_looked_for_is_passed_over(
    tmp_path, monkeypatch
):
    run, board = evaluating(tmp_path)
    publish_all(run)
    run.folders.policies.path(500).unlink()
    monkeypatch.setattr(Published, "numbers", lambda policies: [0, 500, 1000])
    run_evaluator(run, board)
    assert epochs_of(run.folders.scores) == [1, 3]


def test_policies_are_scored_that_come_just_before_the_end(tmp_path, monkeypatch):
    run, board = evaluating(tmp_path, final_episodes=1)
    find = Evaluator._next_policy

    def find_before_the_end(evaluator):
        policy = find(evaluator)
        if policy is None and board[LAUNCHER]["phase"] != FINAL_EPISODES:
            publish_all(run)
            board[LAUNCHER]["phase"] = FINAL_EPISODES
        return policy

    monkeypatch.setattr(Evaluator, "_next_policy", find_before_the_end)
    run_evaluator(run, board, stop=Script())
    assert epochs_of(run.folders.scores) == [1, 2, 3]
    assert epochs_of(run.folders.final_scores) == [3]


def test_nothing_is_recorded_before_the_first_policy(tmp_path):
    run, board = evaluating(tmp_path)
    stop = Script(on_idle=lambda: True)
    run_evaluator(run, board, stop=stop)
    assert stop.asked >= IDLE
    assert not run.folders.scores.exists()
    assert support_env.steps == []


def test_side_by_side_each_environment_runs_whole_episodes(tmp_path, monkeypatch):
    run, board = evaluating(tmp_path, episodes_per_policy=3, batch_size=3)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    lengths = iter((2, 6, 4))

    def make_next(env):
        return make_env(
            env.model_copy(update={"make_kwargs": {"length": next(lengths)}})
        )

    monkeypatch.setattr(safe_env, "make_env", make_next)
    run_evaluator(run, board)
    # The shortest is over first; the others continue. The rows keep the order.
    np.testing.assert_allclose(scores_of(run.folders.scores), [1, 3, 2], atol=1e-5)
    assert len(support_env.steps) == 2 + 4 + 6


def test_each_environment_gets_the_action_for_what_it_shows_now(tmp_path):
    """Not for zeros, for another environment, or for the step before."""
    run, board = evaluating(tmp_path, episodes_per_policy=3, batch_size=3)
    publish_policy(run.folders.policy, 0.0, weights=TELLING)
    run_evaluator(run, board)
    seen = {number: episode for number, episode, _ in support_env.steps}
    expected = [
        told([[number, episode, step] for step in range(LENGTH)]).sum()
        for number, episode in seen.items()
    ]
    assert len(set(expected)) == 3
    np.testing.assert_allclose(scores_of(run.folders.scores), expected, atol=1e-5)


@pytest.mark.parametrize("ending", ["termination", "truncation", "both"])
def test_a_cut_ends_an_episode_as_a_termination_does(tmp_path, ending):
    env = {"length": LENGTH, "ending": ending}
    run, board = new_run(tmp_path, env=env, evaluator_config={"count": 1})
    publish_policy(run.folders.policy, 0.5, epoch=1)
    run_evaluator(run, board)
    assert scores_of(run.folders.scores) == pytest.approx([2.0], abs=1e-5)


def test_a_score_is_the_plain_sum_of_rewards(tmp_path):
    env = {"length": LENGTH, "reward_scale": 10.0}
    run, board = new_run(tmp_path, env=env, evaluator_config={"count": 1})
    publish_policy(run.folders.policy, 0.5, epoch=1)
    run_evaluator(run, board)
    assert scores_of(run.folders.scores) == pytest.approx([2.0], abs=1e-5)


def test_an_episode_that_is_interrupted_is_not_recorded(tmp_path):
    run, board = evaluating(tmp_path)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    stop = Script(on_question=lambda: len(support_env.steps) == 2)
    run_evaluator(run, board, stop=stop)
    assert len(support_env.steps) == 2
    assert rows_of(run.folders.scores) == []


# Several evaluators


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(("count", "episodes"), [(1, 6), (2, 3), (3, 2), (6, 1)])
def test_the_files_are_the_same_however_many_evaluators_share_the_work(
    tmp_path, count, episodes, batch_size
):
    contents = []
    for number, keys in enumerate(
        (
            {"episodes_per_policy": 6, "final_episodes": 6},
            {
                "count": count,
                "batch_size": batch_size,
                "episodes_per_policy": episodes,
                "final_episodes": episodes,
            },
        )
    ):
        run, board = evaluating(tmp_path / str(number), luck=True, **keys)
        publish_all(run)
        run_side_by_side(run, board)
        files = run.folders.scores, run.folders.final_scores
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1]
    assert epochs_of(run.folders.scores) == [1] * 6 + [2] * 6 + [3] * 6
    assert epochs_of(run.folders.final_scores) == [3] * 6
    assert len(set(scores_of(run.folders.scores))) == 18, "the seeds differ"


@pytest.mark.parametrize("number", range(3))
def test_episode_k_of_a_policy_is_evaluator_k_mod_counts(tmp_path, number, seeds):
    run, board = evaluating(tmp_path, count=3, episodes_per_policy=2, batch_size=2)
    publish_policy(run.folders.policy, 0.5, epoch=4)
    run_evaluator(run, board, number)
    own = number, number + 3
    key = run.config.seed, Stream.EVALUATION, 1500
    assert seeds == [seed_of(*key, k, 0) for k in own]


def test_an_evaluator_waits_for_its_turn_within_a_policy(tmp_path):
    run, board = evaluating(tmp_path, count=2, episodes_per_policy=2)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    csv, others = run.folders.scores, iter([7.0, 8.0])
    files = []

    def record_the_others():
        files.append(np.round(scores_of(csv), 5).tolist())
        score = next(others, None)
        if score is not None:
            ScoreFile(csv, 4).record(policy_of(), score)
        return score is None

    run_evaluator(run, board, 1, Script(on_idle=record_the_others))
    assert files == [[], [7.0, 2.0], [7.0, 2.0, 8.0, 2.0]]
    assert waits_of(board, "evaluator1") == {Wait.TURN, Wait.PACE}
    assert len(support_env.steps) == 2 * LENGTH, "each episode was run once"


def test_an_evaluator_waits_for_the_others_rows_of_the_policy_before(tmp_path):
    run, board = evaluating(tmp_path, count=2)
    publish_all(run, [0.5, 0.25])
    csv, others = run.folders.scores, iter([7.0])
    files, epochs = [], []

    def record_the_others():
        files.append(np.round(scores_of(csv), 5).tolist())
        epochs.append(int(board["evaluator0"]["epoch"]))
        score = next(others, None)
        if score is not None:
            ScoreFile(csv, 2).record(policy_of(), score)
        return score is None

    run_evaluator(run, board, 0, Script(on_idle=record_the_others))
    assert files == [[2.0], [2.0, 7.0, 1.0]]
    assert epochs == [1, 2]


def test_an_evaluator_that_is_stopped_before_its_turn_writes_nothing(tmp_path):
    run, board = evaluating(tmp_path, count=2)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    run_evaluator(run, board, 1)
    assert len(support_env.steps) == LENGTH
    assert rows_of(run.folders.scores) == []
    assert board["evaluator1"]["epoch"] <= 0


# Restarts: the file says what is missing


@pytest.fixture
def whole(tmp_path):
    """The lines of both files, of a run that nothing disturbed: 4 rows each policy."""
    run, board = evaluating(
        tmp_path / "whole", luck=True, episodes_per_policy=4, final_episodes=4
    )
    publish_all(run)
    run_side_by_side(run, board)
    files = run.folders.scores, run.folders.final_scores
    support_env.steps.clear()
    return [file.read_bytes().splitlines(keepends=True) for file in files]


@pytest.mark.parametrize("torn", [b"", b"0.", b"0.250000,1,1000,-12.3"])
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("rows", range(12))
def test_after_a_kill_all_evaluators_continue_where_the_file_ends(
    tmp_path, whole, rows, count, torn
):
    keys = {"episodes_per_policy": 4 // count, "final_episodes": 4 // count}
    run, board = evaluating(tmp_path, luck=True, count=count, **keys)
    publish_all(run)
    scores, final_scores = whole
    run.folders.scores.write_bytes(b"".join(scores[: 1 + rows]) + torn)
    run_side_by_side(run, board)
    assert run.folders.scores.read_bytes() == b"".join(scores)
    assert run.folders.final_scores.read_bytes() == b"".join(final_scores)
    assert len(support_env.finished_scores) - 4 * 4 - 2 * 4 == 12 - rows + 4


@pytest.mark.parametrize("torn", [b"", b"0.", b"0.250000,1,1000,-12.3"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("rows", range(4))
def test_after_a_kill_the_final_episodes_continue_where_their_file_ends(
    tmp_path, whole, rows, count, torn
):
    keys = {"episodes_per_policy": 4 // count, "final_episodes": 4 // count}
    run, board = evaluating(tmp_path, luck=True, count=count, **keys)
    publish_all(run)
    scores, final_scores = whole
    run.folders.scores.write_bytes(b"".join(scores))
    run.folders.final_scores.write_bytes(b"".join(final_scores[: 1 + rows]) + torn)
    run_side_by_side(run, board)
    assert run.folders.scores.read_bytes() == b"".join(scores)
    assert run.folders.final_scores.read_bytes() == b"".join(final_scores)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("steps", range(1, 3 * 4 * LENGTH, 3))
def test_an_evaluator_that_was_interrupted_anywhere_leaves_no_trace(
    tmp_path, whole, steps, batch_size
):
    run, board = evaluating(
        tmp_path,
        luck=True,
        episodes_per_policy=4,
        final_episodes=4,
        batch_size=batch_size,
    )
    publish_all(run)
    begun = len(support_env.steps)
    stop = Script(on_question=lambda: len(support_env.steps) >= begun + steps)
    run_evaluator(run, board, stop=stop)
    assert len(rows_of(run.folders.scores)) < 12
    run_side_by_side(run, board)
    assert run.folders.scores.read_bytes() == b"".join(whole[0])
    assert run.folders.final_scores.read_bytes() == b"".join(whole[1])


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("row", [1, 4, 5, 9])
def test_an_evaluator_that_is_killed_over_a_row_repeats_none_and_misses_none(
    tmp_path, whole, monkeypatch, row, after
):
    run, board = evaluating(
        tmp_path, luck=True, episodes_per_policy=4, final_episodes=4
    )
    publish_all(run)
    record = ScoreFile.record

    def record_and_die(file, *arguments):
        last = len(rows_of(run.folders.scores)) + 1 == row
        if last and not after:
            raise Killed
        written = record(file, *arguments)
        if last:
            raise Killed
        return written

    with monkeypatch.context() as patch:
        patch.setattr(ScoreFile, "record", record_and_die)
        with suppress(Killed):
            run_evaluator(run, board)
    assert len(rows_of(run.folders.scores)) == row - (not after)
    run_side_by_side(run, board)
    assert run.folders.scores.read_bytes() == b"".join(whole[0])


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("rows", range(12))
def test_after_a_kill_the_same_episodes_run_side_by_side(
    tmp_path, monkeypatch, rows, size
):
    """The last digits of an action depend on how many observations there are."""
    greedy = Policy.greedy
    monkeypatch.setattr(
        Policy, "greedy", lambda policy, obs: greedy(policy, obs) + len(obs) / 1000
    )
    keys = {"episodes_per_policy": 4, "final_episodes": 4, "batch_size": size}
    lines = []
    for name in ("whole", "killed"):
        run, board = evaluating(tmp_path / name, luck=True, **keys)
        publish_all(run)
        if lines:
            run.folders.scores.write_bytes(b"".join(lines[0][: 1 + rows]))
            final = b"".join(lines[1][: 1 + rows % 4])
            run.folders.final_scores.write_bytes(final)
        run_side_by_side(run, board)
        files = run.folders.scores, run.folders.final_scores
        lines += [file.read_bytes().splitlines(keepends=True) for file in files]
    assert lines[:2] == lines[2:]


@pytest.mark.parametrize(
    ("rows", "epochs"), [(0, [0, 0]), (1, [1, 0]), (2, [1, 1]), (3, [2, 1])]
)
def test_a_restarted_evaluator_shows_the_last_epoch_that_it_has_scored(
    tmp_path, rows, epochs
):
    # The value learner keeps the policies after it, and waits where it is far behind.
    run, board = evaluating(tmp_path, count=2)
    lines = [line_of(policy_of(1 + i // 2), 1.0) for i in range(rows)]
    run.folders.scores.write_bytes(CSV_HEADER + b"".join(lines))
    for number in range(2):
        board[f"evaluator{number}"]["epoch"] = 99
        run_evaluator(run, board, number, Script(on_question=lambda: True))
    assert [int(board[f"evaluator{i}"]["epoch"]) for i in range(2)] == epochs


# Seeds


def test_the_seed_of_an_episode_is_that_of_its_policy_and_number(tmp_path, seeds):
    run, board = evaluating(tmp_path, episodes_per_policy=2, final_episodes=1)
    publish_all(run)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    run_evaluator(run, board, stop=Script())
    seed = run.config.seed
    evaluation = [(updates, k, 0) for updates in (0, 500, 1000) for k in range(2)]
    assert seeds == [
        *(seed_of(seed, Stream.EVALUATION, *counters) for counters in evaluation),
        seed_of(seed, Stream.FINAL_EPISODE, 1000, 0, 0),
        seed_of(seed, Stream.RANDOM_SCORE, 0, 0),
    ]


def test_a_score_does_not_depend_on_what_ran_before(tmp_path, whole):
    run, board = evaluating(
        tmp_path, luck=True, episodes_per_policy=4, final_episodes=4, batch_size=2
    )
    publish_policy(run.folders.policy, ACTIONS[2], 3, 300, 0.75)
    run_side_by_side(run, board)
    assert run.folders.scores.read_bytes() == b"".join([CSV_HEADER, *whole[0][-4:]])
    assert run.folders.final_scores.read_bytes() == b"".join(whole[1])


def test_another_seed_of_the_run_gives_other_scores(tmp_path, whole):
    keys = {"count": 1, "episodes_per_policy": 4}
    env = {"length": LENGTH, "luck": True}
    run, board = new_run(tmp_path, env=env, evaluator_config=keys, seed=1)
    publish_all(run)
    run_evaluator(run, board)
    lines = run.folders.scores.read_bytes().splitlines(keepends=True)
    assert len(lines) == len(whole[0])
    assert not set(lines[1:]) & set(whole[0])


def test_an_environment_that_fails_is_noted_in_the_record(tmp_path, monkeypatch):
    run, board = evaluating(tmp_path, episodes_per_policy=1)
    publish_all(run, ACTIONS[:1])
    step, failures = support_env.CountingEnv.step, iter([True])

    def fails_once(self, action):
        if next(failures, False):
            raise OSError("lost the simulator")
        return step(self, action)

    monkeypatch.setattr(support_env.CountingEnv, "step", fails_once)
    run_evaluator(run, board)
    (reason,) = read_run(run.folders)["not_reproducible"]
    assert reason["why"] == "evaluator0: an environment failed and was made again"
    assert epochs_of(run.folders.scores) == [1]
