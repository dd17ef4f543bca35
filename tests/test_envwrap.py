"""envwrap: spaces, actions, clocks, and a user's mistakes."""

import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from support_closing import closing_env, times_closed
from support_environments import (
    PAPER_SIZES,
    error_of,
    leave_no_id,
    made,
    needs_dm_control,
    needs_pybullet,
)

from steve import envwrap
from steve.envwrap import EnvSizes
from steve.settings.schema import Environment
from steve.util import UserError


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


# Sizes and spaces


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs_pybullet if "Roboschool" in name else ())
        for name in PAPER_SIZES
    ],
)
def test_papers_environments_have_the_papers_sizes_and_step(name):
    obs_dim, action_dim = PAPER_SIZES[name]
    config = Environment(name=name, obs_dims=[obs_dim], action_dim=action_dim)
    assert envwrap.measure(config) == envwrap.EnvSizes(obs_dim, action_dim)
    env = envwrap.make_env(config)
    obs, _ = env.reset(seed=0)
    stepped = env.step(np.zeros(action_dim, np.float32))
    for seen in (obs, stepped[0]):
        assert seen.shape == (obs_dim,)
        assert np.issubdtype(seen.dtype, np.floating)
    assert [type(entry) for entry in stepped[1:4]] == [float, bool, bool]
    env.close()


def test_any_registered_id_is_made_and_measured():
    assert envwrap.measure(Environment(name="Pendulum-v1")) == envwrap.EnvSizes(3, 1)


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
    assert "pip install 'steve-rl[dm_control]'" in message


@needs_dm_control
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
        assert envwrap.measure(Environment(name="Pendulum-v1")) == EnvSizes(3, 1)


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
            "as the paper had it and takes render_mode only; remove robot or name",
        ),
        (
            "BipedalWalkerHardcore-v2",
            {"make_kwargs": {"render_mode": None, "width": 100, "camera_id": 0}},
            "env.make_kwargs camera_id, width: BipedalWalkerHardcore-v2 is made",
        ),
        ("Hopper-v5", {"make_kwargs": {"xml_file": "/nowhere.xml"}}, "/nowhere.xml"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(name, keys, said):
    assert said in error_of(name, **keys)


def test_the_nearest_known_id_is_named_only_where_it_is_near():
    said = error_of("MyRobotWalksUpstairs-v0")
    assert "nearest" not in said
    assert "env.module" in said


def raising(error):
    def make(**kwargs):
        raise error

    return make


def test_arguments_are_to_be_corrected_only_where_there_are_some():
    with pytest.raises(UserError) as caught:
        envwrap._made(Environment(name="Own-v0"), raising(ValueError("no licence")))
    assert (
        str(caught.value) == "env.name Own-v0: cannot be made (ValueError: no licence)"
    )


def test_a_package_that_is_there_but_broken_is_not_called_missing():
    broken = gymnasium.error.DependencyNotInstalled("MuJoCo is not installed")
    broken.__cause__ = ImportError("PYOPENGL_PLATFORM is glx")
    for error in (broken, broken.__cause__):
        with pytest.raises(UserError, match="PYOPENGL_PLATFORM is glx") as caught:
            envwrap._made(Environment(name="Own-v0"), raising(error))
        assert "install" not in str(caught.value)
    missing = ModuleNotFoundError("No module named 'robots'")
    with pytest.raises(UserError, match=r"is missing .*robots.*; install it"):
        envwrap._made(Environment(name="Own-v0"), raising(missing))


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


EMPTY = spaces.Box(-1, 1, (0,))


@pytest.mark.parametrize("space", [EMPTY, spaces.Dict({}), spaces.Dict({"a": EMPTY})])
def test_a_space_without_numbers_is_refused(space):
    recorder = Recorder()
    recorder.observation_space = space
    with pytest.raises(UserError, match="observes nothing"):
        adapted(recorder)


def test_actions_without_numbers_are_refused():
    with pytest.raises(UserError, match="takes no action"):
        adapted(Recorder(action_space=EMPTY))


def test_an_environment_without_spaces_is_refused():
    with pytest.raises(UserError, match="has no observation_space"):
        adapted(gymnasium.Env())


def test_an_environment_that_calls_sys_exit_is_a_mistake():
    def leave():
        sys.exit(0)

    gymnasium.register("Leaves-v0", leave)
    said = error_of("Leaves-v0")
    leave_no_id("Leaves-v0")
    assert "called sys.exit when it was made (exit code 0)" in said


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


@pytest.mark.parametrize(
    ("closing", "why"),
    [("raises", "ValueError: no viewer"), ("hangs", "TimeoutError: it took over ")],
)
def test_what_goes_wrong_in_close_is_a_note_and_hides_nothing(
    tmp_path, capfd, monkeypatch, closing, why
):
    monkeypatch.setattr(envwrap.close_env, "__defaults__", (0.05,))
    keys = closing_env(tmp_path, closing=closing)
    assert envwrap.measure(Environment(**keys)).obs_dim == 2
    with pytest.raises(UserError, match=r"env.obs_dims is \[9\]"):
        envwrap.measure(Environment(**keys, obs_dims=[9]))
    assert times_closed(tmp_path) == 2
    notes = capfd.readouterr().err.splitlines()
    assert len(notes) == 2
    for note in notes:
        assert note.startswith(f"note: closing an environment failed ({why}")


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
    assert "is_broken: cannot be imported (RuntimeError: two lines); correct" in said


def test_a_missing_display_is_not_worth_a_warning(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "looks_for_display.py").write_text(
        "import warnings\n"
        "warnings.warn(\"b'X11: The DISPLAY environment variable is missing'\")\n"
        "warnings.warn('something else')\n"
    )
    with pytest.warns(UserWarning, match="something else") as seen:
        made("Pendulum-v1", module="looks_for_display")
    assert len(seen) == 1


class Unfinished(Recorder):
    """A base class whose space its subclass has to give."""

    @property
    def observation_space(self):
        raise NotImplementedError("subclass me")

    @observation_space.setter
    def observation_space(self, space):
        pass


class OtherSimulator(Recorder):
    """Has `data`, which is not MuJoCo's."""

    @property
    def data(self):
        raise RuntimeError("not before the first reset")


def test_an_environment_whose_properties_raise_is_one_line_and_is_closed(monkeypatch):
    closed = []
    monkeypatch.setattr(Unfinished, "close", lambda self: closed.append(self))
    with pytest.raises(UserError, match=r"\(NotImplementedError: subclass me\)"):
        envwrap.adapt(Unfinished(), Environment(name="Unfinished-v0"))
    assert len(closed) == 1


def test_a_simulation_of_another_simulator_may_be_called_as_mujocos():
    env = envwrap.adapt(OtherSimulator(), Environment(name="OtherSimulator-v0"))
    env.reset()
    assert not env.step(np.zeros(1))[2]


# Wrappers of the user's own


def wrapper(name, **kwargs):
    return {"entry_point": f"support_env:{name}", "kwargs": kwargs}


def test_wrappers_are_put_on_in_their_order():
    adds, scales = wrapper("AddedReward", amount=1.0), wrapper("ScaledReward", factor=3)

    def reward(*wrappers):
        env = made("Recorder-v0", wrappers=list(wrappers))
        env.reset()
        return env.step(np.zeros(1))[1]

    assert reward() == 1.0
    assert reward(adds, scales) == 6.0
    assert reward(scales, adds) == 4.0


def test_wrappers_may_change_what_is_observed_and_how_long_a_step_is():
    # The last three observations, and two steps of the environment for each action.
    keys = {
        "wrappers": [
            wrapper("Skipping", steps=2),
            {
                "entry_point": "gymnasium.wrappers:FrameStackObservation",
                "kwargs": {"stack_size": 3},
            },
        ],
        "max_frames": 3,
    }
    config = Environment(name="Recorder-v0", **keys)
    assert envwrap.measure(config) == EnvSizes(6, 1)
    env = envwrap.make_env(config)
    env.reset()
    steps = [env.step(np.zeros(1)) for _ in range(3)]
    assert [obs.shape for obs, *_ in steps] == [(6,)] * 3
    assert [obs[-1] for obs, *_ in steps] == [2, 4, 6]
    assert [truncated for _, _, _, truncated, _ in steps] == [False, False, True]


def test_an_environment_is_judged_by_what_its_wrappers_make_of_it():
    with pytest.raises(UserError, match="only continuous actions"):
        made("CartPole-v1")
    assert made("CartPole-v1", wrappers=[wrapper("PushedCart")]).action_space.shape
    short = Environment(name="Recorder-v0", wrappers=[wrapper("Shortened")])
    with pytest.raises(UserError, match=r"1 number \(shape \(1,\)\) instead of 2"):
        envwrap.measure(short)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"entry_point": "nowhere:W"},
            "env.wrappers nowhere: cannot be imported (ModuleNotFoundError: No module "
            "named 'nowhere'); install it",
        ),
        (wrapper("Nothing"), "env.wrappers support_env:Nothing: support_env has no"),
        (wrapper("ScaledReward"), "ScaledReward with kwargs {}: cannot be made (Type"),
        (
            {"entry_point": "builtins:type"},
            "env.wrappers builtins:type: gives type, which is no gymnasium.Env",
        ),
    ],
)
def test_a_wrapper_that_cannot_be_had_is_one_line(keys, said):
    assert said in error_of("Recorder-v0", wrappers=[keys])


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
        ("RoboschoolHumanoid-v1", "pybullet", "pip install 'steve-rl[roboschool]'"),
        ("RoboschoolHumanoidFlagrun-v1", "pybullet", "'steve-rl[roboschool]'"),
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


@pytest.mark.parametrize(("low", "high"), [(-np.inf, 1.0), (-1.0, np.inf)])
def test_actions_of_a_box_with_one_infinite_bound_cannot_be_rescaled(low, high):
    recorder = Recorder(action_space=spaces.Box(low, high, (1,)))
    with pytest.raises(UserError, match=r"env\.rescale_actions.*infinite"):
        adapted(recorder, rescale_actions=True)
