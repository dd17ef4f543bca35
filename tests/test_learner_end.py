"""How a learner ends: at the limits of a run, and when it is stopped."""

import pytest
from support import append_frames
from support_learner import (
    BEFORE,
    FakeLearner,
    assert_same,
    build,
    drive,
    open_fake,
    state_of,
    train,
    values_of,
)

from steve.settings.roles import VALUERL

pytestmark = pytest.mark.usefixtures("nobody_sleeps")


@pytest.mark.parametrize(
    ("epoch_every_n", "frames_per_update", "published"),
    [
        (3, 1.0, [(1, 0), (2, 3), (3, 4)]),
        (2, 1.0, [(1, 0), (2, 2), (3, 4)]),  # nothing is left to publish
        (6, 0.25, [(1, 0), (2, 6), (3, 12), (4, 16)]),
        (6, 4.0, [(1, 0), (2, 1)]),
    ],
)
def test_at_total_frames_all_updates_are_done_and_the_last_ones_are_published(
    tmp_path, epoch_every_n, frames_per_update, published
):
    pace = {"epoch_every_n": epoch_every_n, "frames_per_update": frames_per_update}
    run, board, _ = open_fake(tmp_path, BEFORE + 4, pace, total_frames=BEFORE + 4)
    learner = build(run, board)
    drive(learner)
    assert [event[1:] for event in learner.events if event[0] == "publish"] == published
    state = state_of(learner).metadata
    assert (state["epoch"], state["updates"]) == published[-1]


def test_without_pace_total_frames_end_it_at_once(tmp_path):
    run, board, replay = open_fake(tmp_path, total_frames=20)
    learner = build(run, board)

    def over():
        if learner.updates == 4 and replay.frames < 20:
            append_frames(replay, 20 - replay.frames)
        return False

    drive(learner, over)
    assert learner.events[-1] == ("publish", 3, 4)


def test_without_pace_a_run_that_has_its_frames_begins_and_ends(tmp_path):
    """So it is resumed where its first launch ended before the first epoch."""
    run, board, _ = open_fake(tmp_path, total_frames=BEFORE + 1)
    learner = build(run, board)
    drive(learner)
    assert learner.events == [("publish", 1, 0)]


def test_total_hours_end_it(tmp_path, clock):
    run, board, _ = open_fake(tmp_path, total_hours=45 / 3600)
    learner = build(run, board)

    def over():
        clock.now += 10
        return False

    drive(learner, over)
    assert learner.events[-1] == ("publish", 3, 5)  # 50 s: the first above 45


def test_a_limit_that_comes_before_the_first_epoch_ends_it(tmp_path, clock):
    run, board, _ = open_fake(tmp_path, frames=BEFORE, total_hours=1.0)
    board[VALUERL]["hours"] = 2.0

    class Idle(FakeLearner):
        def tick(self):
            """Leaves the board as it is."""

    learner = build(run, board, Idle)
    drive(learner)
    assert learner.events == []
    assert state_of(learner).metadata["epoch"] == 0


def test_a_stop_saves_the_state_and_is_no_epoch(tmp_path):
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board)
    train(learner, 5)
    assert learner.events[-1] == ("publish", 2, 3)
    state = state_of(learner)
    assert state.metadata["updates"] == 5
    assert state.metadata["published_updates"] == 3
    assert state.metadata["epoch"] == 2
    assert_same(state.tensors, values_of(learner.variables()))


def test_what_a_stop_left_unpublished_is_published_at_the_limit_of_the_next_launch(
    tmp_path,
):
    run, board, replay = open_fake(tmp_path, total_frames=20)
    train(build(run, board), 5)
    append_frames(replay, 15)
    learner = build(run, board)
    drive(learner)
    assert learner.events == [("publish", 3, 5)]
    again = build(run, board)
    drive(again)
    assert again.events == []


def test_a_stop_before_the_first_epoch_leaves_a_state_to_start_from(tmp_path):
    run, board, replay = open_fake(tmp_path, frames=0)
    learner = build(run, board)
    drive(learner, lambda: learner.context.stop.asked == 3)
    assert state_of(learner).metadata["epoch"] == 0
    append_frames(replay, BEFORE + 1)
    again = build(run, board)
    train(again, 1)
    assert again.events == [("publish", 1, 0)]
