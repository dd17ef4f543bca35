"""Where a trained run's candidate targets are wrong: rewards, states or critic.

    python results/value_errors.py CONFIG.json CHECKPOINT [--states N]

From states s_0 of the replay buffer the simulator plays what the model imagines: the
greedy policy, for H steps and on until nothing that follows counts. A candidate target
(without the real reward r_0, SPEC section 5) is then off by three parts, which add up:

    T_h - V(s_0) = sum_{k=1..h} discount^{k-1} (imagined r_k - real r_k)   rewards
                 + discount^h (V(imagined s_h) - V(real s_h))              states
                 + discount^h (Qtarget(imagined s_h) - V(imagined s_h))    critic

V is the discounted return of the policy in the simulator. Means over the states are
printed, with the standard error of T_h - V(s_0). HalfCheetah-v1 and Swimmer-v1, whose
observation is the simulator's state but for the position, which changes nothing.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import gymnasium
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tables import markdown

from configuration import load
from envwrap import EnvSpec, make_env, sizes_of
from inspection import discounted_returns
from policy import Policy
from replay import Batch, ReplayBuffer
from schema import Config
from trained import Trained, build_nets, load_trained
from util import OneLineParser, UserError, exit_code

ENVIRONMENTS = ("HalfCheetah-v1", "Swimmer-v1")
STEPS = 1000  # discount^1000 = 4e-5


class Played(NamedTuple):
    """What the policy earned.

    Attributes:
        rewards: r_1, r_2, .., [STEPS].
        returns: V at s_0, s_1, .., [STEPS].
    """

    rewards: np.ndarray
    returns: np.ndarray


class Simulator:
    """The greedy policy in the real environment, from any state.

    Args:
        config: of the run.
        trained: whose policy acts.
    """

    def __init__(self, config: Config, trained: Trained) -> None:
        self.env = make_env(config.env)
        self.sizes = sizes_of(self.env)
        self._policy = Policy(trained.policy, self.sizes.obs_dim, self.sizes.action_dim)
        self._settings = config.env

    def play(self, obs: np.ndarray) -> Played:
        """From s_0 = `obs` [O] on."""
        self.env.reset(seed=0)
        obs, rewards = put(self.env, obs), np.empty(STEPS)
        for step in range(STEPS):
            action = self._policy.greedy(obs[None])[0]
            obs, rewards[step], *_ = self.env.step(action)
        settings = self._settings
        scale, discount = settings.reward_scale, settings.discount
        return Played(rewards, discounted_returns(rewards, discount, scale))


def put(env: gymnasium.Env, obs: np.ndarray) -> np.ndarray:
    """Puts the simulator into the state with an observation, at position 0."""
    model = env.unwrapped.model
    hidden = model.nq + model.nv - len(obs)
    state = np.concatenate([np.zeros(hidden), obs])
    return env.get_wrapper_attr("put")(state[: model.nq], state[model.nq :])


class Errors(NamedTuple):
    """Of each state and horizon h = 0 .. H, [states, H+1]; the errors add up."""

    value: np.ndarray  # V(s_0), the same for all h
    rewards: np.ndarray
    states: np.ndarray
    critic: np.ndarray


def imagined(
    config: Config, trained: Trained, sizes: EnvSpec, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the nets expect from states s_0, [B, O].

    Returns:
        s_0 .. s_H of one transition member each, [B, H+1, O]; r_1 .. r_H, [B, H], and
        Qtarget(s_h, a_h), [B, H+1], of the same rollouts, means over the other members.
    """
    import tensorflow as tf

    from nn import interleaved_shares
    from valuerl import Choice
    from worldmodel import ModelMembers

    count = len(start)
    policy_config = config.policy_config
    if expansion := policy_config.value_expansion:
        # A step more: `imagine` returns no state behind its last step.
        longer = expansion.model_copy(update={"rollout_len": expansion.rollout_len + 1})
        policy_config = policy_config.model_copy(update={"value_expansion": longer})
    config = config.model_copy(update={"policy_config": policy_config})
    valuerl = build_nets(config, sizes, trained).valuerl
    zeros = tf.zeros([count])
    batch = Batch(
        obs=tf.zeros_like(start, tf.float32),
        action=tf.zeros([count, sizes.action_dim]),
        reward=zeros,
        next_obs=tf.constant(start, tf.float32),
        terminated=zeros,
    )
    every = Choice(None, interleaved_shares(1, 1), ModelMembers(None, None))
    rollout = valuerl.imagine(batch, every)
    values = np.mean(rollout.values, axis=-1)  # [B, H+2, M], H+2 = 1 without a model
    if rollout.obs is None:
        return start[:, None], np.zeros([count, 0]), values[..., 0]
    members = np.arange(count) % values.shape[-1]
    rows = np.arange(count)
    rewards = np.mean(rollout.rewards, axis=-1)[rows, 1:-1, members]
    return (
        rollout.obs.numpy()[rows, :, members],
        rewards,
        values[rows, :-1, members],
    )


def value_errors(config: Config, trained: Trained, start: np.ndarray) -> Errors:
    """The parts of the error from states s_0, [B, O]."""
    simulator = Simulator(config, trained)
    states, rewards, values = imagined(config, trained, simulator.sizes, start)
    count, steps = values.shape
    scale, discounts = config.env.reward_scale, config.env.discount ** np.arange(steps)
    errors = Errors(*np.zeros([4, count, steps]))
    for row in range(count):
        real = simulator.play(start[row])
        off = scale * (rewards[row] - real.rewards[: steps - 1])
        errors.rewards[row, 1:] = np.cumsum(discounts[:-1] * off)
        errors.value[row] = real.returns[0]
        for h in range(steps):
            there = real if h == 0 else simulator.play(states[row, h])
            drift = there.returns[0] - real.returns[h]
            errors.states[row, h] = discounts[h] * drift
            errors.critic[row, h] = discounts[h] * (values[row, h] - there.returns[0])
    return errors


def table(errors: Errors) -> str:
    """Means over the states, in Markdown."""
    count, steps = errors.value.shape
    parts = errors.rewards, errors.states, errors.critic
    total = sum(parts)
    uncertain = total.std(axis=0, ddof=1) / np.sqrt(count)
    rows = [("h", "V(s_0)", "T_h - V(s_0)", "rewards", "states", "critic")]
    for h in range(steps):
        off = f"{total[:, h].mean():.1f} +- {uncertain[h]:.1f}"
        means = (f"{part[:, h].mean():.1f}" for part in parts)
        rows.append((str(h), f"{errors.value[:, h].mean():.1f}", off, *means))
    return markdown(rows)


def run(path: str, checkpoint: Path, count: int) -> None:
    """Prints the table.

    Raises:
        UserError: the environment is not one of `ENVIRONMENTS`, or there are no values.
    """
    config = load(path).config
    if config.env.name not in ENVIRONMENTS:
        raise UserError(f"{path}: only for {' and '.join(ENVIRONMENTS)}")
    trained = load_trained(checkpoint, config)
    if trained.critic is None:
        raise UserError(trained.notes[-1])
    with ReplayBuffer.open(trained.folder / "replay") as replay:
        rng = np.random.default_rng(0)
        start = replay.sample(count, replay.size, rng).next_obs.astype(float)
    print(table(value_errors(config, trained, start)))


def main() -> int:
    parser = OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", metavar="CONFIG.json")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path)
    parser.add_argument("--states", type=int, default=200)
    given = parser.parse_args()
    return exit_code(
        "value_errors.py", lambda: run(given.config, given.checkpoint, given.states)
    )


if __name__ == "__main__":
    sys.exit(main())
