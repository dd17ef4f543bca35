"""A Minari dataset as the first frames of a run."""

import dataclasses
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from gymnasium.spaces import Box
from support import make_config
from support_storage import SIZES, former_run, one_line, rewards_in, transitions

from steve.analysis.datasets import write_minari
from steve.replay import ReplayBuffer
from steve.replay_file import IMPORTED, Origin
from steve.settings.interface import EnvSizes, Interface, Leaf
from steve.settings.request import Request, Start
from steve.storage import opening
from steve.storage.datasets import check_dataset, import_dataset
from steve.storage.folders import Folders, Run
from steve.storage.opening import has_output
from steve.storage.rewind import rewind
from steve.util import UserError

NAME = "counting/steve-v0"
DOUBLED = Interface((Leaf((), 3),), (-2.0,), (2.0,), (1,), "float32", True, 0.0)
PLAIN = dataclasses.replace(DOUBLED, low=(-1.0,), high=(1.0,), rescale=False)


def episode(length, terminated, action=0.5, first=0, **changed):
    """Observations and rewards count from `first`."""
    counted = first + np.arange(length + 1.0)
    last = np.arange(length) == length - 1
    return SimpleNamespace(
        **{
            "observations": np.repeat(counted[:, None], 3, axis=1),
            "actions": np.full((length, 1), action),
            "rewards": counted[:-1],
            "terminations": last & terminated,
            "truncations": last & (not terminated),
        }
        | changed
    )


class Dataset:
    """What of Minari's own is used."""

    def __init__(self, *episodes, high=1.0):
        self.episodes = episodes
        self.action_space = Box(-high, high, (1,), np.float32)
        self.total_steps = np.int64(sum(len(each.rewards) for each in episodes))

    def iterate_episodes(self):
        yield from self.episodes


@pytest.fixture
def known(monkeypatch):
    """Minari's datasets by name; they take the place of those that are there."""
    datasets = {}

    def load_dataset(name):
        if name not in datasets:
            raise FileNotFoundError(name)
        return datasets[name]

    fake = SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "minari", fake)
    datasets[NAME] = Dataset(episode(3, True), episode(2, False, first=10))
    return datasets


def imported(tmp_path, interface=PLAIN):
    replay = ReplayBuffer.create(tmp_path / "replay", *SIZES, 100)
    return replay, import_dataset(NAME, interface, replay)


def with_dataset(tmp_path, **keys):
    return make_config(tmp_path / "output", initial_dataset=NAME, **keys)


def test_the_steps_become_rows_in_the_order_of_episodes(tmp_path, known):
    replay, note = imported(tmp_path)
    assert note == f"the first 5 frames are the 2 episodes of the dataset {NAME}"
    rows, origin = replay.read(0, 5), replay.origins(0, 5)
    assert rows.obs[:, 0].tolist() == [0, 1, 2, 10, 11]
    assert rows.next_obs[:, 2].tolist() == [1, 2, 3, 11, 12]
    assert rows.reward.tolist() == [0, 1, 2, 10, 11]
    assert rows.terminated.tolist() == [0, 0, 1, 0, 0]
    assert rows.action.tolist() == [[0.5]] * 5
    assert origin.env.tolist() == [IMPORTED] * 5
    assert origin.episode.tolist() == [0, 0, 0, 1, 1]
    assert origin.step.tolist() == [0, 1, 2, 0, 1]
    assert origin.truncated.tolist() == [0, 0, 0, 0, 1]
    assert replay.imported == 5
    replay.append(transitions(2))
    assert replay.imported == 5


def test_actions_are_brought_from_the_box_to_the_agents(tmp_path, known):
    known[NAME] = Dataset(episode(2, True, action=-2.0), episode(1, True, action=1.0))
    replay, _ = imported(tmp_path, DOUBLED)
    assert replay.read(0, 3).action.tolist() == [[-1.0], [-1.0], [0.5]]


def test_dictionaries_are_flattened_as_the_environments_own(tmp_path, known):
    parts = {"speed": np.arange(3.0)[:, None], "place": np.ones((3, 2))}
    known[NAME] = Dataset(episode(2, True, observations=parts))
    leaves = Leaf(("place",), 2), Leaf(("speed",), 1)
    replay, _ = imported(tmp_path, dataclasses.replace(PLAIN, leaves=leaves))
    assert replay.read(0, 2).obs.tolist() == [[1, 1, 0], [1, 1, 1]]


# What is refused


def refusal(tmp_path, interface=PLAIN, **keys):
    with pytest.raises(UserError) as caught:
        check_dataset(with_dataset(tmp_path, **keys), interface)
    return one_line(caught)


def test_a_dataset_that_fits_is_accepted(tmp_path, known):
    check_dataset(with_dataset(tmp_path), PLAIN)


@pytest.mark.parametrize("there", [None, ModuleType("minari")])  # a mere folder
def test_without_minari_one_line_names_the_extra(tmp_path, monkeypatch, there):
    monkeypatch.setitem(sys.modules, "minari", there)
    assert "pip install 'steve-rl[minari]'" in refusal(tmp_path)


def test_a_dataset_that_is_not_there_is_named_with_what_shows_others(tmp_path, known):
    del known[NAME]
    message = refusal(tmp_path)
    assert NAME in message
    assert "minari list local" in message


@pytest.mark.parametrize(
    ("dataset", "why"),
    [
        (Dataset(episode(1, True), high=2.0), "from -1 to 1"),
        (Dataset(episode(1, True, observations=np.ones((2, 4)))), "3 numbers"),
        (
            Dataset(episode(1, True, observations={"x": np.ones((2, 3))})),
            "obs is missing",
        ),
        (Dataset(episode(1, True, observations=np.ones((3, 3)))), "3 observations"),
        (Dataset(episode(1, True, actions=np.ones((1, 2)))), "actions of shape (2,)"),
        (Dataset(episode(1, True, action=1.5)), "up to 1.5"),
        (Dataset(), "has no step"),
        (Dataset(*[episode(50, True)] * 500_000), "policy_config.replay_size"),
    ],
)
def test_what_does_not_fit_is_one_line_that_says_why(tmp_path, known, dataset, why):
    known[NAME] = dataset
    message = refusal(tmp_path)
    assert NAME in message
    assert why in message


def test_the_steps_count_to_the_limit_of_frames(tmp_path, known):
    known[NAME] = Dataset(episode(50, True))
    keys = {"policy_config": {"frames_before_learning": 10}, "total_frames": 49}
    assert "total_frames to at least" in refusal(tmp_path, **keys)
    check_dataset(with_dataset(tmp_path, **keys | {"total_frames": 50}), PLAIN)


def test_a_value_that_is_not_finite_is_told_with_its_episode(tmp_path, known):
    rewards = np.array([0.0, np.nan])
    known[NAME] = Dataset(episode(2, True), episode(2, True, rewards=rewards))
    with pytest.raises(UserError, match=f"{NAME}: episode 1: .*reward"):
        imported(tmp_path)


# Opening a run


def launch(config, start=Start.FRESH, name="first"):
    """What a launch tells, and the rewards in its replay buffer."""
    notes = []
    request = Request(
        config={"updates": config.model_dump(mode="json", by_alias=True)},
        device="cpu",
        start=start,
        name=name,
    )
    spec = EnvSizes(*SIZES, interface=PLAIN)
    with opening.opened(
        request, lambda config: opening.Measured(spec), {}, notes.append
    ) as run:
        return notes, rewards_in(run.folders.replay)


def test_a_fresh_run_begins_with_the_dataset_and_a_resume_does_not_ask_for_it(
    tmp_path, known
):
    config = with_dataset(tmp_path)
    notes, rewards = launch(config)
    assert rewards == [0, 1, 2, 10, 11]
    assert any(NAME in note for note in notes)
    known.clear()
    notes, rewards = launch(config, Start.RESUME)
    assert rewards == [0, 1, 2, 10, 11]
    assert not any(NAME in note for note in notes)


def test_a_mistake_leaves_nothing_behind_and_an_earlier_run_as_it_is(tmp_path, known):
    config = with_dataset(tmp_path)
    folders = Folders.of(config, "first")
    dataset = known.pop(NAME)
    with pytest.raises(UserError, match="minari list local"):
        launch(config)
    assert not has_output(folders)
    known[NAME] = dataset
    launch(config)
    del known[NAME]
    with pytest.raises(UserError, match="minari list local"):
        launch(config, Start.OVERWRITE)
    assert rewards_in(folders.replay) == [0, 1, 2, 10, 11]


def test_an_import_that_was_killed_is_made_again_as_a_whole(
    tmp_path, known, monkeypatch
):
    config = with_dataset(tmp_path)
    folders = Folders.of(config, "first")
    run = Run(config, folders, *SIZES, 0, cpu_learners=True, interface=PLAIN)
    merged = config.model_dump(mode="json", by_alias=True)
    with monkeypatch.context() as killed:
        killed.setattr(ReplayBuffer, "sync", lambda self: sys.exit())
        with pytest.raises(SystemExit):
            opening.open_output(run, merged)
    assert not (folders.replay / "replay.bin").exists()
    _, rewards = launch(config, Start.RESUME)
    assert rewards == [0, 1, 2, 10, 11]
    left = {path.name for path in folders.replay.iterdir()}
    assert left <= {"replay.bin", "replay.lock"}


def test_going_back_keeps_the_dataset_whole(tmp_path, known):
    known[NAME] = Dataset(episode(70, True))
    config = with_dataset(tmp_path, agent_config={"batch_size": 5})
    folders = Folders.of(config, "first")
    former_run(folders, learners=("valuerl",))  # at 100 updates it had used 30 frames
    (folders.replay / "replay.bin").unlink()
    with ReplayBuffer.create(folders.replay, *SIZES, 1000) as replay:
        import_dataset(NAME, PLAIN, replay)
        replay.append(transitions(20))
    rewind(folders, config, 100)
    assert rewards_in(folders.replay) == list(range(70))


def test_minaris_own_datasets_can_be_imported(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    pytest.importorskip("minari")
    first = ReplayBuffer.create(tmp_path / "first", *SIZES, 100)
    ended = transitions(4)._replace(action=np.full((4, 1), 0.25, np.float32))
    ended.terminated[-1] = 1
    zeros = np.zeros(4, int)
    first.append(ended, origin=Origin(zeros, zeros, np.arange(4), zeros, zeros))
    about = {"algorithm_name": "STEVE", "description": "x"}
    write_minari(tmp_path / "first", DOUBLED, NAME, about)
    check_dataset(with_dataset(tmp_path), DOUBLED)
    again, _ = imported(tmp_path, DOUBLED)
    columns = zip(again.read(0, 3), first.read(0, 3), strict=True)
    assert all(np.array_equal(ours, theirs) for ours, theirs in columns)
    with pytest.raises(UserError, match="other"):
        import_dataset("other/none-v0", DOUBLED, again)
