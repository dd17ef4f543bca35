"""What killed processes had started is known, and nothing else is touched."""

import os
import signal
import subprocess

import pytest
from support import is_over, make_config, make_run, poll

from steve.running import launch, leftovers
from steve.storage.folders import last_aside
from steve.storage.record import write_json
from steve.storage.rewind import put_aside


@pytest.fixture
def run(tmp_path):
    return make_run(make_config(tmp_path))


@pytest.fixture
def started(run):
    """Starts a program as a process of the run would have; returns its id."""
    programs = []

    def start(name):
        variables = {**os.environ, **leftovers.mark(run.folders.root, name)}
        # The shell is gone at once, as the process that was killed is.
        command = ["sh", "-c", "sleep 98765 > /dev/null & echo $!"]
        pid = int(subprocess.check_output(command, env=variables))
        programs.append(pid)
        return pid

    yield start
    for pid in programs:
        if not is_over(pid):
            os.kill(pid, 9)


def test_only_what_that_process_had_started_ends(run, started):
    first, other = started("interactor1"), started("interactor11")
    leftovers.end(leftovers.mark(run.folders.root, "interactor1"))
    poll(lambda: is_over(first), "its end")
    assert not is_over(other)


def test_it_is_known_by_the_runs_folder_whatever_that_is_called(run, started):
    pid = started("interactor0")
    root = run.folders.root
    moved = root.rename(root.with_name("moved"))
    leftovers.end(leftovers.mark(moved, "interactor0"))
    poll(lambda: is_over(pid), "its end")


def test_what_does_not_end_when_asked_is_killed(run):
    variables = {**os.environ, **leftovers.mark(run.folders.root, "interactor0")}
    command = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"]
    program = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE)
    try:
        assert program.stdout.readline() == b"ready\n"
        asked = leftovers.end(leftovers.mark(run.folders.root, "interactor0"))
        assert program.pid in [process.pid for process in asked]
        assert leftovers.remaining(asked) != []
        leftovers.finish(asked, patience=0.3)
        assert program.wait(30) == -signal.SIGKILL
        assert leftovers.remaining(asked) == []
    finally:
        program.kill()
        program.wait()
        program.stdout.close()


def test_a_process_that_got_the_number_of_another_is_left_alone(run, started):
    pid = started("interactor0")
    (there,) = leftovers.remaining([leftovers.Process(pid, leftovers._start_of(pid))])
    another = there._replace(start=there.start + 1)
    assert leftovers.remaining([another, there]) == [there]
    leftovers.kill([another])
    leftovers.kill([there])
    poll(lambda: is_over(pid), "its end")


def test_what_a_killed_launch_left_ends_also_where_its_folder_was_put_aside(
    run, started
):
    pid = started("evaluator0")
    write_json(run.folders.run, {"starts": [{"ended": None}], "finished": 0})
    aside = put_aside(run.folders)
    again = make_run(run.config)
    write_json(again.folders.run, {"starts": [{"ended": None}], "finished": 0})
    launch._end_leftovers(again)
    assert is_over(pid)
    assert last_aside(again.folders.root) == aside


@pytest.mark.parametrize(
    ("before", "ends"),
    [
        ([], False),
        ([{"ended": None}], True),
        ([{"ended": {"code": 0}}], False),
        ([{}], False),  # of an earlier version
    ],
)
def test_a_launch_ends_what_the_one_before_left_where_that_was_killed(
    run, started, before, ends
):
    pid = started("evaluator0")
    write_json(run.folders.run, {"starts": [*before, {"ended": None}], "finished": 0})
    launch._end_leftovers(run)
    if ends:
        poll(lambda: is_over(pid), "its end")
    assert is_over(pid) == ends
