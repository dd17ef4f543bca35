"""The pace: how many frames there may be, by the updates of the learners."""

import math

import pytest
from support import make_config

from steve.running.pace import frame_limit
from steve.settings.roles import VALUERL, WORLDMODEL, learners
from steve.storage.board import Board


def limit_of(tmp_path, updates=0, model_updates=0, ready=1, epoch=1, **keys):
    config = make_config(tmp_path, "model_config" in keys, **keys)
    board = Board.create(tmp_path / "status.bin", config)
    board[VALUERL]["updates"] = updates
    if config.has_model:
        board[WORLDMODEL]["updates"] = model_updates
    for learner in learners(config):
        board[learner]["ready"], board[learner]["epoch"] = ready, epoch
    return frame_limit(config, board)


def paced(frames_per_update, before=100):
    return {"frames_before_learning": before, "frames_per_update": frames_per_update}


EIGHT = {"batch_size": 8}


@pytest.mark.parametrize(
    ("updates", "limit"),
    [
        (0, 116),  # 100 + 0.25 * 0 + 2 * 8
        (1, 116.25),
        (4, 117),
        (400, 216),
    ],
)
def test_frames_are_paced_by_the_value_learners_updates(tmp_path, updates, limit):
    found = limit_of(tmp_path, updates, policy_config=paced(0.25), agent_config=EIGHT)
    assert found == limit


def test_a_vector_step_is_as_many_frames_as_there_are_environments(tmp_path):
    keys = {"policy_config": paced(2.0), "agent_config": {"batch_size": 3, "count": 4}}
    assert limit_of(tmp_path, 10, **keys) == 100 + 2 * 10 + 2 * 3


@pytest.mark.parametrize(
    ("updates", "model_updates", "limit"),
    [
        (0, 0, 66),  # min(100, 50) + 16
        (0, 400, 116),  # min(100 + 0.25 * 0, 50 + 0.5 * 400) + 16
        (400, 40, 86),  # min(100 + 0.25 * 400, 50 + 0.5 * 40) + 16
    ],
)
def test_the_slower_learner_sets_the_pace(tmp_path, updates, model_updates, limit):
    found = limit_of(
        tmp_path,
        updates,
        model_updates,
        policy_config=paced(0.25),
        model_config=paced(0.5, before=50),
        agent_config=EIGHT,
    )
    assert found == limit


@pytest.mark.parametrize(
    ("value_pace", "model_pace", "limit"),
    [
        (False, 0.5, 50 + 0.5 * 10 + 16),
        (0.25, False, 100 + 0.25 * 4 + 16),
        (False, False, math.inf),
    ],
)
def test_a_learner_with_false_does_not_pace(tmp_path, value_pace, model_pace, limit):
    found = limit_of(
        tmp_path,
        4,
        10,
        policy_config=paced(value_pace),
        model_config=paced(model_pace, before=50),
        agent_config=EIGHT,
    )
    assert found == limit


def test_false_for_the_only_learner_leaves_frames_unlimited(tmp_path):
    assert limit_of(tmp_path, policy_config=paced(False)) == math.inf


@pytest.mark.parametrize("model", [False, True])
def test_a_learner_with_false_is_waited_for_until_its_process_is_ready(tmp_path, model):
    keys = {"policy_config": paced(False), "agent_config": EIGHT}
    if model:
        keys["model_config"] = paced(False)
    assert limit_of(tmp_path, ready=0, **keys) == 116  # 100 + 2 * 8
    assert limit_of(tmp_path, ready=0, epoch=0, **keys) == 116
    assert limit_of(tmp_path, ready=1, **keys) == math.inf


@pytest.mark.parametrize("pace", [False, 0.25])
@pytest.mark.parametrize(("value", "world"), [(100, 50), (50, 100)])
def test_before_the_first_epoch_the_later_start_counts_for_the_value_learner(
    tmp_path, pace, value, world
):
    keys = {
        "policy_config": paced(pace, before=value),
        "model_config": paced(False, before=world),
        "agent_config": EIGHT,
    }
    # The world model may be ready: it trains on, and waits for nobody.
    before = limit_of(tmp_path, epoch=0, **keys)
    after = limit_of(tmp_path, epoch=1, **keys)
    assert before == (math.inf if pace is False else 116)
    assert after == (math.inf if pace is False else value + 16)


@pytest.mark.parametrize("pretrained", [0, 5000])
def test_pretraining_is_no_pace(tmp_path, pretrained):
    config = make_config(tmp_path, model=True, agent_config=EIGHT)
    board = Board.create(tmp_path / "status.bin", config)
    board[WORLDMODEL]["pretrained"] = pretrained
    assert frame_limit(config, board) == 10_016


@pytest.mark.parametrize(
    ("pace", "updates", "limit"),
    [
        (False, 0, 1007),  # a step may begin at 999 frames and end at 1007
        (0.25, 0, 116),
        (0.25, 3600, 1007),  # 100 + 900 + 16 is more
    ],
)
def test_no_vector_step_begins_at_total_frames(tmp_path, pace, updates, limit):
    found = limit_of(
        tmp_path,
        updates,
        policy_config=paced(pace),
        agent_config=EIGHT,
        total_frames=1000,
    )
    assert found == limit
