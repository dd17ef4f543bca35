"""Whether STEVE still learns: the quickstart must reach a score in time.

    python tests/programs/learning_test.py --seeds 0-9  # measures the margin
    python -m pytest -m slow                            # the test: two seeds

The first prints a row for each seed.

The measure is the number of frames until the mean of five evaluation episodes in a row
is at least REACHED: unlike the score at the end, nothing that happens later changes it.
Seeds 0 to 9 needed 3,900 to 6,400 frames, 4,950 in the median. The exit code is 1 where
a seed needed more than BUDGET.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))  # support modules

from support import PROJECT

IN_A_ROW = 5
REACHED = 500.0  # of 1000; a random policy scores 3 to 7
BUDGET = 8000  # frames


def frames_to_reach(seed: int, folder: Path) -> float:
    """Runs the quickstart; the frames, or infinity where it did not get there."""
    subprocess.run(
        [
            *(sys.executable, "main.py", "config/quickstart.json", "cpu"),
            *("--name", f"seed{seed}", "--frames", str(BUDGET)),
            *("--set", f"seed={seed}", f"output_root={folder}", "final_episodes=0"),
        ],
        cwd=PROJECT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    log = folder / "InvertedPendulum-v5" / f"seed{seed}" / "log"
    with open(log / f"seed{seed}.greedy.csv") as file:
        rows = list(csv.DictReader(file))
    scores = np.array([float(row["score"]) for row in rows])
    means = np.convolve(scores, np.full(IN_A_ROW, 1 / IN_A_ROW), "valid")
    reached = np.flatnonzero(means >= REACHED)
    if not reached.size:
        return float("inf")
    return float(rows[reached[0] + IN_A_ROW - 1]["frames"])


def seeds(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=seeds, default=[0, 1], metavar="A-B")
    given = parser.parse_args()
    needed = []
    with tempfile.TemporaryDirectory(prefix="learning-") as folder:
        for seed in given.seeds:
            needed.append(frames_to_reach(seed, Path(folder)))
            print(f"seed {seed}: {needed[-1]:,.0f} frames", flush=True)
    print(
        f"frames until {IN_A_ROW} episodes average {REACHED:g}: median "
        f"{np.median(needed):,.0f}, worst {max(needed):,.0f}; budget {BUDGET:,}"
    )
    return 1 if max(needed) > BUDGET else 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_steve_learns_within_the_budget(seed, tmp_path):
    assert frames_to_reach(seed, tmp_path) <= BUDGET


if __name__ == "__main__":
    sys.exit(main())
