"""What a GPU does with the learners, in ten minutes at most, written to one file.

    python benchmarks/gpu.py                 # GPU 0, and GPU 1 where there is one
    python benchmarks/gpu.py --device cpu    # a rehearsal without a GPU

Needs the gpu extra (pip install 'steve-rl[gpu]'). It measures the devices' largest
product, compares the mathematics with the 2018 code's on the device, as training
prepares it, and times each learner alone and both side by side: on one GPU, and on two
where there are two. A part that fails, or has no time left, is said to be missing in
the file.

`kernels` counts what an update starts on the device: the operations of the compiled
program, after XLA's fusion. Where there is none, `graph_operations` counts those of
TensorFlow's graph.
"""

import functools
import json
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import harness
import learners
import pynvml
from rich.table import Table

from steve.command_line import print_once
from steve.running import devices
from steve.settings.roles import VALUERL, WORLDMODEL
from steve.settings.roles import learners as learners_of
from steve.settings.schema import Config
from steve.storage.folders import Run
from steve.util import UserError

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = (
    "config/experiments/goodruns/halfcheetah/steve0.json",
    "config/experiments/goodruns/halfcheetah/ddpg0.json",
    "config/quickstart.json",
)
CASES = ("ddpg", "ensemble_mve_tdk", "steve")  # reference vectors
MINUTES = 10.0
Note = Callable[[str], None]


# -- what an update starts --------------------------------------------------------

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = .*?\s([a-z][a-z0-9\-]*)\(")
CALLED = re.compile(
    r"(?:to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
# Nothing is done for them: they name memory.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
CONTROL = {"call", "while", "conditional"}


def count_kernels(program: str, in_loop: bool) -> int:
    """The operations of an update, from the text of a compiled program (HLO).

    What a branch or a loop inside an update holds counts once; a fusion is one
    operation.

    Args:
        program: the text.
        in_loop: whether the program is a loop over several updates.
    """
    computations: dict[str, list[tuple[str, list[str]]]] = {}
    entry = name = ""
    for line in program.splitlines():
        if found := COMPUTATION.match(line):
            name = found[2]
            computations[name] = []
            entry = name if found[1] else entry
        elif found := INSTRUCTION.match(line):
            called = CALLED.findall(line)
            for names in BRANCHES.findall(line):
                called += [part.strip().lstrip("%") for part in names.split(",")]
            computations[name].append((found[1], called))

    @functools.cache
    def count(name: str) -> int:
        total = 0
        for operation, called in computations[name]:
            if operation in CONTROL:
                total += sum(count(each) for each in called)
            elif operation not in FREE and not operation.endswith("-done"):
                total += 1
        return total

    if not in_loop:
        return count(entry)
    loops = [names for operation, names in computations[entry] if operation == "while"]
    return max(sum(count(each) for each in names) for names in loops)


def operations(learner: Any) -> dict[str, int]:
    """What an update of a learner starts: {"kernels": n} or {"graph_operations": n}."""
    import tensorflow as tf

    from steve.batch import row_width

    updater, run = learner.updater, learner.context.run
    width = row_width(run.obs_dim, run.action_dim)
    batches = tf.zeros([updater.updates_per_call, learner.settings.batch_size, width])
    arguments = batches, tf.constant(1)
    try:
        text = updater.call.experimental_get_compiler_ir(*arguments)("optimized_hlo")
        return {"kernels": count_kernels(text, updater.updates_per_call > 1)}
    except Exception:  # it is not compiled, or this device does not give the text
        graph = updater.call.get_concrete_function(*arguments).graph
        no_work = {"Const", "Placeholder", "Identity", "NoOp"}
        found = [o for o in graph.get_operations() if o.type not in no_work]
        return {"graph_operations": len(found)}


# -- processes --------------------------------------------------------------------


def learn_alone(
    name: str, run: Run, gpu: str, seconds: float, answer: Connection
) -> None:
    """A process: one learner, as in training: speed, memory, operations."""
    learner, work, first_call = learners.build(name, run, gpu)
    rate = harness.rate(work, seconds, finish=learner.check_metrics)
    memory = {"peak_memory_mib": _peak_bytes(gpu) / 2**20}
    found = {"updates_per_s": rate, "first_call_s": first_call}
    block = {"updates_per_call": learner.updates_per_call}
    answer.send(found | block | memory | operations(learner))


def _peak_bytes(gpu: str) -> float:
    """The largest memory that this process had: the GPU's, or else its own."""
    import tensorflow as tf

    if gpu == devices.NO_GPU:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return tf.config.experimental.get_memory_info("GPU:0")["peak"]


def check(gpu: str, config: Config, cases: list[str], answer: Connection) -> None:
    """A process: compares with the 2018 code's vectors, on the device."""
    learners.quiet(gpu)
    sys.path.append(str(ROOT / "tests" / "programs"))
    from steve.compute import prepare_tensorflow

    on_cpu = gpu == devices.NO_GPU
    prepare_tensorflow("check", on_cpu, None, 1, config.precision, config.deterministic)
    import check_reference

    found: dict[str, Any] = {"precision": config.precision}
    for part, compiled in (("as operations", False), ("compiled by XLA", True)):
        largest: dict[str, float] = {}
        wrong, count = [], 0
        for name in cases:
            path = ROOT / "tests" / "data" / "algorithms" / f"{name}.npz"
            for result in check_reference.Case(path, compiled).results():
                count += 1
                wrong += [] if result.passed else [f"{name}: {result.quantity}"]
                before = largest.get(result.quantity, 0.0)
                largest[result.quantity] = check_reference.worst([before, result.error])
        found[part] = {
            "comparisons": count,
            "above their tolerance": wrong,
            "largest error": check_reference.worst(list(largest.values())),
            "errors": largest,
        }
    answer.send(found)


def describe(gpu: str, answer: Connection) -> None:
    """A process: what TensorFlow says about its build and the device."""
    learners.quiet(gpu)
    import tensorflow as tf

    build = dict(tf.sysconfig.get_build_info())
    found = {
        key: build[key] for key in ("cuda_version", "cudnn_version") if key in build
    }
    seen = tf.config.list_physical_devices("GPU")
    for device in seen:
        found |= tf.config.experimental.get_device_details(device)
    found["GPUs seen by a process"] = len(seen)
    answer.send({name: str(value) for name, value in found.items()})


# -- parts ------------------------------------------------------------------------


def installed() -> dict[str, Any]:
    """The driver and all GPUs: name, memory in use and in all, power limit."""
    try:
        pynvml.nvmlInit()
        found: dict[str, Any] = {"driver": pynvml.nvmlSystemGetDriverVersion()}
    except pynvml.NVMLError as error:
        return {"driver": f"none ({error})"}
    try:
        for number in range(pynvml.nvmlDeviceGetCount()):
            try:
                found[f"GPU {number}"] = _described(number)
            except pynvml.NVMLError as error:
                found[f"GPU {number}"] = f"refused ({error})"
        return found
    finally:
        pynvml.nvmlShutdown()


def _described(number: int) -> str:
    handle = pynvml.nvmlDeviceGetHandleByIndex(number)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return (
        f"{pynvml.nvmlDeviceGetName(handle)}, {memory.used / 2**30:.1f} of "
        f"{memory.total / 2**30:.1f} GiB in use"
    )


class Measurement:
    """All parts of the measurement, one after the other, into one dictionary.

    Args:
        tokens: of the GPUs in use: one, or two; of a rehearsal, what means none.
        seconds: of each timing.
        minutes: in which all has to be over.
        note: called with a line about what happens now.
        save: called with the dictionary after each part.
    """

    def __init__(
        self,
        tokens: list[str],
        seconds: float,
        minutes: float,
        note: Note,
        save: Callable[[dict[str, Any]], None],
    ) -> None:
        self.result: dict[str, Any] = {}
        self.missing: list[str] = []
        self._tokens, self._seconds = tokens, seconds
        self._deadline = time.monotonic() + 60 * minutes
        self._note, self._save = note, save
        self._limit: float | None = None

    @property
    def _left(self) -> float:
        return self._deadline - time.monotonic()

    def part(self, name: str, function: Callable[[], Any]) -> None:
        """Runs a part; one that fails is noted, and the others follow."""
        if self._left <= 0:
            self.result[name] = {"missing": "no time was left"}
            self.missing.append(name)
            return
        self._note(f"{name} ({self._left:.0f} s left)")
        try:
            self.result[name] = function()
        except UserError as error:
            self.result[name] = {"missing": str(error)}
            self.missing.append(name)
            self._note(f"{name}: {error}")
        self._save(self.result)

    def device(self, config: Config, cases: list[str]) -> None:
        """The machine, the limit, and whether the mathematics is right.

        Raises:
            UserError: TensorFlow does not see the GPU.
        """
        first = self._tokens[0]
        self.part("machine", harness.machine)
        self.part("devices", installed)
        self.part("TensorFlow", lambda: self._ask([(describe, (first,))])[0])
        is_blind = self.result["TensorFlow"].get("GPUs seen by a process") == "0"
        if is_blind and first != devices.NO_GPU:
            raise UserError(
                "TensorFlow does not see the GPU; install the gpu extra (pip install "
                "'steve-rl[gpu]'), or rehearse with --device cpu"
            )
        self.part("largest product, GFLOP/s", lambda: self._products(config))
        self.part(
            "reference vectors",
            lambda: self._ask([(check, (first, config, cases))])[0],
        )

    def _products(self, config: Config) -> dict[str, float]:
        found = learners.product_limit(
            self._tokens[0], config, self._seconds / 2, self._left
        )
        self._limit = max(found.values())
        return found

    def learners(self, title: str, run: Run) -> None:
        """Each learner of a run alone; both on one GPU, and on two."""
        names = list(learners_of(run.config))
        first = self._tokens[0]
        for name in names:
            self.part(
                f"{title}: {name}", functools.partial(self._alone, run, name, first)
            )
        if len(names) < 2:
            return
        pairs = {"on one device": (first, first)}
        if len(self._tokens) > 1:
            pairs["on two GPUs"] = (first, self._tokens[1])
        for where, gpus in pairs.items():
            self.part(
                f"{title}: both {where}",
                functools.partial(self._together, run, names, gpus),
            )

    def _alone(self, run: Run, name: str, gpu: str) -> dict[str, float]:
        work = name, run, gpu, self._seconds
        (found,) = self._ask([(learn_alone, work)])
        return found | self._figures(run, name, found)

    def _together(
        self, run: Run, names: list[str], gpus: tuple[str, str]
    ) -> dict[str, Any]:
        patience = min(self._left, learners.PATIENCE)
        ready = multiprocessing.get_context("spawn").Barrier(2, timeout=patience)
        of = {VALUERL: gpus[0], WORLDMODEL: gpus[1]}
        works = [(name, run, of[name], self._seconds, ready) for name in names]
        found = self._ask([(learners.learn, work) for work in works])
        return {
            name: self._figures(run, name, each)
            for name, each in zip(names, found, strict=True)
        }

    def _figures(
        self, run: Run, name: str, found: dict[str, float]
    ) -> dict[str, float]:
        limit = self._limit or float("nan")
        return learners.figures_of(run, name, found, limit)

    def _ask(self, calls: list[tuple[Callable, tuple]]) -> list[Any]:
        return learners.in_processes(calls, self._left)


def tokens_of(device: str) -> list[str]:
    """What selects the device, and the GPU after it where there is one.

    Raises:
        UserError: there is no such GPU.
    """
    found = devices.assigned(device, True, os.environ)
    return list(dict.fromkeys([found.valuerl, found.worldmodel]))


def write(path: Path, result: dict[str, Any]) -> None:
    """The file is complete at each moment."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(result, file, indent=2)
        file.write("\n")
    os.replace(file.name, path)


def show(result: dict[str, Any]) -> None:
    """Prints the devices, the check, and a table of the learners."""
    for part in ("devices", "TensorFlow", "largest product, GFLOP/s"):
        items = (
            f"{name} {value:.0f}" if isinstance(value, float) else f"{name} {value}"
            for name, value in result[part].items()
        )
        print(f"{part}: {', '.join(items)}")
    for part, found in result["reference vectors"].items():
        if isinstance(found, dict):
            print(
                f"reference vectors, {part}: {found['comparisons']} comparisons, "
                f"largest error {found['largest error']:.1e}; above their tolerance: "
                f"{', '.join(found['above their tolerance']) or 'none'}"
            )
    table = Table("learner", "updates/s", "share", "kernels", "peak MiB")
    for title, part in result.items():
        if "updates_per_s" in part:
            table.add_row(title, *_cells(part))
        for name, figures in part.items():
            if isinstance(figures, dict) and "updates_per_s" in figures:
                table.add_row(f"{title}: {name}", *_cells(figures))
        if "missing" in part:
            table.add_row(title, "missing", "", "", "")
    print_once(table)


def _cells(figures: dict[str, Any]) -> list[str]:
    kernels = figures.get("kernels")
    if kernels is None and "graph_operations" in figures:
        kernels = f"({figures['graph_operations']})"
    memory = figures.get("peak_memory_mib")
    return [
        f"{figures['updates_per_s']:.4g}",
        f"{figures['share']:.1%}",
        "" if kernels is None else str(kernels),
        "" if memory is None else f"{memory:.0f}",
    ]


def main() -> int:
    parser = harness.parser(__doc__.splitlines()[0], config=False)
    parser.add_argument(
        "configs",
        metavar="CONFIG.json",
        nargs="*",
        help="(full-size STEVE and DDPG on HalfCheetah, and the quickstart)",
    )
    parser.add_settings(dest="overrides")
    parser.add_argument("--device", default="0", help="a GPU's id (0), or cpu")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each timing (8)")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="at most, of all (10)"
    )
    parser.add_argument(
        "--cases", nargs="+", default=CASES, help=f"reference vectors ({len(CASES)})"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("gpu.json"), help="the file (gpu.json)"
    )
    arguments = parser.parse_args()
    tokens = tokens_of(arguments.device)
    note = functools.partial(print, file=sys.stderr, flush=True)
    measurement = Measurement(
        tokens,
        arguments.seconds,
        arguments.minutes,
        note,
        functools.partial(write, arguments.output),
    )
    paths = arguments.configs or [str(ROOT / path) for path in CONFIGS]
    for number, path in enumerate(paths):
        with harness.temporary_root() as root:
            config = harness.load(path, arguments.overrides, root)
            if number == 0:
                measurement.device(config, list(arguments.cases))
            run, _board = harness.open_run(config, arguments.device, learners.ROWS)
            measurement.learners(Path(path).parent.name + "/" + Path(path).stem, run)
    result = measurement.result
    if arguments.json:
        harness.show(result, as_json=True, title="")
    else:
        show(result)
    note(f"to send back: {arguments.output}")
    vectors = result["reference vectors"]
    wrong = any(
        part["above their tolerance"]
        for part in vectors.values()
        if isinstance(part, dict)
    )
    if wrong:
        note("the mathematics differs from the reference: see the file")
    return int(wrong or bool(measurement.missing))


if __name__ == "__main__":
    harness.run(main)
