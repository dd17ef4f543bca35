"""What the benchmarks share: experiments with synthetic data, windows, the machine."""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from rich.table import Table

from steve.command_line import OneLineParser, exit_code, print_once
from steve.replay import Batch, ReplayBuffer
from steve.running.launch import measure_environment
from steve.settings import loading
from steve.settings.schema import Config
from steve.storage.board import Board
from steve.storage.conditions import processor
from steve.storage.folders import Folders, Run


def parser(description: str, config: bool = True) -> argparse.ArgumentParser:
    """The arguments that the benchmarks have in common."""
    result = OneLineParser(description=description)
    if config:
        result.add_argument("config", metavar="CONFIG.json")
        result.add_settings(dest="overrides")
    result.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )
    return result


def run(main: Callable[[], int | None]) -> NoReturn:
    """Runs a benchmark as a command."""
    sys.exit(exit_code(Path(sys.argv[0]).name, main))


def load(path: str, overrides: list[str], root: str) -> Config:
    """The configuration of a benchmark, with its output under `root`."""
    keys = [*overrides, f"output_root={json.dumps(root)}"]
    return loading.load(path, overrides=keys).config


def sizes_of(config: Config) -> tuple[int, int]:
    """O and A: from the configuration, or else from the environment."""
    env = config.env
    if env.obs_dims and env.action_dim:
        return env.obs_dims[0], env.action_dim
    spec = measure_environment(config).env
    return spec.obs_dim, spec.action_dim


def synthetic(rng: np.random.Generator, rows: int, obs_dim: int, dim: int) -> Batch:
    """Transitions of random numbers; one in a hundred terminates."""
    obs = rng.standard_normal((rows, obs_dim), np.float32)
    return Batch(
        obs=obs,
        action=rng.uniform(-1, 1, (rows, dim)).astype(np.float32),
        reward=rng.standard_normal(rows, np.float32),
        next_obs=obs + 0.1 * rng.standard_normal((rows, obs_dim), np.float32),
        terminated=(rng.random(rows) < 0.01).astype(np.float32),
    )


@contextmanager
def temporary_root() -> Iterator[str]:
    """A folder on the disk that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="steve-benchmark-") as folder:
        yield folder


def open_run(config: Config, device: str, rows: int) -> tuple[Run, Board]:
    """An experiment's folder with a status board and so many synthetic transitions.

    Processes can open the board as long as the one that is returned is there.
    """
    obs_dim, action_dim = sizes_of(config)
    folders = Folders.of(config, "benchmark")
    folders.checkpoints.mkdir(parents=True)
    (folders.log / "processes").mkdir(parents=True)
    run = Run(config, folders, obs_dim, action_dim, 0, cpu_learners=device == "cpu")
    board = Board.create(folders.board, config)
    rng = np.random.default_rng(0)
    with ReplayBuffer.create(
        folders.replay, obs_dim, action_dim, config.replay_capacity
    ) as replay:
        while replay.frames < rows:
            count = min(10_000, rows - replay.frames)
            replay.append(synthetic(rng, count, obs_dim, action_dim))
    return run, board


def rate(
    work: Callable[[], int],
    seconds: float,
    windows: int = 7,
    finish: Callable[[], object] = lambda: None,
) -> float:
    """Units of work a second: the median of several windows.

    Args:
        work: does some, returns how much.
        seconds: of all windows together.
        windows: how many.
        finish: waits at the end of a window until all its work is done.
    """
    rates = []
    for _ in range(windows):
        start, done = time.perf_counter(), 0
        while not done or time.perf_counter() - start < seconds / windows:
            done += work()
        finish()
        rates.append(done / (time.perf_counter() - start))
    return statistics.median(rates)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    names = ("tensorflow", "numpy", "gymnasium", "mujoco")
    return {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
        ),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names},
    }


def private_bytes(pid: int | str = "self") -> int:
    """RssAnon of a process: memory that it shares with nobody and no file backs."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has no memory")


def cpu_seconds(pid: int | str = "self") -> float:
    """Processor time that a process has used, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def show(result: dict[str, Any], as_json: bool, title: str) -> None:
    """Prints a result: as one JSON object, or as a table of its entries."""
    if as_json:
        json.dump(result, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    table = Table(title=title, title_justify="left")
    for column in ("", "figure", "value"):
        table.add_column(column, overflow="fold")
    for part, figures in result.items():
        for name, value in _flat(figures):
            table.add_row(part, name, value)
        table.add_section()
    print_once(table)


def _flat(figures: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if not isinstance(figures, dict):
        text = f"{figures:.4g}" if isinstance(figures, float) else str(figures)
        yield prefix, text
        return
    for name, value in figures.items():
        yield from _flat(value, f"{prefix} {name}".strip())
