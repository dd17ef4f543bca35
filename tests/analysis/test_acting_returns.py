"""Returns of the acting agent, from replay buffers made by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from support_replay import append_episodes, rows

from steve.analysis.acting_returns import (
    acting_csv,
    acting_returns,
    read_acting_returns,
)
from steve.replay import ReplayBuffer
from steve.replay_file import IMPORTED, Origin
from steve.util import UserError


def buffer(tmp_path, capacity=100):
    return ReplayBuffer.create(tmp_path / "checkpoints" / "replay", 3, 2, capacity)


def found(replay) -> list[tuple[int, float]]:
    return [tuple(row) for row in acting_returns(replay).to_numpy().tolist()]


def test_each_environments_rewards_are_summed_over_whole_episodes(tmp_path):
    """Two environments: rewards 0, 2, 4 and 1, 3, 5; then 6, 8, 10 and 7, 9, 11."""
    with buffer(tmp_path) as replay:
        append_episodes(replay, envs=2, steps=8, length=3)
        # Steps 7 and 8 are of episodes that go on.
        assert found(replay) == [(5, 6), (6, 9), (11, 24), (12, 27)]


def test_a_termination_ends_an_episode_like_a_cut(tmp_path):
    with buffer(tmp_path) as replay:
        append_episodes(replay, envs=1, steps=2, length=9)
        ended = rows([1], 3)  # its reward is -1, and it terminates
        origin = replay.origins(0, 1)
        same = np.zeros(1, int)
        origin = type(origin)(same, same, same + 2, same, same)
        assert replay.append(ended, origin=origin)
        assert found(replay) == [(3, 0.0)]  # 0 + 1 - 1


def test_an_episode_whose_beginning_was_overwritten_is_left_out(tmp_path):
    with buffer(tmp_path, capacity=4) as replay:
        append_episodes(replay, envs=1, steps=6, length=3)
        assert found(replay) == [(6, 12)]  # 3 + 4 + 5


def test_an_episode_with_a_lost_step_is_left_out(tmp_path):
    with buffer(tmp_path) as replay:
        append_episodes(replay, envs=1, steps=1, length=3)
        same = np.zeros(1, int)
        origin = type(replay.origins(0, 1))(same, same, same + 2, same + 1, same)
        assert replay.append(rows([2], 3), origin=origin)
        assert found(replay) == []


def test_the_episodes_of_a_dataset_are_not_the_agents(tmp_path):
    with buffer(tmp_path) as replay:
        zeros, cut = np.zeros(2, int), np.array([0, 1])
        origin = Origin(np.full(2, IMPORTED), zeros, np.arange(2), cut, zeros)
        assert replay.append(rows([0, 1], 3), origin=origin)
        assert found(replay) == []
        append_episodes(replay, envs=1, steps=3, length=3)
        assert [frames for frames, _ in found(replay)] == [5]


def test_an_empty_buffer_has_none(tmp_path):
    with buffer(tmp_path) as replay:
        assert found(replay) == []


def test_a_buffer_of_format_1_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("steve.replay_file.FORMAT_VERSION", 1)
    monkeypatch.setattr("steve.replay_file.Layout.has_origins", False)
    with buffer(tmp_path) as replay, pytest.raises(UserError, match="format 1"):
        acting_returns(replay)


def test_a_run_has_them_in_its_buffer_or_in_a_file_next_to_its_scores(tmp_path):
    run = SimpleNamespace(
        path=tmp_path / "log" / "a0.greedy.csv",
        experiment="a0",
        config=SimpleNamespace(save_model_path="checkpoints"),
    )
    run.path.parent.mkdir()
    assert read_acting_returns(run) is None
    with buffer(tmp_path) as replay:
        append_episodes(replay, envs=2, steps=3)
        expected = acting_returns(replay)
    assert read_acting_returns(run).equals(expected)
    (tmp_path / "log" / "a0.acting.csv").write_bytes(acting_csv(expected[:1]))
    assert read_acting_returns(run).equals(expected[:1])
