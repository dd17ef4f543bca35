"""Which policy an interactor acts with, when it explores, and what a restart keeps."""

import math

import numpy as np
import pytest
import support_env
from support import TELLING, publish_policy, told, waits_of
from support_actors import (
    REPEATABLE,
    Script,
    context_of,
    greedy_share,
    interacting,
    learning,
    new_run,
    paced,
)

from steve.acting.interactor import interact
from steve.batch import Batch
from steve.replay import ReplayBuffer
from steve.replay_file import Origin
from steve.running.pace import policy_for
from steve.settings.roles import VALUERL
from steve.storage.board import Wait
from steve.storage.record import read_run


def test_a_paced_step_acts_with_the_policy_that_its_frames_name(tmp_path):
    """Never with a newer one, also where that is there."""
    run, board, replay = interacting(
        tmp_path,
        agent_config={"batch_size": 4, "full_random_n": 0},
        policy_config=paced(frames_per_update=0.5),
    )
    board[VALUERL]["updates"] = 100
    for epoch in range(1, 6):
        action = epoch / 10
        publish_policy(run.folders.policy, action, epoch, updates=10 * (epoch - 1))
    interact(context_of(run, board, "interactor0", Script(on_idle=lambda: True)))
    actions = replay.read(0, replay.frames).action[:, 0]
    for frame in range(0, replay.frames - 4, 4):
        expected = policy_for(run.config, frame)
        if expected is None or expected > 40:
            continue
        wanted = np.tanh(np.float32(math.atanh((expected / 10 + 1) / 10)))
        np.testing.assert_allclose(actions[frame : frame + 4], wanted, atol=1e-6)
    assert policy_for(run.config, 24) is None
    assert policy_for(run.config, 28) == 0
    assert policy_for(run.config, 29) == 10


def test_a_step_waits_for_its_policy(tmp_path):
    run, board, replay = interacting(
        tmp_path,
        agent_config={"batch_size": 4, "full_random_n": 0},
        policy_config=paced(frames_per_update=0.5),
    )
    board[VALUERL]["updates"] = 20
    publish_policy(run.folders.policy, 0.1, 1, updates=0)
    seen = []

    def publish():
        seen.append(replay.frames)
        publish_policy(run.folders.policy, 0.2, 2, updates=10)
        return len(seen) == 2

    interact(context_of(run, board, "interactor0", Script(on_idle=publish)))
    assert seen[0] < seen[1]
    assert policy_for(run.config, seen[0]) == 10
    assert Wait.POLICY in waits_of(board, "interactor0")


@pytest.mark.parametrize("full_random", [0, 40])
def test_actions_are_random_while_there_is_no_policy(tmp_path, full_random):
    run, board, replay = interacting(
        tmp_path,
        agent_config={"batch_size": 4, "full_random_n": full_random},
        policy_config=learning(explore_chance=0.0),
    )

    def on_question():
        if replay.frames == 120 and not run.folders.policy.exists():
            publish_policy(run.folders.policy, 0.5)
        return replay.frames >= 200

    interact(context_of(run, board, "interactor0", Script(on_question)))
    assert greedy_share(replay.read(0, 120)) == 0
    actions = replay.read(0, 120).action
    assert actions.min() < -0.8  # uniform in [-1, 1]
    assert actions.max() > 0.8
    assert greedy_share(replay.read(120, 80)) == 1


def rows_with_a_policy(tmp_path, frames, full_random_n=0, explore_chance=0.0):
    """The replay buffer of a run whose policy is there from the start."""
    run, board, replay = interacting(
        tmp_path,
        agent_config={"batch_size": 4, "full_random_n": full_random_n},
        policy_config=learning(explore_chance=explore_chance),
    )
    publish_policy(run.folders.policy, 0.5)
    stop = Script(on_question=lambda: replay.frames >= frames)
    interact(context_of(run, board, "interactor0", stop))
    return replay


def test_actions_are_random_for_the_first_frames_in_spite_of_a_policy(tmp_path):
    replay = rows_with_a_policy(tmp_path, 200, full_random_n=100)
    assert greedy_share(replay.read(0, 100)) == 0
    assert greedy_share(replay.read(100, 100)) == 1


def test_unpaced_no_turn_is_drawn_twice_after_a_restart(tmp_path):
    """Interactor 0 has done all that is stored: the turns 0, 2, 4, ... of its own."""
    run, board, replay = interacting(
        tmp_path,
        agent_config={"batch_size": 4, "count": 2, "full_random_n": 1000},
        policy_config=learning(),
    )
    for end in (80, 120, 160):
        stop = Script(lambda end=end: replay.frames >= end)
        interact(context_of(run, board, "interactor0", stop))
    actions = replay.read(0, replay.frames).action
    assert len(np.unique(actions)) == len(actions) == 160


def test_actions_explore_with_the_configured_chance(tmp_path):
    replay = rows_with_a_policy(tmp_path, 2000, explore_chance=0.3)
    # 2000 draws: standard deviation 0.0102.
    assert greedy_share(replay.read(0, 2000)) == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize("is_paced", [False, True])
def test_each_environment_gets_the_action_for_what_it_shows_now(tmp_path, is_paced):
    """Not for zeros, for another environment, or for the step before."""
    run, board, replay = interacting(
        tmp_path,
        env={"length": 7},
        agent_config={"batch_size": 3, "full_random_n": 0},
        policy_config=(
            paced(frames_before_learning=0, epoch_every_n=1000)
            if is_paced
            else learning(explore_chance=0.0)
        ),
    )
    board[VALUERL]["updates"] = 500
    publish_policy(run.folders.policy, 0.0, weights=TELLING)
    stop = Script(on_question=lambda: replay.frames >= 90)
    interact(context_of(run, board, "interactor0", stop))
    first = 6 if is_paced else 0  # before them no policy is certain
    rows = replay.read(first, replay.frames - first)
    np.testing.assert_allclose(rows.action[:, 0], told(rows.obs), atol=1e-6)
    assert len(np.unique(rows.action)) == len(rows.action)


@pytest.mark.parametrize(("reload_every", "taken_up"), [(1, 44), (5, 60)])
def test_a_new_policy_is_looked_for_every_so_many_vector_steps(
    tmp_path, reload_every, taken_up
):
    run, board, replay = interacting(
        tmp_path,
        agent_config={
            "batch_size": 4,
            "full_random_n": 0,
            "reload_every_n": reload_every,
        },
        policy_config=learning(explore_chance=0.0),
    )
    publish_policy(run.folders.policy, -0.5, epoch=1)

    def on_question():
        # After 11 steps of 4 frames; looked for before steps 0, 5, 10 and 15.
        if replay.frames == 44 and support_env.steps[-1][2]:
            publish_policy(run.folders.policy, 0.5, epoch=2)
        return replay.frames >= 100

    interact(context_of(run, board, "interactor0", Script(on_question)))
    assert greedy_share(replay.read(0, taken_up)) == 0
    assert greedy_share(replay.read(taken_up, 100 - taken_up)) == 1


def test_a_new_process_looks_for_a_policy_at_its_first_step(tmp_path):
    run, board, replay = interacting(
        tmp_path,
        agent_config={"batch_size": 4, "full_random_n": 0, "reload_every_n": 10},
        policy_config=learning(explore_chance=0.0),
    )
    publish_policy(run.folders.policy, 0.5, epoch=1)
    for end in (12, 24):  # the second begins with the fourth vector step
        stop = Script(lambda end=end: replay.frames >= end)
        interact(context_of(run, board, "interactor0", stop))
    assert greedy_share(replay.read(0, 24)) == 1


@pytest.mark.parametrize(("capacity", "lost"), [(400, 0), (32, 0), (32, 1), (400, 1)])
def test_a_restart_keeps_the_policy_that_was_looked_for_before_it(
    tmp_path, capacity, lost
):
    """The frames of that vector step are known although its rows are gone."""
    agent = {"batch_size": 4, "count": 1, "full_random_n": 0, "reload_every_n": 10}
    actions = []
    for name, stops in (("whole", [100]), ("restarted", [76 - 4 * lost, 100])):
        run, board = new_run(
            tmp_path / name,
            env=REPEATABLE,
            agent_config=agent,
            policy_config=paced(epoch_every_n=5),
        )
        board[VALUERL]["updates"] = 200
        for epoch in range(1, 18):
            policy = run.folders.policy
            publish_policy(policy, epoch / 20, epoch, updates=5 * (epoch - 1))
        replay = ReplayBuffer.create(run.folders.replay, 3, 1, capacity)
        for _ in range(lost):  # a vector step without a row
            replay.append(Batch(*(np.zeros(s) for s in ((0, 3), (0, 1), 0, (0, 3), 0))))
        for stop in stops:
            script = Script(lambda end=stop, replay=replay: replay.frames >= end)
            interact(context_of(run, board, "interactor0", script))
        actions.append(replay.read(72, 28).action)
    is_known = capacity > 100 or not lost
    assert np.array_equal(*actions) == is_known
    assert ("not_reproducible" in read_run(run.folders)) == (not is_known)


def test_a_restart_next_to_a_turn_that_is_not_stored_yet_keeps_the_policy(tmp_path):
    """Interactor 1 begins turn 17 and looks for that of turn 15; 16 is under way."""
    run, board, replay = interacting(
        tmp_path,
        agent_config={
            "batch_size": 8,
            "count": 2,
            "full_random_n": 0,
            "reload_every_n": 7,
        },
        policy_config=paced(epoch_every_n=100),
    )
    board[VALUERL]["updates"] = 200
    at = [policy_for(run.config, frames) for frames in (120, 128, 136)]
    assert at == [0, 100, 100]
    for epoch, updates in enumerate((0, 100), start=1):
        publish_policy(run.folders.policy, epoch / 4, epoch, updates=updates)

    def store(turn):
        rows = Batch(*(np.zeros((8, *shape)) for shape in ((3,), (1,), (), (3,), ())))
        numbers = np.arange(8) + 8 * (turn % 2)
        origin = Origin(numbers, *(np.full(8, n) for n in (0, turn // 2, 0, turn)))
        replay.append(rows, origin=origin, turn=turn)

    def on_question():
        if replay.turn == 16 and Wait.TURN in waits_of(board, "interactor1"):
            store(16)  # only now: interactor 1 has acted
        return replay.frames >= 144

    for turn in range(16):
        store(turn)
    interact(context_of(run, board, "interactor1", Script(on_question)))
    assert replay.origins(136, 1).turn == 17
    assert np.unique(replay.read(136, 8).action).tolist() == [0.25]
