"""envwrap and classic_envs: spaces, clocks, errors, and the paper's physics."""

import json
import subprocess
import sys
import types
import warnings
from pathlib import Path

import check_environments
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from steve import envwrap
from steve.environments import mujoco
from steve.envwrap import EnvSpec
from steve.settings.schema import Environment
from steve.util import UserError

RECORDINGS = Path(__file__).parent / "data" / "environments"
PAPER_SIZES = {
    "Hopper-v1": (11, 3),
    "Walker2d-v1": (17, 6),
    "HalfCheetah-v1": (17, 6),
    "Swimmer-v1": (8, 2),
    "Humanoid-v1": (376, 17),
    "BipedalWalkerHardcore-v2": (24, 4),
    "RoboschoolHumanoid-v1": (44, 17),
    "RoboschoolHumanoidFlagrun-v1": (44, 17),
}


class Recorder(gymnasium.Env):
    """Observes its step count in all entries; remembers the actions it was given.

    Terminates at step `end`.
    """

    def __init__(
        self,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
        end: int | None = None,
    ) -> None:
        self.observation_space = observation_space or spaces.Box(-1, 1, (2,))
        self.action_space = action_space or spaces.Box(-1, 1, (1,))
        self.end = end
        self.actions = []
        self.buffer = np.zeros(2, np.float32)

    def _observed(self):
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            return {key: np.full(s.shape, s.low.flat[0]) for key, s in space.items()}
        if isinstance(space, spaces.Tuple):
            return tuple(np.full(s.shape, s.low.flat[0]) for s in space)
        self.buffer[:] = self.steps
        return self.buffer

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observed(), {}

    def step(self, action):
        self.actions.append(action)
        self.steps += 1
        return self._observed(), 1, self.steps == self.end, False, {}


@pytest.fixture(autouse=True)
def _recorders():
    """Registers `Recorder` for a test, once with a time limit of 5 steps."""
    gymnasium.register("Recorder-v0", Recorder)
    gymnasium.register("LimitedRecorder-v0", Recorder, max_episode_steps=5)
    yield
    for identifier in ("Recorder-v0", "LimitedRecorder-v0"):
        del gymnasium.registry[identifier]


def adapted(recorder: Recorder, **keys) -> gymnasium.Env:
    return envwrap.adapt(recorder, Environment(name="Recorder-v0", **keys))


def made(name: str, **keys) -> gymnasium.Env:
    return envwrap.make_env(Environment(name=name, **keys))


def error_of(name: str, **keys) -> str:
    """The one-line error that making the environment ends in."""
    with pytest.raises(UserError) as caught:
        made(name, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Sizes and spaces


@pytest.mark.parametrize("name", PAPER_SIZES)
def test_papers_environments_have_the_papers_sizes_and_step(name):
    obs_dim, action_dim = PAPER_SIZES[name]
    config = Environment(name=name, obs_dims=[obs_dim], action_dim=action_dim)
    assert envwrap.measure(config) == envwrap.EnvSpec(obs_dim, action_dim)
    env = envwrap.make_env(config)
    obs, _ = env.reset(seed=0)
    stepped = env.step(np.zeros(action_dim, np.float32))
    for seen in (obs, stepped[0]):
        assert seen.shape == (obs_dim,)
        assert np.issubdtype(seen.dtype, np.floating)
    assert [type(entry) for entry in stepped[1:4]] == [float, bool, bool]
    env.close()


def test_any_registered_id_is_made_and_measured():
    assert envwrap.measure(Environment(name="Pendulum-v1")) == envwrap.EnvSpec(3, 1)


def test_same_seed_gives_the_same_episode():
    episodes = []
    for _ in range(2):
        env = made("Hopper-v1")
        first, _ = env.reset(seed=7)
        episodes.append(np.concatenate([first, env.step(np.ones(3))[0]]))
    np.testing.assert_array_equal(*episodes)
    assert (env.reset(seed=8)[0] != first).any()


def test_dict_and_tuple_observations_are_flattened_in_their_order():
    position, speed = spaces.Box(1, 9, (2, 2)), spaces.Box(2, 9, ())
    for space in (
        spaces.Dict({"a": position, "b": speed}),
        spaces.Tuple([position, speed]),
    ):
        env = adapted(Recorder(space))
        obs, _ = env.reset()
        np.testing.assert_array_equal(obs, [1, 1, 1, 1, 2])


def test_an_observation_does_not_change_when_the_environment_goes_on():
    env = adapted(Recorder())
    first, _ = env.reset()
    env.step(np.zeros(1))
    np.testing.assert_array_equal(first, [0, 0])


def test_dm_control_without_its_module_names_module_and_extra():
    message = error_of("dm_control/no-such-task-v0")
    assert 'env.module to "shimmy"' in message
    assert "pip install -e .[dm_control]" in message


def test_dm_control_tasks_run():
    name = "dm_control/cartpole-balance-v0"
    # position [3] and velocity [2], a dict of boxes
    config = Environment(name=name, module="shimmy", obs_dims=[5], action_dim=1)
    obs, _ = envwrap.make_env(config).reset(seed=0)
    assert obs.shape == (5,)


# Actions


def test_rescaled_actions_span_the_box():
    low, high = np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32)
    recorder = Recorder(action_space=spaces.Box(low, high))
    env = adapted(recorder, rescale_actions=True)
    env.reset()
    for action in ([-1, -1], [1, 1], [0, 0.5], [-3, 3]):
        env.step(np.array(action))
    np.testing.assert_allclose(
        recorder.actions, [[-2, 0], [2, 10], [0, 7.5], [-2, 10]], rtol=1e-6
    )


def test_unscaled_actions_pass_and_are_clipped_to_the_box():
    recorder = Recorder(action_space=spaces.Box(-0.4, 0.4, (3,)))
    env = adapted(recorder)
    env.reset()
    env.step(np.array([-1.0, 0.3, 1.0]))
    np.testing.assert_allclose(recorder.actions, [[-0.4, 0.3, 0.4]], rtol=1e-6)


def test_actions_arrive_in_the_boxs_type_and_shape():
    recorder = Recorder(action_space=spaces.Box(-1, 1, (2, 2), np.float32))
    env = adapted(recorder)
    env.reset()
    env.step(np.array([0.1, 0.2, 0.3, 0.4]))
    assert env.action_space.shape == (4,)
    assert recorder.action_space.contains(recorder.actions[0])


def test_actions_of_an_infinite_box_pass_but_cannot_be_rescaled():
    recorder = Recorder(action_space=spaces.Box(-np.inf, np.inf, (1,)))
    adapted(recorder)
    with pytest.raises(UserError, match=r"env\.rescale_actions.*infinite"):
        adapted(recorder, rescale_actions=True)


# Clocks


def ends_of_episode(env: gymnasium.Env) -> tuple[int, bool, bool]:
    env.reset()
    for frame in range(1, 100):
        _, _, terminated, truncated, _ = env.step(np.zeros(1))
        if terminated or truncated:
            return frame, terminated, truncated
    raise AssertionError("the episode has no end")


@pytest.mark.parametrize(
    ("name", "max_frames", "frame"),
    [
        ("Recorder-v0", 3, 3),
        ("Recorder-v0", 7, 7),
        ("LimitedRecorder-v0", 3, 3),
        ("LimitedRecorder-v0", 7, 5),
    ],
)
def test_the_shorter_clock_cuts_and_a_cut_is_no_termination(name, max_frames, frame):
    env = made(name, max_frames=max_frames)
    for _ in range(2):  # the clocks start again with every episode
        assert ends_of_episode(env) == (frame, False, True)


def test_termination_is_the_environments_own_also_on_the_last_frame():
    env = made("Recorder-v0", max_frames=3, make_kwargs={"end": 2})
    assert ends_of_episode(env) == (2, True, False)
    env = made("Recorder-v0", max_frames=2, make_kwargs={"end": 2})
    assert ends_of_episode(env)[:2] == (2, True)


@pytest.mark.parametrize("name", ["Swimmer-v1", "HalfCheetah-v1"])
def test_the_papers_environments_have_no_clock_but_max_frames(name):
    env = made(name, max_frames=1100)
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape)
    cuts = [env.step(action)[3] for _ in range(1100)]
    assert cuts == [False] * 1099 + [True]


def test_warnings_of_an_environment_that_can_be_used_are_shown(monkeypatch):
    real = envwrap.make_env

    def make(config):
        warnings.warn("it is old", UserWarning, stacklevel=1)
        return real(config)

    monkeypatch.setattr(envwrap, "make_env", make)
    with pytest.warns(UserWarning, match="it is old"):
        assert envwrap.measure(Environment(name="Pendulum-v1")) == EnvSpec(3, 1)


# A user's mistakes


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("hoper-v1", {}, "nearest known: Hopper-v1"),
        ("RoboschoolHumanoidFlagrun-v2", {}, "known: RoboschoolHumanoidFlagrun-v1"),
        ("Ant-v1", {}, "nearest known: Ant-v"),
        ("Hopper-v9", {}, "nearest known: Hopper-v"),
        ("Striker-v2", {}, "no such environment"),
        ("nobody/Hopper-v1", {}, "nearest known"),
        ("CartPole-v1", {}, "only continuous actions"),
        ("Hopper-v1", {"obs_dims": [12]}, "env.obs_dims is [12] but Hopper-v1 obse"),
        ("Hopper-v1", {"action_dim": 4}, "env.action_dim is 4 but Hopper-v1 takes 3"),
        ("Hopper-v1", {"module": "no_such_module"}, "env.module no_such_module"),
        ("Hopper-v5", {"inertia": "2.1"}, "env.inertia 2.1: known for Hopper-v1"),
        ("BipedalWalkerHardcore-v2", {"inertia": "2.1"}, "env.inertia 2.1"),
        ("Pendulum-v1", {"make_kwargs": {"colour": 1}}, "correct env.make_kwargs"),
        ("Hopper-v1", {"make_kwargs": {"frame_skip": 1}}, "env.make_kwargs frame_skip"),
        (
            "RoboschoolHumanoid-v1",
            {"make_kwargs": {"robot": 1}},
            "env.make_kwargs robot",
        ),
        ("Hopper-v5", {"make_kwargs": {"xml_file": "/nowhere.xml"}}, "/nowhere.xml"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(name, keys, said):
    assert said in error_of(name, **keys)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), "images"),
        (spaces.Box(0, 1, (8, 8, 3), np.float32), "images"),
        (spaces.Box(0, 255, (8,), np.uint8), "images"),
        (spaces.Box(0, 9, (2,), np.int64), "int64"),
        (spaces.Discrete(3), "Discrete"),
        (spaces.Dict({"a": spaces.Box(0, 1, (1,)), "b": spaces.Discrete(3)}), "Discr"),
    ],
)
def test_observations_that_are_no_vectors_of_floats_are_refused(space, said):
    with pytest.raises(UserError, match=said):
        adapted(Recorder(space))


def test_discrete_parts_and_whole_numbers_are_refused_as_actions():
    box = spaces.Box(-1, 1, (1,))
    for space in (
        spaces.MultiDiscrete([2, 2]),
        spaces.Box(0, 9, (1,), np.int64),
        spaces.Dict({"a": box}),
    ):
        with pytest.raises(UserError, match="continuous"):
            adapted(Recorder(action_space=space))


def test_a_refused_environment_is_closed():
    recorder = Recorder(spaces.Discrete(3))
    closed = []
    recorder.close = lambda: closed.append(True)
    with pytest.raises(UserError):
        adapted(recorder)
    assert closed == [True]


def test_the_named_module_is_imported_and_may_register(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "registers_one.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('FromModule-v0', "
        "'gymnasium.envs.classic_control:PendulumEnv')\n"
    )
    made("FromModule-v0", module="registers_one")
    del gymnasium.registry["FromModule-v0"]
    (tmp_path / "is_broken.py").write_text("raise RuntimeError('two\\nlines')\n")
    said = error_of("Hopper-v1", module="is_broken")
    assert "is_broken: cannot be imported (RuntimeError: two lines)" in said


def test_make_kwargs_reach_the_environment():
    env = made("Pendulum-v1", make_kwargs={"g": 2.5})
    assert env.unwrapped.g == 2.5
    env = made("Hopper-v1", make_kwargs={"render_mode": "rgb_array"})
    assert env.render_mode == "rgb_array"


@pytest.mark.parametrize(
    ("name", "module", "said"),
    [
        ("Hopper-v1", "mujoco", "mujoco"),
        ("BipedalWalkerHardcore-v2", "Box2D", "Box2D"),
        ("BipedalWalkerHardcore-v3", "Box2D", "box2d"),
        ("RoboschoolHumanoid-v1", "pybullet", "pip install -e .[roboschool]"),
        ("RoboschoolHumanoidFlagrun-v1", "pybullet", "pip install -e .[roboschool]"),
    ],
)
def test_a_missing_package_is_named(name, module, said, monkeypatch):
    for loaded in list(sys.modules):
        if loaded.startswith(("gymnasium.envs.mujoco", "gymnasium.envs.box2d")):
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    assert said in error_of(name)


def test_no_learning_library_and_no_simulator_is_imported_before_use():
    program = (
        "import sys\n"
        "from steve import envwrap\n"
        "from steve.settings.schema import Environment\n"
        "simulators = {'mujoco', 'pybullet', 'Box2D', 'gym'}\n"
        "assert not simulators & set(sys.modules)\n"
        "envwrap.make_env(Environment(name='Humanoid-v1')).reset()\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=Path(envwrap.__file__).parent
    )


# gym and mujoco-py


class FakeGymSpace:
    """What gym's Box offers; no class of gymnasium."""

    def __init__(self, bound: float, size: int, dtype: type) -> None:
        self.shape, self.dtype = (size,), np.dtype(dtype)
        self.low, self.high = np.full((2, size), [[-bound], [bound]], dtype)


class FakeGymEnv:
    """What gym's wrappers around a simulation offer.

    As gym 0.26.2 does, it observes float64 and has actions of float32.
    """

    metadata: dict = {"render_modes": []}  # noqa: RUF012

    def __init__(self, identifier, **kwargs):
        self.identifier, self.kwargs = identifier, kwargs
        self.observation_space = FakeGymSpace(np.inf, 4, np.float64)
        self.action_space = FakeGymSpace(0.4, 2, np.float32)
        self.unwrapped = object()
        self.calls = []

    def reset(self, *, seed=None, options=None):
        self.calls.append(("reset", seed))
        return np.arange(4.0), {}

    def step(self, action):
        self.calls.append(("step", action.tolist()))
        return np.ones(4), np.float64(2.5), np.bool_(True), False, {}

    def close(self):
        self.calls.append("close")


@pytest.mark.parametrize("name", ["Hopper-v2", "Humanoid-v3", "Pusher-v2"])
def test_mujoco_py_ids_without_gym_say_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "gym", None)
    said = error_of(name)
    assert "gym 0.26.2 and mujoco-py" in said
    assert ("Pusher-v5" if name == "Pusher-v2" else name[:-1] + "1") in said


def test_mujoco_py_ids_go_to_gym_where_it_is_installed(monkeypatch):
    envs = []

    def make(identifier, **kwargs):
        envs.append(FakeGymEnv(identifier, **kwargs))
        return envs[-1]

    monkeypatch.setitem(sys.modules, "gym", types.SimpleNamespace(make=make))
    monkeypatch.setitem(sys.modules, "mujoco_py", types.SimpleNamespace())
    env = made("Hopper-v2", max_frames=2, make_kwargs={"extra": 1})
    assert envs[0].identifier == "Hopper-v2"
    assert envs[0].kwargs["extra"] == 1
    assert env.unwrapped is envs[0].unwrapped
    np.testing.assert_array_equal(env.reset(seed=3)[0], np.arange(4.0))
    obs, reward, terminated, truncated, _ = env.step(np.array([1.0, -0.1]))
    assert (obs.tolist(), reward, terminated, truncated) == ([1] * 4, 2.5, True, False)
    assert (type(reward), type(terminated)) == (float, bool)
    env.close()
    # 0.4 is the bound of a float32 box; -0.1 is within and must arrive unrounded.
    bound = float(np.float32(0.4))
    assert envs[0].calls == [("reset", 3), ("step", [bound, -0.1]), "close"]


@pytest.mark.mujoco_py
@pytest.mark.parametrize("version", ["v2", "v3"])
@pytest.mark.parametrize("name", mujoco.MUJOCO)
def test_real_mujoco_py_repeats_its_recorded_episodes(name, version):
    stem = name.removesuffix("-v1")
    recording = check_environments.load(RECORDINGS / f"{stem.lower()}.npz")
    env = made(f"{stem}-{version}", obs_dims=[PAPER_SIZES[name][0]])
    for first, row in check_environments.episode_rows(recording["episode"]):
        if first:
            env.reset()  # the engine's warm start too begins anew
            env.unwrapped.set_state(recording["qpos"][row], recording["qvel"][row])
        obs, reward, *ends, _ = env.step(recording["action"][row])
        np.testing.assert_allclose(obs, recording["next_obs"][row], rtol=0, atol=1e-10)
        assert reward == pytest.approx(recording["reward"][row], abs=1e-12)
        assert ends == [recording["terminated"][row], False]
    env.close()


@pytest.mark.mujoco_py
def test_real_mujoco_pys_episodes_are_cut_and_a_cut_is_no_termination():
    for max_frames, frame in ((7, 7), (1100, 1000)):  # 1000: gym's own clock
        env = made("Swimmer-v2", max_frames=max_frames)
        env.reset(seed=0)
        for step in range(1, frame + 1):
            _, _, terminated, truncated, _ = env.step(np.zeros(2))
            assert (terminated, truncated) == (False, step == frame)
        env.close()


# MuJoCo as the paper had it


def replayed(
    options: check_environments.Options, name: str
) -> check_environments.Errors:
    stem = name.removesuffix("-v1").lower()
    recording = check_environments.load(RECORDINGS / f"{stem}.npz")
    return check_environments.replay_errors(name, recording, options, whole=True)


def limit_of(name: str) -> float:
    humanoid = name == "Humanoid-v1"
    return check_environments.HUMANOID_LIMIT if humanoid else check_environments.LIMIT


def test_recorded_episodes_of_mujoco_21_are_reproduced(capsys):
    assert check_environments.main([str(RECORDINGS)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for stem in ("halfcheetah", "hopper", "humanoid", "swimmer", "walker2d"):
        replays = [line.split()[1] for line in lines if line.startswith(stem)]
        assert replays == ["episodes", "steps"]


@pytest.mark.parametrize("name", mujoco.MUJOCO)
def test_the_engines_own_inertia_does_not_reproduce_them(name):
    options = check_environments.Options(inertia="native")
    assert not replayed(options, name).within(limit_of(name))


def test_the_friction_of_todays_walker_does_not_reproduce_them(monkeypatch):
    monkeypatch.setitem(mujoco.MUJOCO, "Walker2d-v1", {})
    errors = replayed(check_environments.Options(), "Walker2d-v1")
    assert not errors.within(check_environments.LIMIT)


def test_humanoids_contact_cost_was_not_recorded():
    errors = replayed(check_environments.Options(contact_cost=True), "Humanoid-v1")
    assert errors.observation < check_environments.HUMANOID_LIMIT < errors.reward


@pytest.mark.parametrize("key", ["reward", "next_obs", "terminated"])
@pytest.mark.parametrize("wrong", [1e-4, np.nan])
def test_the_check_fails_on_a_recording_that_differs(tmp_path, key, wrong):
    recording = check_environments.load(RECORDINGS / "hopper.npz")
    changed = recording[key].copy()
    changed[20] = ~changed[20] if key == "terminated" else changed[20] + wrong
    np.savez(tmp_path / "hopper.npz", **{**recording, key: changed})
    assert check_environments.main([str(tmp_path)]) == 1


def test_the_check_says_in_one_line_what_it_cannot_read(tmp_path, capsys):
    assert check_environments.main([str(tmp_path)]) == 2
    (tmp_path / "hopper.npz").write_bytes(b"no recording")
    assert check_environments.main([str(tmp_path)]) == 2
    (tmp_path / "hopper.npz").rename(tmp_path / "pendulum.npz")
    assert check_environments.main([str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_masses_are_the_old_ones_by_default_and_a_plain_id_keeps_the_engines():
    def mass(name, **keys):
        return made(name, **keys).unwrapped.model.body_mass.sum()

    assert mass("Humanoid-v1") == pytest.approx(39.65, abs=0.005)
    assert mass("Humanoid-v1", inertia="2.1") == mass("Humanoid-v1")
    assert mass("Humanoid-v1", inertia="native") == mass("Humanoid-v5")
    assert mass("Humanoid-v5", inertia="native") == pytest.approx(42.12, abs=0.005)


@pytest.mark.parametrize("name", mujoco.MUJOCO)
def test_every_body_weighs_what_the_inertia_file_says(name):
    weights = json.loads(mujoco.INERTIA_FILE.read_text())[name[:-3]]
    model = made(name).unwrapped.model
    for key in ("mass", "inertia", "ipos", "iquat"):
        np.testing.assert_array_equal(getattr(model, f"body_{key}"), weights[key])


@pytest.mark.parametrize(("name", "low"), [("Hopper-v1", 0.5), ("Walker2d-v1", 0.3)])
def test_the_alive_bonus_is_paid_on_the_terminal_step_too(name, low):
    env = made(name)
    env.reset(seed=0)
    simulation = env.unwrapped
    qpos = simulation.init_qpos.copy()
    qpos[1] = low  # below the height at which the robot counts as fallen
    env.get_wrapper_attr("put")(qpos, simulation.init_qvel)
    action = np.full(env.action_space.shape, 0.5)
    _, reward, terminated, _, _ = env.step(action)
    speed = (simulation.data.qpos[0] - qpos[0]) / simulation.dt
    assert terminated
    # gym's formula: speed + 1 - 0.001 |action|^2
    assert reward == pytest.approx(speed + 1.0 - 0.001 * np.sum(action**2), abs=1e-12)


def stepped_humanoid(action: np.ndarray, steps: int = 1):
    env = made("Humanoid-v1")
    env.reset(seed=0)
    for _ in range(steps):
        result = env.step(action)
    return env, result


def test_humanoids_actions_are_clamped_before_their_cost():
    ones = np.ones(17)
    env, (obs, reward, *_, info) = stepped_humanoid(ones)
    _, (obs_at_bound, reward_at_bound, *_) = stepped_humanoid(0.4 * ones)
    np.testing.assert_array_equal(obs, obs_at_bound)
    assert reward == reward_at_bound
    # 0.1 |control|^2 with 17 controls of exactly 0.4: 0.1 * 17 * 0.16
    assert info["reward_ctrl"] == pytest.approx(-0.272, abs=1e-15)
    np.testing.assert_array_equal(env.unwrapped.data.ctrl, 0.4)


def test_humanoid_pays_the_alive_bonus_on_the_terminal_step_too():
    env, _ = stepped_humanoid(np.zeros(17))
    qpos = env.unwrapped.init_qpos.copy()
    qpos[2] = 0.9
    env.get_wrapper_attr("put")(qpos, env.unwrapped.init_qvel)
    _, reward, terminated, _, info = env.step(np.zeros(17))
    parts = info["reward_forward"] + info["reward_ctrl"] + info["reward_contact"]
    assert terminated
    assert reward == pytest.approx(5.0 + parts, abs=1e-12)


def test_humanoids_observation_is_gyms_formula_on_the_engines_arrays():
    rng = np.random.default_rng(0)
    env, _ = stepped_humanoid(np.zeros(17))
    for _ in range(40):
        obs, *_ = env.step(rng.uniform(-1, 1, 17))
    data = env.unwrapped.data
    names = ("qvel", "cinert", "cvel", "qfrc_actuator", "cfrc_ext")
    parts = [data.qpos[2:], *(getattr(data, name).flat for name in names)]
    assert np.any(data.cfrc_ext)
    np.testing.assert_array_equal(obs, np.concatenate(parts))


def test_humanoids_left_hip_moves_from_minus_120_to_20_degrees():
    import mujoco as engine

    def hip_limit_force(left_hip):
        env = mujoco.make_mujoco("Humanoid-v1", left_hip=left_hip)
        env.reset(seed=0)
        model, data = env.unwrapped.model, env.unwrapped.data
        joint = model.joint("left_hip_y")
        qpos = env.unwrapped.init_qpos.copy()
        qpos[joint.qposadr[0]] = np.deg2rad(-115)
        env.put(qpos, env.unwrapped.init_qvel)
        limits = data.efc_type == engine.mjtConstraint.mjCNSTR_LIMIT_JOINT
        return joint.id in data.efc_id[limits]

    model = made("Humanoid-v1").unwrapped.model
    np.testing.assert_allclose(np.rad2deg(model.joint("left_hip_y").range), [-120, 20])
    assert not hip_limit_force((-120.0, 20.0))
    assert hip_limit_force((-110.0, 20.0))


def contact_forces(model, data) -> np.ndarray:
    """Torque about the robot's centre of mass, and force, of all contacts on each body.

    [bodies, 6], world axes, N m and N; the world's own row stays 0.
    """
    import mujoco as engine

    forces = np.zeros((model.nbody, 6))
    for index in range(data.ncon):
        contact = data.contact[index]
        local = np.zeros(6)
        engine.mj_contactForce(model, data, index, local)
        axes = contact.frame.reshape(3, 3)  # rows: normal, two tangents
        force, torque = axes.T @ local[:3], axes.T @ local[3:]
        # The force acts on the second geom's body, its reaction on the first's.
        for geom, sign in ((contact.geom1, -1.0), (contact.geom2, 1.0)):
            body = model.geom_bodyid[geom]
            if body == 0:
                continue
            arm = contact.pos - data.subtree_com[model.body_rootid[body]]
            forces[body] += sign * np.concatenate(
                [torque + np.cross(arm, force), force]
            )
    return forces


def test_humanoids_contact_forces_and_cost_follow_the_formula():
    rng = np.random.default_rng(0)
    env, _ = stepped_humanoid(np.zeros(17))
    costs = []
    for _ in range(150):
        obs, _, terminated, _, info = env.step(rng.uniform(-1, 1, 17))
        expected = contact_forces(env.unwrapped.model, env.unwrapped.data)
        np.testing.assert_allclose(
            obs[292:].reshape(14, 6), expected, rtol=1e-9, atol=1e-7
        )
        # gym: 0.5e-6 |forces|^2, at most 10
        costs.append(min(0.5e-6 * np.sum(expected**2), 10.0))
        assert -info["reward_contact"] == pytest.approx(costs[-1], rel=1e-9, abs=1e-12)
        if terminated:
            env.reset()
    assert max(costs) > 0.1


def test_humanoids_contact_cost_is_part_of_the_reward_unless_switched_off():
    rewards = []
    for contact_cost in (True, False):
        env = mujoco.make_mujoco("Humanoid-v1", contact_cost=contact_cost)
        env.reset(seed=0)
        steps = [env.step(np.zeros(17)) for _ in range(20)]
        rewards.append(np.array([step[1] for step in steps]))
        costs = -np.array([step[4]["reward_contact"] for step in steps])
    assert costs.max() > 0.01
    np.testing.assert_allclose(rewards[1] - rewards[0], costs, atol=1e-12)


# The walker with the lidar


def ground_hits(walker, ray: int) -> list[float]:
    """Fractions at which a ray meets pieces of ground, in the order of the reports."""
    import Box2D

    class Everything(Box2D.b2.rayCastCallback):
        def ReportFixture(self, fixture, point, normal, fraction):
            if fixture.filterData.categoryBits & 1:
                hits.append(fraction)
            return 1

    hits: list[float] = []
    everything = Everything()
    angle, length = 1.5 * ray / 10.0, 160 / 30.0
    start = walker.hull.position
    end = start + length * Box2D.b2Vec2(np.sin(angle), -np.cos(angle))
    walker.world.RayCast(everything, start, end)
    return hits


def test_v2s_rays_end_at_the_first_ground_reported_and_v3s_at_the_closest():
    envs = [made(f"BipedalWalkerHardcore-v{version}") for version in (2, 3)]
    lidars = [env.reset(seed=4)[0][14:] for env in envs]
    rng = np.random.default_rng(0)
    differing = []
    for _ in range(200):
        for env, lidar in zip(envs, lidars, strict=True):
            choose = min if env is envs[1] else lambda hits: hits[0]
            for ray in range(10):
                hits = ground_hits(env.unwrapped, ray)
                expected = choose(hits) if hits else 1.0
                assert lidar[ray] == pytest.approx(expected, abs=1e-5)
        differing.append(np.any(lidars[0] != lidars[1]))
        action = rng.uniform(-1, 1, 4)
        stepped = [env.step(action) for env in envs]
        np.testing.assert_array_equal(stepped[0][0][:14], stepped[1][0][:14])
        assert stepped[0][1:3] == stepped[1][1:3]
        lidars = [step[0][14:] for step in stepped]
        if stepped[0][2]:
            lidars = [env.reset(seed=5)[0][14:] for env in envs]
    assert 0.1 < np.mean(differing) < 0.9


# Roboschool


@pytest.fixture
def roboschool(request):
    env = made(f"Roboschool{getattr(request, 'param', 'Humanoid')}-v1")
    env.reset(seed=0)
    yield env
    env.close()


def parts_of_reward(env: gymnasium.Env, action: np.ndarray) -> dict[str, float]:
    _, reward, *_ = env.step(action)
    names = ("alive", "progress", "electricity", "limits", "feet")
    parts = dict(zip(names, env.unwrapped.rewards, strict=True))
    assert reward == pytest.approx(sum(parts.values()))
    return parts


both_tasks = pytest.mark.parametrize(
    "roboschool", ["Humanoid", "HumanoidFlagrun"], indirect=True
)


@both_tasks
def test_each_joint_at_its_limit_costs_a_fifth(roboschool):
    robot = roboschool.unwrapped.robot
    counts = []
    for joints in ([], ["right_elbow"], ["right_elbow", "left_elbow", "abdomen_z"]):
        for name, joint in robot.jdict.items():
            limited = name in joints
            position = joint.upperLimit if limited else joint.get_mid_point()
            joint.reset_current_position(position, 0)
        limits = parts_of_reward(roboschool, np.zeros(17))["limits"]
        assert limits == pytest.approx(-0.2 * robot.joints_at_limit)
        counts.append(robot.joints_at_limit)
    assert counts == [0, 1, 3]


@both_tasks
def test_electricity_costs_what_roboschool_charged(roboschool):
    flagrun = "Flagrun" in type(roboschool.unwrapped).__name__
    work_cost = -4.25 if flagrun else -8.5
    action = np.linspace(-1, 1, 17)
    for _ in range(3):
        parts = parts_of_reward(roboschool, action)
        speeds = roboschool.unwrapped.robot.joint_speeds
        expected = work_cost * np.mean(np.abs(action * speeds))
        expected += -0.425 * np.mean(action**2)
        assert parts["electricity"] == pytest.approx(expected, rel=1e-4)


def hang_ball_on(env: gymnasium.Env, foot) -> None:
    """Ties a ball to a foot, so close that they touch."""
    client, robot = env.unwrapped._p, env.unwrapped.robot.objects[0]
    shape = client.createCollisionShape(client.GEOM_SPHERE, radius=0.03)
    centre = np.mean(client.getAABB(robot, foot.bodyPartIndex), axis=0)
    ball = client.createMultiBody(0.01, shape, basePosition=centre - [0, 0, 0.1])
    # The foot is a ball of 0.075 m around the point 0.1 m up its own z axis.
    tie(client, robot, foot, (ball, -1), [0, 0, 0.1], [0, 0, 0.1])


def tie(client, robot, foot, other, pivot, other_pivot) -> None:
    client.createConstraint(
        *(robot, foot.bodyPartIndex, *other, client.JOINT_POINT2POINT),
        *([0, 0, 0], pivot, other_pivot),
    )


@both_tasks
def test_each_foot_on_another_body_costs_one(roboschool):
    feet = roboschool.unwrapped.robot.feet
    for touching, foot in enumerate(feet):
        assert parts_of_reward(roboschool, np.zeros(17))["feet"] == -touching
        hang_ball_on(roboschool, foot)
    assert parts_of_reward(roboschool, np.zeros(17))["feet"] == -2.0


def test_feet_on_the_floor_cost_nothing(roboschool):
    robot = roboschool.unwrapped.robot
    for _ in range(30):
        assert parts_of_reward(roboschool, np.zeros(17))["feet"] == 0.0
        if robot.feet_contact.all():
            return
    raise AssertionError("the robot never stood on both feet")


def test_a_foot_on_the_robots_other_foot_costs_one_for_each(roboschool):
    robot = roboschool.unwrapped.robot
    right, left = robot.feet
    tie(
        *(roboschool.unwrapped._p, robot.objects[0], right),
        *((robot.objects[0], left.bodyPartIndex), [0, 0, 0.1], [0, 0, 0.1]),
    )
    assert parts_of_reward(roboschool, np.zeros(17))["feet"] == -2.0


@both_tasks
def test_the_start_yaw_spreads_over_a_sixteenth_of_pi_to_both_sides(roboschool):
    robot = roboschool.unwrapped.robot
    yaws, heights = [], []
    for _ in range(200):
        roboschool.reset()
        yaws.append(robot.body_rpy[2])
        heights.append(robot.body_xyz[2])
    limit = np.pi / 16
    assert np.max(np.abs(yaws)) <= limit + 1e-6
    # 200 uniform draws: all within 90% of one side's limit has odds of 3e-5.
    assert min(yaws) < -0.9 * limit
    assert max(yaws) > 0.9 * limit
    assert abs(np.mean(yaws)) < 0.25 * limit
    np.testing.assert_allclose(heights, 1.4, atol=1e-6)


@pytest.mark.parametrize("roboschool", ["HumanoidFlagrun"], indirect=True)
def test_flagruns_first_target_is_straight_ahead_half_the_time(roboschool):
    robot = roboschool.unwrapped.robot
    client = roboschool.unwrapped._p
    targets = []
    for _ in range(200):
        roboschool.reset()
        targets.append((robot.walk_target_x, robot.walk_target_y))
        ball, _ = client.getBasePositionAndOrientation(robot.flag.bodies[0])
        np.testing.assert_allclose(ball[:2], targets[-1], atol=1e-6)
    x, y = np.transpose(targets)
    ahead = y == 0.0
    half = robot.scene.stadium_halflen
    assert 70 < ahead.sum() < 130  # 100 +- 4 standard deviations of 7
    assert x[ahead].min() >= half / 2
    assert half * 0.9 < x[ahead].max() <= half
    assert np.abs(x[~ahead]).max() <= half / 2
    assert x[~ahead].min() < 0 < x[~ahead].max()
    # Later targets are random.
    later = []
    for _ in range(50):
        robot.flag_reposition()
        later.append(robot.walk_target_y)
    assert np.all(np.array(later) != 0.0)
