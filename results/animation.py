"""Some seconds of a trained policy as a small animation, such as that in README.

    python results/animation.py RUN_FOLDER --out results/figures/halfcheetah.gif

MuJoCo draws without a display through EGL or OSMesa (docs/policies.md).
"""

import argparse
import os
import sys
from pathlib import Path

import gymnasium
import numpy as np
from moviepy import ImageSequenceClip

import steve
from steve.analysis.video import choose_gl
from steve.command_line import OneLineParser, exit_code
from steve.util import UserError

PICTURE = {
    "render_mode": "rgb_array",
    "width": 320,
    "height": 160,
    "camera_name": "track",  # else it leaves the picture
}
ENVIRONMENTS = (
    "HalfCheetah-v1",
    "Hopper-v1",
    "Humanoid-v1",
    "Swimmer-v1",
    "Walker2d-v1",
)
FROM_STEP = 200  # when the gait is steady
SECONDS = 4


def pictures(run: steve.LoadedRun, policy: steve.DeployedPolicy) -> list[np.ndarray]:
    """Every step of one greedy episode for SECONDS, each [height, width, 3] uint8."""
    env = gymnasium.make(f"steve/{run.config.env.name}", **PICTURE)
    obs, _ = env.reset(seed=0)
    shown = []
    for step in range(FROM_STEP + SECONDS * env.metadata["render_fps"]):
        obs, _, terminated, truncated, _ = env.step(policy.act(obs))
        if terminated or truncated:
            raise UserError(f"the episode is over after {step} steps")
        if step >= FROM_STEP:
            shown.append(env.render())
    env.close()
    return shown


def write(parsed: argparse.Namespace) -> None:
    if parsed.out.suffix != ".gif":
        raise UserError(f"--out {parsed.out}: must end in .gif")
    run = steve.load_run(parsed.run)
    env = run.config.env
    if env.name not in ENVIRONMENTS or env.entry_point or env.wrappers:
        raise UserError(
            f"{env.name} is none of the paper's MuJoCo environments; `python "
            "visualizer.py RUN_FOLDER --video gif` shows any"
        )
    if missing := choose_gl(os.environ):  # before MuJoCo is imported
        raise UserError(missing)
    steve.register_envs()
    policy = run.policy()
    shown = pictures(run, policy)
    clip = ImageSequenceClip(shown, fps=len(shown) / SECONDS)
    clip.write_gif(str(parsed.out), logger=None)
    size = parsed.out.stat().st_size / 1000
    print(f"{parsed.out}: {policy.frames:,} frames of learning, {size:.0f} kB")


def main() -> int:
    parser = OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.gif")
    parsed = parser.parse_args()
    return exit_code("animation.py", lambda: write(parsed))


if __name__ == "__main__":
    sys.exit(main())
