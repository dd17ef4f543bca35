"""What environments give and take: sizes, numbers, flags, and older interfaces."""

import re
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from support_environments import leave_no_id, needs_pybullet

from steve import envwrap, register_envs
from steve.acting import safe_env
from steve.acting.safe_env import SafeEnv
from steve.analysis.episodes import run_episode
from steve.environments.contract import observation_fault
from steve.environments.rendering import RENDERING_KEYS
from steve.settings.schema import Environment
from steve.util import UserError

GOOD = np.array([1, 2, 3], np.float32)
GOALS = spaces.Dict(
    {"goal": spaces.Box(-9, 9, (2,)), "more": spaces.Tuple([spaces.Box(-9, 9, ())])}
)
GOAL = {"goal": np.zeros(2), "more": (0.0,)}


class Says(gymnasium.Env):
    """Gives at reset and step what it was made with.

    The step after `good_steps` good ones is wrong.
    """

    def __init__(
        self,
        reset=(GOOD, {}),
        step=(GOOD, 1.0, False, False, {}),
        space=None,
        good_steps=0,
    ):
        self.observation_space = space or spaces.Box(-10, 10, (3,), np.float32)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.says = reset, step
        self.left = good_steps

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return _done(self.says[0])

    def step(self, action):
        self.left -= 1
        good = (GOOD, 1.0, False, False, {})
        return good if self.left >= 0 else _done(self.says[1])


def _done(what):
    return what() if callable(what) else what


class NoSeed(Says):
    def reset(self):
        return self.says[0]


@pytest.fixture(autouse=True)
def _no_id():
    yield
    leave_no_id("Says-v0")


def config_of(cls=Says, limit=None, **says) -> Environment:
    leave_no_id("Says-v0")
    gymnasium.register("Says-v0", cls, kwargs=says, max_episode_steps=limit)
    return Environment(name="Says-v0")


def fault_of(cls=Says, limit=None, **says) -> str:
    """The line that trying the environment out ends in."""
    with pytest.raises(UserError) as caught:
        envwrap.measure(config_of(cls, limit, **says))
    text = str(caught.value)
    assert text.startswith("env.name Says-v0: ")
    assert "\n" not in text
    return text


def step_of(obs=GOOD, reward=1.0, terminated=False, truncated=False):
    return {"step": (obs, reward, terminated, truncated, {})}


# Observations

WRONG_OBSERVATIONS = {
    "one number": (0, "has 1 number (shape ()) instead of 3 (shape (3,))"),
    "an array of one": (np.zeros(1), "has 1 number (shape (1,)) instead of 3"),
    "too many": (np.zeros(5), "has 5 numbers (shape (5,)) instead of 3"),
    "none at all": ([], "has 0 numbers (shape (0,)) instead of 3"),
    "None": (None, "is None, not an array of numbers"),
    "None inside": ([1.0, None, 3.0], "is 3 values, not an array of numbers"),
    "text": ("abc", "is a value of type str, not an array"),
    "complex": (
        np.zeros(3, complex),
        "is an array of complex128 of shape (3,), not an",
    ),
    "ragged": ([[1.0], [1.0, 2.0]], "is 2 values, not an array"),
}


@pytest.mark.parametrize(
    ("obs", "said"), WRONG_OBSERVATIONS.values(), ids=WRONG_OBSERVATIONS
)
@pytest.mark.parametrize("method", ["reset", "step"])
def test_an_observation_of_another_size_names_both_sizes(method, obs, said):
    says = {"reset": (obs, {})} if method == "reset" else step_of(obs)
    assert f"{method}() gives an observation that {said}" in fault_of(**says)


@pytest.mark.parametrize(
    ("obs", "said"),
    [
        (np.zeros(3), "is an array of shape (3,), not a dict"),
        ({"goal": np.zeros(2)}, "lacks 'more', which its observation_space has"),
        ({**GOAL, "goal": np.zeros(3)}, "has 3 numbers at ['goal'] (shape (3,)) inst"),
        ({**GOAL, "goal": None}, "is None at ['goal'], not an array of numbers"),
        ({**GOAL, "more": ()}, "has 0 parts at ['more'] instead of 1"),
        ({**GOAL, "more": (0.0, 1.0)}, "has 2 parts at ['more'] instead of 1"),
        ({**GOAL, "more": (np.zeros(2),)}, "has 2 numbers at ['more'][0] (shape (2,))"),
        ({**GOAL, "more": 1.0}, "is a value of type float at ['more'], not a tuple"),
    ],
)
def test_parts_of_dicts_and_tuples_are_compared_too(obs, said):
    assert said in fault_of(reset=(obs, {}), space=GOALS)
    assert said in str(observation_fault(GOALS, obs))


@pytest.mark.parametrize(
    "obs", [[1, 2, 3], GOOD[None], GOOD.astype(int), GOOD.astype(float), GOOD > 1]
)
def test_numbers_of_the_right_count_are_taken_in_any_form(obs):
    config = config_of(reset=(obs, {}), **step_of(obs))
    assert envwrap.measure(config) == envwrap.EnvSizes(3, 1)
    first, _ = envwrap.make_env(config).reset()
    np.testing.assert_array_equal(first, np.ravel(obs).astype(np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_inside_a_dict_is_lost_and_no_mistake(bad):
    broken = {**GOAL, "more": (bad,)}
    config = config_of(reset=(GOAL, {}), **step_of(broken), space=GOALS)
    assert envwrap.measure(config) == envwrap.EnvSizes(3, 1)
    lost = []
    env = SafeEnv(config, "me", lambda: lost.append(1))
    env.reset(0)
    assert env.step(np.zeros(1)) is None
    assert len(lost) == 1


# Rewards and flags


@pytest.mark.parametrize("reward", [np.array([2.5]), np.float32(2.5), [[2.5]]])
def test_a_reward_of_one_number_is_taken_in_any_form(reward):
    env = envwrap.make_env(config_of(**step_of(reward=reward)))
    env.reset()
    assert env.step(np.zeros(1))[1] == 2.5


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"reward": np.zeros(2)}, "reward an array of shape (2,); it must be one num"),
        ({"reward": None}, "reward None; it must be one number"),
        ({"reward": "1.0"}, "reward a value of type str"),
        ({"terminated": None}, "terminated None; it must be True or False"),
        ({"truncated": None}, "truncated None; it must be True or False"),
        ({"terminated": np.zeros(2, bool)}, "terminated an array of shape (2,)"),
        ({"truncated": "no"}, "truncated a value of type str"),
        ({"truncated": {}}, "truncated a value of type dict"),
        ({"terminated": 0.5}, "terminated a value of type float"),
    ],
)
def test_other_rewards_and_flags_are_refused(keys, said):
    assert f"step() gives as {said}" in fault_of(**step_of(**keys))


@pytest.mark.parametrize("flag", [True, np.True_, 1, np.array([True]), 1.0])
def test_a_flag_of_one_number_is_taken_in_any_form(flag):
    env = envwrap.make_env(config_of(**step_of(terminated=flag)))
    env.reset()
    assert env.step(np.zeros(1))[2] is True


# Interfaces


@pytest.mark.parametrize("limit", [None, 5])
def test_a_step_of_four_values_is_told_the_interface(limit):
    said = fault_of(limit=limit, step=(GOOD, 1.0, False, {}))
    assert "step()" in said
    assert "(observation, reward, terminated, truncated, info)" in said


@pytest.mark.parametrize("obs", [GOOD, GOOD[:2], (GOOD, GOOD)])
def test_a_reset_without_info_is_told_the_interface(obs):
    said = fault_of(reset=obs)
    assert said.startswith("env.name Says-v0: reset() gives ")
    assert "(observation, info)" in said


def test_a_reset_without_seed_is_told_the_interface():
    said = fault_of(NoSeed)
    assert "reset(seed=None, options=None)" in said


@pytest.mark.parametrize("method", ["reset", "step"])
def test_an_environment_that_raises_at_once_is_one_line(method):
    def broken():
        raise ValueError("two\nlines")

    said = fault_of(**{method: broken})
    assert f"{method}() failed when it was tried (ValueError: two lines)" in said


@pytest.mark.parametrize("method", ["reset", "step"])
def test_an_environment_that_calls_sys_exit_is_one_line(method):
    assert f"{method}() called sys.exit" in fault_of(**{method: sys.exit})


def test_what_is_wrong_in_a_run_is_a_mistake_and_no_rebuild(monkeypatch):
    made = []
    real = safe_env.make_env
    monkeypatch.setattr(
        safe_env, "make_env", lambda config: (made.append(1), real(config))[1]
    )
    env = SafeEnv(config_of(**step_of(0), good_steps=5), "me", lambda: None)
    env.reset(0)
    for _ in range(5):
        env.step(np.zeros(1))
    with pytest.raises(UserError, match=r"1 number \(shape \(\)\) instead of 3"):
        env.step(np.zeros(1))
    env = SafeEnv(config_of(reset=(np.zeros(5), {})), "me", lambda: None)
    with pytest.raises(UserError, match=r"5 numbers \(shape \(5,\)\) instead of 3"):
        env.reset(0)
    assert len(made) == 2


class Grows(Says):
    """Sees one number more from its second episode on, and says so in its space."""

    episodes = 0

    def reset(self, *, seed=None, options=None):
        self.episodes += 1
        if self.episodes == 1:
            return GOOD, {}
        self.observation_space = spaces.Box(-10, 10, (4,), np.float32)
        return np.zeros(4, np.float32), {}


def test_a_space_that_changes_later_does_not_change_what_fits():
    env = SafeEnv(config_of(Grows), "me", lambda: None)
    env.reset(0)
    with pytest.raises(UserError, match=r"4 numbers \(shape \(4,\)\) instead of 3"):
        env.reset(1)


@pytest.mark.parametrize("bits", [30, 31])
def test_an_environment_is_tried_with_the_largest_seed_that_a_run_gives(bits):
    class SmallSeeds(Says):
        def reset(self, *, seed=None, options=None):
            if seed >= 2**bits:
                raise ValueError(f"seed {seed} is too large")
            return super().reset(seed=seed)

    if bits == 31:
        envwrap.measure(config_of(SmallSeeds, **step_of(), reset=(GOOD, {})))
    else:
        assert "is too large" in fault_of(SmallSeeds)


class Still:
    def greedy(self, obs):
        return np.zeros((len(obs), 1))


def test_the_visualizers_episodes_are_judged_in_the_same_way():
    env = envwrap.make_env(config_of(**step_of(0), good_steps=2))
    with pytest.raises(UserError, match=r"1 number \(shape \(\)\) instead of 3"):
        run_episode(env, Still(), 0)


# What the paper's environments take


@pytest.mark.parametrize(
    "name",
    [
        "HalfCheetah-v1",
        "Humanoid-v1",
        "BipedalWalkerHardcore-v2",
        pytest.param("RoboschoolHumanoid-v1", marks=needs_pybullet),
    ],
)
def test_an_action_of_another_shape_is_refused_in_gymnasiums_words(name):
    register_envs()
    env = gymnasium.make(f"steve/{name}", disable_env_checker=True)
    env.reset(seed=0)
    (size,) = env.action_space.shape
    for shape in ((), (1,), (size, 1), (size + 1,)):
        said = f"Action dimension mismatch. Expected ({size},), found {shape}"
        with pytest.raises(ValueError, match=re.escape(said)):
            env.step(np.zeros(shape))
    env.step([0.0] * size)
    env.close()


@pytest.mark.parametrize(
    ("name", "keyword"),
    [
        ("Hopper-v1", "frame_skip"),
        ("BipedalWalkerHardcore-v2", "width"),
        ("RoboschoolHumanoid-v1", "camera_id"),
    ],
)
def test_another_keyword_in_gymnasiums_make_names_no_key_of_a_configuration(
    name, keyword
):
    register_envs()
    said = f"keyword argument {keyword}: {name} is made as the paper had it and takes "
    with pytest.raises(UserError) as caught:
        gymnasium.make(f"steve/{name}", **{keyword: 1})
    assert str(caught.value).startswith(said)
    assert "env." not in str(caught.value)


def test_every_keyword_that_mujoco_takes_is_one_of_its_environments():
    register_envs()
    sizes = dict.fromkeys(("width", "height", "max_geom"), 100)
    keys = dict.fromkeys(RENDERING_KEYS["mujoco"]) | sizes
    assert gymnasium.make("steve/Hopper-v1", **keys).unwrapped.width == 100
