"""Interactors: steps of several environments, pacing, exploration, kills."""

import math
import multiprocessing
import time

import numpy as np
import pytest
import support_env
from support import PATIENCE, make_config, publish_policy
from support_actors import Script, context_of, new_run

from steve.acting import interactor
from steve.acting.interactor import interact, step_all
from steve.acting.safe_env import SafeEnv
from steve.replay import ReplayBuffer
from steve.running.child import STOPPED, child_main
from steve.settings.roles import VALUERL, WORLDMODEL

SPAWN = multiprocessing.get_context("spawn")


# Steps of several environments


def counting_envs(tmp_path, endings, length=3, max_frames=100):
    envs, obs = [], []
    for seed, ending in enumerate(endings):
        settings = {"length": length, "ending": ending, "max_frames": max_frames}
        config = make_config(tmp_path, env=settings).env
        rng = np.random.default_rng(seed)
        envs.append(SafeEnv(config, rng, "test", lambda: None))
        obs.append(envs[-1].reset())
    return envs, np.stack(obs)


def steps_of(envs, obs, count):
    """`count` vector steps with actions that each occur once."""
    batches, beats = [], []
    for step in range(count):
        action = np.linspace(-1, 1, len(envs) * count, dtype=np.float32)
        action = action[step * len(envs) :][: len(envs), None]
        batch, obs = step_all(envs, obs, action, lambda: beats.append(None))
        np.testing.assert_array_equal(batch.action, action)
        np.testing.assert_array_equal(batch.reward, action[:, 0])
        batches.append(batch)
    assert len(beats) >= count * len(envs)
    return batches, obs


def test_only_a_termination_is_stored_as_one(tmp_path):
    envs, obs = counting_envs(tmp_path, ["termination", "truncation", "both"])
    batches, _ = steps_of(envs, obs, 6)
    stored = np.stack([batch.terminated for batch in batches])
    assert stored.dtype == np.float32
    ends = [0, 0, 1, 0, 0, 1]
    np.testing.assert_array_equal(stored.T, [ends, [0] * 6, ends])


def test_an_episode_cut_at_max_frames_is_no_termination(tmp_path):
    envs, obs = counting_envs(tmp_path, ["termination"], length=5, max_frames=2)
    batches, _ = steps_of(envs, obs, 4)
    assert [batch.terminated[0] for batch in batches] == [0, 0, 0, 0]
    assert [batch.next_obs[0, 1:].tolist() for batch in batches] == [
        [0, 1],
        [0, 2],
        [1, 1],
        [1, 2],
    ]


@pytest.mark.parametrize("ending", ["termination", "truncation", "both"])
def test_next_obs_is_the_last_observation_of_an_episode_not_the_first_of_the_next(
    tmp_path, ending
):
    envs, obs = counting_envs(tmp_path, [ending])
    batches, obs = steps_of(envs, obs, 7)
    # (episode, step) before and after; an episode has 3 steps.
    pairs = [
        (*batch.obs[0, 1:].tolist(), *batch.next_obs[0, 1:].tolist())
        for batch in batches
    ]
    assert pairs == [
        (0, 0, 0, 1),
        (0, 1, 0, 2),
        (0, 2, 0, 3),
        (1, 0, 1, 1),
        (1, 1, 1, 2),
        (1, 2, 1, 3),
        (2, 0, 2, 1),
    ]
    assert obs[0, 1:].tolist() == [2, 1]


@pytest.mark.parametrize("what", ["step", "reset"])
def test_life_is_shown_between_any_two_environments(tmp_path, monkeypatch, what):
    """However many there are, a slow one alone counts against `step_timeout`."""
    envs, obs = counting_envs(tmp_path, ["termination"] * 3, length=1)
    seen, real = [], getattr(SafeEnv, what)

    def watched(env, *arguments):
        seen.append(what)
        return real(env, *arguments)

    monkeypatch.setattr(SafeEnv, what, watched)
    step_all(envs, obs, np.zeros((3, 1), np.float32), lambda: seen.append("beat"))
    text = " ".join(seen)
    assert text.count(what) == 3
    assert f"{what} {what}" not in text
    assert seen[-1] == "beat"


def test_each_environment_goes_its_own_way(tmp_path):
    envs, obs = counting_envs(tmp_path, ["termination", "truncation"], length=3)
    envs[1]._env.unwrapped.length = 2
    numbers = obs[:, 0].tolist()
    assert numbers[0] != numbers[1]
    batches, obs = steps_of(envs, obs, 5)
    for batch in batches:
        assert batch.obs[:, 0].tolist() == batch.next_obs[:, 0].tolist() == numbers
    assert obs[:, 1:].tolist() == [[1, 2], [2, 1]]


def test_a_batch_is_float32_in_the_shapes_of_the_replay(tmp_path):
    envs, obs = counting_envs(tmp_path, ["termination", "both"])
    (batch,), _ = steps_of(envs, obs.astype(np.float64), 1)
    assert [field.dtype for field in batch] == [np.float32] * 5
    shapes = [field.shape for field in batch]
    assert shapes == [(2, 3), (2, 1), (2,), (2, 3), (2,)]


# Interactors


def interacting(tmp_path, model=False, **keys):
    run, board = new_run(tmp_path, model, **keys)
    return run, board, ReplayBuffer.create(run.folders.replay, 3, 1, 100_000)


def learning(**keys):
    """A value learner's section with an exploration of its own."""
    return {"frames_before_learning": 0, "frames_per_update": False} | keys


def check_chains(replay, length, terminates):
    """Follows each environment through the replay; returns how often each is there.

    Each one begins at (episode 0, step 0) and goes on without a gap, each transition
    once and in order; the reward is the action that led to it.
    """
    batch = replay.read(0, replay.frames)
    np.testing.assert_array_equal(batch.reward, batch.action[:, 0])
    counts = {}
    for obs, next_obs, terminated in zip(
        batch.obs, batch.next_obs, batch.terminated, strict=True
    ):
        number = int(obs[0])
        episode, step = divmod(counts.get(number, 0), length)
        assert obs.tolist() == [number, episode, step]
        assert next_obs.tolist() == [number, episode, step + 1]
        assert terminated == (terminates and step + 1 == length)
        counts[number] = counts.get(number, 0) + 1
    return counts


@pytest.mark.parametrize("ending", ["termination", "truncation"])
def test_every_transition_is_stored_once_and_in_order(tmp_path, ending):
    run, board, replay = interacting(
        tmp_path,
        env={"length": 7, "ending": ending},
        agent_config={"batch_size": 3},
        policy_config=learning(),
    )
    stop = Script(on_question=lambda: replay.frames >= 300)
    interact(context_of(run, board, "interactor0", stop))
    assert replay.frames == 300
    counts = check_chains(replay, 7, terminates=ending == "termination")
    assert list(counts.values()) == [100, 100, 100]
    assert len(support_env.steps) == 300
    assert board["interactor0"]["heartbeat"] > 0


def test_interactors_of_other_seeds_see_other_environments(tmp_path):
    run, board, replay = interacting(
        tmp_path, agent_config={"batch_size": 3}, policy_config=learning()
    )
    for seed in range(3):
        until = replay.frames + 30
        stop = Script(on_question=lambda until=until: replay.frames >= until)
        interact(context_of(run, board, "interactor0", stop, seed))
    assert len(check_chains(replay, 5, terminates=True)) == 9
    actions = replay.read(0, replay.frames).action
    assert len(np.unique(actions)) == replay.frames


@pytest.mark.parametrize("model", [False, True])
def test_frames_stay_within_the_band_and_use_it_up(tmp_path, model):
    pace = {"frames_before_learning": 20, "frames_per_update": 0.5}
    keys = {"model_config": pace} if model else {}
    run, board, replay = interacting(
        tmp_path, model, agent_config={"batch_size": 4}, policy_config=pace, **keys
    )
    stood = []

    def on_question():
        updates = int(board[VALUERL]["updates"])
        # 20 + 0.5 u, and two steps of 4 frames.
        assert replay.frames <= 28 + 0.5 * updates
        return updates >= 60

    def learn_on():
        # It waits: as many frames are there as whole steps of 4 go into the band.
        updates = int(board[VALUERL]["updates"])
        stood.append(replay.frames)
        assert replay.frames == (28 + updates // 2) // 4 * 4
        if model:
            board[WORLDMODEL]["updates"] += 5
        board[VALUERL]["updates"] += 5
        return False

    interact(context_of(run, board, "interactor0", Script(on_question, learn_on)))
    assert stood[0] == 28
    assert stood[-1] == (28 + 55 // 2) // 4 * 4
    check_chains(replay, 5, terminates=True)


def test_the_slower_of_two_learners_holds_the_interactor_back(tmp_path):
    pace = {"frames_before_learning": 20, "frames_per_update": 0.5}
    run, board, replay = interacting(
        tmp_path,
        model=True,
        agent_config={"batch_size": 4},
        policy_config=pace,
        model_config=pace,
    )
    board[VALUERL]["updates"] = 1000
    board[WORLDMODEL]["pretrained"] = 1000
    interact(context_of(run, board, "interactor0", Script(on_idle=lambda: True)))
    assert replay.frames == 28


@pytest.mark.parametrize(("total", "frames"), [(1, 4), (40, 40), (41, 44), (43, 44)])
def test_no_frames_come_after_total_frames(tmp_path, total, frames):
    # Steps of 4: one that begins below the total is finished, none begins there.
    run, board, replay = interacting(
        tmp_path,
        agent_config={"batch_size": 4},
        policy_config=learning(),
        total_frames=total,
    )
    interact(context_of(run, board, "interactor0", Script(on_idle=lambda: True)))
    assert replay.frames == frames
    assert len(support_env.steps) == frames


def test_a_step_whose_room_another_interactor_took_is_stored_when_there_is_some(
    tmp_path, monkeypatch
):
    pace = {"frames_before_learning": 20, "frames_per_update": 0.5}
    run, board, replay = interacting(
        tmp_path, agent_config={"batch_size": 4}, policy_config=pace
    )
    rival = ReplayBuffer.open(run.folders.replay, writable=True)
    original = interactor.step_all

    def step_all_with_a_rival(*arguments):
        result = original(*arguments)
        if rival.frames == 24:  # the last room goes to the rival
            rival.append(rival.read(0, 4))
        return result

    monkeypatch.setattr(interactor, "step_all", step_all_with_a_rival)
    waited = []

    def learn_on():
        waited.append(replay.frames)
        board[VALUERL]["updates"] += 8
        return len(waited) == 2

    interact(context_of(run, board, "interactor0", Script(on_idle=learn_on)))
    assert waited == [28, 32]
    # 24 of its own, the rival's 4, and then the step that found no room.
    batch = replay.read(0, 32)
    own = [*range(24), *range(28, 32)]
    assert len({tuple(obs) for obs in batch.obs[own].tolist()}) == 28
    assert batch.obs[28:, 1:].tolist() == [[1, 1]] * 4  # step 6 of 5-step episodes


GREEDY = np.float32(np.tanh(np.float32(math.atanh(0.5))))


def greedy_share(batch):
    return float(np.isclose(batch.action[:, 0], GREEDY, atol=1e-6).mean())


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


def test_actions_are_random_for_the_first_frames_in_spite_of_a_policy(tmp_path):
    run, board, replay = interacting(
        tmp_path,
        agent_config={"batch_size": 4, "full_random_n": 100},
        policy_config=learning(explore_chance=0.0),
    )
    publish_policy(run.folders.policy, 0.5)
    stop = Script(on_question=lambda: replay.frames >= 200)
    interact(context_of(run, board, "interactor0", stop))
    assert greedy_share(replay.read(0, 100)) == 0
    assert greedy_share(replay.read(100, 100)) == 1


def test_actions_explore_with_the_configured_chance(tmp_path):
    run, board, replay = interacting(
        tmp_path,
        agent_config={"batch_size": 8, "full_random_n": 0},
        policy_config=learning(explore_chance=0.3),
    )
    publish_policy(run.folders.policy, 0.5)
    stop = Script(on_question=lambda: replay.frames >= 2000)
    interact(context_of(run, board, "interactor0", stop))
    # 2000 draws: standard deviation 0.0102.
    assert greedy_share(replay.read(0, 2000)) == pytest.approx(0.7, abs=0.05)


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


# Interactors as processes


def start_interactor(run, number):
    name = f"interactor{number}"
    child = SPAWN.Process(
        target=child_main,
        args=("steve.acting.interactor:interact", run, name, 0, 0),
        daemon=True,
    )
    child.start()
    return child


def printed(run):
    files = sorted((run.folders.log / "processes").iterdir())
    return "\n".join(file.read_text() for file in files)


def test_processes_keep_the_band_and_lose_double_and_reorder_nothing(tmp_path):
    run, board, replay = interacting(
        tmp_path,
        env={"length": 7},
        agent_config={"count": 2, "batch_size": 4},
        policy_config={"frames_before_learning": 40, "frames_per_update": 0.5},
    )
    children = [start_interactor(run, number) for number in range(2)]
    deadline = time.monotonic() + PATIENCE

    def learn_until(reached, living):
        """A learner that keeps up, as far as the frames let it."""
        while not reached():
            updates = int(board[VALUERL]["updates"])
            assert replay.frames <= 40 + 0.5 * updates + 8
            if replay.frames > 40 + 0.5 * updates:
                board[VALUERL]["updates"] = updates + 1
            assert time.monotonic() < deadline, printed(run)
            assert all(child.is_alive() for child in living), printed(run)

    def all_took_part():
        obs = replay.read(0, replay.frames).obs
        counts = np.unique(obs[:, 0], return_counts=True)[1]
        return len(counts) == 8 and counts.min() > 20

    learn_until(all_took_part, children)
    children[0].kill()  # as it is; the other goes on
    children[0].join()
    enough = replay.frames + 400
    learn_until(lambda: replay.frames >= enough, children[1:])
    children[1].terminate()
    children[1].join(PATIENCE)
    assert children[1].exitcode == STOPPED, printed(run)
    assert replay.recover() == 0
    counts = check_chains(replay, 7, terminates=True)
    assert len(counts) == 8
    assert sum(counts.values()) == replay.frames >= enough
