"""How the quickstart ends, for many seeds: the mean score of its last ten policies.

    python results/quickstart_seeds.py OUTPUT_FOLDER --seeds 20 --max-parallel 2
    python results/quickstart_seeds.py OTHER_FOLDER --set policy_config.hidden_dim=32

The second tries other values, which need a folder of their own. The same call continues
after any end. Prints a line for each seed, then the least of them.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from run_fullsize import is_done, work

from steve.analysis.records import Record, find_runs
from steve.command_line import OneLineParser, exit_code, prepare_command, whole_number
from steve.sweeps.record import PlannedRun
from steve.sweeps.runs import Request, expand

CONFIG = "config/quickstart.json"
LAST = 10  # evaluated policies
GOOD = 950.0  # of 1000


def planned(
    config: str, output: Path, numbers: Sequence[int], settings: Sequence[str]
) -> list[PlannedRun]:
    """A run for each seed.

    Raises:
        UserError: a mistake in the settings, or the folder holds runs with others.
    """
    root = f"output_root={json.dumps(str(output))}"
    return expand(Request([config], [root, *settings], numbers))[1]


def last_policies(run: Record) -> np.ndarray:
    """The scores of the last evaluated policies, each the mean of its episodes."""
    return run.known("score", "frames")[1, -LAST:]


def report(runs: Sequence[Record]) -> str:
    """A line for each run, and what they have in common."""
    means = {}
    lines = []
    for run in sorted(runs, key=lambda run: run.config.seed):
        scores = last_policies(run)
        means[run.config.seed] = mean = scores.mean()
        lines.append(
            f"seed {run.config.seed}: {mean:.1f} (worst policy {scores.min():.1f}), "
            f"{run.end('frames'):,.0f} frames, {3600 * run.end('hours'):.0f} s"
        )
    worst = min(means, key=means.__getitem__)
    good = sum(mean >= GOOD for mean in means.values())
    lines.append(
        f"least {means[worst]:.1f} (seed {worst}); "
        f"{good} of {len(means)} seeds at {GOOD:g} or more"
    )
    return "\n".join(lines)


def main() -> int:
    parser = OneLineParser(description=__doc__.split("\n")[0])
    option = parser.add_argument
    option("output", metavar="OUTPUT_FOLDER", type=Path)
    option(
        "--seeds",
        type=whole_number(1, 10_000),
        default=20,
        metavar="N",
        help="0 to N - 1; default: 20",
    )
    option("--config", default=CONFIG, help=f"default: {CONFIG}")
    parser.add_settings()
    option(
        "--max-parallel",
        type=whole_number(1, 1000),
        default=1,
        metavar="N",
        help="runs at a time; default: 1",
    )
    given = parser.parse_args()

    def run() -> int:
        output = given.output.absolute()
        runs = planned(given.config, output, range(given.seeds), given.set)
        code = work(runs, output, given.max_parallel)
        folders = [run.folders(output) for run in runs]
        found = [each.log for each in folders if each.scores.exists()]
        if found:
            print(report(find_runs(found)))
        left = sum(not is_done(run, output) for run in runs)
        print(f"{len(runs) - left} of {len(runs)} runs are finished")
        return code

    return exit_code("quickstart_seeds.py", run)


if __name__ == "__main__":
    prepare_command()
    sys.exit(main())
