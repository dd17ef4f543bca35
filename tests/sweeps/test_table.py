"""The table of runs: what fits into a terminal, and what a file gets."""

from dataclasses import replace
from pathlib import Path

import pytest

from steve.sweeps.record import PlannedRun
from steve.sweeps.status import FAILED, FINISHED, RUNNING, STOPPED, WAITING, State
from steve.sweeps.table import table

RUN = PlannedRun((), "Hopper-v1", "steve0", "log", "checkpoints", 100, None, None, 5)
PLAIN = State(RUN, STOPPED, 0, None, None, "", None)


def shown(*states, width=80):
    lines = table(states, width)
    assert width is None or all(len(line) <= width for line in lines)
    return lines


def test_a_run_is_one_line_and_the_last_one_counts_them():
    running = replace(PLAIN, state=RUNNING, frames=50, score=-1234.56, seconds_left=61)
    lines = shown(PLAIN, running, replace(PLAIN, state=FINISHED, frames=104))
    assert [line.split() for line in lines] == [
        ["run", "state", "frames", "done", "score", "left"],
        ["Hopper-v1/steve0", "stopped", "0", "0%", "-", "-"],
        ["Hopper-v1/steve0", "running", "50", "50%", "-1,234.6", "0:01:01"],
        ["Hopper-v1/steve0", "finished", "104", "100%", "-", "-"],
        ["3", "runs:", "1", "running,", "1", "finished,", "1", "stopped"],
    ]


def test_a_run_without_a_limit_of_frames_tells_no_share():
    endless = replace(PLAIN, run=replace(RUN, frames=None), frames=1_000_000)
    assert shown(endless)[1].split() == [
        *("Hopper-v1/steve0", "stopped", "1,000,000", "-", "-", "-")
    ]


@pytest.mark.parametrize("width", [80, 160])
def test_only_a_failed_run_has_a_second_line_and_says_why(width):
    why = "valuerl: q_loss is nan after 1000 updates"
    failed = replace(PLAIN, state=FAILED, why=why, log=Path("/output/sweeps/1/0.txt"))
    lines = shown(PLAIN, failed, PLAIN, width=width)
    assert lines[3] == f"    {why}; see /output/sweeps/1/0.txt"
    assert len(lines) == 6


def test_a_long_reason_is_broken_and_nothing_of_it_is_lost():
    why = " ".join(f"word{number}" for number in range(40))
    lines = shown(replace(PLAIN, state=FAILED, why=why))
    assert " ".join(" ".join(lines[2:-1]).split()) == why


def test_what_another_run_waits_for_is_next_to_its_state():
    waiting = replace(PLAIN, state=WAITING, why="Resources")
    (_, line, _) = shown(waiting)
    assert "  waiting (Resources)  " in line


def test_a_long_name_loses_its_beginning_on_a_terminal_only():
    named = replace(PLAIN, run=replace(RUN, experiment="x" * 100 + "_seed7"))
    assert shown(named)[1].startswith("...xxx")
    assert "xx_seed7  stopped" in shown(named)[1]
    assert shown(named, width=None)[1].startswith(f"Hopper-v1/{'x' * 100}_seed7  ")
