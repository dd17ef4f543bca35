"""A learner's epochs, its log, and the hours that it counts."""

import re

import pytest
from support import append_frames
from support_learner import (
    BEFORE,
    FakeLearner,
    build,
    column,
    drive,
    log_of,
    open_fake,
    state_of,
    train,
)

from steve.settings.roles import VALUERL
from steve.util import UserError

pytestmark = pytest.mark.usefixtures("nobody_sleeps")


def test_an_epoch_begins_every_epoch_every_n_updates_and_is_saved_then_published(
    tmp_path,
):
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board)
    train(learner, 7)
    assert learner.events == [
        ("publish", 1, 0),
        ("begin", 1, 3),
        ("publish", 2, 3),
        ("begin", 2, 6),
        ("publish", 3, 6),
    ]
    assert (board[VALUERL]["epoch"], board[VALUERL]["updates"]) == (3, 7)


def test_a_log_line_has_the_means_since_the_last_one(tmp_path, clock):
    run, board, _ = open_fake(tmp_path, policy_config={"log_every_n": 4})
    learner = build(run, board)

    def over():
        clock.now += 0.5
        return learner.updates == 10

    drive(learner, over)
    assert list(log_of(learner)[0]) == [
        *("hours", "epoch", "updates", "frames", "updates_per_s", "number", "oldest")
    ]
    assert column(learner, "updates") == [4, 8]
    assert column(learner, "number") == [2.5, 6.5]  # of 1, 2, 3, 4 and 5, 6, 7, 8
    assert column(learner, "epoch") == [2, 3]
    assert column(learner, "frames") == [5, 5]
    assert column(learner, "updates_per_s") == [2, 2]
    assert column(learner, "hours") == pytest.approx([2 / 3600, 4 / 3600], abs=1e-6)


def test_a_log_of_other_metrics_is_put_aside(tmp_path, capsys):
    run, board, _ = open_fake(tmp_path, policy_config={"log_every_n": 1})
    learner = build(run, board)
    train(learner, 4)
    path = learner.folders.learner_log(VALUERL)
    earlier = path.read_text()

    def kind(context):
        return FakeLearner(context, ("oldest", "number"))

    kind.name = VALUERL
    train(build(run, board, kind), 6)
    assert list(log_of(learner)[0])[-2:] == ["oldest", "number"]
    assert column(learner, "updates") == [5, 6]
    assert path.with_name(f"{path.name}.old1").read_text() == earlier
    assert "it is now valuerl.log.old1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("updates", "'updates': a counter in the learner's log is called so"),
        ("number", "'number': it stands twice"),
        ("one,two", "'one,two': it would not be one column of a csv file"),
        ("one\ntwo", r"'one\ntwo': it would not be one column of a csv file"),
        ("", "'': it would not be one column of a csv file"),
    ],
)
def test_a_metric_is_one_column_that_no_other_is(tmp_path, name, said):
    """A resume goes by the counters, and reads no line of another length."""
    run, board, _ = open_fake(tmp_path)

    def kind(context):
        return FakeLearner(context, ("number", name))

    kind.name = VALUERL
    with pytest.raises(UserError, match=re.escape(said)):
        build(run, board, kind)


def test_the_first_speed_is_from_the_start_of_learning_on(tmp_path, clock):
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board)
    clock.now += 100  # building graphs, waiting for frames
    learner.start_clock()
    for _ in range(3):
        learner.updates += learner.learn(1)
    clock.now += 2
    learner.log()
    assert column(learner, "updates_per_s") == [1.5]


def test_means_are_over_the_interval_also_after_a_restart(tmp_path):
    run, board, _ = open_fake(tmp_path, policy_config={"log_every_n": 4})
    train(build(run, board), 6)
    learner = build(run, board)
    train(learner, 12)
    assert column(learner, "updates") == [4, 8, 12]
    # those of the second launch: 7, 8, then 9, 10, 11, 12
    assert column(learner, "number")[1:] == [7.5, 10.5]


def test_hours_are_those_of_learning_over_all_launches(tmp_path, clock):
    run, board, replay = open_fake(tmp_path, BEFORE)

    def launch(updates):
        learner = build(run, board)

        def over():
            clock.now += 10
            if learner.context.stop.asked == 4:
                append_frames(replay, 1)
            return learner.updates == updates

        drive(learner, over)
        return state_of(learner).metadata["hours"] * 3600

    # Four questions come before the start: no learning. Then one before each update
    # and the one that ends it.
    assert launch(6) == pytest.approx(70)
    clock.now += 1e6
    assert launch(8) == pytest.approx(100)
    assert board[VALUERL]["hours"] * 3600 == pytest.approx(100)
