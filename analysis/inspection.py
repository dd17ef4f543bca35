"""What trained nets say of episodes: values, weights, and how far the model errs.

Dimension letters: T visited transitions, H horizon (H + 1 weights), K steps of the
model's rollout, B rollouts, M transition models, N reward models, L Q-functions,
O observation, A action.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..batch import Batch
from .episodes import Episode

if TYPE_CHECKING:
    from ..valuerl import ValueRL
    from ..worldmodel import WorldModelProtocol

BINS = 10
LONGEST_ROLLOUT = 10  # of the model's error, where the configuration's is shorter
MOST_ROLLOUTS = 4000  # for the model's error, evenly spread over the episodes
ROWS_AT_ONCE = 500


class EpisodeValues(NamedTuple):
    """What the nets say of the transitions of one episode.

    Attributes:
        value: Q(s_t, a_t), mean over its members, [T].
        value_std: standard deviation over the members, [T].
        final_value: the same mean for what follows the last step; 0 after a
            termination.
        target: sum_h w_h mu_h, [T]; None without a model.
        weights: w_0 .. w_H, [T, H+1]; None without a model.
    """

    value: np.ndarray
    value_std: np.ndarray
    final_value: float
    target: np.ndarray | None
    weights: np.ndarray | None


def episode_values(valuerl: "ValueRL", episode: Episode) -> EpisodeValues:
    """Values, targets and weights along an episode, with all members."""
    import tensorflow as tf

    from .. import nn
    from ..valuerl import SampledMembers, weighted_target

    q = valuerl.q(tf.concat([episode.obs, episode.action], -1)[None])[..., 0]  # [L, T]
    last = tf.constant(episode.next_obs[-1:])
    final = valuerl.q(tf.concat([last, valuerl.action(last)], -1)[None])
    targets, weights = [], []
    model = valuerl.world_model
    every = SampledMembers(
        None, nn.Assignment(1, tf.constant([0])), model.all_members() if model else None
    )
    for rows in _chunks(episode.length) if model else ():
        batch = Batch(
            obs=tf.constant(episode.obs[rows]),
            action=tf.constant(episode.action[rows]),
            reward=tf.constant(episode.reward[rows], tf.float32),
            next_obs=tf.constant(episode.next_obs[rows]),
            terminated=tf.constant(_terminated(episode)[rows]),
        )
        candidates = valuerl.candidates(valuerl.imagine(batch, every))
        weights.append(valuerl.weights(candidates))
        targets.append(weighted_target(candidates, weights[-1]))
    return EpisodeValues(
        value=np.mean(q, axis=0),
        value_std=np.std(q, axis=0),
        final_value=0.0 if episode.terminated else float(np.mean(final)),
        target=np.concatenate(targets) if targets else None,
        weights=np.concatenate(weights) if weights else None,
    )


def _terminated(episode: Episode) -> np.ndarray:
    """d of each transition, [T]: 1 only where the environment ended the episode."""
    terminated = np.zeros(episode.length, np.float32)
    terminated[-1] = episode.terminated
    return terminated


def _chunks(rows: int) -> Iterator[slice]:
    for start in range(0, rows, ROWS_AT_ONCE):
        yield slice(start, min(start + ROWS_AT_ONCE, rows))


def discounted_returns(
    rewards: np.ndarray, discount: float, reward_scale: float, final_value: float = 0.0
) -> np.ndarray:
    """What was earned from each step on, G_t = reward_scale r_t + discount G_{t+1}.

    Args:
        rewards: r_0 .. r_{T-1}, [T].
        discount: in [0, 1].
        reward_scale: factor of the rewards.
        final_value: G_T, what stands for the time after the last step.

    Returns:
        G_0 .. G_{T-1}, [T].
    """
    returns = np.empty(len(rewards))
    following = final_value
    for t in reversed(range(len(rewards))):
        following = reward_scale * rewards[t] + discount * following
        returns[t] = following
    return returns


class Histogram(NamedTuple):
    """How often each weight was seen in each of ten bins.

    Attributes:
        edges: [11]. A bin holds its lower edge, the last one both.
        is_open: COV-STEVE's weights may be negative or above 1; then the bins are
            between the 5% and 95% quantiles, and the outer ones hold all beyond.
        counts: [H+1, 10].
        mean: of each weight, [H+1].
        left_out: transitions whose weights are not finite.
    """

    edges: np.ndarray
    is_open: bool
    counts: np.ndarray
    mean: np.ndarray
    left_out: int


def weight_histogram(weights: np.ndarray) -> Histogram:
    """The histogram over ten bins of w_0 .. w_H, [T, H+1]."""
    finite = np.isfinite(weights).all(axis=1)
    kept = weights[finite].astype(np.float64)
    low, high = 0.0, 1.0
    rounding = 1e-5
    is_open = bool(((kept < low - rounding) | (kept > high + rounding)).any())
    if is_open:
        low, high = np.quantile(kept, (0.05, 0.95))
    # Rounded, so that 0.3 lies in 0.3 .. 0.4.
    edges = np.round(np.linspace(low, high, BINS + 1), 10)
    inside = np.clip(kept, edges[0], edges[-1])
    counts = np.stack([np.histogram(column, edges)[0] for column in inside.T])
    mean = kept.mean(axis=0) if len(kept) else np.full(kept.shape[1], np.nan)
    return Histogram(edges, is_open, counts, mean, int((~finite).sum()))


class Rollouts(NamedTuple):
    """Real stretches of the episodes, one from each of B visited states.

    Attributes:
        obs: where they start, [B, O].
        action: [B, K, A].
        reward: [B, K].
        next_obs: [B, K, O].
        terminated: [B, K].
        is_real: whether the episode had that step, [B, K]; the rest is filled up.
    """

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_obs: np.ndarray
    terminated: np.ndarray
    is_real: np.ndarray


def cut_rollouts(
    episodes: Sequence[Episode], steps: int, most: int = MOST_ROLLOUTS
) -> Rollouts:
    """Stretches of up to `steps` steps from every visited state.

    Of more than `most` states, so many are taken at even distances.
    """
    starts = [(e, t) for e, ep in enumerate(episodes) for t in range(ep.length)]
    if len(starts) > most:
        taken = np.linspace(0, len(starts) - 1, most).round().astype(int)
        starts = [starts[i] for i in taken]
    parts = []
    for e, t in starts:
        episode = episodes[e]
        wanted = np.arange(t, t + steps)
        index = np.minimum(wanted, episode.length - 1)
        parts.append(
            Rollouts(
                episode.obs[t],
                episode.action[index],
                episode.reward[index].astype(np.float32),
                episode.next_obs[index],
                _terminated(episode)[index],
                wanted < episode.length,
            )
        )
    return Rollouts(*(np.stack(column) for column in zip(*parts, strict=True)))


class Predicted(NamedTuple):
    """The model's rollout; S is the number of predictions, M or M N.

    Attributes:
        obs: [B, K, M, O].
        reward: [B, K, M N].
        termination: probability of ending with that step, [B, K, M].
    """

    obs: np.ndarray
    reward: np.ndarray
    termination: np.ndarray


def predict(
    model: "WorldModelProtocol", start_obs: np.ndarray, actions: np.ndarray
) -> Predicted:
    """Rolls every member out along real actions (SPEC section 5, without a policy).

    Args:
        model: the world model.
        start_obs: [B, O].
        actions: [B, K, A].
    """
    import tensorflow as tf

    every = model.all_members()
    obs = tf.constant(start_obs)[None]  # [1, B, O]; from the second step [M, B, O]
    states, rewards, terminations = [], [], []
    for k in range(actions.shape[1]):
        action = tf.repeat(tf.constant(actions[:, k])[None], len(obs), axis=0)
        next_obs = model.next_obs(obs, action, every, k)  # [M, B, O]
        models, rows = next_obs.shape[:2]
        before = tf.broadcast_to(obs, next_obs.shape)
        action = tf.broadcast_to(action, [models, *action.shape[1:]])  # [M, B, A]
        after, here, taken = (
            tf.reshape(x, [models * rows, -1]) for x in (next_obs, before, action)
        )
        reward = model.rewards(after, here, taken, every)  # [N, M*B]
        reward = tf.reshape(reward, [-1, rows])  # [N*M, B]
        rewards.append(tf.transpose(reward))
        probability = model.termination_prob(next_obs, before, action, every)  # [M, B]
        terminations.append(tf.transpose(probability))
        states.append(tf.transpose(next_obs, [1, 0, 2]))
        obs = next_obs
    return Predicted(
        *(np.stack(steps, axis=1) for steps in (states, rewards, terminations))
    )


class Errors(NamedTuple):
    """Root mean squares at each step k = 1 .. K of the rollout, each [K].

    Attributes:
        error: of (mean over the members - what really came).
        spread: of the standard deviation over the members.
        trivial: of (a prediction without any model - what really came).
    """

    error: np.ndarray
    spread: np.ndarray
    trivial: np.ndarray


def squares(
    predicted: np.ndarray, real: np.ndarray, trivial: np.ndarray, is_real: np.ndarray
) -> np.ndarray:
    """Sums over the rollouts of the three squares that `Errors` are the roots of.

    Args:
        predicted: [B, K, S, ...], S predictions of each quantity.
        real: [B, K, ...].
        trivial: the prediction without a model, broadcast to `real`.
        is_real: which steps count, [B, K].

    Returns:
        [3, K]; the mean over further axes, the observation's entries, is taken.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # a model may run away
        mean = predicted.mean(axis=2)
        parts = ((mean - real) ** 2, predicted.var(axis=2), (trivial - real) ** 2)
    flat = [part.reshape(*is_real.shape, -1).mean(axis=-1) for part in parts]
    return np.stack([np.where(is_real, part, 0.0).sum(axis=0) for part in flat])


class ModelError(NamedTuple):
    """The model's errors, and from how many rollouts, [K].

    Without a model one predicts: the observation that the rollout starts with, the
    mean reward of the episodes, and their share of terminal steps.
    """

    observation: Errors
    reward: Errors
    termination: Errors
    rollouts: np.ndarray


def model_error(
    predictor: Callable[[np.ndarray, np.ndarray], Predicted],
    episodes: Sequence[Episode],
    steps: int,
) -> ModelError:
    """Predicted against real along the real actions, from visited states.

    Args:
        predictor: (start_obs, actions) to a Predicted; `predict` of a world model.
        episodes: what really happened.
        steps: K; cut where no episode is that long.
    """
    steps = min(steps, max(episode.length for episode in episodes))
    rollouts = cut_rollouts(episodes, steps)
    all_rewards = np.concatenate([episode.reward for episode in episodes])
    ending = sum(episode.terminated for episode in episodes) / len(all_rewards)
    sums = np.zeros((3, 3, steps))  # [quantity, square, K]
    for rows in _chunks(len(rollouts.obs)):
        real = Rollouts(*(part[rows] for part in rollouts))
        made = predictor(real.obs, real.action)
        compared = (
            (made.obs, real.next_obs, real.obs[:, None]),
            (made.reward, real.reward, all_rewards.mean()),
            (made.termination, real.terminated, ending),
        )
        for i, (predicted, truth, trivial) in enumerate(compared):
            wide = predicted.astype(np.float64)
            sums[i] += squares(wide, truth, trivial, real.is_real)
    count = rollouts.is_real.sum(axis=0)
    obs, reward, termination = (Errors(*root) for root in np.sqrt(sums / count))
    return ModelError(obs, reward, termination, count)
