"""The toy chain of the paper, and six learners of its values in tables.

States 0..100 are followed by a terminal one, 101. Each step goes one state on, with
reward -1, and 100 on the step into the terminal state. Nothing is discounted, so the
true value of state s is s. Six learners estimate it (SPEC section 11):

    basic Q         one table, TD targets
    ensemble Q      8 tables (Q-members), TD targets from their mean
    MVE-oracle      8 tables, the full-horizon target of a perfect model
    MVE-noisy       the same with an ensemble of 8 models, each of which jumps to a
                    uniformly drawn state with probability 0.1
    STEVE-oracle    8 tables, every horizon's target weighted by inverse variance
    STEVE-noisy     the same with the noisy models

At each update every member in turn draws a start state and is set to its target there;
later members see the new values of earlier ones.

Dimension letters: T trials, U updates, L Q-members, M models, H horizon (H+1 candidate
targets), S states with the terminal one.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

LAST_STATE = 100
TERMINAL = LAST_STATE + 1
TRUE_VALUES = np.arange(LAST_STATE + 1, dtype=float)  # of the states 0..100
REWARDS = np.full(TERMINAL + 1, -1.0)  # on leaving a state
REWARDS[LAST_STATE] = 100.0
REWARDS[TERMINAL] = 0.0

VARIANCE_EPSILON = 1e-8  # as in SPEC section 5
# Rollouts do not depend on the tables, so those of many updates are drawn at a time.
STATES_PER_DRAW = 2**19


# ---- Targets (paper, section 3; SPEC section 5 without discount and termination) ----


def toy_candidate_targets(returns: np.ndarray, q_reached: np.ndarray) -> np.ndarray:
    """The samples of T_h for every horizon h = 0 .. H, model m and Q-member l.

        T_h[m, l] = sum_{k=0..h} r_k[m]  +  Q_l(s_h[m])

    r_0 and s_0 are the real reward and next state; H = 0 gives TD targets alone.

    Args:
        returns: [..., H+1, M], the sums of the rewards r_0 .. r_h.
        q_reached: [..., H+1, M, L], every member's value of the state s_h reached.

    Returns:
        [..., H+1, M*L], one sample for each pair of model and member.
    """
    samples = returns[..., None] + q_reached
    return samples.reshape(*samples.shape[:-2], -1)  # [..., H+1, M*L]


def mean_and_variance(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """mu_h and var_h: mean and population variance over the samples of each T_h.

    Args:
        samples: [..., H+1, M*L].

    Returns:
        Two arrays [..., H+1].
    """
    count = samples.shape[-1]
    mu = samples.sum(-1) / count
    deviations = samples - mu[..., None]
    # np.var gives the same and takes twice as long on arrays this small.
    var = np.einsum("...i,...i->...", deviations, deviations) / count
    return mu, var


def toy_steve_weights(var: np.ndarray) -> np.ndarray:
    """w_h proportional to 1 / (var_h + 1e-8), with sum 1 over h (last axis)."""
    precision = 1.0 / (var + VARIANCE_EPSILON)
    return precision / precision.sum(-1, keepdims=True)


def td_target(mu: np.ndarray, var: np.ndarray) -> np.ndarray:
    """mu_0: the real step and the tables' value of the state behind it."""
    return mu[..., 0]


def mve_target(mu: np.ndarray, var: np.ndarray) -> np.ndarray:
    """mu_H: the mean over models and members at the full horizon."""
    return mu[..., -1]


def steve_target(mu: np.ndarray, var: np.ndarray) -> np.ndarray:
    """sum_h w_h mu_h: equal variances give the mean of mu_0 .. mu_H."""
    return (toy_steve_weights(var) * mu).sum(-1)


def best_candidate(mu: np.ndarray, true_value: np.ndarray) -> np.ndarray:
    """That mu_h which is nearest to the true value: known in hindsight only.

    Args:
        mu: [..., H+1].
        true_value: [...], of the start state.
    """
    nearest = np.abs(mu - true_value[..., None]).argmin(-1)
    return np.take_along_axis(mu, nearest[..., None], -1)[..., 0]


# ---- The chain and its models ----


def sample_rollouts(
    starts: np.ndarray,
    models: int,
    horizon: int,
    noise: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Goes from each start one real step and then `horizon` imagined ones.

    An imagined step goes to a state drawn uniformly from 0..100 with probability
    `noise`, drawn again at every step and for every model, and otherwise where the
    chain goes. Its reward is that of leaving the state, also when it jumps. The
    terminal state is never left.

    Args:
        starts: [...], states 0..100.

    Returns:
        The states s_0 .. s_H and the returns r_0 + .. + r_h: both [..., H+1, M].
    """
    shape = (*starts.shape, models)
    left = np.broadcast_to(starts[..., None], shape)
    states, rewards = [left + 1], [REWARDS[left]]
    for _ in range(horizon):
        left = states[-1]
        reached = np.minimum(left + 1, TERMINAL)
        if noise > 0:
            jumps = (rng.random(shape) < noise) & (left != TERMINAL)
            anywhere = rng.integers(0, LAST_STATE, shape, endpoint=True)
            reached = np.where(jumps, anywhere, reached)
        states.append(reached)
        rewards.append(REWARDS[left])
    return np.stack(states, -2), np.cumsum(np.stack(rewards, -2), -2)


# ---- Learning ----


class ToyLearner(NamedTuple):
    """One of the compared learners: what it has and which target it uses."""

    title: str
    members: int
    models: int
    horizon: int
    noise: float
    target: Callable[[np.ndarray, np.ndarray], np.ndarray]

    @property
    def slug(self) -> str:
        """The title as part of a file name."""
        return self.title.lower().replace(" ", "_").replace("-", "_")


class History(NamedTuple):
    """What is recorded at each update.

    Attributes:
        value_error: [U, T], mean over the states 0..100 of (mean Q - s)^2 after it.
        target_error: [U, 4, T], mean over the members' starts s of (target - s)^2 for
            the targets TD (mu_0), MVE (mu_H), the one used and the best candidate.
    """

    value_error: np.ndarray
    target_error: np.ndarray


def learners(horizon: int, ensemble: int, noise: float) -> list[ToyLearner]:
    """The six learners of the figures (SPEC section 11).

    The models of an oracle's ensemble would all be alike, and so would their samples:
    one of them has the same mean and the same variance.
    """
    return [
        ToyLearner("basic Q", 1, 1, 0, 0.0, td_target),
        ToyLearner("ensemble Q", ensemble, 1, 0, 0.0, td_target),
        ToyLearner("MVE-oracle", ensemble, 1, horizon, 0.0, mve_target),
        ToyLearner("MVE-noisy", ensemble, ensemble, horizon, noise, mve_target),
        ToyLearner("STEVE-oracle", ensemble, 1, horizon, 0.0, steve_target),
        ToyLearner("STEVE-noisy", ensemble, ensemble, horizon, noise, steve_target),
    ]


def initial_tables(trials: int, members: int, rng: np.random.Generator) -> np.ndarray:
    """Tables [T, S, L] of uniform random integers in 0..100, the terminal state's 0."""
    shape = (trials, TERMINAL + 1, members)
    tables = rng.integers(0, LAST_STATE, shape, endpoint=True).astype(float)
    tables[:, TERMINAL] = 0.0
    return tables


def value_error(tables: np.ndarray) -> np.ndarray:
    """Mean over the states 0..100 of (mean Q - s)^2: [T, S, L] to [T]."""
    # np.mean gives the same and takes twice as long on a last axis this short.
    mean_q = np.einsum("tsl->ts", tables[:, :TERMINAL]) / tables.shape[-1]
    return np.square(mean_q - TRUE_VALUES).mean(-1)


def update_tables(
    tables: np.ndarray,
    starts: np.ndarray,
    states: np.ndarray,
    returns: np.ndarray,
    target: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> History:
    """Runs U updates, changing `tables` in place.

    The trials go side by side; the members go in turn, because each one's target
    contains what the members before it have just been set to.

    Args:
        tables: [T, S, L], contiguous.
        starts: [U, L, T], the state in which each member is set.
        states, returns: [U, L, T, H+1, M], the rollouts from there.
        target: one of the targets above, of mu and var.
    """
    updates, members, trials = starts.shape
    rows = tables.reshape(-1, members)  # [T*S, L], a view of the tables
    first_row = np.arange(trials) * tables.shape[1]  # of each trial
    start_rows = starts + first_row
    reached_rows = states + first_row[:, None, None]
    all_mu = np.empty((*starts.shape, states.shape[-2]))  # [U, L, T, H+1]
    used = np.empty(starts.shape)  # [U, L, T]
    errors = np.empty((updates, trials))
    for u in range(updates):
        for member in range(members):
            q_reached = rows.take(reached_rows[u, member], axis=0)  # [T, H+1, M, L]
            samples = toy_candidate_targets(returns[u, member], q_reached)
            mu, var = mean_and_variance(samples)  # [T, H+1]
            all_mu[u, member] = mu
            used[u, member] = target(mu, var)
            rows[start_rows[u, member], member] = used[u, member]
        errors[u] = value_error(tables)

    true_value = TRUE_VALUES[starts]
    # 2018 release: off by one; here: the value of the state that the target is for.
    compared = (
        all_mu[..., 0],
        all_mu[..., -1],
        used,
        best_candidate(all_mu, true_value),
    )
    target_error = [np.square(t - true_value).mean(1) for t in compared]  # 4 x [U, T]
    return History(errors, np.stack(target_error, 1))


def learn(
    learner: ToyLearner, trials: int, steps: int, rng: np.random.Generator
) -> History:
    """Trains one learner from fresh tables; fewer steps give a prefix of the same."""
    tables = initial_tables(trials, learner.members, rng)
    history = History(np.empty((steps, trials)), np.empty((steps, 4, trials)))
    per_update = learner.members * trials * (learner.horizon + 1) * learner.models
    updates = max(1, STATES_PER_DRAW // per_update)
    for begin in range(0, steps, updates):
        shape = (updates, learner.members, trials)
        starts = rng.integers(0, LAST_STATE, shape, endpoint=True)
        states, returns = sample_rollouts(
            starts, learner.models, learner.horizon, learner.noise, rng
        )
        end = min(begin + updates, steps)
        taken = slice(end - begin)
        part = update_tables(
            tables, starts[taken], states[taken], returns[taken], learner.target
        )
        history.value_error[begin:end] = part.value_error
        history.target_error[begin:end] = part.target_error
    return history


def first_below(error: np.ndarray, limit: float = 1.0) -> int | None:
    """The first update after which the error, [U], is below the limit; None: never."""
    below = np.flatnonzero(error < limit)
    return int(below[0]) + 1 if below.size else None
