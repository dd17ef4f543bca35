"""The learners' loop: restore, wait, sample, step, log, publish (SPEC section 2)."""

import abc
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow as tf

import checkpoint
from checkpoint import Checkpoint
from process import Context, RunError
from replay import Batch, ReplayBuffer
from schema import LearnerConfig
from status import VALUERL
from util import Every, UserError, append_row, wait_until


def use_threads(threads: int | None) -> None:
    """Limits TensorFlow to so many threads; must come before its first operation."""
    if threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)


def require_device(context: Context) -> None:
    """Ends the run where it was given a GPU that TensorFlow cannot use."""
    if not context.run.cpu_learners and not tf.config.list_physical_devices("GPU"):
        raise UserError(
            f"{context.name}: TensorFlow does not see the GPU that it was given; "
            "install the gpu extra (pip install -e '.[gpu]') or use cpu"
        )


class Learner(abc.ABC):
    """A model that learns from the replay buffer; the base of both learners.

    A subclass builds its nets and optimisers, names their variables, and says what
    happens in an update and at an epoch.

    Attributes:
        updates: updates done; pretraining does not count.
        epoch: 0 before the first publication, then 1 and one more every
            `epoch_every_n` updates.
        seconds: of learning, over all launches.
    """

    name: ClassVar[str]
    metric_names: ClassVar[tuple[str, ...]]

    def __init__(self, context: Context, settings: LearnerConfig) -> None:
        self.context = context
        self.config = context.run.config
        self.folders = context.run.folders
        self.settings = settings
        self.replay = ReplayBuffer.open(self.folders.replay)
        self.row = context.board[self.name]
        self.updates = 0
        self.epoch = 0
        self.seconds = 0.0
        self._rng = np.random.default_rng(context.seed)
        self._recent: list[dict[str, tf.Tensor]] = []
        self._logged_at = time.monotonic()
        self._clock: float | None = None  # when `seconds` was last brought up to date

    # -- what a subclass provides ----------------------------------------------

    @abc.abstractmethod
    def variables(self) -> Mapping[str, tf.Variable]:
        """All that makes up the state, by the names used in the checkpoint."""

    @abc.abstractmethod
    def train_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """One update on a batch of tensors; returns the metrics."""

    @abc.abstractmethod
    def start(self) -> bool:
        """What precedes the first epoch of a fresh run; False: asked to stop."""

    @abc.abstractmethod
    def begin_epoch(self) -> None:
        """What happens at an epoch beside saving and publishing."""

    def publish(self) -> None:  # noqa: B027
        """Publishes what others need beside the state itself."""

    def counters(self) -> dict[str, int]:
        """Further counters, for the state and as columns of the log."""
        return {}

    def restore_counters(self, metadata: Mapping[str, object]) -> None:  # noqa: B027
        """Takes up what `counters` returned."""

    # -- the loop --------------------------------------------------------------

    def run(self) -> None:
        """Learns until the limit of the run, or until asked to stop; then saves."""
        self.restore()
        if self.epoch == 0 and not self.start():
            self.save_state()
            return
        due_backup = Every(self.settings.backup_every_n, self.updates)
        new_epoch = Every(self.settings.epoch_every_n, self.updates)
        log = Every(self.settings.log_every_n, self.updates)
        self._logged_at = time.monotonic()
        while self._wait_for_turn():
            self.learn()
            self.updates += 1
            self.tick()
            if log(self.updates):
                self.log()
            if new_epoch(self.updates):
                self.check_metrics()
                self.begin_epoch()
                self.publish_epoch()
            if due_backup(self.updates):
                self.backup()
        self.check_metrics()
        if self.context.stop():
            self.save_state()
        else:
            # The limit is reached: what was learned last is what gets evaluated.
            self.publish_epoch()

    def learn(self) -> None:
        """One update on a fresh batch."""
        batch = self.replay.sample(
            self.settings.batch_size, self.settings.replay_size, self._rng
        )
        tensors = Batch(*(tf.convert_to_tensor(part) for part in batch))
        self._recent.append(self.train_step(tensors))

    def _wait_for_turn(self) -> bool:
        """Waits until the next update may be done; False: the run is over."""
        over = False

        def ready() -> bool:
            nonlocal over
            over = self.context.stop() or self._limit_reached()
            return over or self._may_update()

        wait_until(ready)
        return not over

    def _may_update(self) -> bool:
        """Update u needs more than frames_before_learning + frames_per_update u."""
        return self.replay.frames > (
            self.settings.frames_before_learning
            + (self.settings.frames_per_update or 0) * self.updates
        )

    def _limit_reached(self) -> bool:
        """The hours are over, or no more frames will come and all are used up."""
        hours, total = self.config.total_hours, self.config.total_frames
        if hours is not None and self.context.board[VALUERL]["hours"] >= hours:
            return True
        if total is None or self.replay.frames < total:
            return False
        return self.settings.frames_per_update is False or not self._may_update()

    def wait_for_frames(self) -> bool:
        """Waits for the first frames; False: asked to stop, or none will come."""
        enough = self.settings.frames_before_learning
        wait_until(
            lambda: (
                self.context.stop()
                or self._limit_reached()
                or self.replay.frames > enough
            )
        )
        return self.replay.frames > enough and not self.context.stop()

    def tick(self) -> None:
        """Brings clock and status board up to date."""
        now = time.monotonic()
        if self._clock is not None:
            self.seconds += now - self._clock
        self._clock = now
        self.row["updates"] = self.updates
        self.row["epoch"] = self.epoch
        self.row["hours"] = self.seconds / 3600
        self.row["heartbeat"] = now

    def start_clock(self) -> None:
        """Learning starts now (SPEC section 9: `hours`)."""
        self._clock = time.monotonic()

    # -- log -------------------------------------------------------------------

    def check_metrics(self) -> dict[str, float]:
        """Means since the last log line.

        Raises:
            RunError: one is not finite: learning has diverged.
        """
        means = {
            name: float(np.mean([metrics[name] for metrics in self._recent]))
            for name in (self._recent[0] if self._recent else ())
        }
        for name, value in means.items():
            if not math.isfinite(value):
                raise RunError(
                    f"{self.name}: {name} is {value} after {self.updates} updates; "
                    "the run stops. The last good state is "
                    f"{self.folders.state(self.name)}"
                )
        return means

    def log(self) -> None:
        """Appends a line of means over the updates since the last one."""
        means, count = self.check_metrics(), len(self._recent)
        self._recent = []
        now = time.monotonic()
        rate = count / max(now - self._logged_at, 1e-9)
        self._logged_at = now
        values = {
            "hours": f"{self.seconds / 3600:.6f}",
            "epoch": self.epoch,
            "updates": self.updates,
            "frames": self.replay.frames,
            "updates_per_s": f"{rate:.2f}",
            **self.counters(),
            **{name: f"{value:.6g}" for name, value in means.items()},
        }
        append_row(self.folders.learner_log(self.name), values)
        self.row["updates_per_s"] = rate
        for i, name in enumerate(self.metric_names):
            self.row["metrics"][i] = means[name]

    # -- state -----------------------------------------------------------------

    def metadata(self) -> dict[str, float]:
        """The counters that a state or a policy is published with."""
        return {
            "updates": self.updates,
            "epoch": self.epoch,
            "frames": self.replay.frames,
            "hours": self.seconds / 3600,
            **self.counters(),
        }

    def _tensors(self) -> dict[str, np.ndarray]:
        return {name: v.numpy() for name, v in self.variables().items()}

    def save_state(self) -> None:
        """Publishes the full state; the one before it stays beside it.

        Raises:
            RunError: the state is not finite; the last good one stays.
        """
        self.replay.sync()
        try:
            checkpoint.publish(
                self.folders.state(self.name),
                self._tensors(),
                self.metadata(),
                keep_previous=True,
            )
        except checkpoint.NonFiniteError as error:
            raise RunError(
                f"{self.name}: {error} after {self.updates} updates; the run stops. "
                f"The last good state is {self.folders.state(self.name)}"
            ) from None

    def publish_epoch(self) -> None:
        """Ends an epoch: the state first, then what others take up from it."""
        self.epoch += 1
        self.tick()
        self.save_state()
        self.publish()

    def backup(self) -> None:
        """Keeps the state under the number of its updates (SPEC section 9)."""
        checkpoint.publish(
            self.folders.numbered_state(self.name, self.updates),
            self._tensors(),
            self.metadata(),
        )

    def restore(self) -> None:
        """Goes on from the newest state, if there is one."""
        path = self.folders.state(self.name)
        if not path.exists():
            return
        state = take_up(path, self.variables())
        self.updates = int(state.metadata["updates"])
        self.epoch = int(state.metadata["epoch"])
        self.seconds = float(state.metadata["hours"]) * 3600
        self.restore_counters(state.metadata)
        if self.epoch:
            self.start_clock()
        self.tick()


def take_up(path: Path, variables: Mapping[str, tf.Variable]) -> Checkpoint:
    """Assigns the newest good state at `path` to variables; returns that state.

    Raises:
        CheckpointError: there is none, or it does not fit.
    """
    state, warning = checkpoint.load_newest(path)
    if warning:
        print(warning)
    tensors = {n: t for n, t in state.tensors.items() if n in variables}
    checkpoint.check_tensors(
        path,
        Checkpoint(tensors, state.metadata),
        {name: tuple(v.shape) for name, v in variables.items()},
    )
    for name, variable in variables.items():
        variable.assign(tensors[name])
    return state


def thread_count(context: Context, threads: int | None) -> int | None:
    """A learner's threads: the key's, or on `cpu` its share of the cores."""
    if threads is not None or not context.run.cpu_learners:
        return threads
    learners = 2 if context.run.config.has_model else 1
    return max(1, len(os.sched_getaffinity(0)) // learners)
