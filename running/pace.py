"""The pace of a run: how many frames there may be (SPEC section 2)."""

import math

from ..settings.roles import VALUERL, learners
from ..settings.schema import Config
from ..storage.board import Board

VECTOR_STEPS_AHEAD = 2


def frame_limit(config: Config, board: Board) -> float:
    """How many frames there may be now (SPEC section 2, pacing).

    frames <= frames_before_learning + frames_per_update * updates + 2 vector steps

    for each learner that paces; one that does not (`frames_per_update` false) is
    waited for only until its process is ready. Before its first epoch the value
    learner waits for the world model, so until then the later start counts for both.
    No vector step begins at `total_frames` or later.
    """
    step = config.agent_config.batch_size
    settings_of = learners(config)
    latest = max(each.frames_before_learning for each in settings_of.values())

    limits = [math.inf]
    if config.total_frames is not None:
        limits.append(config.total_frames + step - 1)
    for name, settings in settings_of.items():
        row = board[name]
        waiting = name == VALUERL and not row["epoch"]
        first = latest if waiting else settings.frames_before_learning
        band = first + VECTOR_STEPS_AHEAD * step
        if settings.frames_per_update is not False:
            limits.append(band + settings.frames_per_update * int(row["updates"]))
        elif not row["ready"]:
            limits.append(band)
    return min(limits)
