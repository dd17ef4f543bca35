"""Progress: phases, time left and random scores, read from the files of a run."""

import pytest
from support_shown import Shown

from steve.settings.roles import LAUNCHER, VALUERL, WORLDMODEL
from steve.storage.board import FINAL_EPISODES

AT_ONCE = {"frames_before_learning": 0}


# Phases


def test_phases_of_a_run_with_a_model(tmp_path):
    first = {"frames_before_learning": 1000}
    shown = Shown(tmp_path, model=True, policy_config=first, model_config=first)
    assert shown.progress.phase == "collecting the first 1,000 frames"
    shown.add_frames(1000)
    assert shown.progress.phase == "collecting the first 1,000 frames"
    shown.add_frames(8)
    assert shown.progress.phase == "pretraining the world model"
    shown.board[WORLDMODEL]["epoch"] = 1
    assert shown.progress.phase == "preparing to learn"
    shown.board[VALUERL]["epoch"] = 1
    assert shown.progress.phase == "learning"
    shown.board[LAUNCHER]["phase"] = FINAL_EPISODES
    assert shown.progress.phase == "final evaluation"


def test_phases_of_a_run_without_a_model(tmp_path):
    shown = Shown(tmp_path, model=False, policy_config={"frames_before_learning": 1000})
    assert shown.progress.phase == "collecting the first 1,000 frames"
    shown.add_frames(1008)
    shown.board[VALUERL]["epoch"] = 1
    assert shown.progress.phase == "learning"


# Time left


def test_without_a_limit_no_time_is_left_to_tell(tmp_path, seconds):
    shown = Shown(tmp_path, model=False)
    assert shown.progress.seconds_left() is None
    seconds.now += 10
    shown.add_frames(100)
    assert shown.progress.seconds_left() is None


def test_time_left_follows_the_speed_of_the_frames(tmp_path, seconds):
    shown = Shown(tmp_path, model=False, policy_config=AT_ONCE, total_frames=1000)
    assert shown.progress.seconds_left() is None  # nothing moves yet
    seconds.now += 10
    shown.add_frames(100)
    assert shown.progress.seconds_left() == pytest.approx(90)  # 900 at 10 a second
    seconds.now += 10
    shown.add_frames(900)
    assert shown.progress.seconds_left() == 0


def test_time_left_forgets_the_speed_of_long_ago(tmp_path, seconds):
    shown = Shown(tmp_path, model=False, policy_config=AT_ONCE, total_frames=10_000)
    for _ in range(20):
        shown.progress.seconds_left()
        seconds.now += 10
        shown.add_frames(10)
    for _ in range(10):
        shown.progress.seconds_left()
        seconds.now += 10
        shown.add_frames(100)
    # 10,000 - 1,200 frames at 10 a second
    assert shown.progress.seconds_left() == pytest.approx(880)


def test_time_left_until_the_hours_are_over(tmp_path, seconds):
    shown = Shown(tmp_path, model=False, total_hours=2.0)
    shown.board[VALUERL]["hours"] = 0.5
    assert shown.progress.seconds_left() == pytest.approx(1.5 * 3600)
    shown.board[VALUERL]["hours"] = 2.5
    assert shown.progress.seconds_left() == 0


def test_the_nearer_of_two_limits_counts(tmp_path, seconds):
    shown = Shown(
        tmp_path, model=False, total_hours=1.0, policy_config=AT_ONCE, total_frames=1000
    )
    shown.progress.seconds_left()
    seconds.now += 10
    shown.add_frames(100)
    assert shown.progress.seconds_left() == pytest.approx(90)
    shown.board[VALUERL]["hours"] = 1 - 30 / 3600
    assert shown.progress.seconds_left() == pytest.approx(30)


# Random actions' score


@pytest.mark.parametrize("evaluators", [0, 1, 2])
def test_there_is_no_random_score_before_it_was_measured(tmp_path, evaluators):
    shown = Shown(tmp_path, model=False, evaluator_config={"count": evaluators})
    assert shown.progress.random_score() is None


def test_the_random_score_is_the_mean_of_all_evaluators_that_measured_it(tmp_path):
    shown = Shown(tmp_path, model=False)
    shown.board["evaluator1"]["random_score"] = -7.5
    assert shown.progress.random_score() == -7.5
    shown.board["evaluator0"]["random_score"] = -12.5
    assert shown.progress.random_score() == -10
