"""The pace of a learner: when an update comes, and on which frames."""

import pytest
from support import append_frames
from support_learner import (
    BEFORE,
    Feeder,
    build,
    column,
    drive,
    open_fake,
    traces_of,
    train,
)

from steve.learner import updates_per_call
from steve.settings.roles import VALUERL
from steve.storage.record import read_run

pytestmark = pytest.mark.usefixtures("nobody_sleeps")


@pytest.mark.parametrize(
    ("frames_per_update", "updates"),
    [
        # with 4, 5, 6 .. frames: the number of all u with frames > 4 + pace * u
        (4.0, [0, 1, 1, 1, 1, 2, 2, 2, 2, 3]),
        (2.5, [0, 1, 1, 2, 2, 2, 3, 3, 4, 4]),
        (1.0, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (0.25, [0, 4, 8, 12, 16, 20, 24, 28, 32, 36]),
    ],
)
def test_update_u_comes_as_soon_as_its_frames_are_there(
    tmp_path, frames_per_update, updates
):
    pace = {"frames_per_update": frames_per_update}
    run, board, replay = open_fake(tmp_path, BEFORE, pace)
    learner = build(run, board)
    feeder = Feeder(learner, replay, len(updates))
    drive(learner, feeder)
    assert feeder.waited_at == updates


@pytest.mark.parametrize("block", [2, 3, 4, 32])
def test_calls_of_several_updates_keep_the_pace(tmp_path, block):
    pace = {"frames_per_update": 0.25, "updates_per_call": block, "epoch_every_n": 1000}
    run, board, replay = open_fake(tmp_path, BEFORE, pace | {"log_every_n": 1000})
    learner = build(run, board)
    feeder = Feeder(learner, replay, 5)
    drive(learner, feeder)
    assert feeder.waited_at == [0, 4, 8, 12, 16]


def test_a_call_ends_where_a_log_line_an_epoch_or_a_backup_is_due(tmp_path):
    pace = {
        "updates_per_call": 4,
        "epoch_every_n": 6,
        "log_every_n": 5,
        "backup_every_n": 13,
    }
    run, board, _ = open_fake(tmp_path, policy_config=pace)
    learner = build(run, board)
    seen = []
    learn = learner.learn
    learner.learn = lambda count: seen.append((learner.updates, count)) or learn(count)
    drive(learner, lambda: learner.updates >= 18)
    assert seen == [
        *[(0, 4), (4, 1), (5, 1), (6, 4)],
        *[(10, 2), (12, 1), (13, 2), (15, 3)],
    ]
    assert column(learner, "updates") == [5, 10, 15]
    assert column(learner, "number") == [3, 8, 13]  # the means of 1..5, 6..10, 11..15
    assert [e[1:] for e in learner.events if e[0] == "publish"][:3] == [
        (1, 0),
        (2, 6),
        (3, 12),
    ]
    assert run.folders.numbered_state(VALUERL, 13).exists()


def test_the_pace_goes_on_after_a_restart(tmp_path):
    run, board, replay = open_fake(tmp_path, BEFORE + 5, {"frames_per_update": 1.0})
    train(build(run, board), 3)
    learner = build(run, board)
    feeder = Feeder(learner, replay, 3)
    drive(learner, feeder)
    assert feeder.waited_at == [5, 6, 7]


def test_without_pace_no_frames_are_awaited_but_the_first(tmp_path):
    run, board, replay = open_fake(tmp_path, BEFORE)
    learner = build(run, board)

    def over():
        if learner.context.stop.asked == 10:
            assert learner.epoch == 0
            append_frames(replay, 1)
        return learner.updates == 50

    drive(learner, over)
    assert replay.frames == BEFORE + 1


def test_a_batch_is_of_the_newest_replay_size_transitions(tmp_path):
    small = {"replay_size": 8, "log_every_n": 1}
    run, board, _ = open_fake(tmp_path, 100, small, model=True)
    assert run.config.replay_capacity > 100
    learner = build(run, board)
    train(learner, 50)
    assert min(column(learner, "oldest")) == 92


def test_a_batch_of_rows_that_are_lost_is_said_once(tmp_path, capsys):
    run, board, _ = open_fake(tmp_path, 100, {"frames_per_update": 1.0})
    learner = build(run, board)
    learner._batches._replay.fell_short = True
    train(learner, 5)
    (reason,) = read_run(run.folders)["not_reproducible"]
    assert "a batch was to come from rows that are lost" in reason["why"]
    assert capsys.readouterr().out.count("rows that are lost") == 1


@pytest.mark.parametrize(
    ("is_compiled", "given", "pace", "expected"),
    [
        (False, None, 0.25, 1),
        (False, 4, 0.25, 4),
        (True, None, 0.25, 16),
        (True, None, 1.0, 8),
        (True, None, 20.0, 1),
        (True, None, False, 16),
        (True, 2, False, 2),
    ],
)
def test_compiled_calls_have_several_updates(
    tmp_path, is_compiled, given, pace, expected
):
    keys = {"frames_per_update": pace, "updates_per_call": given}
    run, _, _ = open_fake(tmp_path, policy_config=keys)
    settings = run.config.policy_config
    found = updates_per_call(run.config, settings, is_compiled)
    assert found == expected


def test_the_graph_is_built_once_and_before_the_learner_counts_as_ready(tmp_path):
    run, board, replay = open_fake(tmp_path, BEFORE)
    learner = build(run, board)

    def over():
        assert board[VALUERL]["ready"]
        assert traces_of(learner) == 1
        append_frames(replay, 1)
        return learner.updates == 5

    assert not board[VALUERL]["ready"]
    drive(learner, over)


def test_a_heartbeat_comes_while_it_waits_and_while_it_learns(tmp_path, clock):
    run, board, replay = open_fake(tmp_path, BEFORE)
    learner = build(run, board)

    def over():
        assert board[VALUERL]["heartbeat"] == clock.now
        clock.now += 1
        if learner.context.stop.asked == 5:
            append_frames(replay, 1)
        return learner.updates == 5

    drive(learner, over)
