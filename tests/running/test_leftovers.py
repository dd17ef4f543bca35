"""What killed processes had started is known, and nothing else is touched."""

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from support import is_over, make_config, make_run, poll

from steve.running import launch, leftovers
from steve.storage.locks import held
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
        poll(lambda: leftovers.remaining(asked) == [], "the end of its own program")
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
    put_aside(run.folders)
    again = make_run(run.config)
    write_json(again.folders.run, {"starts": [{"ended": None}], "finished": 0})
    launch._end_leftovers(again)
    assert is_over(pid)


def test_a_run_that_was_put_aside_and_is_at_work_again_is_left_alone(run, started):
    pid = started("evaluator0")
    write_json(run.folders.run, {"starts": [{"ended": None}], "finished": 0})
    aside = put_aside(run.folders)
    again = make_run(run.config)
    write_json(again.folders.run, {"starts": [{"ended": None}], "finished": 0})
    with held(replace(again.folders, root=aside)):
        launch._end_leftovers(again)
    assert not is_over(pid)


def test_all_that_was_put_aside_is_looked_at(run, started):
    """The last that was put aside has the first name that was free."""
    write_json(run.folders.run, {"starts": [{"ended": None}], "finished": 0})
    pid = started("interactor7")  # this launch has fewer
    first = put_aside(run.folders)
    other = make_run(run.config)
    write_json(other.folders.run, {"starts": [], "finished": 0})
    put_aside(other.folders)
    again = make_run(run.config)
    write_json(again.folders.run, {"starts": [{"ended": None}], "finished": 0})
    launch._end_leftovers(again)
    assert first.name.endswith("old1")
    assert is_over(pid)


def test_a_program_may_be_called_anything(run):
    variables = {**os.environ, **leftovers.mark(run.folders.root, "interactor0")}
    # The kernel keeps 15 bytes of it, which end within a letter.
    called = run.folders.root / "\u0441\u0438\u043c\u0443\u043b\u044f\u0442\u043e\u0440"
    called.symlink_to("/bin/sleep")
    program = subprocess.Popen([called, "98765"], env=variables)
    try:
        poll(lambda: not Path(f"/proc/{program.pid}/comm").read_bytes().isascii(), "it")
        (asked,) = leftovers.end(leftovers.mark(run.folders.root, "interactor0"))
        assert asked.pid == program.pid
        assert program.wait(30) == -signal.SIGTERM
    finally:
        program.kill()
        program.wait()


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
