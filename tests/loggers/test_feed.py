"""The feed: each row of the csv files becomes one point, whatever happens to them."""

import pytest
from support import make_config, make_run

from steve.loggers.feed import Feed, Point
from steve.storage.tables import append_row, trim_log

HEADER = "hours,epochs,frames,score\n"


@pytest.fixture
def run(tmp_path):
    return make_run(make_config(tmp_path, model=True))


def log(run, learner, updates, loss, **counters):
    row = {"hours": 0.5, "updates": updates, **counters, "loss": loss}
    append_row(run.folders.learner_log(learner), row)


def add_scores(run, text):
    with open(run.folders.scores, "a") as file:
        file.write(text)


def scores_of(run):
    """A feed, and what it gives of the scores each time."""
    add_scores(run, HEADER)
    feed = Feed(run)
    return lambda last=False: [(p.step, p.values["score"]) for p in feed(last)]


def test_a_line_is_a_point_of_its_learner_at_its_updates(run):
    feed = Feed(run)
    assert feed() == []
    log(run, "valuerl", 500, 0.25)
    log(run, "worldmodel", 0, 8.0, pretrained=300)
    log(run, "worldmodel", 100, 4.0, pretrained=1000)
    assert feed() == [
        Point("valuerl", 500, {"hours": 0.5, "loss": 0.25}),
        Point("worldmodel", 300, {"hours": 0.5, "loss": 8.0}),
        Point("worldmodel", 1100, {"hours": 0.5, "loss": 4.0}),
    ]
    assert feed() == []
    with open(run.folders.learner_log("valuerl"), "a") as file:
        file.write("0.5,1000,0.125")  # no end of line yet
        file.flush()
        assert feed() == []
        file.write("\n0.5,damaged\n")
    assert [point.step for point in feed()] == [1000]


def test_what_a_killed_learner_logs_again_is_no_second_point(run):
    feed = Feed(run)
    for updates in (500, 1000, 1500):
        log(run, "valuerl", updates, 0.0)
    assert [point.step for point in feed()] == [500, 1000, 1500]
    trim_log(run.folders.learner_log("valuerl"), {"updates": 700})
    assert feed() == []
    for updates in (1000, 1500, 2000):
        log(run, "valuerl", updates, 0.0)
    assert [point.step for point in feed()] == [2000]


def test_what_has_been_delivered_is_left_out(run):
    for updates in (500, 1000):
        log(run, "valuerl", updates, 0.0)
    add_scores(run, f"{HEADER}0.1,1,100,1.0\n0.1,2,200,2.0\n0.1,3,300,3.0\n")
    first = Feed(run)
    first()
    assert first.delivered == {"valuerl": 1000, "evaluation": 200}
    assert Feed(run, first.delivered)() == []
    rest = Feed(run, {"valuerl": 500, "evaluation": 100})
    assert [(point.group, point.step) for point in rest(last=True)] == [
        ("valuerl", 1000),
        ("evaluation", 200),
        ("evaluation", 300),
    ]


def test_a_policys_score_is_the_mean_once_a_newer_policy_has_one(run):
    points = scores_of(run)
    add_scores(run, "0.1,1,100,10.0\n0.1,1,100,20.0\n")
    assert points() == []
    add_scores(run, "0.1,2,200,5.0\n0.1,3,300,6.5")  # the last has no end of line yet
    assert points() == [(100, 15.0)]
    add_scores(run, "\n")
    assert points() == [(200, 5.0)]
    assert points(last=True) == [(300, 6.5)]


def test_scores_that_come_late_count_for_the_next_point(run):
    points = scores_of(run)
    add_scores(run, "0.1,1,100,1.0\n0.1,2,200,2.0\n0.1,1,100,4.0\n0.1,3,300,8.0\n")
    assert points(last=True) == [(100, 1.0), (200, 3.0), (300, 8.0)]
