"""Roboschool's humanoids: rewards, starts, targets."""

import gymnasium
import numpy as np
import pytest
from support_environments import made, needs_pybullet

pytestmark = needs_pybullet


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
