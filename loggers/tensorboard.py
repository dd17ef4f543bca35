"""TensorBoard: an event file in the experiment's folder; the csv stays the data.

Each launch writes the whole run again, from its csv files, and removes the file of the
launch before. Event files are for viewing only. If writing one fails, the failure is
reported once, and the run continues.
"""

import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,
    SessionStartInfo,
)
from tensorboard.summary.writer.record_writer import RecordWriter

from ..storage.folders import Run, hide_events
from . import Experiment, Hyperparameter, experiment_of
from .feed import Feed

PREFIX, ENDING = "events.out.tfevents", ".steve"  # of the file names
TIME = re.compile(rf"{PREFIX}\.(\d+\.\d+)\.")
# As TensorBoard's table of hyperparameters expects it.
HPARAMS_TAG, HPARAMS_PLUGIN = "_hparams_/session_start_info", "hparams"


class TensorBoard:
    """A logger that writes one event file; it appears with its first point.

    Args:
        experiment: a run of its own to TensorBoard, named by its folder.
        report: takes the line that says why there will be no further events.
    """

    def __init__(self, experiment: Experiment, report: Callable[[str], None]) -> None:
        self._experiment = experiment
        self._report = report
        self._file: BinaryIO | None = None
        self._failed = False

    def log(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Writes one point of each tag; what goes wrong is reported and no error."""
        if self._failed:
            return
        try:
            if self._file is None:
                self._open()
            # Not tensors, as tf.summary writes: EventAccumulator, which many scripts
            # read with, never drops those after a restart.
            points = [
                Summary.Value(tag=f"{group}/{name}", simple_value=value)
                for name, value in values.items()
            ]
            self._append(Event(step=step, summary=Summary(value=points)))
        except OSError as error:
            self._failed = True
            self._report(
                f"{self._experiment.folder}: {error.strerror}; TensorBoard gets "
                "nothing more of this launch"
            )

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def _open(self) -> None:
        folder = self._experiment.folder
        former = list(folder.glob(f"{PREFIX}.*{ENDING}"))
        hide_events(folder / "log" / "events")  # of earlier versions
        self._file = open(folder / _next_name(former), "xb", buffering=0)  # noqa: SIM115
        self._append(Event(file_version="brain.Event:2"))
        # A reader that has read the file before drops all that it has from there.
        self._append(Event(step=0, session_log=SessionLog(status=SessionLog.START)))
        self._append(Event(summary=_table(self._experiment)))
        for path in former:
            with suppress(OSError):
                path.unlink()

    def _append(self, event: Event) -> None:
        event.wall_time = time.time()
        assert self._file is not None  # `log` has opened it
        RecordWriter(self._file).write(event.SerializeToString())


def _next_name(former: Sequence[Path]) -> str:
    """The name of a launch's file, behind those of the launches before.

    A reader of the folder passes over files that come before the one that it has read,
    as with a clock that went back.
    """
    found = (TIME.match(path.name) for path in former)
    moments = [time.time(), *(float(each[1]) + 1 for each in found if each)]
    return f"{PREFIX}.{max(moments):017.6f}.{socket.gethostname()}{ENDING}"


def _table(experiment: Experiment) -> Summary:
    """The hyperparameters, for TensorBoard's table of them."""
    start = SessionStartInfo(group_name=experiment.name, start_time_secs=time.time())
    for key, value in experiment.hyperparameters.items():
        _set(start.hparams[key], value)
    content = HParamsPluginData(version=0, session_start_info=start)
    plugin = SummaryMetadata.PluginData(
        plugin_name=HPARAMS_PLUGIN, content=content.SerializeToString()
    )
    value = Summary.Value(tag=HPARAMS_TAG, metadata=SummaryMetadata(plugin_data=plugin))
    return Summary(value=[value])


def _set(field: Any, value: Hyperparameter) -> None:
    """Sets a protobuf Value, which has a field for each kind."""
    if isinstance(value, bool):
        field.bool_value = value
    elif isinstance(value, str):
        field.string_value = value
    else:
        field.number_value = value


class RunEvents:
    """A run's numbers for TensorBoard, followed by its launcher.

    Args:
        run: whose configuration says whether there are any.
        report: as above.
    """

    def __init__(self, run: Run, report: Callable[[str], None]) -> None:
        self._feed = Feed(run) if run.config.tensorboard else None
        self._logger = TensorBoard(experiment_of(run, ""), report)

    def refresh(self, last: bool = False) -> None:
        """Writes what is new.

        Args:
            last: no further score comes in this launch.
        """
        for point in self._feed(last) if self._feed else ():
            self._logger.log(*point)

    def close(self) -> None:
        """Writes the last policy's score too."""
        self.refresh(last=True)
        self._logger.close()
