"""How a learner computes: threads, batches fetched ahead, several updates in one call.

The learners define an update; this module runs updates without waiting for the host.
On a GPU the host neither reads a result nor hands over a batch between the
updates of a call, and while one call runs, the next one's batches are drawn.

Dimension letters: K updates in a call at most, B batch.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from .replay import Draw, ReplayBuffer
from .util import UserError, without_startup_notes

# Updates in a call at most, where the configuration does not say it.
UPDATES_PER_CALL = 16
CALLS_IN_FLIGHT = 2  # one that a GPU works on, and one that it can start at once


def prepare_tensorflow(
    name: str,
    on_cpu: bool,
    threads: int | None,
    members: int,
    precision: str = "float32",
    deterministic: bool = False,
) -> None:
    """Sets TensorFlow's threads, devices and precision; before its first operation.

    On a CPU the members of an ensemble are computed side by side, each product by one
    thread, because one product shared by all threads wastes the time in which they
    wait for each other: full-size STEVE's world model learns half as fast again.
    Cores beyond the members go into the products.

    Args:
        name: of the process.
        on_cpu: whether it computes on the CPU.
        threads: the configuration's; None: on a CPU all cores that it may use (SPEC
            section 2: a share of them. Paced learners mostly work in turn), on a GPU
            TensorFlow decides.
        members: how many nets of an ensemble take part in an update; 1 for single
            nets.
        precision: of products on a GPU: "float32", or "tf32" with 10 bits of
            mantissa, which TensorFlow uses unless told otherwise.
        deterministic: whether a GPU gives the same bits each time, at some cost. A
            CPU does anyhow.

    Raises:
        UserError: TensorFlow cannot use the GPU that the learner was given.
    """
    set_precision(precision)
    if deterministic and not on_cpu:
        tf.config.experimental.enable_op_determinism()
    if threads is None and on_cpu:
        threads = len(os.sched_getaffinity(0))
    if threads is not None:
        side_by_side = min(threads, members)
        tf.config.threading.set_inter_op_parallelism_threads(side_by_side)
        tf.config.threading.set_intra_op_parallelism_threads(
            math.ceil(threads / side_by_side)
        )
    with without_startup_notes(on_cpu):  # here it looks for GPUs
        gpus = tf.config.list_physical_devices("GPU")
    if not on_cpu and not gpus:
        raise UserError(
            f"{name}: TensorFlow does not see the GPU that it was given; "
            "install the gpu extra (pip install 'steve-rl[gpu]') or use cpu"
        )


def computing(xla: bool) -> dict[str, str | bool | int]:
    """How this process computes, as far as it decides an update's bits, for run.json.

    Args:
        xla: whether XLA compiles the updates.
    """
    found: dict[str, str | bool | int] = {"device": "cpu", "xla": xla}
    if gpus := tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(gpus[0])
        found["device"] = details.get("device_name", "GPU")
    else:
        found["intra_op_threads"] = (
            tf.config.threading.get_intra_op_parallelism_threads()
        )
    return found


def set_precision(precision: str) -> None:
    """Sets the precision of products on a GPU: "float32" or "tf32"."""
    tf.config.experimental.enable_tensor_float_32_execution(precision == "tf32")


class BatchSource:
    """Batches from the replay buffer, drawn in a thread while the last are in use.

    Args:
        replay: read by this object alone.
        batch_size: B.
        newest: draws come from the newest so many transitions.
        rng_of: the generator of an update's batch, by the update's number.
        end_of: that batch comes from the frames before this one; None: from all.
        updates_per_call: K.
    """

    def __init__(
        self,
        replay: ReplayBuffer,
        batch_size: int,
        newest: int,
        rng_of: Callable[[int], np.random.Generator],
        end_of: Callable[[int], int | None],
        updates_per_call: int,
    ) -> None:
        self._replay = replay
        self._batch_size = batch_size
        self._newest = newest
        self._rng_of = rng_of
        self._end_of = end_of
        self._updates_per_call = updates_per_call
        gpu = tf.config.list_logical_devices("GPU")
        self._device = "GPU:0" if gpu else "CPU:0"
        self._thread = ThreadPoolExecutor(1, "batches")
        self._next: tuple[int, int, Future[tf.Tensor]] | None = None

    @property
    def fell_short(self) -> bool:
        """Whether a batch was to come from rows that the buffer has no more."""
        return self._replay.fell_short

    def take(self, first: int, count: int) -> tf.Tensor:
        """Returns the batches of updates `first` .. `first + count - 1`.

        Those of further updates are drawn meanwhile, as far as their frames are there
        already: when they are drawn changes nothing.

        Args:
            first: number of the first update.
            count: 1 .. K.

        Returns:
            rows [K, B, words], of which the first `count` batches are theirs;
            `batch.fields` takes them apart.

        Raises:
            RunError: rows of the buffer are damaged.
        """
        batches = None
        if self._next is not None:
            start, drawn, future = self._next
            ahead = future.result()
            batches = ahead if start == first and drawn >= count else None
            self._next = None
        if batches is None:
            batches = self._draw(first, count)
        following = first + count
        if ready := self._ready(following):
            future = self._thread.submit(self._draw, following, ready)
            self._next = following, ready, future
        return batches

    def _ready(self, first: int) -> int:
        """How many batches from that of update `first` on can be drawn now, 0 .. K."""
        frames = self._replay.frames
        for count in range(self._updates_per_call, 0, -1):
            end = self._end_of(first + count - 1)
            if end is None or end <= frames:
                return count
        return 0

    def _draw(self, first: int, count: int) -> tf.Tensor:
        updates = range(first, first + count)
        draws = [Draw(self._rng_of(n), self._end_of(n)) for n in updates]
        rows = self._replay.sample_rows(self._batch_size, self._newest, draws)
        padding = [(0, self._updates_per_call - count), (0, 0), (0, 0)]
        with tf.device(self._device):
            return tf.convert_to_tensor(np.pad(rows, padding))

    def close(self) -> None:
        """Ends the thread and closes the buffer."""
        self._thread.shutdown()
        self._replay.close()


class Updater:
    """Runs updates, several of them in one call, and sums up their metrics.

    How many are in a call, 1 to K, changes nothing: one program runs them all.

    Args:
        step: one update on a batch, rows [B, words]; returns the metrics.
        metric_names: those that are kept.
        updates_per_call: K, the updates of a call at most.
        xla: whether XLA compiles the calls.
    """

    def __init__(
        self,
        step: Callable[[tf.Tensor], dict[str, tf.Tensor]],
        metric_names: Sequence[str],
        updates_per_call: int = 1,
        xla: bool = False,
    ) -> None:
        self._step = step
        self._metric_names = metric_names
        self.updates_per_call = updates_per_call
        self.xla = xla
        self._sums = tf.Variable(tf.zeros([len(metric_names)]))
        self._count = 0  # updates in the sums
        self._in_flight: deque[tf.Tensor] = deque()
        self.call = tf.function(self._updates, autograph=False, jit_compile=xla)
        self._program: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None

    def _updates(self, batches: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        """The updates of one call, one after the other; returns the metrics' sums."""

        def update(k: int | tf.Tensor) -> tf.Tensor:
            metrics = self._step(batches[k])
            values = tf.stack([metrics[name] for name in self._metric_names])
            self._sums.assign_add(values)
            return k + 1

        if self.updates_per_call == 1 and not self.xla:
            update(0)
        else:
            # With a batch axis of length 1 XLA fuses as without a loop, and sums in
            # another order; a second copy keeps the order for every K.
            if self.updates_per_call == 1:
                batches = tf.concat([batches, batches], 0)
            tf.while_loop(
                lambda k: k < count,
                lambda k: [update(k)],
                [tf.constant(0)],
                parallel_iterations=1,
            )
        return self._sums.read_value()

    def warm_up(self, batch: tf.Tensor, variables: Iterable[tf.Variable]) -> None:
        """Builds and compiles the call now, so that learning starts at full speed.

        It runs once; what it did to the variables is taken back.

        Args:
            batch: rows [B, words].
            variables: all that an update changes.
        """
        before = [(variable, variable.numpy()) for variable in variables]
        self._call(tf.stack([batch] * self.updates_per_call), 1)
        for variable, value in before:
            variable.assign(value)
        self.reset_metrics()

    def run(self, batches: tf.Tensor, count: int) -> None:
        """Runs the first `count` of K updates without waiting for them.

        On a GPU the call is still under way at the return; on a CPU it is over.

        Args:
            batches: rows [K, B, words].
            count: 1 .. K.
        """
        if len(self._in_flight) == CALLS_IN_FLIGHT:
            self._in_flight.popleft().numpy()  # waits until that call is over
        self._in_flight.append(self._call(batches, count))
        self._count += count

    def _call(self, batches: tf.Tensor, count: int) -> tf.Tensor:
        """Calls the program itself: looking it up costs as much as a small update."""
        if self._program is None:
            self._program = self.call.get_concrete_function(batches, tf.constant(count))
        return self._program(batches, tf.constant(count))

    def metric_means(self) -> dict[str, float]:
        """Means over the updates since `reset_metrics`; none where there were none."""
        if self._count == 0:
            return {}
        means = self._sums.numpy() / self._count
        return dict(zip(self._metric_names, means.tolist(), strict=True))

    def reset_metrics(self) -> int:
        """Starts new sums; returns how many updates were in the old ones."""
        count, self._count = self._count, 0
        self._sums.assign(tf.zeros_like(self._sums))
        return count
