"""Returns of the acting agent: the episodes that interactors played while it learned.

The scores of evaluators are those of single policies that do not explore. What other
programs report is often the return of the agent that collects the data: its episodes
contain several policies, exploration and, early, random actions.
"""

import numpy as np
import pandas as pd

from ..replay import ReplayBuffer
from ..util import UserError
from .records import SCORE, Record, read_table

SUFFIX = ".acting.csv"  # of a collected run's file, next to its scores
COLUMNS = ["frames", SCORE]


def acting_returns(replay: ReplayBuffer) -> pd.DataFrame:
    """The returns of all whole episodes in a replay buffer.

    An episode of which a step is missing (overwritten, or lost with its environment)
    and one that continues are left out, and so are those of an initial dataset.

    Returns:
        A row for each episode, in the order of their ends: frames, the environment
        steps of the run at its end; score, the plain sum of its rewards.

    Raises:
        UserError: the buffer is of format 1, whose rows do not name their episodes, or
            a row is damaged.
    """
    if not replay.has_origins:
        raise UserError(
            "the replay buffer is of format 1, whose rows do not name their episodes"
        )
    first = max(replay.oldest, replay.imported)
    count = replay.frames - first
    origin, rows = replay.origins(first, count), replay.read(first, count)
    # Each episode's rows next to each other, in the order in which they were stored.
    order = np.lexsort((np.arange(count), origin.episode, origin.env))
    env, episode, step = origin.env[order], origin.episode[order], origin.step[order]
    begins = np.ones(count, bool)
    begins[1:] = (env[1:] != env[:-1]) | (episode[1:] != episode[:-1])
    starts = np.flatnonzero(begins)
    if not starts.size:
        return pd.DataFrame(columns=COLUMNS, dtype=float)
    lengths = np.diff([*starts, count])
    lasts = starts + lengths - 1
    over = (origin.truncated[order] > 0) | (rows.terminated[order] > 0)
    # Steps are counted from 0: with as many rows before the last, none is missing.
    whole = (step[lasts] == lengths - 1) & over[lasts]
    scores = np.add.reduceat(rows.reward[order].astype(np.float64), starts)
    table = pd.DataFrame({"frames": first + order[lasts] + 1, SCORE: scores})
    return table[whole].sort_values("frames", ignore_index=True).astype(float)


def read_acting_returns(run: Record) -> pd.DataFrame | None:
    """Those of a run, from its replay buffer or from what was collected of it.

    Returns:
        as `acting_returns`; None where there is neither.

    Raises:
        UserError: what is there cannot be used.
    """
    collected = run.path.with_name(run.experiment + SUFFIX)
    if collected.is_file():
        return read_table(collected, COLUMNS)
    folder = run.path.parents[1] / run.config.save_model_path / "replay"
    if not folder.is_dir():
        return None
    with ReplayBuffer.open(folder) as replay:
        return acting_returns(replay)


def acting_csv(table: pd.DataFrame) -> bytes:
    """The file that `read_acting_returns` reads."""
    text = table.astype({"frames": int}).to_csv(index=False, float_format="%.6f")
    return text.encode()
