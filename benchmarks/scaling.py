"""How an update's cost grows with ensembles, horizon and batch, and what was expected.

    python benchmarks/scaling.py config/experiments/goodruns/halfcheetah/steve0.json

One size at a time is changed. `expected` is the cost that the arithmetic predicts, and
`measured` the cost found, both relative to the configuration as it is.
"""

from collections.abc import Iterator
from typing import Any

import harness
import learners
from rich.console import Console
from rich.table import Table

from steve.settings.roles import VALUERL, WORLDMODEL

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


def compared(figures: dict[str, float], base: dict[str, float]) -> dict[str, float]:
    return {
        "updates_per_s": figures["updates_per_s"],
        "share": figures["share"],
        "measured": base["updates_per_s"] / figures["updates_per_s"],
        "expected": figures["gflop_per_update"] / base["gflop_per_update"],
        "first_call_s": figures["first_call_s"],
    }


def main() -> None:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu (default) or a GPU's id")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each one (8)")
    arguments = parser.parse_args()
    path, given = arguments.config, arguments.overrides
    base = measure(path, given, arguments.device, arguments.seconds)
    rows = []
    for what, value, keys in variations():
        found = measure(path, [*given, *keys], arguments.device, arguments.seconds)
        for name in (VALUERL, WORLDMODEL):
            if name == WORLDMODEL and what == "horizon":
                continue  # the world model has none
            rows.append(
                {"learner": name, "changed": what, "to": value}
                | compared(found[name], base[name])
            )
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
    Console(highlight=False).print(table)


if __name__ == "__main__":
    harness.run(main)
