"""Evaluators: final episodes, lost ones, other files, and where no order is kept."""

import math
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import support_env
from support import publish_policy
from support_actors import Script, context_of, new_run
from support_evaluators import (
    ACTIONS,
    LENGTH,
    Killed,
    csv_of,
    epochs_of,
    evaluating,
    publish_all,
    rows_of,
    run_evaluator,
    run_side_by_side,
    scores_of,
)

from steve.acting.evaluator import LOST_IN_A_ROW, Evaluator
from steve.acting.safe_env import SafeEnv
from steve.settings.roles import LAUNCHER
from steve.settings.seeds import Stream, seed_of
from steve.storage.board import FINAL_EPISODES, Board
from steve.storage.scores import Position, ScoreFile

# The newest policy, where no order is kept


def test_with_0_episodes_per_policy_it_never_waits(tmp_path):
    run, board = evaluating(tmp_path, episodes_per_policy=0, batch_size=2)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    stop = Script(
        on_question=lambda: len(epochs_of(run.folders.scores)) >= 20,
        on_idle=lambda: pytest.fail("it waits"),
    )
    run_evaluator(run, board, stop=stop)
    assert epochs_of(run.folders.scores) == [1] * 20


def test_without_an_order_only_the_newest_policy_is_scored(tmp_path):
    run, board = evaluating(tmp_path, every_n_epochs=False, episodes_per_policy=2)
    publish_all(run)
    run_evaluator(run, board)
    assert epochs_of(run.folders.scores) == [3, 3]
    publish_policy(run.folders.policy, 0.5, epoch=7)
    run_evaluator(run, board)
    assert epochs_of(run.folders.scores) == [3, 3, 7, 7]


def test_without_an_order_nobody_waits_for_another(tmp_path, seeds):
    run, board = evaluating(
        tmp_path, every_n_epochs=False, count=2, episodes_per_policy=2
    )
    publish_policy(run.folders.policy, 0.5, epoch=1)
    run_evaluator(run, board, 1)
    assert epochs_of(run.folders.scores) == [1, 1]
    assert seeds == [
        seed_of(run.config.seed, Stream.EVALUATION, 0, k, 0) for k in (1, 3)
    ]


def test_without_an_order_a_restart_counts_on_by_the_board(tmp_path, seeds):
    run, board = evaluating(tmp_path, every_n_epochs=False, episodes_per_policy=3)
    publish_policy(run.folders.policy, 0.5, epoch=7)
    row = board["evaluator0"]
    row["epoch"], row["episodes"] = 7, 2
    run_evaluator(run, board)
    assert epochs_of(run.folders.scores) == [7]  # the third of three
    assert seeds == [seed_of(run.config.seed, Stream.EVALUATION, 3000, 2, 0)]


@pytest.mark.parametrize("launcher_too", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_without_an_order_a_kill_over_a_row_may_lose_it_but_never_doubles_it(
    tmp_path, monkeypatch, after, launcher_too
):
    run, board = evaluating(
        tmp_path, luck=True, every_n_epochs=False, episodes_per_policy=3
    )
    publish_policy(run.folders.policy, 0.5, epoch=1)
    record = ScoreFile.record

    def record_and_die(file, *arguments):
        if after:
            record(file, *arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ScoreFile, "record", record_and_die)
        with suppress(Killed):
            run_evaluator(run, board)
    if launcher_too:
        phase = board[LAUNCHER]["phase"]
        board = Board.create(run.folders.board, run.config)
        board[LAUNCHER]["phase"] = phase
    run_evaluator(run, board)
    scores = scores_of(run.folders.scores)
    assert len(scores) == len(set(scores)) == (3 if after else 2)


@pytest.mark.parametrize(
    "keys", [{"every_n_epochs": False}, {"episodes_per_policy": 0}]
)
def test_without_an_order_the_final_episodes_have_one_all_the_same(tmp_path, keys):
    run, board = evaluating(tmp_path, count=2, final_episodes=2, **keys)
    publish_all(run)
    run_side_by_side(run, board)
    assert rows_of(run.folders.scores) == []  # the end came first
    assert epochs_of(run.folders.final_scores) == [3] * 4


@pytest.mark.parametrize(
    ("episodes", "epochs"),
    [
        (0, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (1, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (3, [1, 1, 1, 4, 4, 4, 7, 7, 7, 10]),
    ],
)
def test_without_an_order_one_policy_is_held_for_whole_episodes(
    tmp_path, episodes, epochs
):
    run, board = evaluating(
        tmp_path, every_n_epochs=False, episodes_per_policy=episodes
    )
    publish_policy(run.folders.policy, 0.5, epoch=1)
    published = []

    def on_question():
        # After each second step of an episode comes another policy.
        taken = len(support_env.steps)
        if taken % LENGTH == 2 and taken not in published:
            published.append(taken)
            epoch = len(published) + 1
            publish_policy(run.folders.policy, 0.5 / epoch, epoch)
        return taken >= 10 * LENGTH

    run_evaluator(run, board, stop=Script(on_question))
    assert epochs_of(run.folders.scores) == epochs
    expected = [LENGTH * 0.5 / epoch for epoch in epochs]
    np.testing.assert_allclose(scores_of(run.folders.scores), expected, atol=1e-5)


# Files of version 1.0 and of other settings


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "epochs",
    [
        [5],  # one of two rows
        [4, 4, 5],
        [4, 5, 4],  # no order was kept
        [5, 4, 5],
        [4, 4, 5, 5, 5, 5, 5],  # with final episodes
        [],
    ],
)
def test_a_file_of_version_1_0_is_continued_whose_policies_are_gone(
    tmp_path, epochs, count
):
    run, board = evaluating(
        tmp_path, count=count, episodes_per_policy=2 // count, final_episodes=0
    )
    run.folders.scores.write_bytes(csv_of(*epochs))
    for epoch in (6, 7):
        publish_policy(run.folders.policy, 0.5, epoch)
    run_side_by_side(run, board)
    assert epochs_of(run.folders.scores) == [*epochs, 6, 6, 7, 7]
    assert run.folders.scores.read_bytes().startswith(csv_of(*epochs))


@pytest.mark.parametrize("count", [1, 2])
def test_a_policy_of_version_1_0_that_is_there_gets_the_rows_that_it_lacks(
    tmp_path, count
):
    run, board = evaluating(
        tmp_path, count=count, episodes_per_policy=4 // count, final_episodes=0
    )
    run.folders.scores.write_bytes(csv_of(4, 5, 5))
    for epoch in (5, 6):
        publish_policy(run.folders.policy, 0.5, epoch)
    run_side_by_side(run, board)
    assert epochs_of(run.folders.scores) == [4, 5, 5, 5, 5, 6, 6, 6, 6]


@pytest.mark.parametrize("count", [1, 2])
def test_a_policy_that_is_no_longer_chosen_does_not_block_the_next(tmp_path, count):
    # It has 1 of 2 rows, and the run is resumed with every_n_epochs = 2.
    run, board = evaluating(
        tmp_path,
        every_n_epochs=2,
        count=count,
        episodes_per_policy=2 // count,
        final_episodes=0,
    )
    run.folders.scores.write_bytes(csv_of(3, 3, 4))
    for epoch in (4, 5, 6):
        publish_policy(run.folders.policy, 0.5, epoch)
    run_side_by_side(run, board)
    assert epochs_of(run.folders.scores) == [3, 3, 4, 5, 5]


# The final episodes


@pytest.mark.parametrize("per_policy", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_the_final_phase_ends_with_its_episodes_and_a_score_of_random_actions(
    tmp_path, batch_size, per_policy
):
    run, board = evaluating(
        tmp_path,
        episodes_per_policy=per_policy,
        batch_size=batch_size,
        final_episodes=3,
    )
    publish_policy(run.folders.policy, 0.5, epoch=9)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    run_evaluator(run, board, stop=Script())
    assert epochs_of(run.folders.scores) == [9] * per_policy
    assert epochs_of(run.folders.final_scores) == [9] * 3
    # Then three more, with actions that are all different and recorded nowhere.
    finished = support_env.finished_scores
    *_, a, b, c = finished
    assert len(finished) == per_policy + 6
    assert len({a, b, c, *finished[:-3]}) == 4
    assert board["evaluator0"]["random_score"] == pytest.approx((a + b + c) / 3)
    assert board["evaluator0"]["gave_up"] == 0


def test_final_episodes_come_after_those_of_all_policies(tmp_path):
    run, board = evaluating(tmp_path, episodes_per_policy=2, final_episodes=3)
    publish_policy(run.folders.policy, 0.5, epoch=1)

    def begin_final_phase():
        assert epochs_of(run.folders.scores) == [1] * 2
        assert not run.folders.final_scores.exists()
        assert math.isnan(board["evaluator0"]["random_score"])
        for epoch in (2, 3):
            publish_policy(run.folders.policy, 0.5 / epoch, epoch)
        board[LAUNCHER]["phase"] = FINAL_EPISODES
        return False

    run_evaluator(run, board, stop=Script(on_idle=begin_final_phase))
    assert epochs_of(run.folders.scores) == [1, 1, 2, 2, 3, 3]
    assert epochs_of(run.folders.final_scores) == [3] * 3
    expected = [2, 2, 1, 1, *5 * [2 / 3]]  # then three of random actions
    played = support_env.finished_scores[:-3]
    np.testing.assert_allclose(played, expected, atol=1e-5)


def test_final_episodes_are_of_the_last_policy_also_where_it_is_not_scored(tmp_path):
    run, board = evaluating(tmp_path, every_n_epochs=2, final_episodes=2)
    publish_all(run, [0.25, 0.5])
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    run_evaluator(run, board, stop=Script())
    assert epochs_of(run.folders.scores) == [1]
    assert scores_of(run.folders.final_scores) == pytest.approx([2, 2], abs=1e-5)


def test_final_episodes_are_of_a_policy_that_comes_just_before_the_end(tmp_path):
    run, board = evaluating(tmp_path, every_n_epochs=False, final_episodes=2)
    publish_policy(run.folders.policy, 0.25, epoch=1)

    def end():
        assert epochs_of(run.folders.scores) == [1]
        publish_policy(run.folders.policy, 0.5, epoch=2)
        board[LAUNCHER]["phase"] = FINAL_EPISODES
        return False

    run_evaluator(run, board, stop=Script(on_idle=end))
    assert epochs_of(run.folders.scores) == [1]
    assert epochs_of(run.folders.final_scores) == [2, 2]
    assert scores_of(run.folders.final_scores) == pytest.approx([2, 2], abs=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_that_is_extended_has_final_episodes_again(tmp_path, count):
    run, board = evaluating(
        tmp_path, count=count, episodes_per_policy=2 // count, final_episodes=2 // count
    )
    publish_all(run)
    run_side_by_side(run, board)
    publish_policy(run.folders.policy, 0.1, epoch=4)
    run_side_by_side(run, board)
    run_side_by_side(run, board)  # nothing is missing
    assert epochs_of(run.folders.scores) == [1, 1, 2, 2, 3, 3, 4, 4]
    assert epochs_of(run.folders.final_scores) == [3, 3, 4, 4]


@pytest.mark.parametrize("keys", [{}, {"every_n_epochs": False}])
def test_a_run_without_a_policy_ends_with_the_score_of_random_actions(tmp_path, keys):
    run, board = evaluating(tmp_path, final_episodes=2, **keys)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    run_evaluator(run, board, stop=Script())
    assert not run.folders.scores.exists()
    assert not run.folders.final_scores.exists()
    assert math.isfinite(board["evaluator0"]["random_score"])


def test_a_run_without_final_episodes_has_no_random_score(tmp_path):
    run, board = evaluating(tmp_path, final_episodes=0)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    run_evaluator(run, board, stop=Script())
    assert epochs_of(run.folders.scores) == [1]
    assert not run.folders.final_scores.exists()
    assert math.isnan(board["evaluator0"]["random_score"])


def test_the_score_of_random_actions_depends_on_seed_and_evaluator_alone(tmp_path):
    found = []
    for number, (episodes, seed) in enumerate(((1, 0), (3, 0), (1, 1))):
        run, board = new_run(
            tmp_path / str(number),
            evaluator_config={"count": 2, "episodes_per_policy": episodes},
            seed=seed,
        )
        publish_all(run, ACTIONS[: 1 + number])
        run_side_by_side(run, board)
        found.append([float(board[f"evaluator{i}"]["random_score"]) for i in range(2)])
    assert found[0] == found[1]
    assert len({*found[0], *found[2]}) == 4


def test_random_episodes_that_are_interrupted_give_no_score(tmp_path):
    run, board = evaluating(tmp_path, final_episodes=2)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    stop = Script(on_question=lambda: len(support_env.steps) == 4 * LENGTH + 1)
    run_evaluator(run, board, stop=stop)
    assert len(rows_of(run.folders.final_scores)) == 2
    assert math.isnan(board["evaluator0"]["random_score"])


def test_an_evaluator_shows_life_after_each_environment(tmp_path, monkeypatch):
    run, board = evaluating(tmp_path, batch_size=3, final_episodes=3)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    row, real = board["evaluator0"], SafeEnv.reset

    def slow(env, seed):
        assert row["heartbeat"] > 0, "none since the environment before"
        row["heartbeat"] = 0
        return real(env, seed)

    row["heartbeat"] = 1
    monkeypatch.setattr(SafeEnv, "reset", slow)
    run_evaluator(run, board, stop=Script())
    assert epochs_of(run.folders.final_scores) == [1] * 3


# Lost episodes


def losing(monkeypatch, is_lost):
    """Every first step of an episode is lost for which `is_lost(number)` holds.

    Returns:
        the seeds of all episodes that are begun; the first has number 1.
    """
    reset, step, begun = SafeEnv.reset, SafeEnv.step, []
    numbers = {}

    def reset_and_count(env, seed):
        begun.append(seed)
        numbers[env] = len(begun)
        return reset(env, seed)

    def step_or_lose(env, action):
        return None if is_lost(numbers[env]) else step(env, action)

    monkeypatch.setattr(SafeEnv, "reset", reset_and_count)
    monkeypatch.setattr(SafeEnv, "step", step_or_lose)
    return begun


@pytest.mark.parametrize(
    "keys", [{"every_n_epochs": False}, {"episodes_per_policy": 0}]
)
def test_without_an_order_a_policy_that_is_given_up_is_passed_over(
    tmp_path, monkeypatch, keys
):
    run, board = evaluating(tmp_path, final_episodes=2, **keys)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    begun = losing(monkeypatch, lambda number: number <= LOST_IN_A_ROW)

    def publish():
        publish_policy(run.folders.policy, 0.5, epoch=2)
        return False

    stop = Script(
        on_question=lambda: bool(epochs_of(run.folders.scores)), on_idle=publish
    )
    run_evaluator(run, board, stop=stop)
    assert len(begun) > LOST_IN_A_ROW
    assert len(rows_of(run.folders.scores)) == 1, "it continues"
    assert rows_of(run.folders.final_scores) == []


def test_an_episode_with_a_lost_transition_is_run_again_with_another_seed(
    tmp_path, monkeypatch
):
    run, board = evaluating(tmp_path, episodes_per_policy=2)
    publish_policy(run.folders.policy, 0.5, epoch=2)
    begun = losing(monkeypatch, lambda number: number in (2, 3))
    run_evaluator(run, board)
    assert scores_of(run.folders.scores) == pytest.approx([2, 2], abs=1e-5)
    key = run.config.seed, Stream.EVALUATION, 500
    tries = [(0, 0), (1, 0), (1, 1), (1, 2)]
    assert begun == [seed_of(*key, *counters) for counters in tries]
    assert len(set(begun)) == 4


def test_a_lost_episode_leaves_the_ones_beside_it_alone(tmp_path, monkeypatch):
    files = []
    for lost in (0, 2):
        run, board = evaluating(
            tmp_path / str(lost), luck=True, episodes_per_policy=3, batch_size=3
        )
        publish_policy(run.folders.policy, 0.5, epoch=1)
        with monkeypatch.context() as patch:
            losing(patch, lambda number, lost=lost: number == lost)
            run_evaluator(run, board)
        files.append(scores_of(run.folders.scores))
    (first, second, third), (same, another, too) = files
    assert (first, third) == (same, too)
    assert second != another


def test_a_lost_part_of_an_episode_does_not_count_into_its_score(tmp_path, monkeypatch):
    run, board = evaluating(tmp_path)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    step, lost = SafeEnv.step, iter([False, False, True])

    def lose_the_third(env, action):
        return None if next(lost, False) else step(env, action)

    monkeypatch.setattr(SafeEnv, "step", lose_the_third)
    run_evaluator(run, board)
    assert scores_of(run.folders.scores) == pytest.approx([2], abs=1e-5)
    assert len(support_env.steps) == 2 + LENGTH


def test_lost_final_episodes_are_run_again(tmp_path, monkeypatch):
    run, board = evaluating(tmp_path, final_episodes=3)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    losing(monkeypatch, lambda number: number % 2)
    run_evaluator(run, board, stop=Script())
    assert epochs_of(run.folders.scores) == [1]
    assert epochs_of(run.folders.final_scores) == [1] * 3
    *_, a, b, c = support_env.finished_scores
    assert board["evaluator0"]["random_score"] == pytest.approx((a + b + c) / 3)
    assert board["evaluator0"]["gave_up"] == 0


@pytest.mark.parametrize("batch_size", [1, 2])
def test_final_episodes_are_given_up_after_too_many_losses(
    tmp_path, monkeypatch, capsys, batch_size
):
    run, board = evaluating(tmp_path, final_episodes=3, batch_size=batch_size)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    # One episode of the policy, one to `batch_size` final ones, then no more.
    begun = losing(monkeypatch, lambda number: number > 1 + batch_size)
    run_evaluator(run, board, stop=Script())
    assert epochs_of(run.folders.scores) == [1]
    assert epochs_of(run.folders.final_scores) == [1] * batch_size
    assert math.isnan(board["evaluator0"]["random_score"])
    assert board["evaluator0"]["gave_up"] == -1
    assert f"given up: transitions were lost in each of {LOST_IN_A_ROW}" in (
        capsys.readouterr().out
    )
    assert len(begun) == 1 + batch_size + LOST_IN_A_ROW


def test_evaluators_do_not_wait_for_one_that_gave_up(tmp_path):
    run, board = evaluating(tmp_path, count=3, final_episodes=2)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    run.folders.scores.write_bytes(csv_of(1, 1, 1))
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    asked = []

    def give_up():
        asked.append(epochs_of(run.folders.final_scores))
        board["evaluator0"]["gave_up"] = -1
        return False

    run_evaluator(run, board, 1, Script(on_idle=give_up))
    assert asked == [[]], "it waited until then"
    assert epochs_of(run.folders.final_scores) == [1, 1]
    assert math.isfinite(board["evaluator1"]["random_score"])


def test_a_policy_that_one_gave_up_costs_the_later_ones_no_order(tmp_path):
    """Evaluator 0 has given up epoch 2; evaluator 1 has its row of it yet to write."""
    run, board = evaluating(tmp_path, count=2)
    board["evaluator0"]["gave_up"] = board["evaluator0"]["epoch"] = 2
    board["evaluator1"]["epoch"] = 1
    context = context_of(run, board, "evaluator0")
    with context.ends:
        evaluator = Evaluator(context)
        evaluator._epochs = {1000 * epoch: epoch for epoch in (1, 2, 3, 4)}

        def is_next(at, epoch, episode):
            policy = SimpleNamespace(epoch=epoch)
            return evaluator._is_next(Position(*at), policy, episode)

        assert is_next((1, 2), 2, 1), "nobody writes the row before it"
        assert not is_next((1, 2), 3, 0), "the other may come yet"
        board["evaluator1"]["epoch"] = 2
        assert is_next((2, 1), 3, 0)
        assert not is_next((2, 1), 3, 1)
        assert is_next((3, 1), 3, 1)
        assert not is_next((3, 1), 4, 0), "its second row is missing"
        assert is_next((3, 2), 4, 0)


def test_the_run_ends_where_every_episode_is_lost(tmp_path, monkeypatch, capsys):
    # Also those of policies that are scored on the way to the final episodes.
    run, board = evaluating(tmp_path, final_episodes=3, batch_size=2)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    losing(monkeypatch, lambda number: True)
    run_evaluator(run, board, stop=Script())
    assert rows_of(run.folders.scores) == []
    assert rows_of(run.folders.final_scores) == []
    assert math.isnan(board["evaluator0"]["random_score"])
    assert board["evaluator0"]["gave_up"] == -1


def test_random_episodes_give_up_where_every_one_is_lost(tmp_path, monkeypatch):
    run, board = evaluating(tmp_path, final_episodes=3)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    losing(monkeypatch, lambda number: number > 4)
    run_evaluator(run, board, stop=Script())
    assert epochs_of(run.folders.final_scores) == [1] * 3
    assert math.isnan(board["evaluator0"]["random_score"])


def test_losses_with_whole_episodes_between_them_are_not_in_a_row(
    tmp_path, monkeypatch
):
    run, board = evaluating(tmp_path, final_episodes=LOST_IN_A_ROW + 1)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    losing(monkeypatch, lambda number: number % 2)
    run_evaluator(run, board, stop=Script())
    assert epochs_of(run.folders.final_scores) == [1] * (LOST_IN_A_ROW + 1)
