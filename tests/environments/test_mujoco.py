"""MuJoCo as the paper had it: recorded episodes, masses, rewards, Humanoid."""

import json

import check_environments
import mujoco as engine
import numpy as np
import pytest
from support_environments import RECORDINGS, made

from steve.acting.safe_env import SafeEnv
from steve.environments import mujoco
from steve.envwrap import make_env
from steve.settings.schema import Environment

# Recorded episodes


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


# Masses and rewards


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


# Humanoid


def stepped_humanoid(action: np.ndarray, steps: int = 1, make=made):
    env = make("Humanoid-v1")
    env.reset(seed=0)
    for _ in range(steps):
        result = env.step(action)
    return env, result


@pytest.mark.parametrize("make", [made, mujoco.make_mujoco])
def test_humanoids_actions_are_clamped_before_their_cost(make):
    """Also where nobody else has clipped them to the box."""
    ones = np.ones(17)
    env, (obs, reward, *_, info) = stepped_humanoid(ones, make=make)
    _, (obs_at_bound, reward_at_bound, *_) = stepped_humanoid(0.4 * ones, make=make)
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


def test_humanoid_is_trained_with_its_contact_cost():
    """It was not recorded in the reference episodes, which are made without it."""
    env = make_env(Environment(name="Humanoid-v1"))
    env.reset(seed=0)
    costs = []
    for _ in range(20):
        _, reward, _, _, info = env.step(np.zeros(17, np.float32))
        parts = ("reward_forward", "reward_ctrl", "reward_contact")
        expected = mujoco.ALIVE_BONUS["Humanoid-v1"] + sum(info[part] for part in parts)
        assert reward == pytest.approx(expected, abs=1e-12)
        costs.append(-info["reward_contact"])
    assert max(costs) > 0.01


# Simulations that diverge


@pytest.fixture
def _nobody_handles_warnings():
    """dm_control does, once it is imported."""
    before = engine.get_mju_user_warning()
    engine.set_mju_user_warning(None)
    yield
    engine.set_mju_user_warning(before)


def diverged(env, what="qvel"):
    """One step from a state that the engine gives up on: observation and clock."""
    data = env.unwrapped.data
    getattr(data, what)[:] = 1e11
    obs = env.step(np.zeros(env.action_space.shape))[0]
    return obs, data.time


@pytest.mark.usefixtures("_nobody_handles_warnings")
@pytest.mark.parametrize("name", [*mujoco.MUJOCO, "HalfCheetah-v5"])
@pytest.mark.parametrize("what", ["qpos", "qvel"])
def test_a_simulation_that_resets_itself_shows_nan(
    name, what, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    env = made(name)
    first, _ = env.reset(seed=0)
    for _ in range(2):
        env.step(np.zeros(env.action_space.shape))
    obs, clock = diverged(env, what)
    assert clock <= env.unwrapped.dt, "the engine has begun again"
    assert obs.shape == first.shape
    assert np.isnan(obs).all()
    assert f"huge value in {what.upper()}" in capfd.readouterr().out
    assert not list(tmp_path.iterdir()), "no MUJOCO_LOG.TXT"
    # The next episode is an episode as any other.
    env.reset(seed=0)
    assert np.isfinite(env.step(np.zeros(env.action_space.shape))[0]).all()
    assert np.isnan(diverged(env, what)[0]).all()


def test_a_simulation_that_resets_itself_loses_one_transition(capfd):
    lost = []
    env = SafeEnv(Environment(name="HalfCheetah-v1"), "me", lambda: lost.append(1))
    env.reset(0)
    action = np.zeros(6)
    assert env.step(action) is not None
    env._env.unwrapped.data.qvel[:] = 1e11
    assert env.step(action) is None
    assert len(lost) == 1
    env.reset(1)
    assert env.step(action) is not None


@pytest.mark.parametrize("kind", ["mjWARN_INERTIA", "mjWARN_CONTACTFULL"])
def test_other_warnings_of_the_engine_lose_nothing(kind):
    env = made("Hopper-v1")
    env.reset(seed=0)
    env.unwrapped.data.warning.number[int(getattr(engine.mjtWarning, kind))] = 1
    assert np.isfinite(env.step(np.zeros(3))[0]).all()
    # One that says that the state was lost, whatever the clock shows.
    env.unwrapped.data.warning.number[int(engine.mjtWarning.mjWARN_BADCTRL)] = 1
    assert np.isnan(env.step(np.zeros(3))[0]).all()


@pytest.mark.usefixtures("_nobody_handles_warnings")
def test_a_users_own_handler_of_warnings_stays():
    said = []
    engine.set_mju_user_warning(said.append)
    env = made("HalfCheetah-v1")
    env.reset(seed=0)
    diverged(env)
    assert len(said) == 1
