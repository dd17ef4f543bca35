"""The paper's environments on today's simulators, with the physics they had.

The table of what differs, and how exactly it is undone, is in docs/faithfulness.md;
measured agreement: tests/programs/check_environments.py.
"""

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from ..util import UserError
from .contract import check_action

INERTIA_FILE = Path(__file__).parent / "mujoco-2.1-inertia.json"

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
        make_kwargs: of rendering; the caller has checked them.
        left_hip: Humanoid's range of left_hip_y in degrees.
        contact_cost: False leaves Humanoid's contact cost out of the reward.
    """
    env: gymnasium.Env[Any, Any] = gymnasium.make(
        name.replace("-v1", "-v5"),
        max_episode_steps=-1,
        disable_env_checker=True,
        **MUJOCO[name],
        **(make_kwargs or {}),
    )
    if name == "Humanoid-v1":
        simulation_of(env).model.joint("left_hip_y").range[:] = np.deg2rad(left_hip)
    if inertia == "2.1":
        _set_old_inertia(simulation_of(env), name)
    if name == "Humanoid-v1":
        return OldHumanoid(env, contact_cost)
    return OldMujoco(env, ALIVE_BONUS.get(name))


def simulation_of(env: gymnasium.Env) -> Any:
    """The simulation inside all wrappers: its class is the simulator's affair."""
    return env.unwrapped


class OldMujoco(gymnasium.Wrapper):
    """The rewards of gym's `-v1` on an environment `-v5`.

    Args:
        alive_bonus: reward of a step for being alive; None: the environment has none.
    """

    def __init__(self, env: gymnasium.Env, alive_bonus: float | None) -> None:
        super().__init__(env)
        self._alive_bonus = alive_bonus
        # In float64: gymnasium's box rounds Humanoid's bound 0.4 to float32.
        low, high = simulation_of(env).model.actuator_ctrlrange.T
        self._box = spaces.Box(low.copy(), high.copy(), dtype=np.float64)
        self.action_space = self._box

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
        check_action(self._box, action)
        # The old engine clamped the action in place, before the control cost.
        action = np.clip(action, self._box.low, self._box.high)
        obs, given, terminated, truncated, info = self.env.step(action)
        reward = float(given)
        if self._alive_bonus is not None:
            reward += self._alive_bonus - info["reward_survive"]
        return self.observation(obs), reward, terminated, truncated, info

    def put(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        """Starts from a state as an episode does; returns its observation."""
        import mujoco

        simulation = simulation_of(self)
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
        size = spaces.flatdim(env.observation_space) + len(self._zeros)
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


class DivergenceGuard(gymnasium.Wrapper):
    """Shows a simulation that diverged as an observation of NaN.

    When a state is no longer finite, MuJoCo puts the simulation back to its start
    within the step and counts a warning. The observation that follows belongs to
    another episode; NaN is what the state was.

    Args:
        env: one whose simulation `counts_warnings`, with an array as observation.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        import mujoco

        _say_warnings()
        self._simulation = simulation_of(env)
        self._watch()
        self._quiet = bytes(self._number.nbytes)

        kinds = mujoco.mjtWarning
        self._kinds = [
            int(getattr(kinds, f"mjWARN_BAD{what}"))
            for what in ("QPOS", "QVEL", "QACC", "CTRL")
        ]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        self._watch()
        # Then each count is of this episode, whatever the environment's reset does.
        self._number[:] = 0
        return obs, info

    def step(
        self, action: np.ndarray
    ) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        if self._simulation.data is not self._data:  # the model was loaded again
            self._watch()
        # Nearly always equal, and the fastest way to see it.
        if self._number.tobytes() != self._quiet and self._number[self._kinds].any():
            obs = np.full_like(obs, np.nan)
        return obs, reward, terminated, truncated, info

    def _watch(self) -> None:
        self._data = self._simulation.data
        self._number = self._data.warning.number  # a view of the engine's memory


def counts_warnings(env: gymnasium.Env) -> bool:
    """Whether an environment's simulation is MuJoCo's own, with its warnings."""
    try:
        number = simulation_of(env).data.warning.number
    except Exception:  # another simulator's `data`, whatever that is
        return False
    return isinstance(number, np.ndarray)


def _say_warnings() -> None:
    """MuJoCo's warnings are printed; without this a file in the working folder grows.

    A handler that somebody has set stays.
    """
    import mujoco

    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_print_warning)


def _print_warning(text: str) -> None:
    print(f"MuJoCo: {text}", flush=True)


def _set_old_inertia(simulation: Any, name: str) -> None:
    """Weighs the bodies as MuJoCo 2.1.0 compiled them from the same model file."""
    import mujoco

    weights = json.loads(INERTIA_FILE.read_text())[name.removesuffix("-v1")]
    model = simulation.model
    bodies = [model.body(index).name for index in range(model.nbody)]
    if bodies != weights["body"]:
        raise UserError(
            f"env.inertia 2.1: the installed model of {name} has the bodies {bodies}; "
            'install gymnasium>=1.0,<2 or set it to "native"'
        )
    model.body_mass[:] = weights["mass"]
    model.body_inertia[:] = weights["inertia"]
    model.body_ipos[:] = weights["ipos"]
    model.body_iquat[:] = weights["iquat"]
    mujoco.mj_setConst(model, simulation.data)
