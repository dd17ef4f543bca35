"""The NumPy policy: TensorFlow's actions without TensorFlow; its reader."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from support import PROJECT, open_run, publish_policy
from support_actors import context_of, new_run

from steve import nn
from steve.acting.policy import Policy, PolicyReader, random_actions
from steve.storage import checkpoint
from steve.storage.checkpoint import Checkpoint, CheckpointError
from steve.util import RunError

METADATA = {"epoch": 3, "frames": 12_345, "hours": 0.25}


def policy_net(obs_dim=5, action_dim=3, hidden_dim=16, layers=4):
    generator = tf.random.Generator.from_seed(0)
    net = nn.FeedForward(obs_dim, hidden_dim, action_dim, layers, 1, generator)
    for bias in net.biases:
        bias.assign(0.3 * generator.normal(bias.shape))
    return net


def published(net):
    """The net as the value learner publishes it: no member axis."""
    named = nn.prefixed({"policy": net.named_variables()})
    return Checkpoint({name: v.numpy()[0] for name, v in named.items()}, METADATA)


def build(obs_dim=5, action_dim=3, **sizes):
    net = policy_net(obs_dim, action_dim, **sizes)
    return Policy(published(net), obs_dim, action_dim)


def observations(rows, obs_dim=5, scale=2.0):
    noise = np.random.default_rng(1).normal(size=(rows, obs_dim))
    return (scale * noise).astype(np.float32)


# Greedy actions


@pytest.mark.parametrize(
    ("obs_dim", "action_dim", "hidden_dim", "layers", "rows"),
    [(1, 1, 4, 1, 1), (3, 1, 8, 2, 7), (11, 3, 128, 4, 8), (376, 17, 128, 4, 2)],
)
def test_greedy_is_tensorflows_tanh_of_the_policy(
    obs_dim, action_dim, hidden_dim, layers, rows
):
    net = policy_net(obs_dim, action_dim, hidden_dim, layers)
    obs = observations(rows, obs_dim)
    action = Policy(published(net), obs_dim, action_dim).greedy(obs)
    assert action.shape == (rows, action_dim)
    assert action.dtype == np.float32
    np.testing.assert_allclose(action, tf.tanh(net(obs[None])[0]), atol=1e-5)
    assert np.abs(action).max() > 0.01


def test_observations_in_float64_give_float32_actions():
    policy, obs = build(), observations(4)
    action = policy.greedy(obs.astype(np.float64))
    assert action.dtype == np.float32
    np.testing.assert_array_equal(action, policy.greedy(obs))


def test_actions_stay_within_bounds_for_huge_observations():
    actions = build().greedy(observations(8, scale=1e6))
    assert np.abs(actions).max() <= 1
    assert np.isfinite(actions).all()


def test_epoch_frames_and_hours_are_those_of_the_checkpoint():
    policy = build()
    assert (policy.epoch, policy.frames, policy.hours) == (3, 12_345, 0.25)


@pytest.mark.parametrize(("obs_dim", "action_dim"), [(4, 3), (5, 2), (3, 5)])
def test_a_checkpoint_of_other_sizes_is_refused(obs_dim, action_dim):
    said = f"{obs_dim} observations to its {action_dim} actions"
    with pytest.raises(CheckpointError, match=said):
        Policy(published(policy_net()), obs_dim, action_dim)


def test_a_checkpoint_without_a_policy_is_refused():
    with pytest.raises(CheckpointError, match="none"):
        Policy(Checkpoint({"q/w0": np.zeros((5, 3), np.float32)}, METADATA), 5, 3)


@pytest.mark.parametrize("epoch", ["x", None, [1]])
def test_a_checkpoint_with_damaged_metadata_is_refused(epoch):
    state = published(policy_net())
    state = Checkpoint(state.tensors, METADATA | {"epoch": epoch})
    with pytest.raises(CheckpointError, match="metadata are damaged"):
        Policy(state, 5, 3)


def test_updates_are_those_of_the_checkpoint_or_0_in_version_1_0():
    assert build().updates == 0
    state = published(policy_net())
    state = Checkpoint(state.tensors, METADATA | {"updates": 1500})
    assert Policy(state, 5, 3).updates == 1500


# Exploration


def test_chance_0_is_greedy():
    policy, obs = build(), observations(50)
    explored = policy.explore(obs, 0.0, np.random.default_rng(0))
    np.testing.assert_array_equal(explored, policy.greedy(obs))


def test_chance_1_disturbs_every_dimension():
    policy, obs = build(), observations(50)
    explored = policy.explore(obs, 1.0, np.random.default_rng(0))
    assert (explored != policy.greedy(obs)).all()
    assert np.abs(explored).max() <= 1
    assert explored.dtype == np.float32


@pytest.mark.parametrize("chance", [0.05, 0.5])
def test_each_dimension_is_disturbed_by_itself_with_the_given_chance(chance):
    policy, obs = build(), observations(4000)
    explored = policy.explore(obs, chance, np.random.default_rng(0))
    disturbed = explored != policy.greedy(obs)  # [4000, 3]
    deviation = np.sqrt(chance * (1 - chance) / 4000)
    np.testing.assert_allclose(disturbed.mean(axis=0), chance, atol=5 * deviation)
    # Independent: two dimensions at once with chance^2.
    both = (disturbed[:, 0] & disturbed[:, 1]).mean()
    assert both == pytest.approx(chance**2, abs=5 * np.sqrt(chance**2 / 4000))


def test_a_disturbed_dimension_is_tanh_of_the_policy_plus_the_drawn_noise():
    net, obs = policy_net(), observations(200)
    policy = Policy(published(net), 5, 3)
    explored = policy.explore(obs, 0.3, np.random.default_rng(7))
    same = np.random.default_rng(7)
    disturbed = same.random((200, 3)) < 0.3
    noise = same.standard_normal((200, 3), np.float32)
    pre_tanh = net(obs[None])[0].numpy()
    expected = np.where(disturbed, np.tanh(pre_tanh + noise), np.tanh(pre_tanh))
    np.testing.assert_allclose(explored, expected, atol=1e-5)


def test_the_noise_is_standard_normal_before_tanh():
    policy = build()
    obs = observations(6000, scale=0.1)  # small actions: tanh can be undone
    explored = policy.explore(obs, 1.0, np.random.default_rng(0))
    noise = np.arctanh(explored.astype(np.float64)) - np.arctanh(policy.greedy(obs))
    # 18,000 draws: standard deviation 0.0075 of the mean, 0.0053 of the deviation.
    assert noise.mean() == pytest.approx(0, abs=0.04)
    assert noise.std() == pytest.approx(1, abs=0.03)
    assert (np.abs(noise) < 1).mean() == pytest.approx(0.6827, abs=0.02)
    correlations = np.corrcoef(noise.T)
    assert np.abs(correlations[~np.eye(3, dtype=bool)]).max() < 0.07


def test_random_actions_are_uniform_within_bounds():
    actions = random_actions(5000, 3, np.random.default_rng(0))
    assert actions.shape == (5000, 3)
    assert actions.dtype == np.float32
    assert actions.min() >= -1
    assert actions.max() <= 1
    counts, _ = np.histogram(actions, bins=10, range=(-1, 1))
    assert np.abs(counts - 1500).max() < 5 * np.sqrt(1500)
    assert np.abs(np.corrcoef(actions.T)[~np.eye(3, dtype=bool)]).max() < 0.08


# The newest policy


@pytest.fixture
def loads(monkeypatch):
    """The paths of all checkpoints that were read."""
    read = []
    load = checkpoint.load
    monkeypatch.setattr(
        checkpoint,
        "load",
        lambda path, *rest: (read.append(path), load(path, *rest))[1],
    )
    return read


def test_a_policy_is_read_again_only_when_it_has_changed(tmp_path, loads):
    run, board = new_run(tmp_path)
    reader = PolicyReader(context_of(run, board, "evaluator0"))
    assert reader.refresh() is None
    assert loads == []
    publish_policy(run.folders.policy, 0.5, epoch=1)
    first = reader.refresh()
    assert first.epoch == 1
    for _ in range(5):
        assert reader.refresh() is first
    assert len(loads) == 1
    publish_policy(run.folders.policy, 0.5, epoch=2)
    assert reader.refresh().epoch == 2
    assert reader.policy.epoch == 2
    reader.refresh()
    assert len(loads) == 2


def test_a_policy_that_is_gone_ends_the_run_in_one_line(tmp_path):
    run, board = new_run(tmp_path)
    reader = PolicyReader(context_of(run, board, "evaluator0"))
    publish_policy(run.folders.policy, 0.5, epoch=1)
    assert reader.refresh() is not None
    run.folders.policy.unlink()
    with pytest.raises(RunError, match=r"policy\.safetensors is gone"):
        reader.refresh()


def test_a_working_folder_that_an_environment_changes_hides_no_policy(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run, board, _ = open_run(Path("output"))
    reader = PolicyReader(context_of(run, board, "evaluator0"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.chdir(tmp_path / "scratch")
    checkpoints = tmp_path / "output" / "Counting-v0" / "experiment" / "checkpoints"
    publish_policy(checkpoints / "policy.safetensors", 0.5)
    assert reader.refresh() is not None


def test_a_damaged_policy_is_named_and_passed_over(tmp_path, capsys):
    run, board = new_run(tmp_path)
    reader = PolicyReader(context_of(run, board, "evaluator0"))
    publish_policy(run.folders.policy, 0.5, epoch=1)
    first = reader.refresh()
    run.folders.policy.write_bytes(run.folders.policy.read_bytes()[:-1])
    assert reader.refresh() is first
    assert str(run.folders.policy) in capsys.readouterr().out
    publish_policy(run.folders.policy, 0.5, epoch=2)
    assert reader.refresh().epoch == 2


# The policy of a number of updates


def test_a_policy_is_the_one_of_so_many_updates_however_new_others_are(tmp_path):
    run, board = new_run(tmp_path)
    reader = PolicyReader(context_of(run, board, "evaluator0"))
    for epoch in (1, 2, 3):
        publish_policy(run.folders.policy, 0.25 * epoch, epoch)
    for updates, epoch in ((500, 2), (0, 1), (1000, 3), (500, 2)):
        policy = reader.load(updates)
        assert (policy.updates, policy.epoch) == (updates, epoch)
        action = policy.greedy(np.zeros((1, 3)))
        np.testing.assert_allclose(action, [[0.25 * epoch]], atol=1e-6)
        assert reader.policy is policy


def test_a_policy_that_is_not_published_yet_is_none_and_is_found_later(tmp_path):
    run, board = new_run(tmp_path)
    reader = PolicyReader(context_of(run, board, "evaluator0"))
    assert reader.load(500) is None
    publish_policy(run.folders.policy, 0.5, epoch=1)
    first = reader.load(0)
    assert reader.load(500) is None
    assert reader.policy is first, "it stays in use"
    publish_policy(run.folders.policy, 0.5, epoch=2)
    assert reader.load(500).epoch == 2


def test_a_policy_of_a_number_is_read_once(tmp_path, loads):
    run, board = new_run(tmp_path)
    reader = PolicyReader(context_of(run, board, "evaluator0"))
    publish_policy(run.folders.policy, 0.5, epoch=2)
    first = reader.load(500)
    for _ in range(5):
        assert reader.load(500) is first
    assert loads == [run.folders.policies.path(500)]


def test_a_damaged_policy_of_a_number_is_an_error(tmp_path):
    run, board = new_run(tmp_path)
    publish_policy(run.folders.policy, 0.5, epoch=2)
    path = run.folders.policies.path(500)
    content = path.read_bytes()
    path.unlink()  # the newest policy is the same file
    path.write_bytes(content[:-1])
    reader = PolicyReader(context_of(run, board, "evaluator0"))
    with pytest.raises(CheckpointError, match=path.name):
        reader.load(500)
    assert reader.refresh().epoch == 2


def test_a_policy_that_is_published_while_it_is_looked_for_is_no_error(
    tmp_path, monkeypatch
):
    run, board = new_run(tmp_path)
    reader = PolicyReader(context_of(run, board, "evaluator0"))
    load = checkpoint.load

    def publish_after(path):
        try:
            return load(path)
        finally:
            publish_policy(run.folders.policy, 0.5, epoch=2)

    monkeypatch.setattr(checkpoint, "load", publish_after)
    found = reader.load(500)
    assert found is None or found.epoch == 2
    publish_policy(run.folders.policy, 0.5, epoch=2)
    assert reader.load(500).epoch == 2


def test_asking_for_a_number_after_the_newest_gives_that_number(tmp_path):
    run, board = new_run(tmp_path)
    reader = PolicyReader(context_of(run, board, "evaluator0"))
    publish_policy(run.folders.policy, 0.5, epoch=1)
    assert reader.load(0).epoch == 1
    publish_policy(run.folders.policy, 0.5, epoch=2)
    assert reader.refresh().epoch == 2
    assert reader.load(0).epoch == 1
    assert reader.refresh().epoch == 2, "not the one that was read last"


# Processes without TensorFlow

IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    if "tensorflow" in sys.modules:
        sys.exit(f"importing {name} imports tensorflow")
"""


def test_processes_other_than_the_learners_do_not_import_tensorflow():
    names = [
        f"steve.{name}"
        for name in ("acting.interactor", "acting.evaluator", "envwrap", "main")
    ]
    command = [sys.executable, "-c", IMPORT_ALL, *names]
    process = subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False
    )
    assert process.returncode == 0, process.stderr
