"""Where a trained run's candidate targets are wrong: rewards, states or critic.

    python results/value_errors.py CONFIG.json CHECKPOINT [--states N]

From states s_0 of the replay buffer the simulator plays what the model imagines: the
greedy policy, for H steps and on until nothing that follows counts. A candidate target
(without the real reward r_0, SPEC section 5) is then off by three parts, which add up:

    T_h - V(s_0) = sum_{k=1..h} discount^{k-1} (imagined r_k - real r_k)   rewards
                 + discount^h (V(imagined s_h) - V(real s_h))              states
                 + discount^h (Qtarget(imagined s_h) - V(imagined s_h))    critic

V is the discounted return of the policy in the simulator. Predicted terminations are
left out: nothing ends in these environments. Printed are means over the states, with
their standard errors. This is one backup: what is wrong with Q now may be what was
wrong with the targets before. HalfCheetah-v1 and Swimmer-v1, whose observation is the
simulator's state but for the position, which changes nothing.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import gymnasium
import numpy as np
from tables import markdown

from steve.acting.policy import Policy
from steve.analysis.inspection import discounted_returns
from steve.analysis.trained import (
    LoadedCheckpoint,
    Nets,
    build_nets,
    differing_keys,
    load_checkpoint,
)
from steve.command_line import OneLineParser, exit_code
from steve.envwrap import make_env, sizes_of
from steve.replay import ReplayBuffer
from steve.running import devices
from steve.settings.loading import load
from steve.settings.schema import Config, Environment
from steve.util import UserError, environment, importing_tensorflow

ENVIRONMENTS = ("HalfCheetah-v1", "Swimmer-v1")
STEPS = 1000  # with their discount, 0.99, what follows counts by 4e-5


class Played(NamedTuple):
    """What the policy earned, rewards times reward_scale.

    Attributes:
        rewards: r_1, r_2, .., [STEPS].
        returns: V at s_0, s_1, .., [STEPS].
    """

    rewards: np.ndarray
    returns: np.ndarray


def play(
    env: gymnasium.Env, settings: Environment, policy: Policy, obs: np.ndarray
) -> Played:
    """The greedy policy in the simulator, from s_0 = `obs`, [O]."""
    env.reset(seed=0)
    obs, rewards = put(env, obs), np.empty(STEPS)
    for step in range(STEPS):
        obs, rewards[step], *_ = env.step(policy.greedy(obs[None])[0])
    rewards *= settings.reward_scale
    return Played(rewards, discounted_returns(rewards, settings.discount, 1.0))


def put(env: gymnasium.Env, obs: np.ndarray) -> np.ndarray:
    """Puts the simulator into the state of an observation, [O], at position 0.

    Returns:
        the observation of that state, [O].
    """
    model = env.unwrapped.model
    hidden = model.nq + model.nv - len(obs)
    state = np.concatenate([np.zeros(hidden), obs])
    return env.get_wrapper_attr("put")(state[: model.nq], state[model.nq :])


class Rollout(NamedTuple):
    """What the nets expect from B states on.

    Attributes:
        states: s_0 .. s_H, [B, H+1, O].
        rewards: r_1 .. r_H, [B, H].
        values: Qtarget(s_h, a_h), [B, H+1].
    """

    states: np.ndarray
    rewards: np.ndarray
    values: np.ndarray


def imagine(nets: Nets, start: np.ndarray, horizon: int) -> Rollout:
    """Rolls out one transition member for each state; means over the other members.

    Args:
        nets: with a world model unless the horizon is 0.
        start: s_0, [B, O]; row b follows transition member b mod M.
        horizon: H.
    """
    import tensorflow as tf

    from steve.worldmodel import ModelMembers

    every, rows = ModelMembers(None, None), np.arange(len(start))
    obs = np.asarray(start, np.float32)
    states, rewards, values = [], [], []
    for step in range(horizon + 1):
        action = nets.valuerl.action(tf.constant(obs))
        q = nets.valuerl.target_q(tf.concat([obs, action], -1)[None])  # [L, B, 1]
        states.append(obs)
        values.append(np.mean(q[..., 0], axis=0))
        if step < horizon:
            model = nets.world_model
            following = model.next_obs(obs[None], action[None], every, step).numpy()
            following = following[rows % len(following), rows]
            reward = model.rewards(following, obs, action, every)  # [N, B]
            rewards.append(np.mean(reward, axis=0))
            obs = following
    rewards = np.reshape(rewards, (horizon, len(start))).T
    return Rollout(np.stack(states, axis=1), rewards, np.stack(values, axis=1))


class Errors(NamedTuple):
    """Of each state and horizon h = 0 .. H; the last three add up to T_h - V(s_0).

    Attributes:
        value: V(s_0), the same for all h, [B, H+1].
        rewards: [B, H+1].
        states: [B, H+1].
        critic: [B, H+1].
    """

    value: np.ndarray
    rewards: np.ndarray
    states: np.ndarray
    critic: np.ndarray


def value_errors(
    config: Config, trained: LoadedCheckpoint, start: np.ndarray
) -> Errors:
    """The parts of the errors of the candidate targets at states s_0, [B, O].

    Raises:
        UserError: a state does not fit the configuration.
    """
    settings, env = config.env, make_env(config.env)
    sizes = sizes_of(env)
    policy = Policy(trained.policy, sizes.obs_dim, sizes.action_dim)
    expansion = config.policy_config.value_expansion
    horizon = expansion.rollout_len if expansion else 0
    expected = imagine(build_nets(config, sizes, trained), start, horizon)
    discounts = settings.discount ** np.arange(horizon + 1)
    errors = Errors(*np.zeros([4, len(start), horizon + 1]))
    for row, obs in enumerate(start):
        real = play(env, settings, policy, obs)
        off = settings.reward_scale * expected.rewards[row] - real.rewards[:horizon]
        errors.value[row] = real.returns[0]
        errors.rewards[row, 1:] = np.cumsum(discounts[:-1] * off)
        for h, discount in enumerate(discounts):
            there = play(env, settings, policy, expected.states[row, h]) if h else real
            worth = there.returns[0]
            errors.states[row, h] = discount * (worth - real.returns[h])
            errors.critic[row, h] = discount * (expected.values[row, h] - worth)
    env.close()
    return errors


def table(errors: Errors) -> str:
    """Means over the states with their standard errors, in Markdown."""
    parts = errors.rewards, errors.states, errors.critic
    rows = [("h", "V(s_0)", "T_h - V(s_0)", "rewards", "states", "critic")]
    for h in range(errors.value.shape[1]):
        columns = [part[:, h] for part in (errors.value, sum(parts), *parts)]
        cells = (
            f"{column.mean():.1f} +- {column.std(ddof=1) / np.sqrt(len(column)):.1f}"
            for column in columns
        )
        rows.append((str(h), *cells))
    return markdown(rows)


def run(path: str, checkpoint: Path, count: int) -> None:
    """Prints the table.

    Raises:
        UserError: the environment is not one of `ENVIRONMENTS`, something that is
            needed is not there, or there are fewer than two states.
    """
    loaded = load(path)
    config = loaded.config
    if config.env.name not in ENVIRONMENTS:
        raise UserError(f"{path}: only for {' and '.join(ENVIRONMENTS)}")
    if count < 2:
        raise UserError(f"--states {count}: at least 2")
    trained = load_checkpoint(checkpoint, config)
    if trained.critic is None or (config.has_model and trained.model is None):
        raise UserError(trained.notes[-1])
    for note in (*trained.notes, differing_keys(trained.folder, loaded)):
        if note:
            print(note)
    with ReplayBuffer.open(trained.folder / "replay") as replay:
        start = replay.sample(count, replay.size, np.random.default_rng(0)).next_obs
    on_cpu = {"TF_CPP_MIN_LOG_LEVEL": "2", devices.VARIABLE: devices.NO_GPU}
    with environment(on_cpu):
        with importing_tensorflow():
            import tensorflow as tf

            tf.config.list_physical_devices()
        print(table(value_errors(config, trained, start.astype(float))))


def main() -> int:
    parser = OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", metavar="CONFIG.json")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path)
    parser.add_argument("--states", type=int, default=200, metavar="N")
    given = parser.parse_args()
    return exit_code(
        "value_errors.py", lambda: run(given.config, given.checkpoint, given.states)
    )


if __name__ == "__main__":
    sys.exit(main())
