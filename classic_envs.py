"""The paper's environments on today's simulators, with the physics they had.

The table of what differs, and how exactly it is undone, is in README; measured
agreement: tests/check_environments.py.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from util import UserError

INERTIA_FILE = Path(__file__).parent / "assets" / "mujoco-2.1-inertia.json"

# The old names and the arguments that today's environment of that name is made with.
MUJOCO: dict[str, dict[str, Any]] = {
    "Hopper-v1": {},
    # This file has the old friction 0.9 of the right foot; v5's own has 1.9.
    "Walker2d-v1": {"xml_file": "walker2d.xml"},
    "HalfCheetah-v1": {},
    "Swimmer-v1": {},
    "Humanoid-v1": {},
}
# Paid on every step, the terminal one too; v5 pays it on healthy steps only.
ALIVE_BONUS = {"Hopper-v1": 1.0, "Walker2d-v1": 1.0, "Humanoid-v1": 5.0}
HUMANOID_LEFT_HIP = (-120.0, 20.0)  # degrees; today's model file says -110..20
# Where the old 376 observations had the constant-zero rows that v5 leaves out: index
# into v5's 348 and number of zeros. The world body's inertia (10) and velocity (6),
# the actuator forces of the free joint (6), the world body's contact force (6).
HUMANOID_ZEROS = ((45, 10), (175, 6), (253, 6), (270, 6))
# Roboschool: the robot faces up to this far from straight ahead (radians), and the ball
# that marks Flagrun's target hangs this high (m).
START_YAW = np.pi / 16
FLAG_HEIGHT = 0.7
# What make_kwargs may say about an environment of the paper: how it is drawn.
RENDERING_KEYS = {
    "render_mode",
    "width",
    "height",
    "camera_id",
    "camera_name",
    "default_camera_config",
    "max_geom",
    "visual_options",
}


def make_mujoco(
    name: str,
    inertia: str = "2.1",
    make_kwargs: dict[str, Any] | None = None,
    left_hip: tuple[float, float] = HUMANOID_LEFT_HIP,
    contact_cost: bool = True,
) -> gymnasium.Env:
    """One of `MUJOCO`, without time limit.

    Args:
        inertia: "2.1" weighs the bodies as MuJoCo up to 2.1 did, "native" leaves the
            installed engine's weights.
        make_kwargs: rendering only.
        left_hip: Humanoid's range of left_hip_y in degrees.
        contact_cost: False leaves Humanoid's contact cost out of the reward.
    """
    _check_rendering_only(name, make_kwargs or {})
    env = gymnasium.make(
        name.replace("-v1", "-v5"),
        max_episode_steps=-1,
        disable_env_checker=True,
        **MUJOCO[name],
        **(make_kwargs or {}),
    )
    if name == "Humanoid-v1":
        env.unwrapped.model.joint("left_hip_y").range[:] = np.deg2rad(left_hip)
    if inertia == "2.1":
        _set_old_inertia(env.unwrapped, name)
    if name == "Humanoid-v1":
        return OldHumanoid(env, contact_cost)
    return OldMujoco(env, ALIVE_BONUS.get(name))


class OldMujoco(gymnasium.Wrapper):
    """The rewards of gym's `-v1` on an environment `-v5`.

    Args:
        alive_bonus: reward of a step for being alive; None: the environment has none.
    """

    def __init__(self, env: gymnasium.Env, alive_bonus: float | None) -> None:
        super().__init__(env)
        self._alive_bonus = alive_bonus
        # In float64: gymnasium's box rounds Humanoid's bound 0.4 to float32.
        low, high = env.unwrapped.model.actuator_ctrlrange.T
        self.action_space = spaces.Box(low.copy(), high.copy(), dtype=np.float64)

    def observation(self, obs: np.ndarray) -> np.ndarray:
        """The old observation from today's."""
        return obs

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return self.observation(obs), info

    def step(
        self, action: np.ndarray
    ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        # The old engine clamped the action in place, before the control cost.
        action = np.clip(action, self.action_space.low, self.action_space.high)
        obs, reward, terminated, truncated, info = self.env.step(action)
        if self._alive_bonus is not None:
            reward += self._alive_bonus - info["reward_survive"]
        return self.observation(obs), reward, terminated, truncated, info

    def put(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        """Starts from a state as an episode does; returns its observation."""
        import mujoco

        simulation = self.unwrapped
        # Forgets the forces that the solver would start its iterations from.
        mujoco.mj_resetData(simulation.model, simulation.data)
        simulation.set_state(qpos, qvel)
        return self.observation(simulation._get_obs())


class OldHumanoid(OldMujoco):
    """`OldMujoco` with the 376 observations of Humanoid-v1."""

    def __init__(self, env: gymnasium.Env, contact_cost: bool) -> None:
        super().__init__(env, ALIVE_BONUS["Humanoid-v1"])
        self._contact_cost = contact_cost
        self._zeros = np.repeat(*np.transpose(HUMANOID_ZEROS))
        size = env.observation_space.shape[0] + len(self._zeros)
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float64)

    def observation(self, obs: np.ndarray) -> np.ndarray:
        return np.insert(obs, self._zeros, 0.0)  # [348] -> [376]

    def step(
        self, action: np.ndarray
    ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        if not self._contact_cost:
            reward -= info["reward_contact"]
        return obs, reward, terminated, truncated, info


def _set_old_inertia(simulation: Any, name: str) -> None:
    """Weighs the bodies as MuJoCo 2.1.0 compiled them from the same model file."""
    import mujoco

    weights = json.loads(INERTIA_FILE.read_text())[name.removesuffix("-v1")]
    model = simulation.model
    bodies = [model.body(index).name for index in range(model.nbody)]
    if bodies != weights["body"]:
        raise UserError(
            f"env.inertia 2.1: the installed model of {name} has the bodies {bodies}; "
            'install gymnasium>=1.4,<1.5 or set it to "native"'
        )
    model.body_mass[:] = weights["mass"]
    model.body_inertia[:] = weights["inertia"]
    model.body_ipos[:] = weights["ipos"]
    model.body_iquat[:] = weights["iquat"]
    mujoco.mj_setConst(model, simulation.data)


def _check_rendering_only(name: str, make_kwargs: dict[str, Any]) -> None:
    others = sorted(set(make_kwargs) - RENDERING_KEYS)
    if others:
        raise UserError(
            f"env.make_kwargs {', '.join(others)}: {name} is made as the paper had it; "
            "remove them or name a newer version of the environment"
        )


def make_hardcore(make_kwargs: dict[str, Any]) -> gymnasium.Env:
    """BipedalWalkerHardcore-v2: today's walker with the lidar it had then, no limit."""
    import Box2D
    from gymnasium.envs.box2d.bipedal_walker import BipedalWalker

    _check_rendering_only("BipedalWalkerHardcore-v2", make_kwargs)

    class FirstReported(Box2D.b2.rayCastCallback):
        """A ray that ends at the first piece of ground reported, in any order."""

        def ReportFixture(self, fixture, point, normal, fraction):
            if (fixture.filterData.categoryBits & 1) == 0:
                return 1  # no ground: the ray goes on, unclipped; v3 returns -1
            self.p2 = point
            self.fraction = fraction
            return 0  # ends the ray; v3 returns the fraction and finds the closest

    class OldBipedalWalker(BipedalWalker):
        def step(self, action):
            # The reset makes today's rays and then takes the first step itself.
            if not isinstance(self.lidar[0], FirstReported):
                self.lidar = [FirstReported() for _ in self.lidar]
            return super().step(action)

    return OldBipedalWalker(hardcore=True, **make_kwargs)


def make_roboschool(name: str, make_kwargs: dict[str, Any]) -> gymnasium.Env:
    """A Roboschool environment on today's Bullet, without time limit."""
    _check_rendering_only(name, make_kwargs)
    try:
        return _roboschool_classes()[name](**make_kwargs)
    except ImportError as error:
        raise UserError(
            f"env.name {name}: pybullet is not installed; install it with pip install "
            "-e .[roboschool]"
        ) from error


def _roboschool_classes() -> dict[str, Callable[..., gymnasium.Env]]:
    """The environments' classes by name; imports Bullet.

    They are those of pybullet_envs_gymnasium with Roboschool 1.1's constants. What that
    package has as Roboschool had it (time step, motor power, alive bonus, foot contact
    in the observation) stays.
    """
    import pybullet
    from pybullet_envs_gymnasium import gym_locomotion_envs, robot_locomotors

    class StartYaw:
        """Turns a robot at the start of an episode."""

        def robot_specific_reset(self, bullet_client):
            super().robot_specific_reset(bullet_client)
            position, _ = bullet_client.getBasePositionAndOrientation(self.objects[0])
            yaw = self.np_random.uniform(-START_YAW, START_YAW)
            bullet_client.resetBasePositionAndOrientation(
                self.objects[0], position, pybullet.getQuaternionFromEuler([0, 0, yaw])
            )

    class Runner(StartYaw, robot_locomotors.Humanoid):
        """Runs straight ahead."""

    class Flagrunner(StartYaw, robot_locomotors.HumanoidFlagrun):
        """Runs to a target; the first one is straight ahead half the time."""

        def robot_specific_reset(self, bullet_client):
            super().robot_specific_reset(bullet_client)
            if self.np_random.uniform() < 0.5:
                return  # the random target that was just drawn
            farthest = self.scene.stadium_halflen
            self.walk_target_x = self.np_random.uniform(farthest / 2, farthest)
            self.walk_target_y = 0.0
            bullet_client.resetBasePositionAndOrientation(
                self.flag.bodies[0],
                [self.walk_target_x, self.walk_target_y, FLAG_HEIGHT],
                [0, 0, 0, 1],
            )

    class RoboschoolHumanoid(gym_locomotion_envs.HumanoidBulletEnv):
        joints_at_limit_cost = -0.2

        def __init__(self, robot=None, render_mode=None):
            super().__init__(robot or Runner(), render_mode)

        def step(self, a):
            state, _, terminated, truncated, info = super().step(a)
            self.rewards[-1] = self.foot_collision_cost * self._feet_on_something_else()
            return state, sum(self.rewards), terminated, truncated, info

        def _feet_on_something_else(self):
            """How many feet touch anything but the floor, the robot itself included."""
            robot = self.robot.objects[0]
            touched = set()
            # A contact of the robot with itself names its two parts in any order.
            for contact in self._p.getContactPoints(robot):
                first, second = (contact[1], contact[3]), (contact[2], contact[4])
                touched |= {(first, second), (second, first)}
            return sum(
                any(
                    part == (robot, foot.bodyPartIndex) and other not in self.ground_ids
                    for part, other in touched
                )
                for foot in self.robot.feet
            )

    class RoboschoolHumanoidFlagrun(RoboschoolHumanoid):
        def __init__(self, render_mode=None):
            super().__init__(Flagrunner(), render_mode)
            self.electricity_cost /= 2  # -4.25; the stall torque's stays at -0.425

    return {
        "RoboschoolHumanoid-v1": RoboschoolHumanoid,
        "RoboschoolHumanoidFlagrun-v1": RoboschoolHumanoidFlagrun,
    }


# The paper's other environments.
OTHERS: dict[str, Callable[[dict[str, Any]], gymnasium.Env]] = {
    "BipedalWalkerHardcore-v2": make_hardcore,
    "RoboschoolHumanoid-v1": partial(make_roboschool, "RoboschoolHumanoid-v1"),
    "RoboschoolHumanoidFlagrun-v1": partial(
        make_roboschool, "RoboschoolHumanoidFlagrun-v1"
    ),
}
