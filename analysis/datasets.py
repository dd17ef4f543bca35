"""The replay buffer of a run as a dataset of episodes, for Minari."""

import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..batch import Batch
from ..replay import ReplayBuffer
from ..settings.interface import Interface
from ..storage.datasets import EXTRA
from ..util import UserError, one_line


class Episode(NamedTuple):
    """T steps of one episode, from its first one on.

    Attributes:
        observations: [T+1, O] float32.
        actions: [T, A] float32 in [-1, 1].
        rewards: [T] float32.
        terminated: whether the last step ended it; else it was truncated, or continues.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool


def episodes(replay: ReplayBuffer) -> Iterator[Episode]:
    """The episodes of a replay buffer, in the order of environments and of time.

    An episode whose first step is not there any more is left out; of one that lost a
    step, what came before it is given.

    Raises:
        UserError: the rows do not say of which episode they are.
    """
    if not replay.has_origins:
        raise UserError(
            "the replay buffer was begun by version 1.0, whose rows do not say of "
            "which episode they are"
        )
    first, count = replay.oldest, replay.frames - replay.oldest
    rows, origins = replay.read(first, count), replay.origins(first, count)
    order = np.lexsort((origins.step, origins.episode, origins.env))
    starts = np.flatnonzero(origins.step[order] == 0)
    for begin, limit in pairwise([*starts, count]):
        picked = order[begin:limit]
        own = (origins.env[picked] == origins.env[picked[0]]) & (
            origins.episode[picked] == origins.episode[picked[0]]
        )
        whole = own & (origins.step[picked] == np.arange(len(picked)))
        length = len(picked) if whole.all() else int(np.argmin(whole))
        yield _episode(Batch(*(column[picked[:length]] for column in rows)))


def _episode(rows: Batch[np.ndarray]) -> Episode:
    return Episode(
        observations=np.concatenate([rows.obs, rows.next_obs[-1:]]),
        actions=rows.action,
        rewards=rows.reward,
        terminated=bool(rows.terminated[-1]),
    )


def write_minari(
    folder: Path, interface: Interface, name: str, about: dict[str, str]
) -> tuple[int, int]:
    """Writes a replay buffer as a dataset, to where Minari keeps its own.

    Observations are flat float32, actions in the environment's own units.

    Args:
        folder: of the replay buffer.
        interface: of the environment.
        name: of the dataset, as Minari wants it ("hopper/steve-v0").
        about: further arguments of `minari.create_dataset_from_buffers`.

    Returns:
        how many episodes and steps it has.

    Raises:
        UserError: Minari is missing or refuses it, or there is no whole episode.
    """
    try:
        import minari
        from minari.data_collector import EpisodeBuffer
    except ImportError:
        raise UserError(EXTRA) from None
    from gymnasium.spaces import Box

    with ReplayBuffer.open(folder) as replay:
        found = list(episodes(replay))
    if not found:
        raise UserError(f"{folder} holds no episode from its first step on")
    buffers = []
    for number, episode in enumerate(found):
        last = np.arange(len(episode.rewards)) == len(episode.rewards) - 1
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations=episode.observations,
                actions=interface.to_env(episode.actions),
                rewards=episode.rewards,
                terminations=last & episode.terminated,
                truncations=last & (not episode.terminated),
                infos={},
            )
        )
    low, high = (
        np.array(bound, interface.dtype).reshape(interface.shape)
        for bound in (interface.low, interface.high)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what is left out on purpose
        try:
            minari.create_dataset_from_buffers(
                name,
                buffers,
                observation_space=Box(-np.inf, np.inf, (interface.obs_dim,)),
                action_space=Box(low, high, dtype=np.dtype(interface.dtype).type),
                **about,
            )
        except (ValueError, AssertionError, OSError) as error:
            raise UserError(f"--minari {name}: {one_line(error)}") from None
    return len(found), sum(len(episode.rewards) for episode in found)
