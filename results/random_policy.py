"""What uniformly random actions score, to compare learning curves with.

    python results/random_policy.py config/cpu/halfcheetah/ddpg0.json ...

Prints, for each configuration's environment, the mean and the standard deviation of the
sum of rewards over 100 episodes.
"""

import sys

import numpy as np

from steve.command_line import OneLineParser, exit_code
from steve.envwrap import make_env
from steve.settings.loading import load
from steve.settings.schema import Environment

EPISODES = 100


def random_scores(settings: Environment) -> np.ndarray:
    """Sums of rewards, [EPISODES]; the same at each call."""
    env = make_env(settings)
    env.action_space.seed(0)
    scores = np.zeros(EPISODES)
    for episode in range(EPISODES):
        env.reset(seed=episode)
        over = False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            scores[episode] += reward
            over = terminated or truncated
    env.close()
    return scores


def main() -> int:
    parser = OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument("configs", metavar="CONFIG", nargs="+")
    configs = parser.parse_args().configs

    def show() -> None:
        for settings in [load(path).config.env for path in configs]:
            scores = random_scores(settings)
            mean, deviation = scores.mean(), scores.std()
            print(f"{settings.name}: mean {mean:.1f}, deviation {deviation:.1f}")

    return exit_code("random_policy.py", show)


if __name__ == "__main__":
    sys.exit(main())
