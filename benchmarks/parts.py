"""What an update of the world model spends its time on.

    python benchmarks/parts.py config/experiments/goodruns/halfcheetah/steve0.json

Three programs take turns, each with all that the one before it computes: the nets'
losses with their gradients, the regulariser, and Adam, which makes it the learner's
update. A part's time is the difference of the medians over the rounds. For comparison,
the time that the update's products take at the speed of a large one (the limit of
benchmarks/learners.py). Where XLA compiles an update, it has no such parts.
"""

import statistics
from collections.abc import Callable
from typing import Any

import harness
import learners
import numpy as np
from rich.table import Table

from steve.command_line import print_once
from steve.running import devices
from steve.settings.roles import WORLDMODEL
from steve.util import UserError

REGULARISER = "reg_loss"


def programs(learner: Any, obs_dim: int, action_dim: int) -> dict[str, Callable]:
    """The parts of an update by name; each call makes those before it too."""
    import tensorflow as tf

    model, optimizer = learner.model, learner.optimizer
    size, seed = learner.settings.batch_size, tf.constant([0, 1])
    rows = harness.synthetic(np.random.default_rng(0), size, obs_dim, action_dim)
    batch = type(rows)(*map(tf.constant, rows))

    def assignment() -> Any:
        return model.sample_assignment(seed, optimizer.steps, size)

    def unregularised() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            losses = model.losses(batch, assignment())
            fits = set(losses) - {"total_loss", REGULARISER}
            total = tf.add_n([losses[name] for name in sorted(fits)])
        return tape.gradient(total, model.variables)

    def regularised() -> list[tf.Tensor]:
        return model.gradients(batch, assignment())[0]

    def update() -> list[tf.Tensor]:
        return [model.update(batch, assignment(), optimizer)["total_loss"]]

    parts = {
        "losses and gradients": unregularised,
        "regulariser": regularised,
        "Adam": update,
    }
    return {name: tf.function(part, autograph=False) for name, part in parts.items()}


def measure(path: str, overrides: list[str], seconds: float, rounds: int) -> dict:
    """The milliseconds of each part.

    Raises:
        UserError: the configuration has no world model, or XLA compiles its update.
    """
    with harness.temporary_root() as root:
        config = harness.load(path, overrides, root)
        if not config.has_model:
            raise UserError(f"{path}: there is no world model")
        run, _board = harness.open_run(config, devices.CPU, learners.ROWS)
        limit = learners.product_limit(devices.NO_GPU, config, seconds)
        learner = learners.build(WORLDMODEL, run, devices.NO_GPU).learner
        if learner.updater.xla:
            raise UserError(f"{path}: XLA compiles this update as a whole")
        calls = programs(learner, run.obs_dim, run.action_dim)
        rates: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds + 1):  # the first to warm up
            for name, call in calls.items():
                rates[name].append(_rate(call, seconds))
    flop = learners.FLOP[WORLDMODEL](config, run.obs_dim, run.action_dim)
    result, before = {}, 0.0
    for name in calls:
        until_here = 1000 / statistics.median(rates[name][1:])
        result[name], before = until_here - before, until_here
    best = max(limit.values())
    return {
        "parts": result,
        "update": before,
        "its products at the limit": flop / best / 1e6,
        "machine": harness.machine() | {"limit_gflops": best, "rounds": rounds},
    }


def _rate(call: Callable, seconds: float) -> float:
    """Calls a second."""
    last: list[Any] = []

    def work() -> int:
        last[:] = call()
        return 1

    return harness.rate(work, seconds, 1, lambda: [each.numpy() for each in last[:1]])


def main() -> None:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn (3)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each part (7)")
    given = parser.parse_args()
    found = measure(given.config, given.overrides, given.seconds, given.rounds)
    if given.json:
        harness.show(found, True, given.config)
        return
    table = Table("part", "ms", "share", title=given.config, title_justify="left")
    for name, took in found["parts"].items():
        table.add_row(name, f"{took:.1f}", f"{took / found['update']:.0%}")
    table.add_row("update", f"{found['update']:.1f}", "100%")
    at_limit = found["its products at the limit"]
    share = at_limit / found["update"]
    table.add_row("its products at the limit", f"{at_limit:.1f}", f"{share:.0%}")
    print_once(table)


if __name__ == "__main__":
    harness.run(main)
