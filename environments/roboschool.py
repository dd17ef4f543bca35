"""Roboschool's humanoids on today's Bullet."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from ..util import UserError
from .contract import check_action

# Roboschool: the robot faces up to this far from straight ahead (radians), and the ball
# that marks Flagrun's target hangs this high (m).
START_YAW = np.pi / 16
FLAG_HEIGHT = 0.7


def make_roboschool(name: str, make_kwargs: dict[str, Any]) -> gymnasium.Env:
    """A Roboschool environment on today's Bullet, without time limit."""
    try:
        return _roboschool_classes()[name](**make_kwargs)
    except ImportError as error:
        raise UserError(
            f"{name}: pybullet is not installed; run: pip install "
            "'steve-rl[roboschool]'"
        ) from error


def _roboschool_classes() -> dict[str, Callable[..., gymnasium.Env]]:
    """The environments' classes by name; imports Bullet.

    They are those of pybullet_envs_gymnasium with Roboschool 1.1's constants. What that
    package has as Roboschool had it (time step, motor power, alive bonus, foot contact
    in the observation) stays.
    """
    import pybullet
    from pybullet_envs_gymnasium import gym_locomotion_envs, robot_locomotors

    humanoid: Any = robot_locomotors.Humanoid
    flagrunner: Any = robot_locomotors.HumanoidFlagrun
    humanoid_env: Any = gym_locomotion_envs.HumanoidBulletEnv

    def turn(robot: Any, bullet_client: Any) -> None:
        """Turns a robot at the start of an episode."""
        position, _ = bullet_client.getBasePositionAndOrientation(robot.objects[0])
        yaw = robot.np_random.uniform(-START_YAW, START_YAW)
        bullet_client.resetBasePositionAndOrientation(
            robot.objects[0], position, pybullet.getQuaternionFromEuler([0, 0, yaw])
        )

    class Runner(humanoid):
        """Runs straight ahead."""

        def robot_specific_reset(self, bullet_client: Any) -> None:
            super().robot_specific_reset(bullet_client)
            turn(self, bullet_client)

    class Flagrunner(flagrunner):
        """Runs to a target; the first one is straight ahead half the time."""

        def robot_specific_reset(self, bullet_client: Any) -> None:
            super().robot_specific_reset(bullet_client)
            turn(self, bullet_client)
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

    class RoboschoolHumanoid(humanoid_env):
        joints_at_limit_cost = -0.2

        def __init__(self, robot: Any = None, render_mode: str | None = None) -> None:
            super().__init__(robot or Runner(), render_mode)

        def step(self, a: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
            check_action(self.action_space, a)
            state, _, terminated, truncated, info = super().step(a)
            self.rewards[-1] = self.foot_collision_cost * self._feet_on_something_else()
            return state, sum(self.rewards), terminated, truncated, info

        def _feet_on_something_else(self) -> int:
            """How many feet touch anything but the floor, the robot itself included."""
            robot = self.robot.objects[0]
            touched: set[tuple] = set()
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
        def __init__(self, render_mode: str | None = None) -> None:
            super().__init__(Flagrunner(), render_mode)
            self.electricity_cost /= 2  # -4.25; the stall torque's stays at -0.425

    return {
        "RoboschoolHumanoid-v1": RoboschoolHumanoid,
        "RoboschoolHumanoidFlagrun-v1": RoboschoolHumanoidFlagrun,
    }
