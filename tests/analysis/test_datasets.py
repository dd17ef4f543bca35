"""The replay buffer as episodes: whole ones, in order, whatever was between them."""

import builtins

import numpy as np
import pytest

from steve.analysis.datasets import episodes, write_minari
from steve.replay import Batch, ReplayBuffer
from steve.replay_file import Origin
from steve.settings.interface import Interface, Leaf
from steve.util import UserError

DOUBLED = Interface((Leaf((), 2),), (-2.0,), (2.0,), (1,), "float32", True, 0.0)


def filled(folder, rows, capacity=100):
    """A replay buffer of rows (environment, episode, step, terminated, cut)."""
    folder.mkdir(exist_ok=True)
    replay = ReplayBuffer.create(folder, 2, 1, capacity)
    for turn, (env, episode, step, terminated, cut) in enumerate(rows):
        at = 100 * env + 10 * episode + step
        replay.append(
            Batch(
                np.full((1, 2), at),
                np.full((1, 1), 0.25),
                np.full(1, at),
                np.full((1, 2), at + 1),
                np.full(1, float(terminated)),
            ),
            origin=Origin(*(np.array([n]) for n in (env, episode, step, cut, turn))),
        )
    return replay


def told(replay):
    """Observations and ending of each episode."""
    return [(e.observations[:, 0].tolist(), e.terminated) for e in episodes(replay)]


def test_rows_of_several_environments_become_episodes(tmp_path):
    rows = [
        (0, 0, 0, 0, 0),
        (1, 0, 0, 0, 1),
        (0, 0, 1, 1, 0),
        (1, 1, 0, 0, 0),
        (0, 1, 0, 0, 0),
        (1, 1, 1, 0, 0),
    ]
    replay = filled(tmp_path / "replay", rows)
    assert told(replay) == [
        ([0, 1, 2], True),
        ([10, 11], False),
        ([100, 101], False),
        ([110, 111, 112], False),
    ]
    first = next(episodes(replay))
    assert first.actions.shape == (2, 1)
    assert first.rewards.tolist() == [0, 1]


def test_an_episode_without_its_beginning_is_left_out_and_one_ends_at_a_gap(tmp_path):
    rows = [(0, 0, 5, 0, 0), (0, 0, 6, 0, 1)]  # the ring has lost steps 0 to 4
    rows += [(0, 1, step, 0, 0) for step in (0, 1, 3, 4)]  # step 2 was lost
    rows += [(0, 2, 4, 0, 0), (1, 0, 0, 0, 0), (2, 0, 1, 0, 0)]
    replay = filled(tmp_path / "replay", rows)
    assert told(replay) == [([10, 11, 12], False), ([100, 101], False)]


def test_a_replay_buffer_without_a_whole_episode_is_a_mistake(tmp_path):
    pytest.importorskip("minari")
    filled(tmp_path / "replay", [(0, 0, 7, 0, 0)]).close()
    with pytest.raises(UserError, match="no episode from its first step on"):
        write_minari(tmp_path / "replay", DOUBLED, "a/b-v0", {})


def test_without_a_beginning_there_is_no_episode(tmp_path):
    assert told(filled(tmp_path / "replay", [(0, 0, 7, 0, 0)])) == []
    assert told(filled(tmp_path / "empty", [])) == []


def test_without_minari_one_line_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *arguments):
        if name == "minari":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"pip install 'steve-rl\[minari\]'"):
        write_minari(tmp_path, DOUBLED, "a/b-v0", {})


def test_minari_reads_what_was_written(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    minari = pytest.importorskip("minari")
    rows = [(0, 0, 0, 0, 0), (0, 0, 1, 1, 0), (0, 1, 0, 0, 1)]
    filled(tmp_path / "replay", rows).close()
    about = {"algorithm_name": "STEVE", "description": "x"}
    written = (tmp_path / "replay", DOUBLED, "pendulum/steve-v0", about)
    assert write_minari(*written) == (2, 3)
    first, second = minari.load_dataset("pendulum/steve-v0").iterate_episodes()
    assert first.observations[:, 0].tolist() == [0, 1, 2]
    assert first.actions.tolist() == [[0.5], [0.5]]  # of [-2, 2]
    assert first.terminations.tolist() == [False, True]
    assert second.truncations.tolist() == [True]
    with pytest.raises(UserError, match="already exists"):
        write_minari(*written)
