"""How fast the learners learn, and how near that is to what the machine can do.

    python benchmarks/learners.py config/experiments/goodruns/halfcheetah/steve0.json

Each learner of the configuration runs as it does in training, in a process of its own,
on synthetic transitions: alone, and side by side with the other. No learner waits for
frames. A figure is the median of several windows.

`share` is GFLOP/s over the machine's limit: the best float32 product of two 2048 x
2048 matrices in this run, with as many threads, by whichever of TensorFlow, XLA and
NumPy is fastest. GFLOP an update: benchmarks/arithmetic.py.
"""

import importlib
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any, NamedTuple

import arithmetic
import harness

from steve.running import devices
from steve.running.pace import may_update
from steve.settings.roles import VALUERL, WORLDMODEL, learners
from steve.settings.schema import Config
from steve.storage.board import Board
from steve.storage.folders import Run
from steve.util import RunError, importing_tensorflow

ROWS = 20_000  # of the replay buffer
SIDE = 2048  # of the matrices
CHAIN = 50  # products of a GPU, one after the other
WARM_UP_CALLS = 5
PATIENCE = 1800.0  # seconds until both learners are ready
FLOP = {VALUERL: arithmetic.valuerl_flop, WORLDMODEL: arithmetic.worldmodel_flop}


class Trained(NamedTuple):
    """A learner that is ready to learn, as in training.

    Attributes:
        learner: a `steve.learner.Learner`.
        work: does the updates of one call, returns how many they were.
        first_call_s: how long building and compiling its update took.
    """

    learner: Any
    work: Callable[[], int]
    first_call_s: float


def build(name: str, run: Run, gpu: str) -> Trained:
    """A learner of a run, in a process that has not used TensorFlow before."""
    quiet(gpu)
    from steve.running.child import (
        Context,
        Stop,  # with TensorFlow's variables set
    )

    context = Context(run, name, 0, Board.open(run.folders.board), Stop())
    learner = importlib.import_module(f"steve.{name}_learner").build(context)
    start = time.perf_counter()
    learner.warm_up()
    first_call = time.perf_counter() - start
    block = learner.updates_per_call

    def work() -> int:
        frames = learner.replay.frames
        if not may_update(learner.settings, frames, learner.updates, 2 * block):
            learner.updates = 0  # so that batches are fetched ahead, as in training
        learner.updates += learner.learn(block)
        return block

    for _ in range(WARM_UP_CALLS):
        work()
    return Trained(learner, work, first_call)


def learn(
    name: str,
    run: Run,
    gpu: str,
    seconds: float,
    ready: Barrier | None,
    answer: Connection,
) -> None:
    """A process: one learner, as in training; answers with its updates a second."""
    learner, work, first_call = build(name, run, gpu)
    if ready:
        ready.wait()
    rate = harness.rate(work, seconds, finish=learner.check_metrics)
    answer.send({"updates_per_s": rate, "first_call_s": first_call})


def multiply(
    gpu: str, threads: int, precision: str, seconds: float, answer: Connection
) -> None:
    """A process: the best of several ways to a large product, in GFLOP/s."""
    quiet(gpu)
    os.environ["OPENBLAS_NUM_THREADS"] = str(threads)
    import numpy as np
    import tensorflow as tf

    from steve.compute import set_precision

    set_precision(precision)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    a = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    a /= np.sqrt(SIDE)  # a chain of products neither grows nor fades
    on_gpu = gpu != devices.NO_GPU
    with tf.device("GPU:0" if on_gpu else "CPU:0"):
        on_device = tf.identity(a)

    def chain(x: tf.Tensor) -> tf.Tensor:
        # The host would wait longer for one product of a GPU than the GPU takes.
        for _ in range(CHAIN if on_gpu else 1):
            x = tf.matmul(x, on_device)
        return x

    traced = tf.function(chain, autograph=False)
    compiled = tf.function(chain, autograph=False, jit_compile=True)
    products: dict[str, Callable[[], Any]] = {
        "TensorFlow": lambda: traced(on_device)[0, 0].numpy(),
        "XLA": lambda: compiled(on_device)[0, 0].numpy(),
    }
    if not on_gpu:
        products["NumPy"] = lambda: a @ a
    speeds = {}
    for library, product in products.items():
        product()
        times: list[float] = []
        while sum(times) < seconds / len(products):
            start = time.perf_counter()
            product()
            times.append(time.perf_counter() - start)
        count = CHAIN if on_gpu else 1
        speeds[library] = count * 2 * SIDE**3 / min(times) / 1e9
    answer.send(speeds)


def product_limit(
    gpu: str, config: Config, seconds: float, patience: float | None = None
) -> dict[str, float]:
    """The GFLOP/s of a large product, by the library that computes it."""
    threads = config.policy_config.threads or len(os.sched_getaffinity(0))
    work = (gpu, threads, config.precision, seconds)
    (limits,) = in_processes([(multiply, work)], patience)
    return limits


def figures_of(
    run: Run, name: str, found: dict[str, float], limit: float
) -> dict[str, float]:
    """What `learn` answered, with the arithmetic and its share of the limit."""
    gflop = FLOP[name](run.config, run.obs_dim, run.action_dim) / 1e9
    speed = found["updates_per_s"] * gflop
    return {
        "updates_per_s": found["updates_per_s"],
        "gflop_per_update": gflop,
        "gflops": speed,
        "share": speed / limit,
        "first_call_s": found["first_call_s"],
    }


def quiet(gpu: str) -> None:
    """Imports TensorFlow with the device of this process, and without its notes."""
    os.environ[devices.VARIABLE] = gpu
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    with importing_tensorflow():
        importlib.import_module("tensorflow")


def in_processes(
    calls: list[tuple[Callable, tuple]], patience: float | None = None
) -> list[Any]:
    """Runs functions at the same time, each in a process; returns their answers.

    Args:
        calls: functions and their arguments; a connection for the answer is added.
        patience: seconds until they are ended; None: for ever.

    Raises:
        RunError: one failed, or did not answer in time.
    """
    deadline = None if patience is None else time.monotonic() + patience
    spawn = multiprocessing.get_context("spawn")
    started = []
    for function, arguments in calls:
        receiver, sender = spawn.Pipe(duplex=False)
        child = spawn.Process(target=function, args=(*arguments, sender))
        child.start()
        sender.close()
        started.append((child, receiver))
    try:
        answers = []
        for _, receiver in started:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not receiver.poll(left):
                raise RunError(f"was not done after {patience:.0f} s")
            answers.append(receiver.recv())
        return answers
    except EOFError:
        raise RunError("a process of the benchmark failed (see above)") from None
    finally:
        for child, _ in started:
            child.kill()


def measure(
    config: Config, device: str, seconds: float, together: bool = True
) -> dict[str, dict[str, Any] | None]:
    """All figures of one configuration; its output_root must be empty.

    Args:
        config: of the run.
        device: "cpu" or a GPU's id.
        seconds: of each measurement.
        together: whether to measure the learners side by side too.
    """
    assignment = devices.assigned(device, config.has_model, os.environ)
    gpus = {VALUERL: assignment.valuerl, WORLDMODEL: assignment.worldmodel}
    names = list(learners(config))
    run, _board = harness.open_run(config, device, ROWS)

    limits = product_limit(gpus[VALUERL], config, seconds / 4)
    limit = max(limits.values())

    result: dict[str, dict[str, Any] | None] = {WORLDMODEL: None}
    for name in names:
        (alone,) = in_processes([(learn, (name, run, gpus[name], seconds, None))])
        result[name] = figures_of(run, name, alone, limit)
    beside = {}
    if together:
        spawn = multiprocessing.get_context("spawn")
        ready = spawn.Barrier(len(names), timeout=PATIENCE)
        found = in_processes(
            [(learn, (name, run, gpus[name], seconds, ready)) for name in names]
        )
        beside = {
            n: figures_of(run, n, f, limit) for n, f in zip(names, found, strict=True)
        }
    return {
        VALUERL: result[VALUERL],
        WORLDMODEL: result[WORLDMODEL],
        "side_by_side": beside,
        "machine": harness.machine()
        | {
            "device": device,
            "threads": config.policy_config.threads or len(os.sched_getaffinity(0)),
            "limit_gflops": limit,
            "limit_by": max(limits, key=limits.get),
            "environment": config.env.name,
        },
    }


def main() -> None:
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu (default) or a GPU's id")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of each measurement (20)"
    )
    arguments = parser.parse_args()
    with harness.temporary_root() as root:
        config = harness.load(arguments.config, arguments.overrides, root)
        result = measure(config, arguments.device, arguments.seconds)
    harness.show(result, arguments.json, arguments.config)


if __name__ == "__main__":
    harness.run(main)
