"""Interactors: order and pace of steps, exploration, kills."""

import multiprocessing
import time

import numpy as np
import pytest
import support_env
from support import PATIENCE, publish_policy, waits_of
from support_actors import (
    REPEATABLE,
    Script,
    context_of,
    greedy_share,
    interacting,
    learning,
)

from steve.acting.interactor import Interactor, interact
from steve.acting.safe_env import SafeEnv
from steve.batch import Batch
from steve.replay import ReplayBuffer
from steve.replay_file import IMPORTED, TURN, Origin
from steve.running.child import STOPPED, child_main
from steve.running.pace import policy_for
from steve.settings.roles import VALUERL, WORLDMODEL
from steve.storage.board import Board, Wait
from steve.storage.record import read_run

SPAWN = multiprocessing.get_context("spawn")


def check_chains(replay, length, terminates):
    """Follows each environment through the replay; returns how often each is there.

    Each one begins at (episode 0, step 0) and continues without a gap, each transition
    once and in order; the reward is the action that led to it.
    """
    batch, origin = replay.read(0, replay.frames), replay.origins(0, replay.frames)
    np.testing.assert_array_equal(batch.reward, batch.action[:, 0])
    assert (np.diff(origin.turn) >= 0).all()
    counts, numbers = {}, {}
    for i, env in enumerate(origin.env.tolist()):
        episode, step = divmod(counts.get(env, 0), length)
        assert (origin.episode[i], origin.step[i]) == (episode, step)
        number = int(batch.obs[i, 0])
        assert numbers.setdefault((env, episode), number) == number
        assert batch.obs[i, 2] == step
        np.testing.assert_array_equal(batch.next_obs[i, :2], batch.obs[i, :2])
        assert batch.next_obs[i, 2] == step + 1
        assert batch.terminated[i] == (terminates and step + 1 == length)
        assert origin.truncated[i] == (not terminates and step + 1 == length)
        counts[env] = counts.get(env, 0) + 1
    assert len(set(numbers.values())) == len(numbers)  # each episode has its seed
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


@pytest.mark.parametrize("what", ["step", "reset"])
def test_life_is_shown_between_any_two_environments(tmp_path, monkeypatch, what):
    """However many there are, a slow one alone counts against `step_timeout`."""
    run, board, replay = interacting(
        tmp_path,
        env={"length": 1},
        agent_config={"batch_size": 3},
        policy_config=learning(),
    )
    seen, real = [], getattr(SafeEnv, what)

    def watched(env, *arguments):
        seen.append(what)
        return real(env, *arguments)

    monkeypatch.setattr(SafeEnv, what, watched)
    monkeypatch.setattr(Interactor, "_beat", lambda _: seen.append("beat"))
    stop = Script(on_question=lambda: replay.frames >= 9)
    interact(context_of(run, board, "interactor0", stop))
    text = " ".join(seen)
    assert text.count(what) >= 9
    assert f"{what} {what}" not in text
    assert seen[-1] == "beat"


def rows_of(tmp_path, frames, count=1, seed=0):
    """What interactors store of which each does one vector step and is replaced."""
    pace = {"frames_before_learning": 1000, "explore_chance": 0.5}
    run, board, replay = interacting(
        tmp_path,
        env=REPEATABLE,
        agent_config={"batch_size": 3, "count": count},
        policy_config=pace,
        seed=seed,
    )
    while replay.frames < frames:
        name, before = f"interactor{replay.turn % count}", replay.frames
        stop = Script(lambda before=before: replay.frames > before)
        interact(context_of(run, board, name, stop))
    return run, replay


def words_of(replay):
    return np.array(replay._rows[: replay.frames])


@pytest.mark.parametrize("count", [1, 3])
def test_a_restarted_interactor_continues_its_episodes_to_the_bit(tmp_path, count):
    """Also where each vector step is done by a new process."""
    run, board, whole = interacting(
        tmp_path / "whole",
        env=REPEATABLE,
        agent_config={"batch_size": 3, "count": 1},
        policy_config={"frames_before_learning": 1000, "explore_chance": 0.5},
    )
    stop = Script(lambda: whole.frames >= 90)
    interact(context_of(run, board, "interactor0", stop))
    run, parts = rows_of(tmp_path / "parts", 90, count)
    counts = check_chains(parts, 7, terminates=True)
    assert len(counts) == 3 * count
    assert "not_reproducible" not in read_run(run.folders)
    if count == 1:
        np.testing.assert_array_equal(words_of(parts), words_of(whole))


def test_a_vector_step_whose_count_is_missing_is_not_done_again(tmp_path):
    run, replay = rows_of(tmp_path, 12)
    replay._counters.store({TURN: replay.turn - 1})  # its store was cut short
    stop = Script(lambda: replay.frames > 12)
    interact(context_of(run, Board.open(run.folders.board), "interactor0", stop))
    origin = replay.origins(0, replay.frames)
    assert origin.turn.tolist() == np.repeat(np.arange(5), 3).tolist()
    assert "not_reproducible" not in read_run(run.folders)


def test_the_frames_of_a_dataset_belong_to_no_environment(tmp_path):
    """The first vector step begins episodes; a new process continues them."""
    run, board, replay = interacting(
        tmp_path, env=REPEATABLE, agent_config={"batch_size": 2, "count": 1}
    )
    obs, steps, zeros = np.ones((3, 3)), np.arange(3), np.zeros(3, int)
    rows = Batch(obs, np.zeros((3, 1)), np.zeros(3), obs, np.zeros(3))
    origin = Origin(np.full(3, IMPORTED), zeros, steps, zeros, zeros)
    assert replay.append(rows, origin=origin)
    for _ in range(4):
        stop = Script(lambda before=replay.frames: replay.frames > before)
        interact(context_of(run, board, "interactor0", stop))
    assert replay.imported == 3
    stored = replay.origins(3, 8)
    assert stored.env.tolist() == [0, 1] * 4
    assert stored.step.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(set(stored.episode)) == 1
    assert "not_reproducible" not in read_run(run.folders)


def test_a_dataset_longer_than_all_running_episodes_hides_none(tmp_path):
    """Its frames have turns too, but no policy was looked for in them."""
    run, board, replay = interacting(
        tmp_path,
        env=REPEATABLE | {"max_frames": 7},
        agent_config={"batch_size": 2, "full_random_n": 0, "reload_every_n": 10},
        policy_config={
            "frames_before_learning": 40,
            "frames_per_update": 1.0,
            "epoch_every_n": 2,
            "explore_chance": 0.0,
        },
    )
    obs, zero = np.ones((1, 3)), np.zeros(1)
    for step in range(55):
        origin = Origin(np.array([IMPORTED]), zero, np.array([step]), zero, zero)
        rows = Batch(obs, np.zeros((1, 1)), zero, obs, zero)
        assert replay.append(rows, origin=origin)
    board[VALUERL]["updates"] = 20
    wanted, earlier = (policy_for(run.config, frames) for frames in (55, 50))
    assert wanted != earlier
    publish_policy(run.folders.policy, 0.5, epoch=8, updates=wanted)
    stop = Script(lambda: replay.frames > 55)
    interact(context_of(run, board, "interactor0", stop))
    assert replay.origins(55, 2).env.tolist() == [0, 1]
    assert greedy_share(replay.read(55, 2)) == 1
    assert "not_reproducible" not in read_run(run.folders)


def test_seeds_reach_resets_and_actions(tmp_path):
    (_, first), (_, second) = (
        rows_of(tmp_path / str(seed), 30, seed=seed) for seed in (0, 1)
    )
    a, b = first.read(0, 30), second.read(0, 30)
    assert not (a.obs[:, 0] == b.obs[:, 0]).any()
    assert not (a.action == b.action).any()


def test_an_environment_that_does_not_repeat_itself_is_said_and_starts_over(
    tmp_path, capsys
):
    """Its observations count the episodes of the process, which no seed knows."""
    run, board, replay = interacting(
        tmp_path,
        agent_config={"batch_size": 3},
        policy_config={"frames_before_learning": 1000},
    )
    for until in (24, 60):
        stop = Script(lambda until=until: replay.frames >= until)
        interact(context_of(run, board, "interactor0", stop))
    reasons = read_run(run.folders)["not_reproducible"]
    assert [reason["from_frame"] for reason in reasons] == [24] * 3
    assert all("did not repeat its stored steps" in each["why"] for each in reasons)
    assert "cannot be repeated to the bit" in capsys.readouterr().out
    origin = replay.origins(0, replay.frames)
    for env in range(3):
        mine = origin.env == env
        steps = list(zip(origin.episode[mine], origin.step[mine], strict=True))
        assert len(set(steps)) == len(steps)
        assert steps == sorted(steps)


@pytest.mark.parametrize("differs", ["first observation", "observation", "reward"])
def test_whatever_an_environment_does_not_repeat_is_noticed(
    tmp_path, monkeypatch, differs
):
    run, board, replay = interacting(
        tmp_path,
        env=REPEATABLE,
        agent_config={"batch_size": 3},
        policy_config={"frames_before_learning": 1000},
    )
    stop = Script(lambda: replay.frames >= 12)
    interact(context_of(run, board, "interactor0", stop))
    reset, step, taken = SafeEnv.reset, SafeEnv.step, []

    def other_reset(env, seed):
        return reset(env, seed) + (differs == "first observation")

    def other_step(env, action):
        taken.append(step(env, action))
        obs, reward = taken[-1].obs, taken[-1].reward
        if len(taken) % 4 == 0:  # the last of the four steps of each environment
            obs = obs + (differs == "observation")
            reward = reward + (differs == "reward")
        return taken[-1]._replace(obs=obs, reward=reward)

    monkeypatch.setattr(SafeEnv, "reset", other_reset)
    monkeypatch.setattr(SafeEnv, "step", other_step)
    stop = Script(lambda: replay.frames >= 24)
    interact(context_of(run, board, "interactor0", stop))
    reasons = read_run(run.folders)["not_reproducible"]
    assert "did not repeat its stored steps" in reasons[0]["why"]
    assert "environment 0" in reasons[0]["why"]


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


def test_a_step_waits_for_its_turn_and_for_nothing_else(tmp_path):
    """The second interactor steps while the first one does, and stores after it."""
    run, board, replay = interacting(
        tmp_path,
        agent_config={"batch_size": 4, "count": 2},
        policy_config={"frames_before_learning": 20, "frames_per_update": 0.5},
    )
    first = ReplayBuffer.open(run.folders.replay, writable=True)
    rows = Batch(*(np.zeros(s, np.float32) for s in ((4, 3), (4, 1), 4, (4, 3), 4)))

    def store():
        assert len(support_env.steps) == 4  # it has stepped
        assert replay.frames == 0  # but not stored
        assert not first.append(rows, turn=1)
        assert first.append(rows, turn=0)
        return False

    stop = Script(lambda: replay.frames == 8, store)
    interact(context_of(run, board, "interactor1", stop))
    assert replay.origins(0, 8).turn.tolist() == [0] * 4 + [1] * 4
    assert replay.origins(0, 8).env.tolist() == [0] * 4 + [4, 5, 6, 7]
    assert waits_of(board, "interactor1") == {Wait.TURN}


def test_rewards_are_stored_as_the_environment_gives_them(tmp_path):
    """Neither scaled by `reward_scale`, which is for the targets, nor clipped."""
    added = {"entry_point": "support_env:AddedReward", "kwargs": {"amount": 1000.0}}
    run, board, replay = interacting(
        tmp_path,
        env={"reward_scale": 5.0, "wrappers": [added]},
        agent_config={"batch_size": 3},
        policy_config=learning(),
    )
    stop = Script(on_question=lambda: replay.frames >= 30)
    interact(context_of(run, board, "interactor0", stop))
    rows = replay.read(0, 30)
    np.testing.assert_allclose(rows.reward, rows.action[:, 0] + 1000, rtol=1e-6)


@pytest.mark.parametrize("turns", [6, 60])
def test_an_environment_without_a_row_has_had_an_episode_each_turn_or_it_is_said(
    tmp_path, turns
):
    run, board, replay = interacting(
        tmp_path,
        env=REPEATABLE | {"max_frames": 7},
        agent_config={"batch_size": 2, "count": 1},
        policy_config={"frames_before_learning": 1000},
    )
    rows = Batch(*(np.zeros(s) for s in ((1, 3), (1, 1), 1, (1, 3), 1)))
    for turn in range(turns):  # the second one's transitions are lost
        origin = Origin(*(np.array([n]) for n in (0, turn, 0, 1, 0)))
        replay.append(rows, origin=origin, turn=turn)
    script = Script(lambda: replay.frames > turns)
    interact(context_of(run, board, "interactor0", script))
    assert replay.origins(turns, 2).episode.tolist() == [turns, turns]
    reasons = read_run(run.folders).get("not_reproducible", [])
    assert ["environment 1 had" in each["why"] for each in reasons] == [True] * (
        turns == 60
    )


# Interactors as processes


def start_interactor(run, number):
    name = f"interactor{number}"
    child = SPAWN.Process(
        target=child_main,
        args=("steve.acting.interactor:interact", run, name, 0),
        daemon=True,
    )
    child.start()
    return child


def printed(run):
    files = sorted((run.folders.log / "processes").iterdir())
    return "\n".join(file.read_text() for file in files)


def test_processes_keep_the_band_and_lose_double_and_reorder_nothing(tmp_path):
    run, _, replay = interacting(
        tmp_path,
        env=REPEATABLE,
        agent_config={"count": 2, "batch_size": 4},
        policy_config={"frames_before_learning": 2000, "frames_per_update": 0.5},
    )
    children = [start_interactor(run, number) for number in range(2)]
    deadline = time.monotonic() + PATIENCE

    def wait_for(frames):
        while replay.frames < frames:
            assert time.monotonic() < deadline, printed(run)
            time.sleep(0.01)

    wait_for(200)
    children[0].kill()  # as it is; the other waits for its successor
    children[0].join()
    children[0] = start_interactor(run, 0)
    wait_for(2008)
    assert replay.frames == 2008
    for child in children:
        child.terminate()
    for child in children:
        child.join(PATIENCE)
        assert child.exitcode == STOPPED, printed(run)
    assert replay.recover() == 0
    counts = check_chains(replay, 7, terminates=True)
    assert list(counts.values()) == [251] * 8
    assert "not_reproducible" not in read_run(run.folders)
