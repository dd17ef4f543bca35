"""What the replay buffer costs: appending, sampling, memory and disk space.

    python benchmarks/replay.py --obs 376 --action 17

By default transitions of Humanoid: a million of them, samples of 512, appends of one
vector step of 8 environments. Everything is warm, that is in the page cache. The file
lies in the folder for temporary files (TMPDIR).
"""

import multiprocessing
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import harness
import numpy as np

from steve.replay import ReplayBuffer
from steve.replay_file import DATA_NAME

BATCH, STEP = 512, 8
SAMPLES = 500
WRITERS = (1, 2, 3, 4)
PATIENCE = 600.0  # seconds that a process may take


def append(
    folder: Path,
    obs_dim: int,
    dim: int,
    appends: int,
    ready: Barrier,
    answer: multiprocessing.Queue,
) -> None:
    """A writing process: answers with how long each of its appends took, seconds."""
    rng = np.random.default_rng()
    step = harness.synthetic(rng, STEP, obs_dim, dim)
    with ReplayBuffer.open(folder, writable=True) as replay:
        replay.append(step)
        ready.wait()
        times = []
        for _ in range(appends):
            start = time.perf_counter()
            replay.append(step)
            times.append(time.perf_counter() - start)
    answer.put(times)


def measure_append(
    folder: Path, obs_dim: int, dim: int, appends: int
) -> dict[str, float]:
    """Microseconds an append of 8 rows takes, lock included, by number of writers."""
    spawn = multiprocessing.get_context("spawn")
    figures = {}
    for writers in WRITERS:
        ready, answer = spawn.Barrier(writers, timeout=PATIENCE), spawn.Queue()
        arguments = (folder, obs_dim, dim, appends, ready, answer)
        processes = [
            spawn.Process(target=append, args=arguments) for _ in range(writers)
        ]
        for process in processes:
            process.start()
        times = np.concatenate([answer.get(timeout=PATIENCE) for _ in processes])
        for process in processes:
            process.join()
        figures[f"{writers} writers, median us"] = float(1e6 * np.median(times))
        figures[f"{writers} writers, mean us"] = float(1e6 * np.mean(times))
    return figures


def measure_sample(folder: Path) -> dict[str, float]:
    """Milliseconds of a sample, and private memory before and after many of them."""
    rng = np.random.default_rng(0)
    with ReplayBuffer.open(folder) as replay:
        rows = replay.frames
        for _ in range(20):
            replay.sample(BATCH, rows, rng)
        before = harness.private_bytes()
        times = []
        for _ in range(SAMPLES):
            start = time.perf_counter()
            replay.sample(BATCH, rows, rng)
            times.append(time.perf_counter() - start)
        grown = harness.private_bytes() - before
    return {
        f"{BATCH} rows, median ms": float(1e3 * np.median(times)),
        f"{BATCH} rows, 95% below ms": float(1e3 * np.percentile(times, 95)),
        f"private memory grown in {SAMPLES} samples, MB": grown / 1e6,
    }


def main() -> None:
    parser = harness.parser(__doc__.splitlines()[0], config=False)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--obs", type=int, default=376, metavar="O")
    parser.add_argument("--action", type=int, default=17, metavar="A")
    parser.add_argument(
        "--appends", type=int, default=3_000, metavar="N", help="of each writer"
    )
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    with harness.temporary_root() as root:
        folder = Path(root)
        before = harness.private_bytes()
        with ReplayBuffer.create(
            folder, arguments.obs, arguments.action, arguments.rows
        ) as replay:
            chunk = min(10_000, arguments.rows)
            rows = harness.synthetic(rng, chunk, arguments.obs, arguments.action)
            while replay.frames < arguments.rows:
                replay.append(rows)
            grown = harness.private_bytes() - before - sum(x.nbytes for x in rows)
        disk = (folder / DATA_NAME).stat().st_blocks * 512
        millions = arguments.rows / 1e6
        result = {
            "sample": measure_sample(folder),
            "append": measure_append(
                folder, arguments.obs, arguments.action, arguments.appends
            ),
            "space": {
                "disk per million transitions, GB": disk / millions / 1e9,
                "private memory per million transitions, MB": grown / millions / 1e6,
            },
            "machine": harness.machine()
            | {
                name: vars(arguments)[name]
                for name in ("rows", "obs", "action", "appends")
            },
        }
    harness.show(result, arguments.json, "replay buffer")


if __name__ == "__main__":
    harness.run(main)
