"""The pace of a run: how many frames and updates there may be (SPEC section 2).

Pure functions of the configuration and of counters; who waits calls them again.
"""

import math

from ..settings.roles import VALUERL, learners
from ..settings.schema import Config, LearnerConfig, limit_reached
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


def may_update(
    settings: LearnerConfig, frames: int, updates: int, count: int = 1
) -> bool:
    """Whether a learner that did `updates` has the frames for `count` more.

    Update u needs more than frames_before_learning + frames_per_update u.
    """
    needed = (settings.frames_per_update or 0) * (updates + count - 1)
    return frames > settings.frames_before_learning + needed


def is_done(
    config: Config, settings: LearnerConfig, frames: int, hours: float, updates: int
) -> bool:
    """Whether a learner is at the end of the run.

    That is so when the hours are over, or when no more frames will come and this
    learner has used all that there are.

    Args:
        config: the run's.
        settings: the learner's section of it.
        frames: of the run.
        hours: of learning, the value learner's.
        updates: of this learner.
    """
    if limit_reached(None, config.total_hours, frames, hours):
        return True
    if not limit_reached(config.total_frames, None, frames, hours):
        return False
    unpaced = settings.frames_per_update is False
    return unpaced or not may_update(settings, frames, updates)
