"""A Minari dataset as the first frames of a run (the key `initial_dataset`).

The rows are stored as an interactor would have stored them: flat observations, actions
in [-1, 1], plain rewards. `analysis/datasets.py` writes such datasets.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..batch import Batch
from ..replay import ReplayBuffer
from ..replay_file import IMPORTED, Origin
from ..settings.interface import Interface
from ..settings.schema import Config
from ..util import UserError, one_line

EXTRA = "minari is not installed; run: pip install 'steve-rl[minari]'"
ROUNDING = 1e-4  # by which an action may be outside of [-1, 1]; it is clipped then


def check_dataset(config: Config, interface: Interface) -> None:
    """Refuses a dataset that cannot be the beginning of a run's replay buffer.

    It looks at the sizes, the boxes and the first episode.

    Raises:
        UserError: it is not there, is of another environment, or does not fit.
    """
    name = config.initial_dataset
    assert name is not None
    dataset = _load(name)
    box, low, high = dataset.action_space, interface.low, interface.high
    bounds = [np.ravel(getattr(box, end, np.nan)) for end in ("low", "high")]
    if box.shape != interface.shape or not all(map(np.allclose, bounds, (low, high))):
        raise UserError(
            f"initial_dataset {name} has the actions {box}, and {config.env.name} "
            f"those of shape {interface.shape} from {min(low):g} to {max(high):g}"
        )
    steps = int(dataset.total_steps)
    if steps > config.replay_capacity:
        raise UserError(
            f"initial_dataset {name} has {steps:,} steps, and the replay buffer "
            f"{config.replay_capacity:,} rows: set a larger policy_config.replay_size"
        )
    if config.total_frames is not None and config.total_frames < steps:
        raise UserError(
            f"initial_dataset {name} has {steps:,} steps, which count as frames: set "
            f"total_frames to at least as many, not {config.total_frames:,}"
        )
    for rows, _ in _transitions(name, dataset, interface):
        if len(rows.reward):
            return
    raise UserError(f"initial_dataset {name} has no step")


def import_dataset(name: str, interface: Interface, replay: ReplayBuffer) -> str:
    """Appends all steps of a dataset to an empty buffer; returns a line for the user.

    An episode is stored like a vector step.

    Raises:
        UserError: it cannot be read, or has a value that is not finite.
    """
    episodes = 0
    for rows, origin in _transitions(name, _load(name), interface):
        try:
            replay.append(rows, origin=origin)
        except ValueError as error:
            raise UserError(
                f"initial_dataset {name}: episode {episodes}: {one_line(error)}"
            ) from None
        episodes += 1
    return (
        f"the first {replay.frames:,} frames are the {episodes:,} episodes of the "
        f"dataset {name}"
    )


def _load(name: str) -> Any:
    try:
        from minari import load_dataset  # a mere folder has none
    except ImportError:
        raise UserError(EXTRA) from None
    try:
        return load_dataset(name)
    except FileNotFoundError:
        raise UserError(
            f"initial_dataset {name} is not among Minari's datasets here: `minari list "
            "local` shows them, `minari download` gets others"
        ) from None
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise UserError(f"initial_dataset {name}: {one_line(error)}") from None


def _transitions(
    name: str, dataset: Any, interface: Interface
) -> Iterator[tuple[Batch[np.ndarray], Origin]]:
    """The rows of each episode, T at a time, and where they come from."""
    try:
        for number, episode in enumerate(dataset.iterate_episodes()):
            rows = _rows(episode, interface)
            count = len(rows.reward)
            last = np.arange(count) == count - 1
            yield (
                rows,
                Origin(
                    env=np.full(count, IMPORTED),
                    episode=np.full(count, number),
                    step=np.arange(count),
                    truncated=last & (rows.terminated == 0),
                    turn=np.zeros(count, int),  # the replay buffer's to say
                ),
            )
    except (ValueError, KeyError, OSError) as error:
        raise UserError(
            f"initial_dataset {name} does not fit this run: {one_line(error)}"
        ) from None


def _rows(episode: Any, interface: Interface) -> Batch[np.ndarray]:
    obs = interface.flatten(episode.observations)  # [T+1, O]
    action = interface.from_env(episode.actions)  # [T, A]
    if len(obs) != len(action) + 1:
        raise ValueError(f"{len(obs)} observations of {len(action)} steps")
    reach = np.abs(action).max(initial=0.0)
    if reach > 1 + ROUNDING:
        raise ValueError(
            f"it has actions up to {reach:g}, and the policy's end at 1 (set "
            "env.rescale_actions to true to use the whole box)"
        )
    return Batch(
        obs[:-1],
        np.clip(action, -1.0, 1.0),
        np.asarray(episode.rewards),
        obs[1:],
        np.asarray(episode.terminations, np.float32),
    )
