"""The pace: how many frames there may be, by the updates of the learners."""

import math
import random
from itertools import pairwise

import pytest
from support import make_config

from steve.running import pace
from steve.running.pace import (
    frame_limit,
    frames_for_update,
    frames_used,
    may_update,
    model_for,
    policy_for,
    published_by,
    updates_for,
)
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


# What a paced run does at which counters

PACES = [0.1, 0.25, 0.3, 1, 1.7, 3]


def section(frames_per_update, before=100, epoch=5):
    return {**paced(frames_per_update, before), "epoch_every_n": epoch}


def config_of(tmp_path, value, model=None, step=8, **keys):
    if model is not None:
        keys["model_config"] = model
    return make_config(
        tmp_path, policy_config=value, agent_config={"batch_size": step}, **keys
    )


@pytest.mark.parametrize("pace_", PACES)
@pytest.mark.parametrize("before", [0, 100])
def test_an_update_draws_from_the_fewest_frames_that_allow_it(tmp_path, pace_, before):
    settings = config_of(tmp_path, section(pace_, before)).policy_config
    for update in range(500):
        frames = frames_for_update(settings, update)
        assert may_update(settings, frames, update)
        assert not may_update(settings, frames - 1, update)
        assert frames_used(settings, update + 1) == frames
    counts = [frames_used(settings, updates) for updates in range(500)]
    assert all(first <= second for first, second in pairwise(counts))


def test_pretraining_draws_from_the_frames_before_learning(tmp_path):
    for before, frames in ((0, 1), (1, 1), (100, 100)):
        settings = config_of(tmp_path, section(0.25, before)).policy_config
        assert frames_used(settings, 0) == frames
        assert pace.frames_for_pretraining(settings) == frames


@pytest.mark.parametrize("epoch", [1, 3, 500])
def test_a_learner_publishes_at_multiples_of_its_epoch(tmp_path, epoch):
    settings = config_of(tmp_path, section(0.25, epoch=epoch)).policy_config
    for updates in range(1200):
        found = published_by(settings, updates)
        assert found % epoch == 0
        assert found <= updates < found + epoch


def test_the_policy_of_a_step_by_hand(tmp_path):
    # frames <= 100 + 2 u + 2 * 8 after the step: u >= (f - 108) / 2 at its beginning;
    # policies of 0, 5, 10 .. updates.
    config = config_of(tmp_path, section(2.0))
    found = [policy_for(config, f) for f in (0, 100, 108, 109, 116, 117, 118, 127)]
    assert found == [None, None, None, 0, 0, 5, 5, 10]


def simulated_limits(config, updates):
    """frame_limit after each number of updates of a value learner that has begun."""
    board = {VALUERL: {"epoch": 1, "ready": 1, "updates": 0}}
    for board[VALUERL]["updates"] in range(updates):
        yield board[VALUERL]["updates"], frame_limit(config, board)


@pytest.mark.parametrize("pace_", PACES)
@pytest.mark.parametrize(
    ("before", "step", "epoch"), [(0, 1, 1), (100, 8, 5), (3, 5, 7)]
)
def test_the_policy_of_a_step_is_the_newest_that_pacing_guarantees(
    tmp_path, pace_, before, step, epoch
):
    """By brute force: the fewest updates that let each frame count be reached."""
    config = config_of(tmp_path, section(pace_, before, epoch), step=step)
    limits = list(simulated_limits(config, 1500))
    most = min(2000, int(limits[-1][1]) - step)
    fewest, guaranteed = iter(limits), []
    updates, limit = next(fewest)
    for frames in range(most):
        while frames + step > limit:
            updates, limit = next(fewest)
        guaranteed.append(updates)
    found = [policy_for(config, frames) for frames in range(most)]
    for frames, policy in enumerate(found):
        if frames <= before + step:
            assert policy is None  # the learner may not have begun
        else:
            assert policy == published_by(config.policy_config, guaranteed[frames])
    known = [policy for policy in found if policy is not None]
    assert all(first <= second for first, second in pairwise(known))
    assert known[-1] > known[0]


@pytest.mark.parametrize(("value", "world"), [(100, 300), (300, 100)])
def test_before_the_later_start_no_policy_is_certain(tmp_path, value, world):
    config = config_of(tmp_path, section(0.25, value), section(0.25, world))
    found = [policy_for(config, frames) is None for frames in range(400)]
    assert found == [frames <= 308 for frames in range(400)]


@pytest.mark.parametrize("pace_", PACES)
@pytest.mark.parametrize("epoch", [1, 5, 12])
def test_at_equal_paces_the_model_is_that_of_as_many_updates(tmp_path, pace_, epoch):
    config = config_of(tmp_path, section(pace_), section(pace_, epoch=epoch))
    for updates in range(1000):
        expected = published_by(config.model_section, updates)
        assert model_for(config, updates) == expected


@pytest.mark.parametrize("model_pace", PACES)
@pytest.mark.parametrize("value_pace", PACES)
def test_the_model_never_becomes_an_older_one(tmp_path, value_pace, model_pace):
    config = config_of(tmp_path, section(value_pace), section(model_pace, 50))
    found = [model_for(config, updates) for updates in range(500)]
    assert all(first <= second for first, second in pairwise(found))
    assert all(updates % 5 == 0 for updates in found)


class Simulation:
    """Learners and interactors of a paced run; each does a step when it may.

    The value learner waits for `model_for` at each epoch, an interactor for
    `policy_for` at each vector step.
    """

    def __init__(self, config):
        self.config, self.frames = config, 0
        names = learners(config)
        self.board = {n: {"epoch": 0, "ready": 1, "updates": 0} for n in names}
        self.published = {name: [] for name in names}
        self.used = []  # (frames, policy) of each vector step; (updates, model)

    def act(self):
        step = self.config.agent_config.batch_size
        if self.frames + step > frame_limit(self.config, self.board):
            return False
        policy = policy_for(self.config, self.frames)
        if policy is not None and policy not in self.published[VALUERL]:
            return False
        self.used.append((self.frames, policy))
        self.frames += step
        return True

    def learn(self, name):
        settings, row = learners(self.config)[name], self.board[name]
        updates, published = row["updates"], self.published[name]
        if not published and self.frames <= settings.frames_before_learning:
            return False
        if published_by(settings, updates) > (published[-1] if published else -1):
            if name == VALUERL and WORLDMODEL in self.board:
                model = model_for(self.config, updates)
                if model not in self.published[WORLDMODEL]:
                    return False
                self.used.append((updates, model))
            published.append(updates)
            row["epoch"] += 1
        elif may_update(settings, self.frames, updates):
            row["updates"] += 1
        else:
            return False
        return True

    def run(self, rng):
        """Until nobody can go on."""
        parts = [self.act, *(lambda n=name: self.learn(n) for name in self.board)]
        while True:
            weights = [rng.choice((1, 1, 50)) for _ in parts]  # who is fast now
            for part in rng.choices(parts, weights, k=200):
                part()
            acted = [part() for part in parts]
            if not any(acted):
                return sorted(self.used, key=str)


def is_at_the_end(run):
    """No more frames may come, and each learner has used and published its own."""
    return run.frames >= run.config.total_frames and all(
        not may_update(settings, run.frames, run.board[name]["updates"])
        and run.published[name][-1]
        == published_by(settings, run.board[name]["updates"])
        for name, settings in learners(run.config).items()
    )


@pytest.mark.parametrize(
    ("value", "model", "step"),
    [
        (section(0.25), section(0.25), 8),
        (section(0.25), section(0.25, epoch=12), 8),
        (section(0.25), section(1), 8),
        (section(1), section(0.25), 8),
        (section(0.25, 100), section(0.5, 400), 8),
        (section(0.25, 400), section(0.5, 100), 8),
        (section(0.3, 0, 1), section(1.7, 0, 7), 1),
        (section(3, 20), section(0.1, 10, 50), 4),
        (section(0.25), None, 8),
        # far from each other, and few frames in a step
        (section(10, 0, 1), section(1, 0, 1), 1),
        (section(10, 20, 3), section(0.5, 0, 4), 3),
        (section(7, 0, 2), section(1, 30, 1), 2),
    ],
)
def test_a_paced_run_comes_to_its_end_and_at_any_speed_does_the_same(
    tmp_path, value, model, step
):
    for total in (500, 501, 503, 507):
        config = config_of(tmp_path, value, model, step, total_frames=total)
        found = []
        for seed in range(3):
            run = Simulation(config)
            found.append(run.run(random.Random(seed)))
            assert is_at_the_end(run), (run.frames, run.board, run.published)
        assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("limit", "frames_per_update", "updates"),
    [
        (200, 1.0, 100),  # 200 frames let update 99 begin, not update 100
        (201, 1.0, 108),  # vector steps are whole: 208 frames
        (200, 0.1, 1000),
        (120, 3.0, 7),  # updates 0 .. 6 need more than 118 frames at most
    ],
)
def test_updates_up_to_the_limit_are_as_many_as_may_be_done(
    tmp_path, limit, frames_per_update, updates
):
    keys = {"policy_config": paced(frames_per_update), "agent_config": EIGHT}
    config = make_config(tmp_path, total_frames=limit, **keys)
    settings = config.policy_config
    assert updates_for(config, settings) == updates
    frames = math.ceil(limit / 8) * 8
    assert may_update(settings, frames, updates - 1)
    assert not may_update(settings, frames, updates)
