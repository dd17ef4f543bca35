"""The learners' loop: restore, wait, sample, step, log, publish (SPEC section 2)."""

import abc
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow as tf

from .batch import Batch, fields, row_width
from .compute import (
    UPDATES_PER_CALL,
    BatchSource,
    Updater,
    computing,
    prepare_tensorflow,
)
from .replay import ReplayBuffer
from .running import pace
from .running.child import Context
from .running.pace import is_done, may_update
from .settings.roles import VALUERL
from .settings.schema import Config, LearnerConfig
from .settings.seeds import Stream, generator
from .storage import checkpoint
from .storage.board import Wait
from .storage.checkpoint import Checkpoint, NonFiniteError, Scalar
from .storage.record import record_computing
from .storage.tables import append_row, check_metric_names, read_table, trim_log
from .util import Every, RunError, first_free, wait_until


class Learner(abc.ABC):
    """A model that learns from the replay buffer; the base of both learners.

    A subclass builds its nets and optimisers, names their variables, and says what
    happens in an update and at an epoch.

    Args:
        context: the process's.
        settings: its section of the configuration.
        metric_names: of what `train_step` returns, in the order of the log's columns.
        is_compiled: whether XLA compiles the updates.

    Attributes:
        updater: computes the updates, several in a call.
        updates: updates done; pretraining does not count.
        epoch: 0 before the first publication, then 1 and one more at each
            publication: every `epoch_every_n` updates, and where the run's limit
            ends a part of an epoch.
        seconds: of learning, over all launches.
    """

    name: ClassVar[str]
    batch_stream: ClassVar[Stream]  # of the draws of its batches

    def __init__(
        self,
        context: Context,
        settings: LearnerConfig,
        metric_names: tuple[str, ...],
        is_compiled: bool = False,
    ) -> None:
        self.context = context
        self.config = context.run.config
        self.folders = context.run.folders
        self.settings = settings
        self.metric_names = metric_names
        check_metric_names(metric_names)
        self.replay = ReplayBuffer.open(self.folders.replay)
        self.row = context.board[self.name]
        self.updates = 0
        self.epoch = 0
        self.seconds = 0.0
        self._published_updates = 0  # `updates` at the last epoch
        self._fell_short = False  # a batch came from fewer rows than it was to
        self._clock: float | None = None  # when `seconds` was last brought up to date
        self._logged_at = time.monotonic()
        run = context.run
        self.updater = Updater(
            lambda rows: self.train_step(fields(rows, run.obs_dim, run.action_dim)),
            self.metric_names,
            updates_per_call(self.config, settings, is_compiled),
            is_compiled,
        )
        # In one call: TensorFlow takes 0.1 ms for each variable that is read alone.
        self._read_all = tf.function(
            lambda: [v.read_value() for v in self.variables().values()], autograph=False
        )
        self._batches = BatchSource(
            ReplayBuffer.open(self.folders.replay),
            settings.batch_size,
            settings.replay_size,
            self._rng_for,
            self._end_for,
            self.updater.updates_per_call,
        )

    # -- what a subclass provides ----------------------------------------------

    @abc.abstractmethod
    def variables(self) -> Mapping[str, tf.Variable]:
        """All that makes up the state, by the names used in the checkpoint."""

    @abc.abstractmethod
    def train_step(self, batch: Batch[tf.Tensor]) -> dict[str, tf.Tensor]:
        """One update on a batch of tensors, in graph operations; returns the metrics.

        What is random in it is keyed by the seed and the update's number, so that it
        does not depend on how many updates a call has.
        """

    @abc.abstractmethod
    def start(self) -> bool:
        """Does what precedes the first epoch of a fresh run.

        Returns:
            False if the run ended meanwhile.
        """

    def begin_epoch(self) -> bool:
        """Does what precedes the publication of an epoch; False: the run ended."""
        return True

    def publish(self) -> None:  # noqa: B027
        """Publishes what others need in addition to the state itself."""

    def after_restore(self) -> None:  # noqa: B027
        """Does what a resumed learner needs before it continues."""

    def counters(self) -> dict[str, int]:
        """Further counters, for the state and as columns of the log."""
        return {}

    def restore_counters(self, metadata: Mapping[str, Scalar]) -> None:  # noqa: B027
        """Takes up what `counters` returned."""

    # -- the loop --------------------------------------------------------------

    def run(self) -> None:
        """Learns until the limit of the run, or until asked to stop; then saves."""
        self.restore()
        self._record_computing()
        self.warm_up()
        if self.epoch:
            self.start_clock()
        self.row["ready"] = True
        if self.epoch == 0 and not self.start():
            self.save_state()
            return
        log = Every(self.settings.log_every_n, self.updates)
        new_epoch = Every(self.settings.epoch_every_n, self.updates)
        due_backup = Every(self.settings.backup_every_n, self.updates)
        while self._end_epoch() and self.wait(self._may_update):
            room = min(e.until(self.updates) for e in (log, new_epoch, due_backup))
            self.updates += self.learn(self._updates_now(int(room)))
            new_epoch(self.updates)
            self.tick()
            if log(self.updates):
                self.log()
            if due_backup(self.updates) and self._end_epoch():
                self.backup()
        if self.context.stop() or self.updates == self._published_updates:
            self.save_state()
        else:
            # The limit is reached: what was learned last is what gets evaluated.
            self.publish_epoch()

    def _end_epoch(self) -> bool:
        """Ends an epoch where one is complete; False: the run was stopped before."""
        due = pace.published_by(self.settings, self.updates)
        if due <= self._published_updates:
            return True
        if not self.begin_epoch():
            return False
        self.publish_epoch()
        return True

    def warm_up(self) -> None:
        """Builds the graph of an update now, so that learning starts at speed."""
        run = self.context.run
        width = row_width(run.obs_dim, run.action_dim)
        rows = tf.zeros([self.settings.batch_size, width])
        self.updater.warm_up(rows, self.variables().values())

    @property
    def updates_per_call(self) -> int:
        """How many updates `learn` does at most."""
        return self.updater.updates_per_call

    def _updates_now(self, room: int) -> int:
        """How many of the next updates have their frames: one at least."""
        most = min(self.updates_per_call, room)
        return next((n for n in range(most, 1, -1) if self._may_update(n)), 1)

    def learn(self, count: int) -> int:
        """So many updates, in one call, on batches of the newest transitions."""
        self.updater.run(self._batches.take(self.steps, count), count)
        if self._batches.fell_short and not self._fell_short:
            self._fell_short = True
            self.note_nondeterminism("a batch was to come from rows that are lost")
        return count

    @property
    def steps(self) -> int:
        """Updates done, with pretraining."""
        return self.updates

    def _rng_for(self, step: int) -> np.random.Generator:
        """What draws the batch of an update, by the `steps` before it."""
        return generator(self.config.seed, self.batch_stream, step)

    def _end_for(self, step: int) -> int | None:
        """That batch comes from the frames before this one; None: from all."""
        return self._frames_for(step) if self.config.is_paced else None

    def _frames_for(self, step: int) -> int:
        return pace.frames_for_update(self.settings, step)

    def _record_computing(self) -> None:
        """Says in run.json how updates are computed, and what of it has changed."""
        now = computing(self.updater.xla)
        changes = self.context.store(
            lambda: record_computing(self.folders, self.name, now)
        )
        for change in changes if self.steps else ():
            self.note_nondeterminism(f"{change}, from update {self.updates:,} on")

    def note_nondeterminism(self, why: str) -> None:
        """Says that the run cannot be repeated from here on."""
        self.context.note_nondeterminism(self.replay.frames, why)

    def wait(self, condition: Callable[[], bool]) -> bool:
        """Waits for a condition; False: the run was stopped, or its limit reached."""
        over = False

        def decided() -> bool:
            nonlocal over
            self.tick()
            over = self.stop_now()
            return over or condition()

        wait_until(
            self.context.while_there_is(lambda: None if decided() else Wait.PACE)
        )
        return not over

    def stop_now(self) -> bool:
        """Whether the run was stopped, or its limit reached."""
        return self.is_cut_short() or is_done(
            self.config, self.settings, self.replay.frames, self.updates, self.epoch
        )

    def is_cut_short(self) -> bool:
        """Whether the run was stopped, or its hours are over."""
        if self.context.stop():
            return True
        return self.config.limit_reached(0, float(self.context.board[VALUERL]["hours"]))

    def wait_for_frames(self) -> bool:
        """Waits for more than `frames_before_learning` frames; False as in `wait`."""
        return self.wait(
            lambda: self.replay.frames > self.settings.frames_before_learning
        )

    def _may_update(self, count: int = 1) -> bool:
        """Whether the next `count` updates have their frames."""
        return may_update(self.settings, self.replay.frames, self.updates, count)

    # -- clock and log ---------------------------------------------------------

    def start_clock(self) -> None:
        """Learning starts now (SPEC section 9: `hours`)."""
        self._clock = time.monotonic()
        self.start_log()

    def start_log(self) -> None:
        """The speed of the next line counts from now on."""
        self._logged_at = time.monotonic()

    def tick(self) -> None:
        """Brings clock and status board up to date."""
        now = time.monotonic()
        if self._clock is not None:
            self.seconds += now - self._clock
            self._clock = now
        self.row["updates"] = self.updates
        self.row["hours"] = self.seconds / 3600
        self.row["heartbeat"] = now

    def check_metrics(self) -> dict[str, float]:
        """Means since the last log line.

        Raises:
            RunError: one is not finite: learning has diverged.
        """
        means = self.updater.metric_means()
        for name, value in means.items():
            if not math.isfinite(value):
                raise self._diverged(f"{name} is {value}")
        return means

    def _diverged(self, what: object) -> RunError:
        state = self.folders.state(self.name)
        return RunError(
            f"{self.name}: {what} after {self.steps} updates; the run stops. "
            + (
                f"The last good state is {state}"
                if checkpoint.is_there(state)
                else "It has saved no state"
            )
        )

    def log(self) -> None:
        """Appends a line of means over the updates since the last one."""
        means = self.check_metrics()
        now = time.monotonic()
        count = self.updater.reset_metrics()
        rate = count / max(now - self._logged_at, 1e-9)
        self._logged_at = now
        values = self._log_row(rate, means)
        path = self.folders.learner_log(self.name)
        self.context.store(lambda: append_row(path, values))

    def _log_row(self, rate: float, means: Mapping[str, float]) -> dict[str, object]:
        """A line of the log by its columns."""
        return {
            "hours": f"{self.seconds / 3600:.6f}",
            "epoch": self.epoch,
            "updates": self.updates,
            "frames": self.replay.frames,
            "updates_per_s": f"{rate:.2f}",
            **self.counters(),
            **{name: f"{means[name]:.6g}" for name in self.metric_names},
        }

    # -- state -----------------------------------------------------------------

    def metadata(self) -> dict[str, float]:
        """The counters that a state or a policy is published with."""
        return {
            "updates": self.updates,
            "published_updates": self._published_updates,
            "epoch": self.epoch,
            "frames": self.frames_used(),
            "hours": self.seconds / 3600,
            **self.counters(),
        }

    def frames_used(self) -> int:
        """The frames that were learned from; unpaced, all that are there."""
        if self.config.is_paced:
            return pace.frames_used(self.settings, self.updates)
        return self.replay.frames

    def publish_epoch(self) -> None:
        """Ends an epoch: the state first, then what others take up from it."""
        self.epoch += 1
        self._published_updates = self.updates
        self.save_state()
        self.publish()
        self.row["epoch"] = self.epoch  # others may rely on what is published

    def save_state(self) -> None:
        """Publishes the full state; the one before it stays next to it.

        Raises:
            RunError: losses or state are not finite; the last good one stays.
        """
        self.tick()
        self.check_metrics()
        self.context.store(self.replay.sync)
        self._write_state(self.folders.state(self.name), keep_previous=True)

    def backup(self, only_missing: bool = False) -> None:
        """Keeps the state under the number of its updates (SPEC section 9).

        Args:
            only_missing: leaves what is there already as it is.
        """
        path = self.folders.numbered_state(self.name, self.updates)
        if not (only_missing and path.exists()):
            self._write_state(path, keep_previous=False)

    def _write_state(self, path: Path, keep_previous: bool) -> None:
        values = (value.numpy() for value in self._read_all())
        tensors = dict(zip(self.variables(), values, strict=True))
        try:
            self.context.store(
                lambda: checkpoint.publish(
                    path, tensors, self.metadata(), keep_previous=keep_previous
                )
            )
        except NonFiniteError as error:
            raise self._diverged(error) from None

    def restore(self) -> None:
        """Continues from the newest state, if there is one."""
        path = self.folders.state(self.name)
        if checkpoint.is_there(path):
            self._restore_state(path)
        else:
            self._trim_log()
        self.row["epoch"] = self.epoch
        self.tick()

    def _restore_state(self, path: Path) -> None:
        state = load_into(path, self.variables())
        self.updates = int(state.metadata["updates"])
        self._published_updates = int(state.metadata["published_updates"])
        self.epoch = int(state.metadata["epoch"])
        self.seconds = float(state.metadata["hours"]) * 3600
        self.restore_counters(state.metadata)
        self._trim_log()
        if self.updates and self.updates % self.settings.backup_every_n == 0:
            # It may have been killed before it came to that.
            self.backup(only_missing=True)
        self.after_restore()

    def _trim_log(self) -> None:
        """Cuts log lines of updates that a killed learner did after its last state.

        A log of other columns is put aside: its numbers would stand under wrong names.
        """
        path = self.folders.learner_log(self.name)
        trim_log(path, {"updates": self.updates, **self.counters()})
        table = read_table(path)
        columns = list(self._log_row(0.0, dict.fromkeys(self.metric_names, 0.0)))
        if table is not None and table.columns != columns:
            aside = first_free(path, ".old")
            path.rename(aside)
            print(
                f"{path} has other columns than {self.name} writes by now; it is "
                f"now {aside.name}",
                flush=True,
            )


def prepare(
    context: Context,
    settings: LearnerConfig,
    members: int,
    is_small: bool,
) -> bool:
    """Prepares TensorFlow for a learner, before its first operation.

    Args:
        context: the process's.
        settings: the learner's section of the configuration.
        members: how many nets of an ensemble take part in an update; 1 for single
            nets.
        is_small: whether all products of an update are (`nn.is_small_product`).

    Returns:
        whether XLA compiles its updates. Where the configuration leaves it open, it
        does so on a GPU, and on a CPU where products are small: there calling
        an operation costs as much as what it does. XLA computes an operation with all
        threads, one after the other.
    """
    config, on_cpu = context.run.config, context.run.cpu_learners
    is_compiled = settings.xla
    if is_compiled is None:
        is_compiled = is_small or not on_cpu
    prepare_tensorflow(
        context.name,
        on_cpu,
        settings.threads,
        1 if is_compiled else members,
        config.precision,
        config.deterministic,
    )
    return is_compiled


def updates_per_call(config: Config, settings: LearnerConfig, is_compiled: bool) -> int:
    """The configuration's, or else what the pace allows; without XLA, 1."""
    if settings.updates_per_call is not None:
        return settings.updates_per_call
    if not is_compiled:
        return 1
    return int(min(UPDATES_PER_CALL, config.most_updates_per_call(settings)))


def load_into(path: Path, variables: Mapping[str, tf.Variable]) -> Checkpoint:
    """Assigns the newest good state at `path` to variables; returns that state.

    Raises:
        CheckpointError: there is none, or it does not fit.
    """
    state, warning = checkpoint.load_newest(path)
    if warning:
        print(warning)
    assign(path, state, variables)
    return state


def assign(path: Path, state: Checkpoint, variables: Mapping[str, tf.Variable]) -> None:
    """Assigns the tensors of a state to the variables of the same names.

    Of the state's groups ("policy", "adam" ..), those that the variables have none of
    are left out.

    Raises:
        CheckpointError: one is missing, unknown, or has another shape.
    """
    groups = {name.split("/")[0] for name in variables}
    tensors = {n: t for n, t in state.tensors.items() if n.split("/")[0] in groups}
    checkpoint.check_tensors(
        path,
        Checkpoint(tensors, state.metadata),
        {name: tuple(v.shape) for name, v in variables.items()},
    )
    for name, variable in variables.items():
        variable.assign(tensors[name])
