"""Evaluators: episodes of each policy, the final episodes, lost episodes."""

import math

import numpy as np
import pytest
import support_env
from support import publish_policy
from support_actors import IDLE, Script, context_of, new_run
from support_scores import BEFORE, killed_over, line_of, policy_of

from steve.acting import safe_env
from steve.acting.evaluator import evaluate
from steve.acting.safe_env import SafeEnv
from steve.envwrap import make_env
from steve.settings.roles import LAUNCHER
from steve.storage.board import FINAL_EPISODES

LENGTH = 4  # steps of an episode


def evaluating(tmp_path, model=False, **settings):
    keys = {"final_episodes": settings.pop("final_episodes", 5)}
    keys["evaluator_config"] = {"count": 1} | settings
    return new_run(tmp_path, model, env={"length": LENGTH}, **keys)


def rows_of(run):
    """(hours, epoch, frames, score) of each recorded episode."""
    if not run.folders.scores.exists():
        return []
    header, *lines = run.folders.scores.read_text().splitlines()
    assert header == "hours,epochs,frames,score"
    return [tuple(float(part) for part in line.split(",")) for line in lines]


def epochs_of(run):
    return [int(row[1]) for row in rows_of(run)]


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


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("episodes", [1, 3])
def test_each_policy_gets_its_episodes_then_a_newer_one_is_awaited(
    tmp_path, episodes, batch_size
):
    run, board = evaluating(
        tmp_path, episodes_per_policy=episodes, batch_size=batch_size
    )
    actions = [0.5, -0.25, 0.75]
    stop = Script(on_idle=publishing(run, actions))
    evaluate(context_of(run, board, "evaluator0", stop))
    rows = rows_of(run)
    assert len(rows) == 3 * episodes
    for i, (hours, epoch, frames, score) in enumerate(rows):
        expected = i // episodes + 1
        assert (hours, epoch, frames) == (expected / 4, expected, 100 * expected)
        # The reward is the action, the same in each of the 4 steps.
        assert score == pytest.approx(LENGTH * actions[expected - 1], abs=1e-5)
    assert len(support_env.steps) == LENGTH * len(rows)
    assert board["evaluator0"]["heartbeat"] > 0


def test_nothing_is_recorded_before_the_first_policy(tmp_path):
    run, board = evaluating(tmp_path)
    stop = Script(on_idle=lambda: True)
    evaluate(context_of(run, board, "evaluator0", stop))
    assert stop.asked >= IDLE
    assert not run.folders.scores.exists()
    assert support_env.steps == []


def test_a_policy_that_was_evaluated_before_a_restart_is_not_evaluated_again(tmp_path):
    run, board = evaluating(tmp_path, episodes_per_policy=3)
    publish_policy(run.folders.policy, 0.5, epoch=7)
    row = board["evaluator0"]
    row["epoch"], row["episodes"] = 7, 2
    stop = Script(on_idle=lambda: True)
    evaluate(context_of(run, board, "evaluator0", stop))
    assert epochs_of(run) == [7]  # the third of three


def test_a_restarted_evaluator_settles_what_its_predecessor_left(tmp_path):
    run, board = evaluating(tmp_path, episodes_per_policy=2)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    killed_over(board["evaluator0"], run.folders.scores, 2.0, BEFORE)
    run.folders.scores.write_bytes(BEFORE + line_of(policy_of(), 2.0))
    stop = Script(on_idle=lambda: True)
    evaluate(context_of(run, board, "evaluator0", stop))
    assert [row[3] for row in rows_of(run)] == [1.0, 2.0]


def test_with_0_episodes_per_policy_it_never_waits(tmp_path):
    run, board = evaluating(tmp_path, episodes_per_policy=0, batch_size=2)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    stop = Script(
        on_question=lambda: len(epochs_of(run)) >= 20,
        on_idle=lambda: pytest.fail("it waits"),
    )
    evaluate(context_of(run, board, "evaluator0", stop))
    assert epochs_of(run) == [1] * 20


@pytest.mark.parametrize("episodes", [0, 3])
def test_one_policy_is_held_for_a_whole_episode(tmp_path, episodes):
    run, board = evaluating(tmp_path, episodes_per_policy=episodes)
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

    evaluate(context_of(run, board, "evaluator0", Script(on_question)))
    rows = rows_of(run)
    assert [row[1] for row in rows] == list(range(1, 11))
    expected = [LENGTH * 0.5 / epoch for epoch in range(1, 11)]
    np.testing.assert_allclose([row[3] for row in rows], expected, atol=1e-5)


def test_side_by_side_each_environment_runs_whole_episodes(tmp_path, monkeypatch):
    run, board = evaluating(tmp_path, episodes_per_policy=3, batch_size=3)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    lengths = iter((2, 6, 4))

    def make_next(env):
        return make_env(
            env.model_copy(update={"make_kwargs": {"length": next(lengths)}})
        )

    monkeypatch.setattr(safe_env, "make_env", make_next)
    evaluate(context_of(run, board, "evaluator0", Script(on_idle=lambda: True)))
    # The shortest is over first; the others go on without it.
    np.testing.assert_allclose([r[3] for r in rows_of(run)], [1, 2, 3], atol=1e-5)
    assert len(support_env.steps) == 2 + 4 + 6


@pytest.mark.parametrize("ending", ["termination", "truncation", "both"])
def test_a_cut_ends_an_episode_as_a_termination_does(tmp_path, ending):
    env = {"length": LENGTH, "ending": ending}
    run, board = new_run(tmp_path, env=env, evaluator_config={"count": 1})
    publish_policy(run.folders.policy, 0.5, epoch=1)
    evaluate(context_of(run, board, "evaluator0", Script(on_idle=lambda: True)))
    assert [row[3] for row in rows_of(run)] == pytest.approx([2.0], abs=1e-5)


def test_a_score_is_the_plain_sum_of_rewards(tmp_path):
    env = {"length": LENGTH, "reward_scale": 10.0}
    run, board = new_run(tmp_path, env=env, evaluator_config={"count": 1})
    publish_policy(run.folders.policy, 0.5, epoch=1)
    evaluate(context_of(run, board, "evaluator0", Script(on_idle=lambda: True)))
    assert [row[3] for row in rows_of(run)] == pytest.approx([2.0], abs=1e-5)


def test_an_episode_that_is_interrupted_is_not_recorded(tmp_path):
    run, board = evaluating(tmp_path)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    stop = Script(on_question=lambda: len(support_env.steps) == 2)
    evaluate(context_of(run, board, "evaluator0", stop))
    assert len(support_env.steps) == 2
    assert rows_of(run) == []


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
    evaluate(context_of(run, board, "evaluator0", Script()))
    assert epochs_of(run) == [9] * 3
    assert board["evaluator0"]["final_episodes"] == 3
    # Then three more, with actions that are all different and recorded nowhere.
    *_, a, b, c = support_env.finished_scores
    assert len(support_env.finished_scores) == 6
    assert len({a, b, c, *support_env.finished_scores[:3]}) == 4
    assert board["evaluator0"]["random_score"] == pytest.approx((a + b + c) / 3)


def test_final_episodes_come_on_top_of_those_of_the_last_policy(tmp_path):
    run, board = evaluating(tmp_path, episodes_per_policy=2, final_episodes=3)
    publish_policy(run.folders.policy, 0.5, epoch=4)

    def begin_final_phase():
        assert epochs_of(run) == [4] * 2
        assert math.isnan(board["evaluator0"]["random_score"])
        board[LAUNCHER]["phase"] = FINAL_EPISODES
        return False

    evaluate(context_of(run, board, "evaluator0", Script(on_idle=begin_final_phase)))
    assert epochs_of(run) == [4] * 5


def test_final_episodes_are_not_repeated_after_a_restart(tmp_path):
    run, board = evaluating(tmp_path, final_episodes=3)
    publish_policy(run.folders.policy, 0.5, epoch=4)
    row = board["evaluator0"]
    row["epoch"], row["final_episodes"] = 4, 2
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    evaluate(context_of(run, board, "evaluator0", Script()))
    assert epochs_of(run) == [4]


def test_a_run_without_final_episodes_has_no_random_score(tmp_path):
    run, board = evaluating(tmp_path, final_episodes=0)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    evaluate(context_of(run, board, "evaluator0", Script()))
    assert rows_of(run) == []
    assert math.isnan(board["evaluator0"]["random_score"])


def losing(monkeypatch, is_lost):
    """Every first step of an episode is lost for which `is_lost(number)` holds."""
    real, begun = SafeEnv.reset, []

    def reset(env):
        begun.append(env)
        return real(env)

    step = SafeEnv.step
    monkeypatch.setattr(SafeEnv, "reset", reset)
    monkeypatch.setattr(
        SafeEnv,
        "step",
        lambda env, action: None if is_lost(len(begun)) else step(env, action),
    )


def test_the_final_phase_ends_where_every_episode_is_lost(
    tmp_path, monkeypatch, capsys
):
    run, board = evaluating(tmp_path, final_episodes=3, batch_size=2)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    losing(monkeypatch, lambda number: True)
    evaluate(context_of(run, board, "evaluator0", Script()))
    assert rows_of(run) == []
    assert math.isnan(board["evaluator0"]["random_score"])
    assert "3 of the final episodes are given up" in capsys.readouterr().out


def test_lost_final_episodes_are_run_again(tmp_path, monkeypatch):
    run, board = evaluating(tmp_path, final_episodes=3)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    losing(monkeypatch, lambda number: number % 2)
    evaluate(context_of(run, board, "evaluator0", Script()))
    assert epochs_of(run) == [1] * 3
    *_, a, b, c = support_env.finished_scores
    assert board["evaluator0"]["random_score"] == pytest.approx((a + b + c) / 3)


def test_random_episodes_give_up_where_every_one_is_lost(tmp_path, monkeypatch):
    run, board = evaluating(tmp_path, final_episodes=3)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    losing(monkeypatch, lambda number: number > 3)
    evaluate(context_of(run, board, "evaluator0", Script()))
    assert epochs_of(run) == [1] * 3
    assert math.isnan(board["evaluator0"]["random_score"])


def test_an_evaluator_shows_life_after_each_environment(tmp_path, monkeypatch):
    run, board = evaluating(tmp_path, batch_size=3, final_episodes=3)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    row, real = board["evaluator0"], SafeEnv.reset

    def slow(env):
        assert row["heartbeat"] > 0, "none since the environment before"
        row["heartbeat"] = 0
        return real(env)

    row["heartbeat"] = 1
    monkeypatch.setattr(SafeEnv, "reset", slow)
    evaluate(context_of(run, board, "evaluator0", Script()))
    assert epochs_of(run) == [1] * 3


def test_random_episodes_that_are_interrupted_give_no_score(tmp_path):
    run, board = evaluating(tmp_path, final_episodes=2)
    publish_policy(run.folders.policy, 0.5, epoch=1)
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    stop = Script(on_question=lambda: len(support_env.steps) == 3 * LENGTH + 1)
    evaluate(context_of(run, board, "evaluator0", stop))
    assert math.isnan(board["evaluator0"]["random_score"])
