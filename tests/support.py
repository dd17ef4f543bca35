"""What several tests of the processes need: small configurations, runs, policies."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import support_env
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from steve.replay import Batch, ReplayBuffer
from steve.settings.schema import Config
from steve.storage import checkpoint
from steve.storage.board import Board, Wait
from steve.storage.folders import Folders, Run
from steve.storage.published import Published
from steve.sweeps import record, runs
from steve.sweeps.record import LOCAL, Sweep
from steve.sweeps.runs import Request

PROJECT = Path(__file__).resolve().parents[1]
QUICKSTART = str(PROJECT / "config" / "quickstart.json")
PATIENCE = 30  # seconds until a test gives another process up
# Weights [O, 1] of a policy whose action tells which observation of the counting
# environment it saw: the environment's number is up to 2^24.
TELLING = np.array([[2**-26], [0.03], [0.01]], np.float32)


def make_config(root: Path, model: bool = False, **keys) -> Config:
    """A configuration of the counting environment; `keys` go over it.

    A section replaces only the values that it names; "env" also has those of the
    environment's own `length`, `ending` and `luck`.
    """
    env = {
        "name": support_env.NAME,
        "module": "support_env",
        "max_frames": 100,
        "make_kwargs": {},
    }
    given = dict(keys.pop("env", {}))
    for key in ("length", "ending", "luck"):
        if key in given:
            env["make_kwargs"][key] = given.pop(key)
    content = {"env": env | given, "output_root": str(root), **keys}
    if model:
        content.setdefault("model_config", {})
    return Config.model_validate(content)


def make_run(config: Config, name: str = "experiment", launch: int = 0) -> Run:
    """A run of the counting environment, its folders made."""
    folders = Folders.of(config, name)
    folders.checkpoints.mkdir(parents=True, exist_ok=True)
    (folders.log / "processes").mkdir(parents=True, exist_ok=True)
    return Run(
        config,
        folders,
        support_env.OBS_DIM,
        support_env.ACTION_DIM,
        launch,
        cpu_learners=True,
    )


def open_run(
    root: Path, model: bool = False, **keys
) -> tuple[Run, Board, ReplayBuffer]:
    """A run with a fresh status board and an empty replay buffer to append to."""
    run = make_run(make_config(root, model, **keys))
    board = Board.create(run.folders.board, run.config)
    replay = ReplayBuffer.create(
        run.folders.replay, run.obs_dim, run.action_dim, run.config.replay_capacity
    )
    return run, board, replay


def waits_of(board: Board, name: str) -> set[Wait]:
    """What a process has waited for."""
    return {wait for wait in Wait if board[name][wait] > 0}


def append_frames(replay: ReplayBuffer, count: int) -> None:
    """Appends transitions whose reward is the number of their frame."""
    number = np.arange(replay.frames, replay.frames + count, dtype=np.float32)
    obs = np.tile(number[:, None], (1, support_env.OBS_DIM))
    action = np.zeros((count, support_env.ACTION_DIM), np.float32)
    replay.append(Batch(obs, action, number, obs + 1, np.zeros(count, np.float32)))


def poll(condition: Callable[[], bool], what: str) -> None:
    """Waits until `condition()` holds; when it lasts, fails and says what for."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"awaited in vain: {what}"
        time.sleep(0.01)


def publish_policy(
    path: Path,
    action: float,
    epoch: int = 1,
    frames: int = 0,
    hours: float = 0.0,
    updates: int | None = None,
    weights: np.ndarray | None = None,
) -> None:
    """Publishes a policy that takes one action in [-1, 1] everywhere.

    With weights [O, 1] that action is the one for observation 0. The policy goes to
    `path` and under the number of its updates: by default 500 for each epoch after the
    first.
    """
    if weights is None:
        weights = np.zeros((support_env.OBS_DIM, 1), np.float32)
    tensors = {
        "policy/w0": weights,
        "policy/b0": np.array([math.atanh(action)], np.float32),
    }
    if updates is None:
        updates = (epoch - 1) * 500
    metadata = {"epoch": epoch, "frames": frames, "hours": hours, "updates": updates}
    checkpoint.publish(path, tensors, metadata)
    Published(path.parent / "published", "policy").add(updates, path)


def told(obs: np.ndarray) -> np.ndarray:
    """The actions of a policy with the weights `TELLING`: [B, O] -> [B]."""
    return np.tanh(np.asarray(obs, np.float32) @ TELLING)[:, 0]


def is_over(pid: int) -> bool:
    """Whether a process has ended, also where nobody has asked how."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's own reader finds: (step, value) of each tag, in order."""
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
    }


def make_sweep(output_root: Path, *names: str, engine: str = LOCAL) -> Sweep:
    """A recorded sweep of the quickstart under other names; nothing is started."""
    settings = [f"output_root={output_root}"]
    _, (run,) = runs.expand(Request([QUICKSTART], settings))
    sweep = Sweep(
        folder=record.next_folder(output_root),
        engine=engine,
        working_folder=str(PROJECT),
        gpus_per_run=0,
        max_parallel=None,
        runs=tuple(replace(run, experiment=name) for name in names),
    )
    with record.claimed(output_root):
        record.save(sweep)
    return sweep
