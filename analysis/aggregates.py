"""Statistics over environments, as Agarwal et al. (2021) recommend for few runs.

"Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021:
the interquartile mean of all runs' normalised scores, percentile-bootstrap intervals
stratified by environment, the optimality gap, the probability of improvement and
performance profiles. The numbers are those of its library rliable.

Scores of an algorithm are a list with an array for each environment, [..., N] for N
runs; the numbers of runs may differ. The dimensions before N are the same for all, and
a statistic's result has them too: one for the resamples of a bootstrap, or none.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

from ..util import UserError
from .curves import RESAMPLES, SMOOTH, curve
from .records import SCORE, Record, grouped

PROFILE_POINTS = 101

Scores = Sequence[np.ndarray]


def iqm(scores: Scores) -> np.ndarray:
    """The mean of the middle half of all scores."""
    return scipy.stats.trim_mean(np.concatenate(scores, axis=-1), 0.25, axis=-1)


def mean(scores: Scores) -> np.ndarray:
    """The mean over environments of the mean over runs."""
    return np.mean([each.mean(axis=-1) for each in scores], axis=0)


def optimality_gap(scores: Scores, goal: float = 1.0) -> np.ndarray:
    """By how much runs miss the goal, those above it by 0; mean over environments."""
    return mean([np.maximum(goal - each, 0.0) for each in scores])


def profile(scores: Scores, at: np.ndarray) -> np.ndarray:
    """The share of runs above each score of `at`, mean over environments, [..., G]."""
    above = [(each[..., None] > at).mean(axis=-2) for each in scores]
    return np.mean(above, axis=0)


def probability_of_improvement(ours: Scores, theirs: Scores) -> np.ndarray:
    """How probably a run of ours is better than one of theirs, mean over environments.

    Ties count half: the Mann-Whitney statistic over the number of pairs.
    """
    better = []
    for a, b in zip(ours, theirs, strict=True):
        difference = a[..., :, None] - b[..., None, :]  # [..., N, M]
        won = (difference > 0) + 0.5 * (difference == 0)
        better.append(won.mean(axis=(-2, -1)))
    return np.mean(better, axis=0)


def interval(
    statistic: Callable[..., np.ndarray], *scores: Scores
) -> tuple[np.ndarray, np.ndarray]:
    """The 95% interval of a statistic of one or two algorithms.

    Percentile bootstrap: runs are drawn with replacement within each environment, of
    each algorithm by itself.

    Returns:
        its lower and its upper end, each of the statistic's shape; NaN where an
        environment has a single run, of whose spread nothing is known.
    """
    if any(len(each) < 2 for one in scores for each in one):
        unknown = np.full(np.shape(statistic(*scores)), np.nan)
        return unknown, unknown
    rng = np.random.default_rng(0)
    drawn = [
        [rng.choice(each, (RESAMPLES, len(each))) for each in one] for one in scores
    ]
    low, high = np.percentile(statistic(*drawn), [2.5, 97.5], axis=0)
    return low, high


class OverEnvironments(NamedTuple):
    """What is known over several environments.

    Attributes:
        environments: their names.
        left_out: algorithms that have runs on some of them only.
        scores: algorithm, runs, iqm, low, high (of the IQM), mean and gap (the
            optimality gap).
        improvement: algorithm, than, probability, low and high.
        profiles: algorithm, score, share, low and high.
    """

    environments: list[str]
    left_out: list[str]
    scores: pd.DataFrame
    improvement: pd.DataFrame
    profiles: pd.DataFrame


def over_environments(
    runs: Sequence[Record],
    references: Mapping[str, tuple[float, float]],
    group_by: str = "algorithm",
    smooth: float = SMOOTH,
) -> OverEnvironments:
    """Compares the algorithms that have runs on each of the environments.

    A run's score is its curve at the last frames that all runs of its environment
    have. It is normalised: 0 at the reference's low score, 1 at the high one.

    Args:
        runs: of any environments; those without a reference are left out.
        references: by environment, low and high score.
        group_by: as of `grouped`.
        smooth: the window's share of the x axis.

    Raises:
        UserError: an environment has no runs, a run has no score by the last frames
            that all have, or no algorithm has runs on all.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    scored = [run for run in runs if run.end("frames")]
    groups = grouped(scored, group_by)
    for environment, (low, high) in references.items():
        ends = [run.end("frames") for run in scored if run.environment == environment]
        if not ends:
            raise UserError(f"--normalize {environment}: no run on it has a score")
        at, window = np.array([min(ends)]), smooth * max(ends)
        for (name, algorithm), group in groups.items():
            if name == environment:
                values = [
                    curve(run.known(SCORE, "frames"), at, window) for run in group
                ]
                for run, value in zip(group, values, strict=True):
                    if np.isnan(value).any():
                        raise UserError(
                            f"{run.path} has no score by {at[0]:,.0f} frames, where "
                            f"the shortest run on {environment} ends; leave one out"
                        )
                normalised = (np.concatenate(values) - low) / (high - low)
                found.setdefault(algorithm, {})[environment] = normalised
    complete = {
        algorithm: [by_environment[name] for name in references]
        for algorithm, by_environment in found.items()
        if len(by_environment) == len(references)
    }
    if not complete:
        raise UserError(f"no algorithm has runs on all of {', '.join(references)}")
    return OverEnvironments(
        list(references),
        [algorithm for algorithm in found if algorithm not in complete],
        _scores(complete),
        _improvement(complete),
        _profiles(complete),
    )


def _scores(complete: Mapping[str, Scores]) -> pd.DataFrame:
    rows = []
    for name, scores in complete.items():
        low, high = interval(iqm, scores)
        runs = sum(map(len, scores))
        means = mean(scores), optimality_gap(scores)
        rows.append((name, runs, iqm(scores), low, high, *means))
    columns = ["algorithm", "runs", "iqm", "low", "high", "mean", "gap"]
    return pd.DataFrame(rows, columns=columns)


def _improvement(complete: Mapping[str, Scores]) -> pd.DataFrame:
    rows = []
    for name, other in permutations(complete, 2):
        pair = complete[name], complete[other]
        probability = probability_of_improvement(*pair)
        low, high = interval(probability_of_improvement, *pair)
        rows.append((name, other, probability, low, high))
    columns = ["algorithm", "than", "probability", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _profiles(complete: Mapping[str, Scores]) -> pd.DataFrame:
    every = np.concatenate([each for scores in complete.values() for each in scores])
    at = np.linspace(min(0.0, every.min()), every.max(), PROFILE_POINTS)
    parts = []
    for name, scores in complete.items():
        low, high = interval(lambda drawn: profile(drawn, at), scores)
        columns = {"score": at, "share": profile(scores, at), "low": low, "high": high}
        parts.append(pd.DataFrame({"algorithm": name} | columns))
    return pd.concat(parts, ignore_index=True)
