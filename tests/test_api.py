"""The public names: training, loading and acting from a program of one's own."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from support import PROJECT

import steve
from steve import envwrap
from steve.acting.policy import Policy
from steve.settings import loading
from steve.settings.interface import Interface, Leaf
from steve.settings.schema import Environment
from steve.storage import checkpoint

FRAMES = 620  # of the quickstart: 500 at random, then some updates
QUICK = {
    "final_episodes": 1,
    "evaluator_config.count": 1,
    "policy_config.log_every_n": 20,
    "model_config.pretrain_n": 20,
    "model_config.log_every_n": 20,
    # XLA takes longer to compile the updates than all else.
    "policy_config.xla": False,
    "model_config.xla": False,
}
DDPG = {  # where it is enough
    "final_episodes": 1,
    "evaluator_config.count": 1,
    "policy_config.xla": False,
    "policy_config.value_expansion": None,
    "model_config": None,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run of the quickstart; also what it reported, and what it changed."""
    folder = tmp_path_factory.mktemp("trained")
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    environ = dict(os.environ)
    epochs, lines = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = steve.train(
            {"inherits": ["config/quickstart.json"], "updates": {"seed": 3}},
            frames=FRAMES,
            name="first",
            set=QUICK,
            on_epoch=epochs.append,
            show=lines.append,
        )
    after = {n: signal.getsignal(n) for n in before}
    return run, epochs, lines, (before, environ) == (after, dict(os.environ))


def test_train_returns_a_finished_run(trained):
    run, epochs, lines, unchanged = trained
    assert unchanged, "signal handlers or environment variables have changed"
    assert run.finished
    assert run.name == "first"
    assert run.folder.is_absolute()
    assert run.config.seed == 3
    assert list(run.scores) == ["hours", "epochs", "frames", "score"]
    assert len(run.scores) >= 2
    assert run.log("valuerl")["updates"].iloc[-1] > 0
    assert "transition_loss" in run.log("worldmodel")
    assert [e.epoch for e in epochs] == sorted({e.epoch for e in epochs})
    assert epochs[-1].updates > 0
    assert 500 < epochs[-1].frames <= FRAMES
    assert any("results go to" in line for line in lines)
    assert f"STEVE on InvertedPendulum-v5, to {FRAMES} frames" in lines


def test_a_run_is_loaded_from_its_folder(trained):
    run = trained[0]
    for again in (steve.load_run(run.folder), *steve.load_runs(run.folder.parents[1])):
        assert again.folder == run.folder
        assert again.finished
        assert again.scores.equals(run.scores)
    curves = steve.load_curves(run.folder)
    assert set(curves["algorithm"]) == {"STEVE"}


def test_the_results_that_come_along_are_runs(tmp_path):
    run = steve.load_run(PROJECT / "results" / "HalfCheetah-v1" / "steve0")
    assert run.finished
    assert run.config.env.name == "HalfCheetah-v1"
    assert len(run.scores) > 100
    with pytest.raises(steve.UserError, match=r"holds no hps\.json"):
        steve.load_run(tmp_path)


def test_the_policy_acts_as_interactors_do(trained):
    run = trained[0]
    policy = run.policy()
    env = envwrap.make_env(run.config.env)
    obs, _ = env.reset(seed=0)
    published = checkpoint.load(policy.path)
    ours = Policy(published, 4, 1).greedy(obs[None])[0]
    expected = env.env.action(ours)  # past the clock
    action = policy.act(obs)
    assert action.dtype == expected.dtype
    np.testing.assert_array_equal(action, expected)
    assert env.get_wrapper_attr("box").contains(action)
    batch = policy.act(np.stack([obs, obs, 2 * obs]))
    assert batch.shape == (3, 1)
    np.testing.assert_allclose(batch[0], action, rtol=1e-6)
    explored = [policy.act(obs, deterministic=False) for _ in range(50)]
    assert len(np.unique(np.round(explored, 6))) > 5
    with pytest.raises(ValueError, match="has shape"):
        policy.act(np.zeros(5))


def test_predict_has_the_signature_of_stable_baselines3(trained):
    """As its `evaluate_policy` calls it, on a vector of environments."""
    policy = trained[0].policy()
    obs = np.zeros((2, 4), np.float32)
    starts = np.ones(2, bool)
    action, state = policy.predict(
        obs, state=None, episode_start=starts, deterministic=True
    )
    np.testing.assert_array_equal(action, policy.act(obs))
    assert state is None


@pytest.mark.sb3
def test_stable_baselines3_evaluates_the_policy(trained):
    from stable_baselines3.common import evaluation

    env = gymnasium.make("InvertedPendulum-v5")
    mean, deviation = evaluation.evaluate_policy(
        trained[0].policy(), env, n_eval_episodes=3, warn=False
    )
    assert mean >= 1
    assert np.isfinite(deviation)


def test_a_file_of_a_policy_or_of_a_learner_will_do(trained):
    run = trained[0]
    obs = np.array([0.01, 0.02, 0.0, -0.1])
    action = run.policy().act(obs)
    for name in ("policy", "valuerl"):
        policy = steve.load_policy(run.folder / "checkpoints" / f"{name}.safetensors")
        np.testing.assert_array_equal(policy.act(obs), action)
        assert policy.updates > 0
    with pytest.raises(steve.UserError, match="holds no policy"):
        steve.load_policy(run.folder / "checkpoints" / "worldmodel.safetensors")
    with pytest.raises(steve.UserError, match="no such file"):
        steve.load_policy(run.folder / "nothing")


def publish_as_version_1(run, folder):
    """Before 1.1, nothing was published about the environment."""
    published = checkpoint.load(run.folder / "checkpoints" / "policy.safetensors")
    metadata = {k: v for k, v in published.metadata.items() if k != "interface"}
    (folder / "checkpoints").mkdir()
    old = folder / "checkpoints" / "policy.safetensors"
    checkpoint.publish(old, published.tensors, metadata)


def test_a_policy_of_version_1_asks_its_environment(trained, tmp_path):
    run = trained[0]
    publish_as_version_1(run, tmp_path)
    (tmp_path / "log").symlink_to(run.folder / "log")
    obs = np.array([0.01, 0.02, 0.0, -0.1])
    expected = run.policy().act(obs)
    np.testing.assert_array_equal(steve.load_policy(tmp_path).act(obs), expected)


def test_loading_a_policy_runs_no_code_that_its_configuration_names(trained, tmp_path):
    run = trained[0]
    publish_as_version_1(run, tmp_path)
    (tmp_path / "log").mkdir()
    content = json.loads((run.folder / "log" / "hps.json").read_text())
    ran = tmp_path / "ran"
    touch = {"args": ["touch", str(ran)]}
    content["env"].update(entry_point="subprocess:Popen", make_kwargs=touch)
    (tmp_path / "log" / "hps.json").write_text(json.dumps(content))
    with pytest.raises(steve.UserError, match="loading a policy runs no such code"):
        steve.load_policy(tmp_path)
    assert not ran.exists()


def test_mistakes_are_raised_and_a_run_resumes(trained, monkeypatch):
    run = trained[0]
    monkeypatch.chdir(run.folder.parents[2])
    content = {"inherits": ["config/quickstart.json"], "updates": {"seed": 3}}
    same = {"name": "first", "set": QUICK, "show": lambda line: None}
    with pytest.raises(steve.UserError) as refused:
        steve.train(content, frames=FRAMES, **same)
    assert str(refused.value).endswith(
        "holds output of an earlier run: resume=True continues it, overwrite=True "
        "renames it and starts again, name=... keeps both"
    )
    with pytest.raises(steve.UserError, match=r"^set: .*did you mean batch_size"):
        steve.train("quickstart", set={"policy_config.batchsize": 1})
    for resume in ({"resume": True}, {"resume_from": 100}):
        with pytest.raises(steve.UserError, match="contradict"):
            steve.train("quickstart", overwrite=True, **resume)
    with pytest.raises(steve.UserError, match="has no checkpoint of 7 updates"):
        steve.train(content, frames=FRAMES, resume_from=7, **same)
    finished = steve.train(content, frames=FRAMES, resume=True, **same)
    assert finished.scores.equals(run.scores)  # nothing was left to do


def test_what_on_epoch_raises_ends_the_run_which_saves(tmp_path, monkeypatch):
    """From a thread, as from a notebook."""
    monkeypatch.chdir(tmp_path)
    raised, actions = [], []
    folder = tmp_path / "output" / "InvertedPendulum-v5" / "quickstart"

    class Enough(Exception):
        pass

    def stop(epoch):
        actions.append(steve.load_policy(folder).act([0.0] * 4))
        raise Enough

    def work():
        try:
            steve.train("quickstart", set=DDPG, on_epoch=stop, show=lambda line: None)
        except Enough as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=120)
    assert len(raised) == len(actions) == 1
    run = steve.load_run(folder)
    assert not run.finished
    state = checkpoint.load(run.folder / "checkpoints" / "valuerl.safetensors")
    published = state.metadata["epoch"]
    assert published >= 1

    def stop_again(epoch):
        assert epoch.epoch > published  # that one was reported before
        raise Enough

    with pytest.raises(Enough):
        steve.train(
            "quickstart",
            set=DDPG,
            resume=True,
            on_epoch=stop_again,
            show=lambda line: None,
        )


def test_a_script_without_a_main_guard_trains(tmp_path):
    """Its own modules, of any name, are neither hidden nor do they hide ours."""
    (tmp_path / "util.py").write_text("raise SystemExit('the wrong util')")
    (tmp_path / "policy.py").write_text("NAME = 'mine'")
    (tmp_path / "script.py").write_text(
        "import policy\n"
        "import steve\n"
        f"run = steve.train('quickstart', frames={FRAMES}, set={DDPG!r})\n"
        "print(policy.NAME, run.finished, run.policy().act([0.0] * 4).shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("mine True (1,)\n")


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, steve\n"
        "heavy = {'tensorflow', 'gymnasium', 'numpy', 'pandas', 'pydantic', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert set(steve.__all__) <= set(dir(steve))\n"
        "steve.load_policy, steve.load_run, steve.train, steve.weighting\n"
        "assert not {'tensorflow', 'gymnasium'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(sys.prefix))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = steve.nothing
    for name in steve.__all__:
        assert getattr(steve, name) is not None


# What lies between an environment and the nets


@pytest.mark.parametrize("has_shapes", [True, False])
def test_nested_observations_are_flattened_as_in_training(has_shapes):
    space = spaces.Dict(
        {
            "b": spaces.Box(-1, 1, (2,)),
            "a": spaces.Tuple([spaces.Box(-1, 1, (1, 2)), spaces.Box(-1, 1, ())]),
        }
    )
    leaves = (Leaf(("a", 0), 2, (1, 2)), Leaf(("a", 1), 1, ()), Leaf(("b",), 2, (2,)))
    if not has_shapes:  # as in policies that were published before
        leaves = tuple(Leaf(leaf.path, leaf.size) for leaf in leaves)
    interface = Interface(leaves, (-2.0,), (3.0,), (1,), "float32", True, 0.0)
    space.seed(0)
    obs = space.sample()
    expected = spaces.flatten(space, obs)
    np.testing.assert_array_equal(interface.flatten(obs), expected)
    for count in (3, 1) if has_shapes else (3,):
        batch = {
            "a": tuple(np.stack([part] * count) for part in obs["a"]),
            "b": np.stack([obs["b"]] * count),
        }
        np.testing.assert_array_equal(interface.flatten(batch), [expected] * count)
    np.testing.assert_array_equal(interface.flatten(expected), expected)
    assert Interface.from_json(interface.to_json()) == interface
    # -1 is low, 1 is high
    np.testing.assert_allclose(
        interface.to_env(np.array([[-1], [0], [1.0]])), [[-2], [0.5], [3]]
    )


def test_the_interface_is_read_from_the_environment():
    env = Environment(name="InvertedPendulum-v5", rescale_actions=True)
    interface = envwrap.measure(env, explore_chance=0.3).interface
    assert interface == Interface(
        (Leaf((), 4, (4,)),), (-3.0,), (3.0,), (1,), "float32", True, 0.3
    )


# The paper's environments as gymnasium ids


def test_the_papers_environments_are_gymnasium_ids():
    steve.register_envs()
    steve.register_envs()  # changes nothing
    env = gymnasium.make("steve/Hopper-v1")
    assert env.spec.max_episode_steps == 1000
    ours = envwrap.make_env(loading.load("config/envs/hopper.json").config.env)
    for each in (env, ours):
        each.reset(seed=0)
        each.action_space.seed(0)
    np.testing.assert_array_equal(env.reset(seed=1)[0], ours.reset(seed=1)[0])
    action = env.action_space.sample()
    theirs, own = env.step(action), ours.step(action)
    np.testing.assert_array_equal(theirs[0], own[0])
    assert theirs[1] == own[1]


def test_an_id_can_bring_its_own_registration():
    code = (
        "import gymnasium\n"
        "env = gymnasium.make('steve.envs:steve/Swimmer-v1')\n"
        "assert env.reset(seed=0)[0].shape == (8,)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        "Hopper-v1",
        "Walker2d-v1",
        "HalfCheetah-v1",
        "Swimmer-v1",
        "Humanoid-v1",
        "BipedalWalkerHardcore-v2",
    ],
)
def test_gymnasiums_own_check_passes(name):
    from gymnasium.utils.env_checker import check_env

    steve.register_envs()
    check_env(gymnasium.make(f"steve/{name}").unwrapped, skip_render_check=True)
