"""A complete run against its two learners alone: what the parts cost each other.

    python benchmarks/whole_run.py config/experiments/goodruns/halfcheetah/steve0.json

The run is main.py's, with all its processes. The learners alone keep the same pace
with each other, but their frames are made up by this program, and nobody evaluates.
Both are measured over whole epochs of the value learner, so that what happens once an
epoch is in the figures; before, the first epoch passes. To come to the point sooner,
learning begins after 1,000 frames and pretraining takes 10 updates, unless --set says
otherwise.

Of the run it says how many cores each kind of process keeps busy, and which share of
the time it waits: for the pace, and for each thing that only a run waits for that can
be repeated to the bit.
"""

import importlib
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np

from steve.replay import ReplayBuffer
from steve.running.pace import frame_limit
from steve.settings.roles import VALUERL, learners, roles
from steve.settings.schema import Config
from steve.storage.board import Board, Wait
from steve.storage.folders import Folders, Run

ROOT = Path(__file__).resolve().parents[1]
SOON = [
    *(
        f"{section}.frames_before_learning=1000"
        for section in ("policy_config", "model_config")
    ),
    "model_config.pretrain_n=10",
]


def observe(
    board: Board,
    replay: ReplayBuffer,
    config: Config,
    epochs: int,
    during: Callable[[], None],
) -> dict[str, Any]:
    """Updates and frames a minute over whole epochs, and what processes did meanwhile.

    Args:
        board: of the running processes.
        replay: their buffer.
        config: the run's.
        epochs: how many are measured, after the first one.
        during: called again and again meanwhile.
    """

    def wait_for(epoch: int) -> tuple[float, int, int]:
        while board[VALUERL]["epoch"] < epoch:
            during()
        return time.perf_counter(), int(board[VALUERL]["updates"]), replay.frames

    start, before, began = wait_for(2), waited(board, config), worked(board, config)
    end, after = wait_for(2 + epochs), waited(board, config)
    seconds = end[0] - start[0]
    waits = {name: (after[name] - before[name]) / seconds for name in after}
    cores = {n: (t - began[n]) / seconds for n, t in worked(board, config).items()}
    return {
        "updates/min": (end[1] - start[1]) / seconds * 60,
        "frames/min": (end[2] - start[2]) / seconds * 60,
        "minutes": seconds / 60,
        "cores": cores | {"all": sum(cores.values())},
        "waits": {n: share for n, share in waits.items() if share},
    }


def waited(board: Board, config: Config) -> dict[str, float]:
    """The seconds that each kind of process has waited, by what it waited for.

    It is the mean over the processes of that kind. A wait that lasts is counted up to
    its last question, a twentieth of a second ago at most.
    """
    seconds: dict[str, list[float]] = {}
    for role in roles(config):
        for wait in Wait:
            name = f"{role.kind}: {wait.name.lower()}"
            seconds.setdefault(name, []).append(float(board[role.name][wait]))
    return {name: statistics.mean(values) for name, values in seconds.items()}


def worked(board: Board, config: Config) -> dict[str, float]:
    """The seconds of processor time of each kind of process, of those that run."""
    seconds: dict[str, float] = {}
    for role in roles(config):
        if pid := int(board[role.name]["pid"]):
            # The two times after the name, which may hold spaces (man proc_pid_stat).
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks = int(fields[11]) + int(fields[12])
            before = seconds.get(role.kind, 0.0)
            seconds[role.kind] = before + ticks / os.sysconf("SC_CLK_TCK")
    return seconds


def learn(name: str, run: Run) -> None:
    """A process: one learner, as in training."""
    from steve.running.child import Context, Stop

    board = Board.open(run.folders.board)
    board[name]["pid"] = os.getpid()
    context = Context(run, name, 0, board, Stop())
    importlib.import_module(f"steve.{name}_learner").build(context).run()


def measure_parts(config: Config, epochs: int) -> dict[str, Any]:
    """The learners side by side; this process makes up the frames."""
    run, board = harness.open_run(config, "cpu", 0)
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(target=learn, args=(name, run)) for name in learners(config)
    ]
    for process in processes:
        process.start()
    size = config.agent_config.batch_size
    step = harness.synthetic(
        np.random.default_rng(0), size, run.obs_dim, run.action_dim
    )
    with ReplayBuffer.open(run.folders.replay, writable=True) as replay:

        def feed() -> None:
            if not all(process.is_alive() for process in processes):
                sys.exit("a learner failed (see above)")
            if not replay.append(step, frame_limit(config, board)):
                time.sleep(0.01)

        try:
            return observe(board, replay, config, epochs, feed)
        finally:
            for process in processes:
                process.kill()
                process.join()


def measure_whole(path: str, keys: list[str], config: Config, epochs: int) -> dict:
    """The complete run."""
    command = [sys.executable, str(ROOT / "main.py"), path, "cpu", "--set", *keys]
    launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    folders = Folders.of(config, Path(path).stem)

    def watch() -> None:
        if launcher.poll() is not None:
            sys.exit(f"{' '.join(command)} ended")
        time.sleep(0.02)

    try:
        while not folders.board.exists():
            watch()
        with ReplayBuffer.open(folders.replay) as replay:
            board = Board.open(folders.board)
            return observe(board, replay, config, epochs, watch)
    finally:
        launcher.send_signal(signal.SIGTERM)
        launcher.wait()


def main() -> None:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2, help="measured (2)")
    arguments = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    given = [*SOON, *arguments.overrides]
    with harness.temporary_root() as root:
        alone = [*given, "evaluator_config.count=0"]  # they would be waited for
        config = harness.load(arguments.config, alone, root)
        parts = measure_parts(config, arguments.epochs)
    with harness.temporary_root() as root:
        config = harness.load(arguments.config, given, root)
        keys = [*given, f"output_root={json.dumps(root)}"]
        whole = measure_whole(arguments.config, keys, config, arguments.epochs)
    result = {
        "learners alone": parts,
        "whole run": whole,
        "overhead": {
            "whole / alone": whole["updates/min"] / parts["updates/min"],
        },
        "machine": harness.machine() | {"config": arguments.config, "set": given},
    }
    harness.show(result, arguments.json, arguments.config)


if __name__ == "__main__":
    harness.run(main)
