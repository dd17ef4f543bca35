"""Replays recorded episodes of the old engine through the project's environments.

    python tests/programs/check_environments.py DIR

DIR holds files <environment>*.npz (hopper.npz, humanoid_2.npz, ...) with the arrays
episode, qpos, qvel, action, obs, next_obs, reward, terminated; one row a step, the
state being that before the step. Two replays: `episodes` puts the state of an
episode's first row and then only replays its actions; `steps` puts the state of every
row. Printed are the largest differences of next observation and reward, each over the
largest recorded entry (or 1, where that is larger), and the number of rows whose
termination differs.

`steps` is the rougher of the two: the recorded engine began a step with more than the
recorded state, with the contact solver's last solution and, in Humanoid's forward
reward, with a centre of mass from before its last substep.

mujoco-py with MuJoCo 2.1 recorded Humanoid with left_hip_y down to -110 degrees,
without contact forces (the last 84 observations) and without contact cost. So Humanoid
is replayed that way by default; --left-hip-low -120 --contact-cost gives Humanoid-v1
as it is trained on.

Exit codes: 0 the episodes agree, 1 an error of whole episodes is above the limit (1e-9,
Humanoid 1e-5), 2 the folder or a file in it cannot be used.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from steve import envwrap
from steve.environments import mujoco
from steve.settings.schema import Environment
from steve.util import UserError

LIMIT = 1e-9
HUMANOID_LIMIT = 1e-5
HUMANOID_COMPARED = 292  # observations before the contact forces
REFERENCE_LEFT_HIP_LOW = -110.0
ARRAYS = (
    "episode",
    "qpos",
    "qvel",
    "action",
    "obs",
    "next_obs",
    "reward",
    "terminated",
)
NAMES = {name.removesuffix("-v1").lower(): name for name in mujoco.MUJOCO}


@dataclass(frozen=True)
class Options:
    """How the environments are made; the limits stay the same."""

    inertia: str = "2.1"
    left_hip_low: float = REFERENCE_LEFT_HIP_LOW
    contact_cost: bool = False


@dataclass
class Errors:
    """The largest errors of a replay; a NaN stays and counts as above any limit."""

    rows: int = 0
    observation: float = 0.0
    reward: float = 0.0
    terminations: int = 0

    def within(self, limit: float) -> bool:
        return (
            self.observation <= limit and self.reward <= limit and not self.terminations
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks the folder named on the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Replays recorded episodes through the project's environments."
    )
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument(
        "--inertia", choices=["2.1", "native"], default="2.1", help="weights of bodies"
    )
    parser.add_argument(
        "--left-hip-low",
        type=float,
        default=REFERENCE_LEFT_HIP_LOW,
        metavar="DEGREES",
        help="Humanoid's lower limit of left_hip_y (default -110, as recorded)",
    )
    parser.add_argument(
        "--contact-cost",
        action="store_true",
        help="Humanoid pays its contact cost (default: not, as recorded)",
    )
    options = parser.parse_args(arguments)
    try:
        return check_folder(
            options.folder,
            Options(options.inertia, options.left_hip_low, options.contact_cost),
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def check_folder(folder: Path, options: Options) -> int:
    """Prints a line for each file and replay; returns the exit code.

    Raises:
        UserError: there is nothing to replay, or a file is not such a recording.
    """
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise UserError(f"{folder}: no .npz file; name a folder of recorded episodes")
    print(
        f"inertia {options.inertia}, left_hip_y from {options.left_hip_low:g} degrees, "
        f"contact cost {'paid' if options.contact_cost else 'left out'}"
    )
    print(f"{'file':<20} {'replay':<9} rows observation     reward terminations")
    agreed = True
    for file in files:
        name = environment_of(file)
        recording = load(file)
        limit = HUMANOID_LIMIT if name == "Humanoid-v1" else LIMIT
        for replay, whole in (("episodes", True), ("steps", False)):
            errors = replay_errors(name, recording, options, whole)
            verdict = ""
            if whole and not errors.within(limit):
                agreed, verdict = False, f"  above {limit:g}"
            print(
                f"{file.stem:<20} {replay:<9} {errors.rows:4d} "
                f"{errors.observation:11.1e} {errors.reward:10.1e} "
                f"{errors.terminations:12d}{verdict}"
            )
    return 0 if agreed else 1


def environment_of(file: Path) -> str:
    """The environment's name from the beginning of the file's."""
    for prefix, name in NAMES.items():
        if file.stem.lower().replace("-", "").startswith(prefix):
            return name
    raise UserError(f"{file}: the name must begin with one of {', '.join(NAMES)}")


def load(file: Path) -> dict[str, np.ndarray]:
    """Reads a recording.

    Raises:
        UserError: the file is damaged, or an array is missing.
    """
    try:
        with np.load(file) as arrays:
            return {key: arrays[key] for key in ARRAYS}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{file}: not a recording of episodes ({error})") from error


def replay_errors(
    name: str, recording: dict[str, np.ndarray], options: Options, whole: bool
) -> Errors:
    """The errors of one environment over all rows of a recording.

    Args:
        whole: True puts the state at the first row of an episode only.
    """
    left_hip = (options.left_hip_low, mujoco.HUMANOID_LEFT_HIP[1])
    env = envwrap.adapt(
        mujoco.make_mujoco(name, options.inertia, {}, left_hip, options.contact_cost),
        Environment(
            name=name,
            obs_dims=[recording["obs"].shape[1]],
            action_dim=recording["action"].shape[1],
            max_frames=len(recording["episode"]) + 1,
        ),
    )
    compared = HUMANOID_COMPARED if name == "Humanoid-v1" else None
    next_obs, reward = recording["next_obs"][:, :compared], recording["reward"]
    put = env.get_wrapper_attr("put")
    errors = Errors()
    env.reset(seed=0)
    for first, row in episode_rows(recording["episode"]):
        if first or not whole:
            put(recording["qpos"][row], recording["qvel"][row])
        ours, our_reward, terminated, _, _ = env.step(recording["action"][row])
        # numpy's maximum keeps a NaN, Python's may lose it.
        errors.observation = np.maximum(
            errors.observation, np.max(np.abs(ours[:compared] - next_obs[row]))
        )
        errors.reward = np.maximum(errors.reward, abs(our_reward - reward[row]))
        errors.terminations += bool(terminated != recording["terminated"][row])
        errors.rows += 1
    env.close()
    errors.observation /= max(1.0, np.max(np.abs(next_obs)))
    errors.reward /= max(1.0, np.max(np.abs(reward)))
    return errors


def episode_rows(episode: np.ndarray) -> Iterator[tuple[bool, int]]:
    """The rows in order, episode by episode; True marks the first of one."""
    for number in np.unique(episode):
        for position, row in enumerate(np.flatnonzero(episode == number)):
            yield position == 0, int(row)


if __name__ == "__main__":
    sys.exit(main())
