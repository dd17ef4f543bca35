"""Event files: what TensorBoard's own reader finds in them."""

import os
import re

import pytest
from support import PROJECT, make_config, make_run, read_events

from steve.running.events import WRITTEN_ANEW, EventFile, ScoreEvents
from steve.settings.roles import VALUERL, WORLDMODEL
from steve.valuerl_learner import METRIC_NAMES
from steve.worldmodel import WorldModel

OUTPUTS = PROJECT / "docs" / "outputs.md"
HEADER = "hours,epochs,frames,score\n"


@pytest.fixture
def said():
    return []


def test_events_appear_with_the_first_one_and_are_readable_at_once(tmp_path, said):
    file = EventFile(tmp_path / "a", 1, said.append)
    assert not (tmp_path / "a").exists()
    file.write(500, {"x/loss": 0.1, "x/rate": 3.0})
    file.write(1000, {"x/loss": -2.5e-9, "x/rate": 1e39})  # no float32
    assert read_events(tmp_path / "a") == {
        "x/loss": [(500, pytest.approx(0.1)), (1000, pytest.approx(-2.5e-9))],
        "x/rate": [(500, 3.0), (1000, float("inf"))],
    }
    assert said == []


def test_a_later_file_takes_the_place_of_what_came_from_its_first_step_on(
    tmp_path, said
):
    for step in (10, 20, 30, 40):
        EventFile(tmp_path, 1 if step == 10 else step, said.append).write(
            step, {"t": step}
        )
    assert read_events(tmp_path)["t"] == [(10, 10), (20, 20), (30, 30), (40, 40)]
    EventFile(tmp_path, 21, said.append).write(35, {"t": 7})
    assert read_events(tmp_path)["t"] == [(10, 10), (20, 20), (35, 7)]


def test_a_torn_event_costs_only_itself(tmp_path, said):
    file = EventFile(tmp_path, 1, said.append)
    file.write(1, {"t": 1})
    file.write(2, {"t": 2})
    (path,) = tmp_path.iterdir()
    os.truncate(path, path.stat().st_size - 3)
    EventFile(tmp_path, 2, said.append).write(3, {"t": 3})
    assert read_events(tmp_path)["t"] == [(1, 1), (3, 3)]


def test_a_full_disk_ends_the_events_with_one_line_and_no_error(
    tmp_path, said, monkeypatch
):
    file = EventFile(tmp_path, 1, said.append)
    file.write(1, {"t": 1})
    monkeypatch.setattr(file, "_file", open("/dev/full", "wb"))  # noqa: SIM115
    for step in (2, 3):
        file.write(step, {"t": step})
    (line,) = said
    assert line.startswith(f"{tmp_path}: No space left on device; TensorBoard gets")
    assert read_events(tmp_path)["t"] == [(1, 1)]


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


# ---- scores -------------------------------------------------------------------------


class Scored:
    """A run whose csv a test writes; the events are those of TensorBoard's reader."""

    def __init__(self, tmp_path, **keys):
        self.run = make_run(make_config(tmp_path, **keys))
        self.said = []
        self.add(HEADER)

    def add(self, text):
        with open(self.run.folders.scores, "a") as file:
            file.write(text)

    def launch(self):
        return ScoreEvents(self.run, self.said.append)

    @property
    def points(self):
        found = read_events(self.run.folders.events("evaluation"))
        return found.get("evaluation/score", [])


def test_a_policys_score_is_the_mean_once_a_newer_policy_has_one(tmp_path):
    run = Scored(tmp_path)
    scores = run.launch()
    run.add("0.1,1,100,10.0\n0.1,1,100,20.0\n")
    scores.refresh()
    assert not run.run.folders.events("evaluation").exists()
    run.add("0.1,2,200,5.0\n0.1,3,300,6.5")  # the last one has no end of line yet
    scores.refresh()
    assert run.points == [(100, 15.0)]
    run.add("\n")
    scores.refresh()
    assert run.points == [(100, 15.0), (200, 5.0)]
    scores.close()
    assert run.points == [(100, 15.0), (200, 5.0), (300, 6.5)]


def test_scores_that_come_late_count_for_the_next_point(tmp_path):
    run = Scored(tmp_path)
    scores = run.launch()
    run.add("0.1,1,100,1.0\n0.1,2,200,2.0\n0.1,1,100,4.0\n0.1,3,300,8.0\n")
    scores.close()
    assert run.points == [(100, 1.0), (200, 3.0), (300, 8.0)]


def test_a_resume_completes_the_last_point_and_doubles_none(tmp_path):
    run = Scored(tmp_path)
    first = run.launch()
    run.add("0.1,1,100,1.0\n0.1,2,200,2.0\n")
    first.close()
    second = run.launch()
    run.add("0.1,2,200,4.0\n0.1,3,300,6.0\n")
    second.close()
    third = run.launch()  # without a new score
    third.close()
    assert run.points == [(100, 1.0), (200, 3.0), (300, 6.0)]


def test_a_resume_adds_what_a_killed_launcher_had_no_time_to_write(tmp_path):
    run = Scored(tmp_path)
    first = run.launch()
    run.add("0.1,1,100,1.0\n0.1,2,200,2.0\n")
    first.refresh()
    run.add("0.1,3,300,3.0\n0.1,4,400,4.0\n")  # then it is killed
    assert run.points == [(100, 1.0)]
    run.launch().close()
    assert run.points == [(100, 1.0), (200, 2.0), (300, 3.0), (400, 4.0)]


def test_a_long_run_is_not_written_anew_at_each_resume(tmp_path):
    run = Scored(tmp_path)
    first = run.launch()
    rows = [f"0.1,{i},{100 * i},{i}.0\n" for i in range(1, 101)]
    run.add("".join(rows))
    first.close()
    run.launch().close()
    assert run.points == [(100 * i, float(i)) for i in range(1, 101)]
    newest = max(run.run.folders.events("evaluation").iterdir())
    again = tmp_path / "again"
    again.mkdir()
    newest.rename(again / newest.name)
    assert len(read_events(again)["evaluation/score"]) == WRITTEN_ANEW + 1


def test_where_no_events_are_wanted_there_are_no_scores_either(tmp_path):
    run = Scored(tmp_path, tensorboard=False)
    scores = run.launch()
    run.add("0.1,1,100,1.0\n0.1,2,200,2.0\n")
    scores.close()
    assert not (run.run.folders.log / "events").exists()
