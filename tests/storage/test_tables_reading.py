"""Tables: scores that are read while the csv grows, and the end of a long csv."""

import pytest
from support import make_config, make_run

from steve.storage import tables
from steve.storage.scores import Scores

HEADER = "hours,epochs,frames,score\n"


# The scores' follower


@pytest.fixture
def scores(tmp_path):
    run = make_run(make_config(tmp_path))
    return run.folders.scores, Scores(run.folders.scores)


def append(path, text):
    with open(path, "a") as file:
        file.write(text)


def test_where_there_is_no_csv_there_are_no_scores(scores):
    _, follower = scores
    follower.refresh()
    assert list(follower.rows) == []


def test_rows_are_read_as_the_csv_grows(scores):
    path, follower = scores
    append(path, HEADER)
    follower.refresh()
    assert list(follower.rows) == []
    append(path, "0.1,1,100,-5.25\n")
    follower.refresh()
    assert list(follower.rows) == [(1, -5.25)]
    follower.refresh()
    assert list(follower.rows) == [(1, -5.25)]
    append(path, "0.2,2,200,1e3\n0.3,3,300,7.0\n")
    follower.refresh()
    assert list(follower.rows) == [(1, -5.25), (2, 1000.0), (3, 7.0)]


def test_a_line_counts_when_it_is_whole_wherever_it_was_torn(scores):
    path, follower = scores
    text = HEADER + "0.1,1,100,-5.25\n0.2,12,200,13.5\n"
    whole = {text.index("5.25\n") + 4: (1, -5.25), text.index("13.5\n") + 4: (12, 13.5)}
    expected = []
    for position, letter in enumerate(text):
        append(path, letter)
        follower.refresh()
        expected += [whole[position]] if position in whole else []
        assert list(follower.rows) == expected
    assert len(expected) == 2


def test_a_torn_line_that_is_cut_and_replaced_leaves_no_trace(scores):
    path, follower = scores
    append(path, HEADER + "0.1,3,300,-12.123456789")
    follower.refresh()
    path.write_text(HEADER)  # as the next evaluator does
    follower.refresh()
    for epoch in (3, 4):
        append(path, f"0.1,{epoch},300,2.5\n")
        follower.refresh()
    assert list(follower.rows) == [(3, 2.5), (4, 2.5)]


def test_a_follower_that_starts_late_reads_what_is_there(tmp_path):
    run = make_run(make_config(tmp_path))
    append(run.folders.scores, HEADER + "0.1,1,100,3.0\n")
    follower = Scores(run.folders.scores)
    follower.refresh()
    assert list(follower.rows) == [(1, 3.0)]


# The end of a csv


def test_only_the_end_of_a_long_csv_is_read(tmp_path):
    path = tmp_path / "long.csv"
    rows = [f"{n},{'1' * 20}" for n in range(5000)]
    path.write_text("\n".join(["n,text", *rows, "5000,1"]))  # the last one is torn
    found = tables.last_rows(path)
    assert 0 < len(found) < 1000
    assert [row["n"] for row in found] == list(range(5000 - len(found), 5000))
    assert tables.last_rows(tmp_path / "none.csv") == []
