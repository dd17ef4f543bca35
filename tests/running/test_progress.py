"""Progress: phases, time left and random scores, read from the files of a run."""

import pytest
from support_shown import HEADER, Shown

from steve.settings.roles import LAUNCHER, VALUERL, WORLDMODEL
from steve.storage.board import FINAL_EPISODES

AT_ONCE = {"frames_before_learning": 0, "frames_per_update": 1}


# Phases


def test_phases_of_a_run_with_a_model_and_how_far_each_is(tmp_path):
    first = {"frames_before_learning": 1000}
    shown = Shown(tmp_path, model=True, policy_config=first, model_config=first)
    progress, board = shown.progress, shown.board
    assert str(progress.phase) == "collecting the first frames, 0 of 1,000 frames"
    shown.add_frames(1000)
    assert str(progress.phase) == "collecting the first frames, 1,000 of 1,000 frames"
    shown.add_frames(8)
    assert str(progress.phase) == "preparing to pretrain the world model"
    board[WORLDMODEL]["pretrained"] = 2500
    assert str(progress.phase) == "pretraining the world model, 2,500 of 10,000 updates"
    board[WORLDMODEL]["epoch"] = 1
    assert str(progress.phase) == "preparing to learn"
    board[VALUERL]["epoch"] = 16
    assert str(progress.phase) == "learning"
    board[LAUNCHER]["phase"] = FINAL_EPISODES
    final = shown.run.folders.final_scores
    final.write_text(f"{HEADER}1.0,15,100,1.0\n1.0,16,100,1.0\n1.0,16,100,2.0\n")
    # Of this epoch's policy; 5 episodes of each of 2 evaluators.
    assert str(progress.phase) == "final evaluation, 2 of 10 episodes"


def test_a_run_that_does_not_pretrain_prepares_to_learn(tmp_path):
    unpaced = {"frames_before_learning": 8, "pretrain_n": False}
    shown = Shown(tmp_path, model=True, policy_config={}, model_config=unpaced)
    shown.add_frames(30_000)
    assert str(shown.progress.phase) == "preparing to learn"


def test_phases_of_a_run_without_a_model(tmp_path):
    shown = Shown(tmp_path, model=False, policy_config={"frames_before_learning": 1000})
    assert shown.progress.phase.name == "collecting the first frames"
    shown.add_frames(1008)
    shown.board[VALUERL]["epoch"] = 1
    assert shown.progress.phase.name == "learning"


def test_a_resumed_run_has_no_counters_before_its_learners_have_restored_them(
    tmp_path, seconds
):
    shown = Shown(tmp_path, model=False, launch=1, total_frames=20_000)
    shown.add_frames(12_000)
    assert shown.progress.phase.name == "loading what was learned"
    assert shown.progress.seconds_left() is None
    seconds.now += 10
    # Restored at once; that was no speed.
    shown.fill(VALUERL, [], epoch=11, ready=1, updates=5000)
    assert shown.progress.phase.name == "learning"
    assert shown.progress.seconds_left() is None
    seconds.now += 10
    shown.board[VALUERL]["updates"] = 5100
    # 10,000 frames with a quarter of a frame for each update.
    assert shown.progress.seconds_left() == pytest.approx((40_000 - 5100) / 10)


# Done, and time left


def learning(tmp_path, model=False, **keys):
    """A run of which each test says how far its updates are; a frame for each."""
    keys = {"total_frames": 1000, "policy_config": AT_ONCE, **keys}
    if model:
        keys["model_config"] = {**AT_ONCE, "pretrain_n": 500}
    shown = Shown(tmp_path, model, **keys)
    shown.board[VALUERL]["epoch"] = 1
    shown.add_frames(1)
    return shown


def test_without_a_limit_no_time_is_left_to_tell(tmp_path, seconds):
    shown = learning(tmp_path, total_frames=None)
    assert (shown.progress.seconds_left(), shown.progress.share) == (None, None)
    seconds.now += 10
    shown.board[VALUERL]["updates"] = 100
    assert (shown.progress.seconds_left(), shown.progress.share) == (None, None)


def test_time_left_follows_the_speed_of_the_updates(tmp_path, seconds):
    shown = learning(tmp_path)
    assert shown.progress.seconds_left() is None  # nothing moves yet
    seconds.now += 10
    shown.add_frames(999)  # says nothing of what remains
    assert shown.progress.seconds_left() is None
    shown.board[VALUERL]["updates"] = 100
    assert shown.progress.seconds_left() == pytest.approx(90)  # 900 at 10 a second
    seconds.now += 10
    shown.board[VALUERL]["updates"] = 1000
    assert shown.progress.seconds_left() == 0


def test_the_slower_learner_decides_about_the_time_left(tmp_path, seconds):
    shown = learning(tmp_path, model=True)
    shown.fill(WORLDMODEL, [], epoch=1, pretrained=500)
    shown.progress.seconds_left()
    seconds.now += 10
    shown.board[VALUERL]["updates"] = 200
    assert shown.progress.seconds_left() is None  # the other's speed is not known
    shown.board[WORLDMODEL]["updates"] = 100
    assert shown.progress.seconds_left() == pytest.approx(90)


def test_pretraining_tells_its_own_time_and_counts_in_what_is_done(tmp_path, seconds):
    shown = learning(tmp_path, model=True)
    shown.board[VALUERL]["epoch"] = 0
    shown.add_frames(999)  # all of the run's frames
    progress = shown.progress
    assert progress.share == 0
    assert progress.seconds_left_in_phase() is None
    seconds.now += 10
    shown.board[WORLDMODEL]["pretrained"] = 50
    assert progress.seconds_left_in_phase() is None  # it has just begun
    seconds.now += 5
    shown.board[WORLDMODEL]["pretrained"] = 100
    assert progress.seconds_left() is None
    assert progress.seconds_left_in_phase() == pytest.approx(40)
    assert progress.share == pytest.approx(100 / 2500)  # 500 + 1000 + 1000 updates
    shown.fill(WORLDMODEL, [], epoch=1, pretrained=500, updates=1000)
    shown.fill(VALUERL, [], epoch=1, updates=500)
    assert progress.share == pytest.approx(2000 / 2500)
    assert progress.seconds_left_in_phase() is None


def test_time_left_is_that_of_learning_and_not_of_what_was_before(tmp_path, seconds):
    shown = learning(tmp_path, model=True)
    shown.board[VALUERL]["epoch"] = 0
    shown.add_frames(999)
    for pretrained in (100, 300, 500):
        shown.board[WORLDMODEL]["pretrained"] = pretrained
        shown.progress.seconds_left()
        seconds.now += 10
    shown.fill(VALUERL, [], epoch=1, updates=10)
    shown.fill(WORLDMODEL, [], epoch=1, updates=10)
    assert shown.progress.seconds_left() is None
    seconds.now += 1
    for learner in (VALUERL, WORLDMODEL):
        shown.board[learner]["updates"] = 20
    assert shown.progress.seconds_left() == pytest.approx(98)  # 980 at 10 a second


def test_the_first_frames_tell_their_own_time(tmp_path, seconds):
    first = {"frames_before_learning": 500}
    shown = Shown(tmp_path, model=False, policy_config=first, total_frames=1000)
    shown.progress.seconds_left_in_phase()
    seconds.now += 10
    shown.add_frames(100)
    assert shown.progress.seconds_left() is None
    assert shown.progress.seconds_left_in_phase() == pytest.approx(40)
    assert shown.progress.share == 0


def test_a_run_without_a_pace_counts_in_frames(tmp_path, seconds):
    shown = learning(tmp_path, policy_config={**AT_ONCE, "frames_per_update": False})
    shown.progress.seconds_left()
    seconds.now += 10
    shown.add_frames(99)
    assert shown.progress.share == pytest.approx(0.1)
    assert shown.progress.seconds_left() == pytest.approx(900 / 9.9)


def test_time_left_forgets_the_speed_of_long_ago(tmp_path, seconds):
    shown = learning(tmp_path, total_frames=10_000)
    for speed in [10] * 20 + [100] * 10:
        shown.progress.seconds_left()
        seconds.now += 10
        shown.board[VALUERL]["updates"] += speed
    # 10,000 - 1,200 updates at 10 a second
    assert shown.progress.seconds_left() == pytest.approx(880)


def test_time_left_until_the_hours_are_over(tmp_path, seconds):
    shown = learning(tmp_path, total_frames=None, total_hours=2.0)
    shown.board[VALUERL]["hours"] = 0.5
    assert shown.progress.seconds_left() == pytest.approx(1.5 * 3600)
    assert shown.progress.share == 0.25
    shown.board[VALUERL]["hours"] = 2.5
    assert shown.progress.seconds_left() == 0
    assert shown.progress.share == 1


def test_the_nearer_of_two_limits_counts(tmp_path, seconds):
    shown = learning(tmp_path, total_hours=1.0)
    shown.progress.seconds_left()
    seconds.now += 10
    shown.board[VALUERL]["updates"] = 100
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
