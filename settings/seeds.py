"""The seeds of a run: each draw is keyed by what it is for, never by when it is made.

A draw's key is the run's seed, a stream and counters (SPEC section 2). So a draw is
the same at any speed, and after a process was killed and started again.
"""

import random
from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a draw is for. The numbers are part of what a seed means: never reused."""

    VALUERL = 1  # initial weights, and members of the value learner's updates
    WORLDMODEL = 2
    VALUERL_BATCH = 3  # counter: update
    WORLDMODEL_BATCH = 4  # counter: update, pretraining included
    ACTION = 5  # counter: vector step
    EPISODE = 6  # counters: environment, episode
    EVALUATION = 7  # counters: updates of the policy, episode, attempt
    FINAL_EPISODE = 8  # counters: the same
    RANDOM_SCORE = 9  # counters: evaluator, episode
    PROCESS = 10  # counter: which process; for what its libraries draw at their start


def seed_of(seed: int, stream: Stream, *counters: int) -> int:
    """A seed of 32 bits for a draw.

    Args:
        seed: the run's.
        stream: what is drawn.
        counters: which draw of the stream, each >= 0.
    """
    return int(_sequence(seed, stream, counters).generate_state(1)[0])


def generator(seed: int, stream: Stream, *counters: int) -> np.random.Generator:
    """A generator for a draw; the arguments are those of `seed_of`."""
    return np.random.Generator(np.random.PCG64(_sequence(seed, stream, counters)))


def seed_globals(seed: int, attempt: int = 0) -> int:
    """Seeds `random` and `np.random`, which users' environments draw from.

    Args:
        seed: 32 bits.
        attempt: one more for each time that the seed has led to a failure.

    Returns:
        a seed for the environment, of 31 bits.
    """
    first, second = np.random.SeedSequence((seed, attempt)).generate_state(2)
    random.seed(int(first))
    np.random.seed(int(first))
    return int(second >> np.uint32(1))


def _sequence(
    seed: int, stream: Stream, counters: tuple[int, ...]
) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(int(stream), *counters))
