"""The pace of a run: how many frames and updates there may be (SPEC section 2).

Pure functions of the configuration and of counters; who waits calls them again.
"""

import math

from ..settings.roles import VALUERL, learners
from ..settings.schema import VECTOR_STEPS_AHEAD, Config, LearnerConfig
from ..storage.board import Board

ROUNDING = 1e-9  # of a quotient of numbers such as 0.1


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
    return frames > _needed(settings, updates + count - 1)


def is_done(
    config: Config, settings: LearnerConfig, frames: int, updates: int, epoch: int
) -> bool:
    """Whether no more frames will come, and a learner has used all that there are.

    One without a pace has used them as soon as it has begun: after its pretraining.

    Args:
        config: the run's.
        settings: the learner's section of it.
        frames: of the run.
        updates: of this learner.
        epoch: of this learner; 0: it has published nothing.
    """
    if config.total_frames is None or frames < config.total_frames:
        return False
    is_unpaced = settings.frames_per_update is False
    return (is_unpaced and epoch > 0) or not may_update(settings, frames, updates)


def updates_for(config: Config, settings: LearnerConfig) -> int:
    """How many updates a learner that keeps a pace does up to `total_frames`.

    Vector steps are whole, so the run has up to one more than that limit.
    """
    assert config.total_frames is not None
    step = config.agent_config.batch_size
    frames = math.ceil(config.total_frames / step) * step
    missing = frames - settings.frames_before_learning
    return max(0, math.ceil(missing / settings.frames_per_update - ROUNDING))


# -- what a paced run does at which counters (SPEC section 2) ------------------------


def frames_for_update(settings: LearnerConfig, update: int) -> int:
    """How many frames update number `update` (0 is the first) draws from, at most.

    It is the least number that lets the learner do that update.
    """
    return math.floor(_needed(settings, update)) + 1


def frames_used(settings: LearnerConfig, updates: int) -> int:
    """How many frames a learner that did `updates` has drawn from."""
    if updates == 0:
        return frames_for_pretraining(settings)
    return frames_for_update(settings, updates - 1)


def frames_for_pretraining(settings: LearnerConfig) -> int:
    """How many frames pretraining draws from."""
    return max(1, settings.frames_before_learning)


def policy_for(config: Config, frames: int) -> int | None:
    """The policy with which a vector step that begins at `frames` acts.

    It is the newest of those that pacing guarantees to be there by then, also where
    a newer one is there.

    Returns:
        its number of updates; None before the first policy is certain.
    """
    settings, step = config.policy_config, config.agent_config.batch_size
    first = max(each.frames_before_learning for each in learners(config).values())
    ahead = (VECTOR_STEPS_AHEAD - 1) * step
    if frames <= first + ahead:
        return None
    missing = frames - settings.frames_before_learning - ahead
    updates = math.ceil(missing / settings.frames_per_update - ROUNDING)
    return published_by(settings, updates)


def model_for(config: Config, updates: int) -> int:
    """The world model that the value learner takes up when it did `updates`.

    Returns:
        its number of updates: the newest that the pace allows by the same frames, so
        the newest not above `updates` where both learners keep the same pace.
    """
    settings, model = config.policy_config, config.model_section
    first, each = model.frames_before_learning, model.frames_per_update
    same = math.floor((_needed(settings, updates) - first) / each + ROUNDING)
    # Nor more than the frames allow that the value learner has needed itself.
    certain = math.ceil((frames_used(settings, updates) - first) / each - ROUNDING)
    return published_by(model, max(0, min(same, certain)))


def published_by(settings: LearnerConfig, updates: int) -> int:
    """The last number of updates, at most `updates`, at which a learner publishes."""
    return updates - updates % settings.epoch_every_n


def _needed(settings: LearnerConfig, updates: float) -> float:
    """Update number `updates` needs more frames than this."""
    return settings.frames_before_learning + settings.frames_per_update * updates
