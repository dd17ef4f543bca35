"""How an update's cost grows with ensembles, horizon and batch, and what was expected.

    python benchmarks/scaling.py config/experiments/goodruns/halfcheetah/steve0.json

One size at a time is changed. `expected` is the cost that the arithmetic predicts, and
`measured` the cost found, both relative to the configuration as it is, which is
measured several times: by itself, and where a size is the one that it has.
"""

import statistics
from collections.abc import Iterator
from typing import Any

import harness
import learners
from rich.table import Table

from steve.command_line import print_once
from steve.settings import loading
from steve.settings.roles import VALUERL, WORLDMODEL

LEARNERS = (VALUERL, WORLDMODEL)
SIZES = (1, 2, 4, 8)
HORIZONS = (1, 3, 5, 10)
BATCHES = (128, 512, 2048)


def variations() -> Iterator[tuple[str, int, list[str]]]:
    """(what is changed, to what, the keys)."""
    for size in SIZES:
        names = ("ensemble_size", "train_sample_count", "eval_sample_count")
        paths = (
            "policy_config.bayesian",
            "model_config.bayesian.transition",
            "model_config.bayesian.reward",
        )
        keys = [f"{path}.{name}={size}" for path in paths for name in names]
        yield "ensemble size", size, keys
    for horizon in HORIZONS:
        yield (
            "horizon",
            horizon,
            [f"policy_config.value_expansion.rollout_len={horizon}"],
        )
    for batch in BATCHES:
        sections = ("policy_config", "model_config")
        yield "batch", batch, [f"{section}.batch_size={batch}" for section in sections]


def measure(
    path: str, overrides: list[str], device: str, seconds: float
) -> dict[str, Any]:
    """Figures of one variation."""
    with harness.temporary_root() as root:
        config = harness.load(path, overrides, root)
        return learners.measure(config, device, seconds, together=False)


def compared(
    figures: dict[str, float], gflop: float, updates_per_s: float
) -> dict[str, float]:
    """Figures of a learner, with its cost.

    Args:
        figures: of a variation.
        gflop, updates_per_s: of the configuration as it is.
    """
    return {
        "updates_per_s": figures["updates_per_s"],
        "share": figures["share"],
        "measured": updates_per_s / figures["updates_per_s"],
        "expected": figures["gflop_per_update"] / gflop,
        "first_call_s": figures["first_call_s"],
    }


def main() -> None:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu (default) or a GPU's id")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each one (8)")
    arguments = parser.parse_args()
    path, given = arguments.config, arguments.overrides
    base = measure(path, given, arguments.device, arguments.seconds)
    same = {name: [base[name]["updates_per_s"]] for name in LEARNERS}
    found = []
    as_it_is = loading.load(path, overrides=given).config
    for what, value, keys in variations():
        figures = measure(path, [*given, *keys], arguments.device, arguments.seconds)
        found.append((what, value, figures))
        if loading.load(path, overrides=[*given, *keys]).config == as_it_is:
            for name in LEARNERS:
                same[name].append(figures[name]["updates_per_s"])
    rows = []
    for what, value, figures in found:
        for name in LEARNERS:
            if name == WORLDMODEL and what == "horizon":
                continue  # the world model has none
            usual = statistics.median(same[name])
            costs = compared(figures[name], base[name]["gflop_per_update"], usual)
            rows.append({"learner": name, "changed": what, "to": value} | costs)
    if arguments.json:
        harness.show({"rows": rows, "machine": base["machine"]}, True, path)
        return
    table = Table(title=path, title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "learner" else "right")
    for row in rows:
        table.add_row(
            *(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values())
        )
    print_once(table)


if __name__ == "__main__":
    harness.run(main)
