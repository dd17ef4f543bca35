"""Event files: what TensorBoard's own reader finds in them."""

import os
import re
from types import SimpleNamespace

import pytest
from support import PROJECT, make_config, make_run, read_events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from steve.loggers import experiment_of
from steve.loggers.tensorboard import HPARAMS_TAG, RunEvents, TensorBoard
from steve.settings.roles import VALUERL, WORLDMODEL
from steve.storage.rewind import put_aside
from steve.storage.tables import append_row
from steve.valuerl_learner import METRIC_NAMES
from steve.worldmodel import WorldModel

OUTPUTS = PROJECT / "docs" / "outputs.md"
HEADER = "hours,epochs,frames,score\n"


@pytest.fixture
def said():
    return []


class Logged:
    """A run whose csv files a test writes; the events are those of TensorBoard's
    reader, which has read the folder since the beginning."""

    def __init__(self, tmp_path, **keys):
        self.run = make_run(make_config(tmp_path, model=True, **keys))
        self.folder = self.run.folders.root
        self.said = []
        self.reader = EventAccumulator(str(self.folder), size_guidance={"scalars": 0})
        self.add_scores(HEADER)

    def add_scores(self, text):
        with open(self.run.folders.scores, "a") as file:
            file.write(text)

    def log(self, updates, loss):
        log = self.run.folders.learner_log(VALUERL)
        append_row(log, {"updates": updates, "loss": loss})

    def launch(self):
        return RunEvents(self.run, self.said.append)

    def files(self):
        return sorted(path.name for path in self.folder.glob("*tfevents*"))


def scores(events):
    return events.get("evaluation/score", [])


def test_one_folder_has_everything_and_is_named_as_the_experiment(tmp_path):
    run = Logged(tmp_path)
    events = run.launch()
    events.refresh()
    assert run.files() == []  # it appears with its first point
    run.log(500, 0.25)
    run.add_scores("0.1,1,100,1.0\n0.1,1,100,2.0\n")
    events.refresh()
    events.close()
    expected = {"valuerl/loss": [(500, 0.25)], "evaluation/score": [(100, 1.5)]}
    assert read_events(run.folder) == expected
    (file,) = tmp_path.rglob("*tfevents*")
    assert str(file.parent.relative_to(tmp_path)) == "Counting-v0/experiment"
    assert run.said == []


def test_a_resume_writes_the_whole_run_into_one_new_file(tmp_path):
    run = Logged(tmp_path)
    first = run.launch()
    run.log(500, 1.0)
    run.add_scores("0.1,1,100,1.0\n0.1,2,200,2.0\n")
    first.close()
    before = run.files()
    run.reader.Reload()
    second = run.launch()
    run.log(1000, 2.0)
    run.add_scores("0.1,2,200,4.0\n0.1,3,300,6.0\n")
    second.close()
    run.launch().close()  # without a new line
    (after,) = run.files()
    assert after not in before
    points = [(100, 1.0), (200, 3.0), (300, 6.0)]
    assert scores(read_events(run.folder)) == points
    assert read_events(run.folder)["valuerl/loss"] == [(500, 1.0), (1000, 2.0)]
    run.reader.Reload()  # which knows the first file too
    assert [(e.step, e.value) for e in run.reader.Scalars("evaluation/score")] == points


@pytest.mark.parametrize("times", [(2e9, 1e9), (2e9, 1e9, 1e9), (7.5, 2e9), (2e9, 7.5)])
def test_a_reader_goes_on_whatever_the_clock_does(tmp_path, monkeypatch, times):
    """TensorBoard reads the files of a folder in the order of their names."""
    run = Logged(tmp_path)
    for number, now in enumerate(times, start=1):
        clock = SimpleNamespace(time=lambda now=now: now)
        monkeypatch.setattr("steve.loggers.tensorboard.time", clock)
        run.log(500 * number, float(number))
        run.launch().close()
        run.reader.Reload()
        points = [(500 * n, float(n)) for n in range(1, number + 1)]
        found = run.reader.Scalars("valuerl/loss")
        assert [(e.step, e.value) for e in found] == points
        assert len(run.files()) == 1


def test_a_file_that_cannot_be_removed_doubles_no_point(tmp_path, monkeypatch):
    run = Logged(tmp_path)
    run.log(500, 1.0)

    def refuse(path):
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    run.launch().close()
    run.log(1000, 2.0)
    run.launch().close()
    assert len(run.files()) == 2
    assert read_events(run.folder)["valuerl/loss"] == [(500, 1.0), (1000, 2.0)]


def test_a_torn_event_costs_only_itself(tmp_path, said):
    logger = TensorBoard(experiment_of(Logged(tmp_path).run, ""), said.append)
    logger.log("x", 1, {"loss": 0.5})
    logger.log("x", 2, {"loss": 0.25})
    (path,) = tmp_path.rglob("*tfevents*")
    os.truncate(path, path.stat().st_size - 3)
    assert read_events(path.parent) == {"x/loss": [(1, 0.5)]}


def test_the_configuration_is_in_the_table_of_hyperparameters(tmp_path):
    run = Logged(tmp_path, policy_config={"learning_rate": 0.125}, seed=7)
    run.log(500, 1.0)
    run.launch().close()
    run.reader.Reload()
    content = run.reader.summary_metadata[HPARAMS_TAG].plugin_data
    assert content.plugin_name == "hparams"
    start = HParamsPluginData.FromString(content.content).session_start_info
    table = start.hparams
    assert table["algorithm"].string_value == run.run.config.algorithm
    assert table["policy_config.learning_rate"].number_value == 0.125
    assert table["seed"].number_value == 7
    assert table["env.rescale_actions"].HasField("bool_value")
    assert start.group_name == "Counting-v0/experiment"


def test_tensorboard_passes_over_what_is_put_aside_and_what_earlier_versions_wrote(
    tmp_path,
):
    run = Logged(tmp_path)
    old = run.run.folders.log / "events" / "valuerl"
    old.mkdir(parents=True)
    (old / "events.out.tfevents.1.host").write_text("as it was")
    run.log(500, 1.0)
    run.launch().close()
    assert len(list(tmp_path.rglob("*tfevents*"))) == 1
    (kept,) = old.iterdir()
    assert kept.read_text() == "as it was"
    put_aside(run.run.folders)
    assert list(tmp_path.rglob("*tfevents*")) == []


def test_a_fault_ends_the_events_with_one_line_and_no_error(tmp_path, monkeypatch):
    run = Logged(tmp_path)
    events = run.launch()
    run.log(500, 1.0)
    events.refresh()
    full = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    monkeypatch.setattr(events._logger, "_file", full)
    for updates in (1000, 1500):
        run.log(updates, 1.0)
        events.refresh()
    events.close()
    (line,) = run.said
    assert line.startswith(f"{run.folder}: No space left on device; TensorBoard gets")
    assert read_events(run.folder)["valuerl/loss"] == [(500, 1.0)]


def test_where_no_events_are_wanted_there_are_none(tmp_path):
    run = Logged(tmp_path, tensorboard=False)
    run.log(500, 1.0)
    run.launch().close()
    assert run.files() == []


def test_the_page_of_outputs_explains_each_tag():
    section = OUTPUTS.read_text().partition("## TensorBoard")[2].partition("\n## ")[0]
    table = section.partition("| tag |")[2]
    explained = set(re.findall(r"`([a-z_]+/[a-z0-9_]+)`", table))
    tags = {"evaluation/score", "valuerl/models"}
    logged = {VALUERL: METRIC_NAMES, WORLDMODEL: WorldModel.metric_names}
    for learner, names in logged.items():
        common = ("hours", "epoch", "frames", "updates_per_s")
        tags |= {f"{learner}/{name}" for name in (*names, *common)}
    assert explained == tags
