"""The learners' updates next to the same updates in JAX and PyTorch.

    pip install 'steve-rl[peers]'
    python benchmarks/peers.py config/quickstart.json
    python benchmarks/peers.py config/quickstart.json --device 0    # a GPU (untried)

Each contender is a process: ours are the learners as in training, the others are in
peer_jax.py and peer_torch.py. All draw their batches from the same replay buffer, in a
thread. Before the others are timed, each must agree with the reference vector of the
configuration's algorithm (tests/data/algorithms). Then all take turns, in another order
each round, while the others wait; a figure is the median over the rounds, with the
lowest and the highest one.

"batched" computes the members of an ensemble in one batched product, "members" each in
a product of its own. "scan" makes several updates in a call: as many as the pace of the
configuration allows, at most 16. `share` is GFLOP/s over the machine's limit, as in
benchmarks/learners.py.
"""

import contextlib
import fnmatch
import functools
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import harness
import learners
import peer_work
from rich.table import Table

from steve.command_line import print_once
from steve.replay import ReplayBuffer
from steve.running import devices
from steve.settings.roles import VALUERL, WORLDMODEL
from steve.settings.roles import learners as learners_of
from steve.settings.schema import Config, LearnerConfig
from steve.storage.folders import Run
from steve.util import RunError, UserError, error_text, is_installed

UPDATES_PER_CALL = 16  # at most, as in training
OURS = "steve"
LIBRARIES = ("jax", "torch")
PATIENCE = 10.0  # seconds until a process that does not end is killed
PAUSE = 0.3  # seconds between turns, in which threads that spin go to sleep


class Contender(NamedTuple):
    """A way to make an update.

    Attributes:
        library: "steve", "jax" or "torch".
        block: K, the updates of a call; of ours the learner decides.
        options: of the update's constructor.
    """

    library: str
    block: int = 1
    options: tuple[tuple[str, bool], ...] = ()

    @property
    def name(self) -> str:
        """What tables call it."""
        options = dict(self.options)
        words = [self.library]
        words += ["compiled"] if options.get("compiled") else []
        if "batched" in options:
            words.append("batched" if options["batched"] else "members")
        words += ["scan"] if self.block > 1 else []
        return " ".join(words)

    def build(
        self, work: peer_work.Work, parameters: peer_work.Parameters, block: int
    ) -> peer_work.Update:
        """Its update, in another library."""
        options = {"batched": True, **dict(self.options)}
        if self.library == "jax":
            from peer_jax import JaxUpdate

            return JaxUpdate(work, parameters, block, **options)
        from peer_torch import TorchUpdate

        return TorchUpdate(work, parameters, **options)


def settings_of(config: Config, learner: str) -> LearnerConfig:
    """A learner's section of the configuration."""
    return config.policy_config if learner == VALUERL else config.model_section


def contenders(
    config: Config, learner: str, libraries: list[str], only: list[str]
) -> list[Contender]:
    """Ours, and the ways of the libraries to make a learner's update.

    Args:
        config: of the run.
        learner: whose update.
        libraries: of `LIBRARIES`.
        only: patterns of names; others do not take part.

    Raises:
        UserError: no name fits a pattern.
    """
    allowed = config.most_updates_per_call(settings_of(config, learner))
    block = int(min(UPDATES_PER_CALL, allowed))
    sizes = peer_work.ensembles(config).values()
    has_ensembles = any(size.ensemble_size > 1 for size in sizes)
    ways: list[tuple[tuple[str, bool], ...]] = [()]
    if has_ensembles:
        ways = [(("batched", True),), (("batched", False),)]
    found = []
    for way in ways:
        if "jax" in libraries:
            found += [Contender("jax", k, way) for k in sorted({1, block})]
        if "torch" in libraries:
            compiled = (False, True)
            found += [Contender("torch", 1, (*way, ("compiled", c))) for c in compiled]
    names = [contender.name for contender in found]
    chosen = [fnmatch.filter(names, pattern) for pattern in only]
    for pattern, fitting in zip(only, chosen, strict=True):
        if not fitting:
            raise UserError(f"--only {pattern}: fits none of {', '.join(names)}")
    taken = {name for fitting in chosen for name in fitting}
    return [Contender(OURS), *(each for each in found if each.name in taken)]


# -- the processes ----------------------------------------------------------------


def take_part(
    contender: Contender, learner: str, run: Run, gpu: str, connection: Connection
) -> None:
    """A process: prepares an update, then makes some whenever it is asked to.

    Answers with what it has prepared, or with {"wrong": ..} or {"failed": ..}; then
    with updates a second to each number of seconds.
    """
    try:
        if contender.library == OURS:
            trained = learners.build(learner, run, gpu)
            work, finish = trained.work, trained.learner.check_metrics
            block = trained.learner.updates_per_call
            connection.send(
                {"first_call_s": trained.first_call_s, "updates_per_call": block}
            )
        else:
            work, finish, prepared = _prepare(contender, learner, run, gpu)
            connection.send(prepared)
    except peer_work.WrongError as error:
        connection.send({"wrong": str(error)})
        return
    except Exception as error:  # torch.compile fails in many ways
        lines = error_text(error).splitlines() or [type(error).__name__]
        connection.send({"failed": lines[0]})
        return
    with contextlib.suppress(EOFError):  # the end
        while seconds := connection.recv():
            connection.send(harness.rate(work, seconds, windows=1, finish=finish))


def _prepare(
    contender: Contender, learner: str, run: Run, gpu: str
) -> tuple[Any, Any, dict]:
    """Checks an update of another library, and makes the first ones."""
    os.environ[devices.VARIABLE] = gpu
    if gpu == devices.NO_GPU:
        os.environ["JAX_PLATFORMS"] = "cpu"
    else:  # as much memory as it needs, and no TF32
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
    config, block = run.config, contender.block
    case = peer_work.read_case(peer_work.case_of(config, learner), learner)
    errors = peer_work.check(contender.build, case, block)
    parameters = peer_work.initial_parameters(config, run.obs_dim, run.action_dim)
    settings, task = settings_of(config, learner), peer_work.work_of(config, learner)
    batches = peer_work.Batches(
        ReplayBuffer.open(run.folders.replay),
        settings.batch_size,
        settings.replay_size,
        block,
    )
    if contender.library == "torch" and gpu == devices.NO_GPU:
        import peer_torch

        eager = contender._replace(options=(*contender.options, ("compiled", False)))
        peer_torch.choose_threads(eager.build(task, parameters, block), batches.take())
    start = time.perf_counter()
    update = contender.build(task, parameters, block)

    def work() -> int:
        update.run(batches.take())
        return block

    work()
    update.finish()
    first_call = time.perf_counter() - start
    for _ in range(learners.WARM_UP_CALLS):
        work()
    update.finish()
    assert "tensorflow" not in sys.modules, "TensorFlow takes memory and threads"
    prepared = {
        "first_call_s": first_call,
        "updates_per_call": block,
        "errors": errors,
    }
    return work, update.finish, prepared


@contextlib.contextmanager
def processes() -> Iterator[Any]:
    """Starts processes with a connection each; ends them all."""
    spawn = multiprocessing.get_context("spawn")
    started = []

    def start(*arguments: Any) -> Connection:
        ours, theirs = spawn.Pipe()
        child = spawn.Process(target=take_part, args=(*arguments, theirs))
        child.start()
        theirs.close()
        started.append((child, ours))
        return ours

    try:
        yield start
    finally:
        for _, connection in started:
            connection.close()
        for child, _ in started:
            child.join(PATIENCE)
            child.kill()
            child.join()


def ask(connection: Connection, name: str) -> Any:
    """The next answer of a process."""
    try:
        return connection.recv()
    except EOFError:
        raise RunError(f"{name}: its process failed (see above)") from None


def compare(
    config: Config,
    run: Run,
    learner: str,
    gpu: str,
    taking_part: list[Contender],
    seconds: float,
    rounds: int,
    note: Any,
) -> dict[str, dict[str, Any]]:
    """The contenders of a learner's update, by name.

    Raises:
        RunError: one does not agree with the reference vector.
    """
    peer_work.work_of(config, learner)  # whether there is such an update
    found: dict[str, dict[str, Any]] = {}
    with processes() as start:
        connections = {}
        for contender in taking_part:
            name = contender.name
            note(f"{learner}: {name}: preparing")
            connection = start(contender, learner, run, gpu)
            found[name] = ask(connection, name)
            if "wrong" in found[name]:
                raise RunError(f"{name}: {found[name]['wrong']}")
            if "failed" not in found[name]:
                connections[name] = connection
        rates: dict[str, list[float]] = {name: [] for name in connections}
        names = list(connections)
        for number in range(rounds):
            turn = number % len(names)
            for name in (*names[turn:], *names[:turn]):
                note(f"{learner}: round {number + 1} of {rounds}: {name}")
                time.sleep(PAUSE)
                connections[name].send(seconds / rounds)
                rates[name].append(ask(connections[name], name))
    for name, values in rates.items():
        found[name] |= {
            "updates_per_s": statistics.median(values),
            "lowest": min(values),
            "highest": max(values),
        }
    return found


def measure(
    config: Config,
    device: str,
    libraries: list[str],
    only: list[str],
    seconds: float,
    rounds: int,
    note: Any,
) -> dict[str, Any]:
    """All figures of one configuration; its output_root must be empty.

    Args:
        config: of the run.
        device: "cpu", or a GPU's id.
        libraries: of `LIBRARIES`.
        only: patterns of the contenders' names.
        seconds: of each contender, all rounds together.
        rounds: how many.
        note: called with a line about what happens now.
    """
    taking_part = {
        learner: contenders(config, learner, libraries, only)
        for learner in learners_of(config)
    }
    run, _board = harness.open_run(config, device, learners.ROWS)
    gpu = devices.assigned(device, False, os.environ).valuerl
    note("the device's limit")
    limits = learners.product_limit(gpu, config, seconds / 4)
    limit = max(limits.values())
    result: dict[str, Any] = {VALUERL: None, WORLDMODEL: None}
    for learner, those in taking_part.items():
        gflop = learners.FLOP[learner](config, run.obs_dim, run.action_dim) / 1e9
        found = compare(config, run, learner, gpu, those, seconds, rounds, note)
        for figures in found.values():
            if "updates_per_s" in figures:
                figures["gflops"] = figures["updates_per_s"] * gflop
                figures["share"] = figures["gflops"] / limit
        others = {
            name: figures["updates_per_s"]
            for name, figures in found.items()
            if name != OURS and "updates_per_s" in figures
        }
        best = max(others, key=lambda name: others[name], default=None)
        result[learner] = {
            "gflop_per_update": gflop,
            "best_other": best,
            "ours_over_best": best and found[OURS]["updates_per_s"] / others[best],
            "contenders": found,
        }
    versions = {library: metadata.version(library) for library in libraries}
    result["machine"] = (
        harness.machine()
        | versions
        | {
            "limit_gflops": limit,
            "limit_by": max(limits, key=lambda name: limits[name]),
            "rounds": rounds,
            "seconds_each": seconds,
        }
    )
    return result


def show(result: dict[str, Any], title: str) -> None:
    """Prints a table for each learner, and what it was measured on."""
    for learner in (VALUERL, WORLDMODEL):
        part = result[learner]
        if part is None:
            continue
        table = Table(title=f"{title}: {learner}", title_justify="left")
        table.add_column("")
        columns = (
            "updates/s",
            "lowest .. highest",
            "share of the limit",
            "largest error",
        )
        for column in columns:
            table.add_column(column, justify="right")
        for name, figures in part["contenders"].items():
            table.add_row(name, *_cells(figures))
        print_once(table)
        if part["best_other"]:
            print(
                f"ours / best other ({part['best_other']}): "
                f"{part['ours_over_best']:.2f}\n"
            )
    machine = result["machine"]
    print(
        f"{machine['cpu']}, {machine['cores']} cores; limit "
        f"{machine['limit_gflops']:.0f} GFLOP/s ({machine['limit_by']}); "
        + ", ".join(
            f"{name} {machine[name]}"
            for name in ("tensorflow", *LIBRARIES)
            if name in machine
        )
    )


def _cells(figures: dict[str, Any]) -> list[str]:
    if "failed" in figures:
        return ["does not run", "", "", figures["failed"]]
    errors = figures.get("errors")
    return [
        f"{figures['updates_per_s']:.4g}",
        f"{figures['lowest']:.4g} .. {figures['highest']:.4g}",
        f"{figures['share']:.1%}",
        f"{max(errors.values()):.1e}" if errors else "",
    ]


def main() -> None:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--device", default=devices.CPU, help="a GPU's id, or cpu (cpu)"
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of each contender (20)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="in so many turns (5)")
    parser.add_argument(
        "--libraries",
        nargs="+",
        choices=LIBRARIES,
        default=LIBRARIES,
        help="to compare with (both)",
    )
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        nargs="+",
        default=["*"],
        help='names as in the table; * fits anything: "jax *scan" (all)',
    )
    arguments = parser.parse_args()
    missing = [name for name in arguments.libraries if not is_installed(name)]
    if missing:
        raise UserError(
            f"{' and '.join(missing)}: not installed; pip install 'steve-rl[peers]', "
            "or name what there is with --libraries"
        )
    note = functools.partial(print, file=sys.stderr, flush=True)
    with harness.temporary_root() as root:
        config = harness.load(arguments.config, arguments.overrides, root)
        result = measure(
            config,
            arguments.device,
            list(arguments.libraries),
            list(arguments.only),
            arguments.seconds,
            arguments.rounds,
            note,
        )
    if arguments.json:
        harness.show(result, as_json=True, title="")
    else:
        show(result, arguments.config)


if __name__ == "__main__":
    harness.run(main)
