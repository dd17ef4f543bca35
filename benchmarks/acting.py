"""What an interactor costs in addition to its environments.

    python benchmarks/acting.py config/experiments/goodruns/humanoid/steve0.json

One interactor runs as in training, with the policy's size and the number of
environments that the configuration gives, while nothing holds it back; its frames are
counted in the replay buffer. The bare environments are stepped with the same policy,
whose time is not counted, and without a replay buffer. Memory and idleness are those
of an interactor of Pendulum-v1, which takes next to nothing itself; the start is that
of a whole run (main.py) up to the first environment step.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import harness
import numpy as np

from steve.acting.interactor import interact
from steve.acting.policy import Policy, PolicyReader
from steve.acting.safe_env import SafeEnv
from steve.replay import ReplayBuffer
from steve.running.child import Context, Stop
from steve.running.launch import ONE_THREAD
from steve.settings.roles import learners
from steve.settings.schema import Config
from steve.storage import checkpoint
from steve.storage.board import Board
from steve.storage.folders import Run
from steve.util import UserError

ROOT = Path(__file__).resolve().parents[1]
TRIVIAL = ["env.name=Pendulum-v1", "env.obs_dims=null", "env.action_dim=null"]
FREE = ["policy_config.frames_per_update=false", "model_config.frames_per_update=false"]


def publish_policy(run: Run, epoch: int) -> None:
    """Publishes a random policy of the configuration's size."""
    settings = run.config.policy_config
    widths = [run.obs_dim, *[settings.hidden_dim] * (settings.layers - 1)]
    widths.append(run.action_dim)
    rng = np.random.default_rng(epoch)
    tensors = {}
    for i in range(settings.layers):
        shape = (widths[i], widths[i + 1])
        tensors[f"policy/w{i}"] = 0.1 * rng.standard_normal(shape, np.float32)
        tensors[f"policy/b{i}"] = np.zeros(shape[1], np.float32)
    metadata = {"epoch": epoch, "frames": 0, "hours": 0.0}
    checkpoint.publish(run.folders.policy, tensors, metadata)


def act(run: Run) -> None:
    """A process: an interactor as in training."""
    board = Board.open(run.folders.board)
    interact(Context(run, "interactor0", 0, board, Stop()))


class Interactor:
    """A process as the launcher starts it: one thread for linear algebra."""

    def __init__(self, run: Run) -> None:
        os.environ.update(ONE_THREAD)
        spawn = multiprocessing.get_context("spawn")
        self._process = spawn.Process(target=act, args=(run,))
        self._process.start()
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def sleep(self, seconds: float) -> None:
        """Sleeps while it works; ends the benchmark if it has died."""
        self._process.join(seconds)
        if not self._process.is_alive():
            sys.exit("the interactor failed (see above)")


def measure_speed(config: Config, seconds: float) -> dict[str, float]:
    """Frames/s of interactor and bare environments; the policy's and refresh's cost."""
    run, board = harness.open_run(config, "cpu", 0)
    for name in learners(config):
        board[name]["ready"] = board[name]["epoch"] = 1
    publish_policy(run, 1)
    size = config.agent_config.batch_size
    with Interactor(run) as interactor, ReplayBuffer.open(run.folders.replay) as replay:
        # Until it uses the policy: the first frames are random.
        while replay.frames <= config.agent_config.full_random_n:
            interactor.sleep(0.01)
        frames, start = replay.frames, time.perf_counter()
        interactor.sleep(seconds)
        speed = (replay.frames - frames) / (time.perf_counter() - start)

    policy = Policy(checkpoint.load(run.folders.policy), run.obs_dim, run.action_dim)
    bare, policy_time = measure_parts(config, policy, seconds)
    reader = PolicyReader(Context(run, "interactor0", 0, board, lambda: False))
    refreshes, looks = [], []
    for epoch in range(1, 31):
        publish_policy(run, epoch)
        for times in (refreshes, looks):  # a new policy, then nothing new
            start = time.perf_counter()
            reader.refresh()
            times.append(time.perf_counter() - start)
    return {
        "interactor, frames/s": speed,
        "bare environments, frames/s": bare,
        "share of the bare environments' speed": speed / bare,
        "policy, us a vector step": 1e6 * policy_time,
        "policy's share of the interactor's time": policy_time * speed / size,
        "taking up a new policy, ms": 1e3 * float(np.median(refreshes)),
        "looking for one, us": 1e6 * float(np.median(looks)),
    }


def measure_parts(
    config: Config, policy: Policy, seconds: float
) -> tuple[float, float]:
    """Frames a second of environments alone, and seconds of the policy a vector step.

    The policy acts here too, so that the environments do what they do in a run.
    """
    rng = np.random.default_rng(0)
    size = config.agent_config.batch_size
    envs = [SafeEnv(config.env, "bare", lambda: None) for _ in range(size)]
    obs = [env.reset(i) for i, env in enumerate(envs)]
    stepping = thinking = 0.0
    steps = 0
    while stepping < seconds:
        start = time.perf_counter()
        action = policy.explore(np.stack(obs), config.policy_config.explore_chance, rng)
        chosen = time.perf_counter()
        for i, env in enumerate(envs):
            step = env.step(action[i])
            obs[i] = env.reset(steps) if step is None or step.over else step.obs
        thinking += chosen - start
        stepping += time.perf_counter() - chosen
        steps += 1
    return steps * size / stepping, thinking / steps


def measure_idle(config: Config, seconds: float) -> dict[str, float]:
    """Private memory of an interactor, and its use of a core while it waits."""
    run, _board = harness.open_run(config, "cpu", 0)
    with Interactor(run) as interactor, ReplayBuffer.open(run.folders.replay) as replay:
        frames = -1
        while replay.frames == 0 or replay.frames != frames:  # until it must wait
            frames = replay.frames
            interactor.sleep(1)
        before = harness.cpu_seconds(interactor.pid)
        interactor.sleep(seconds)
        used = harness.cpu_seconds(interactor.pid) - before
        private = harness.private_bytes(interactor.pid)
    return {
        "private memory (RssAnon), MB": private / 1e6,
        "waiting, share of a core": used / seconds,
    }


def measure_start(config: str, overrides: list[str], root: str) -> float:
    """Seconds from the launch of main.py to the first transition that is stored."""
    keys = [*overrides, f"output_root={json.dumps(root)}"]
    command = [sys.executable, str(ROOT / "main.py"), config, "cpu", "--set", *keys]
    start = time.perf_counter()
    launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        while launcher.poll() is None:
            for folder in Path(root).glob("*/*/checkpoints/replay"):
                try:
                    with ReplayBuffer.open(folder) as replay:
                        if replay.frames:
                            return time.perf_counter() - start
                except UserError:
                    pass  # it is just being made
            time.sleep(0.005)
        sys.exit(f"{' '.join(command)} failed")
    finally:
        launcher.send_signal(signal.SIGTERM)
        launcher.wait()


def main() -> None:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="of each measurement (10)"
    )
    arguments = parser.parse_args()
    path, given = arguments.config, arguments.overrides
    with harness.temporary_root() as root:
        config = harness.load(path, [*given, *FREE], root)
        speed = measure_speed(config, arguments.seconds)
    with harness.temporary_root() as root:
        config = harness.load(path, [*given, *TRIVIAL], root)
        idle = measure_idle(config, arguments.seconds)
    with harness.temporary_root() as root:
        start = measure_start(path, given, root)
    result = {
        "speed": speed,
        "interactor": idle,
        "start": {"first environment step after, s": start},
        "machine": harness.machine() | {"config": path},
    }
    harness.show(result, arguments.json, path)


if __name__ == "__main__":
    harness.run(main)
