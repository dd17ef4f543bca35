"""What the terminal shows: the line, the table, the scores, and when."""

import errno
import io
import re

import pytest
from rich.console import Console
from support_shown import HEADER, Shown, busy

from steve.running.display import (
    Course,
    Display,
    blocks,
    closing_lines,
    plain_line,
    render,
)
from steve.settings.roles import LAUNCHER, VALUERL, WORLDMODEL
from steve.storage.board import FINAL_EPISODES
from steve.storage.tables import append_row


def words(text):
    """The text, however its lines are broken."""
    return " ".join(text.split())


# The line


def test_line_of_a_run_that_has_just_begun(tmp_path, seconds):
    shown = Shown(tmp_path, model=False)
    seconds.now += 61
    line = shown.line()
    assert line.startswith(
        "0:01:01 | collecting the first frames, 0 of 10,000 frames | frames 0 | "
    )
    assert line.endswith(" | valuerl 0 updates")  # no loss is known yet
    for absent in ("worldmodel", "scores", "left", "frames 0 of", "nan"):
        assert absent not in line


def test_line_of_a_run_without_a_model(tmp_path):
    shown = Shown(tmp_path, model=False, total_frames=20_000)
    shown.add_frames(12_000)
    metrics = [1.23456, -3.5, 9, 0]
    shown.fill(VALUERL, metrics, updates=7500, epoch=16, updates_per_s=41.26)
    line = shown.line()
    assert " | learning | frames 12,000 of 20,000 | " in line
    assert "valuerl 7,500 updates (41.3/s) q_loss 1.235 policy_loss -3.5" in line
    assert "worldmodel" not in line


def test_line_of_a_run_with_a_model(tmp_path):
    line = busy(tmp_path).line()
    assert "valuerl 4,000,123 updates (123.5/s) q_loss 123.5 policy_loss -7654 " in line
    assert "model_usage 0.4567" in line
    assert "worldmodel 3,999,876 updates (98.8/s) transition_loss 0.01234" in line
    assert "termination_loss 1.234e-05 reward_loss 67.89" in line


def test_line_while_the_model_is_pretrained(tmp_path):
    shown = Shown(tmp_path, model=True)
    shown.add_frames(10_008)
    shown.fill(WORLDMODEL, [], pretrained=2500, updates_per_s=80)
    line = shown.line()
    assert "pretraining the world model" in line
    assert "worldmodel pretraining 2,500 updates (80.0/s)" in line


def test_line_of_a_resumed_run_has_no_counters_before_they_are_restored(tmp_path):
    shown = Shown(tmp_path, model=False, launch=1)
    assert "loading what was learned" in shown.line()
    assert "updates" not in shown.line()
    shown.fill(VALUERL, [], epoch=11, ready=1, updates=5000)
    assert "valuerl 5,000 updates" in shown.line()


def test_line_with_scores_shows_the_last_four(tmp_path):
    shown = busy(tmp_path)
    rows = [f"0.1,{epoch},100,{10.0 * epoch}\n" for epoch in range(1, 7)]
    shown.add_scores(HEADER + rows[0])
    assert "last scores 10.0" in shown.line()
    shown.add_scores("".join(rows[1:]))
    assert "last scores 30.0 40.0 50.0 60.0" in shown.line()


def test_line_with_a_limit_tells_the_time_left(tmp_path):
    shown = busy(tmp_path, total_hours=13.5)
    assert shown.line().endswith(" | left 1:30:00")


# The table


@pytest.mark.parametrize("width", [80, 200])
def test_table_of_a_run_that_has_just_begun(tmp_path, width):
    shown = Shown(tmp_path, model=False)
    text = words(shown.table(width, "steve0"))
    assert text.startswith(
        "steve0: DDPG on Counting-v0 phase collecting the first frames, 0 of 10,000 "
        "frames frames 0 "
    )
    assert "time 0:00:00 elapsed (h:mm:ss)" in text
    assert "value learner updates 0 updates per second - epoch 0 q_loss - " in text
    assert "no score yet" in text
    for absent in ("left", "done", "world model", "pretraining", "model_usage"):
        assert absent not in text


@pytest.mark.parametrize("width", [80, 200])
def test_table_of_a_busy_run_is_cut_nowhere(tmp_path, width):
    shown = busy(tmp_path, total_frames=10_000_000, total_hours=13.5)
    rows = [f"1.5,{epoch},9000,{-1000.05 * epoch}\n" for epoch in range(1, 11)]
    shown.add_scores(HEADER + "".join(rows))
    table = shown.table(width, "speedrun-steve-with-a-long-name")
    assert "…" not in table
    text = words(table)
    for part in (
        "speedrun-steve-with-a-long-name",
        "learning",
        "frames 12,000 of 10,000,000",
        "time 0:00:00 elapsed, about 1:30:00 left (h:mm:ss)",
        "done 89% ",  # 12 of 13.5 hours
        "updates 4,000,123 updates 3,999,876",
        "updates per second 123.5 updates per second 98.8",
        "epoch 8,001 epoch 8,000",
        "q_loss 123.5 transition_loss 0.01234",
        "policy_loss -7654 termination_loss 1.234e-05",
        "model_usage 0.4567 reward_loss 67.89",
        "pretraining 10,000 of 10,000",
        "mean score -5500.3 of the last 10 episodes (sums of rewards, newest last):",
    ):
        assert part in text, part
    scores = " ".join(f"{-1000.05 * epoch:.1f}" for epoch in range(1, 11))
    assert text.endswith(f"newest last): {scores}")


@pytest.mark.parametrize("width", [80, 160])
def test_the_course_of_all_scores_fills_the_line(tmp_path, width):
    shown = Shown(tmp_path, model=False)
    rows = [f"0.1,{epoch},100,{epoch}.0\n" for epoch in range(1, 1001)]
    shown.add_scores(HEADER + "".join(rows[:10]))
    assert "▁" not in shown.table(width)  # those are listed
    shown.add_scores("".join(rows[10:]))
    (line,) = [line for line in shown.table(width).splitlines() if "▁" in line]
    assert line.startswith("all 1,000  ▁")
    assert line.endswith("█  1.0 to 1000.0")
    assert len(line) == width
    course = line.split()[2]
    assert list(course) == sorted(course)  # as the scores grow


def test_a_part_of_the_course_is_the_mean_of_its_scores():
    assert blocks([0, 4, 10, 14], 2) == "▂▇"  # 2 and 12 of 14
    assert blocks([3, 3, 3], 80) == "▁▁▁"
    assert blocks([-5, 2], 80) == "▁█"


def test_the_course_needs_room_and_characters(tmp_path):
    course = Course([float(score) for score in range(100)])
    for width, encoding in ((30, "utf-8"), (80, "ascii")):
        file = io.TextIOWrapper(io.BytesIO(), encoding)
        console = Console(width=width, file=file, force_terminal=True)
        console.print(course)
        file.flush()
        assert file.buffer.getvalue() == b""


def test_what_takes_time_before_learning_is_said_to_be_the_phases(tmp_path, seconds):
    shown = Shown(tmp_path, model=True, total_frames=20_000)
    shown.add_frames(10_008)
    shown.fill(WORLDMODEL, [], pretrained=500)
    shown.line()
    seconds.now += 10
    shown.fill(WORLDMODEL, [], pretrained=3000)
    assert shown.line().endswith(" | left 0:00:28 in this phase")
    text = words(shown.table(80))
    assert "phase pretraining the world model, 3,000 of 10,000 updates " in text
    assert "0:00:10 elapsed, about 0:00:28 left in this phase (h:mm:ss)" in text
    assert "done 3% " in text  # 3,000 of 90,000 updates


def test_the_tables_height_changes_with_the_scores_only(tmp_path):
    shown = Shown(tmp_path, model=True, total_frames=20_000)
    heights = [shown.table(80).count("\n")]
    shown.add_frames(12_000)
    shown.fill(WORLDMODEL, [1, 2, 3, 4], pretrained=10_000, updates=10**7, epoch=10**5)
    shown.fill(VALUERL, [1e9, -1e-9, 3, 4], updates=10**7, epoch=1, updates_per_s=1e4)
    heights.append(shown.table(80).count("\n"))
    shown.board[LAUNCHER]["phase"] = FINAL_EPISODES
    heights.append(shown.table(80).count("\n"))
    assert len(set(heights)) == 1


def test_in_the_final_evaluation_all_is_done_and_no_time_is_told(tmp_path, seconds):
    shown = busy(tmp_path, total_frames=12_000)
    shown.progress.seconds_left()
    seconds.now += 10
    shown.board[LAUNCHER]["phase"] = FINAL_EPISODES
    text = words(shown.table(80))
    assert "phase final evaluation" in text
    assert "done 100%" in text
    assert "left" not in text


@pytest.mark.parametrize("width", [80, 200])
def test_without_colour_the_bar_still_shows_what_is_done(tmp_path, width, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    shown = busy(tmp_path, total_hours=24.0)
    console = Console(width=width, force_terminal=True, file=io.StringIO())
    console.print(render(shown.progress, "experiment"))
    text = console.file.getvalue()
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|9[0-7]|38;)", text)
    assert text.count("━") == 24  # half of 48


# The last lines


def test_closing_lines_say_how_it_ended_and_what_came_out(tmp_path, seconds):
    shown = busy(tmp_path)
    seconds.now += 61
    assert closing_lines(shown.progress, finished=False) == [
        "",
        "stopped after 12,000 frames; this launch took 0:01:01",
    ]
    shown.add_scores(HEADER + "0.1,15,9000,99.0\n0.1,16,9000,-3.0\n")
    shown.board["evaluator0"]["random_score"] = 2.5
    shown.board[WORLDMODEL]["updates"] = 0
    assert closing_lines(shown.progress, finished=True) == [
        "",
        "finished after 12,000 frames; this launch took 0:01:01",
        "worldmodel did no update before the limit was reached",
        "score of the last 2 evaluation episodes: 48.0",
        "score of random actions: 2.5",
        f"all scores: {shown.run.folders.scores}",
    ]


def test_closing_lines_say_why_a_run_has_no_score(tmp_path):
    shown = busy(tmp_path)
    shown.board["evaluator0"]["dropped"] = 1200
    line = "no episode has a score: 1,200 transitions were lost to the environment"
    assert any(line in each for each in closing_lines(shown.progress, finished=True))
    shown.add_scores(HEADER + "0.1,15,9000,99.0\n")
    assert "no episode" not in str(closing_lines(shown.progress, finished=True))


@pytest.mark.parametrize("width", [80, 200])
def test_table_of_a_run_without_a_model(tmp_path, width):
    shown = Shown(tmp_path, model=False, total_frames=20_000)
    shown.add_frames(12_000)
    shown.fill(
        VALUERL, [1.23456, -3.5, 9, 0], updates=7500, epoch=16, updates_per_s=41.26
    )
    shown.add_scores(HEADER + "0.1,15,9000,99.96\n0.1,16,9000,-3.0\n")
    text = words(shown.table(width))
    assert "updates 7,500 updates per second 41.3 epoch 16 q_loss 1.235" in text
    assert "policy_loss -3.5 losses" in text
    assert "mean score 48.5 of the last 2 episodes " in text
    assert text.endswith("newest last): 100.0 -3.0")
    assert "world" not in text


@pytest.mark.parametrize("title", ["[bold]", "a[/red]", "[", "steve:smile:"])
def test_a_title_is_text_and_no_markup(tmp_path, title):
    assert Shown(tmp_path, model=False).table(80, title).startswith(title)


@pytest.mark.parametrize("name", ["error[velocity]", "mse[/]"])
def test_a_metrics_name_is_text_and_no_markup(tmp_path, name):
    shown = Shown(tmp_path, model=False)
    line = {"updates": 9, "updates_per_s": 1.0, name: 0.5}
    append_row(shown.run.folders.learner_log(VALUERL), line)
    assert f"{name} 0.5" in words(shown.table(100))


# When it is shown


def plain_console():
    return Console(file=io.StringIO(), width=80, force_terminal=False)


def test_a_log_file_gets_whole_lines_at_intervals_and_the_last_at_once(
    tmp_path, seconds
):
    shown = busy(tmp_path)
    console = plain_console()
    display_ = Display(console, "experiment")
    counts = []
    for _ in range(21):
        display_.show(shown.progress)
        counts.append(console.file.getvalue().count("\n"))
        seconds.now += 1
    # At 0, 10 and 20 seconds.
    assert counts == [1] * 10 + [2] * 10 + [3]
    display_.show(shown.progress, last=True)
    display_.close()
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 4
    for line in lines:  # longer than the console is wide, and not broken
        assert "reward_loss 67.89" in line


def test_notes_are_printed_as_they_are(tmp_path):
    console = plain_console()
    note = "results go to /a folder/[x]/" + "long/" * 40
    Display(console, "experiment").note(note)
    assert console.file.getvalue() == note + "\n"


def test_on_a_terminal_the_table_is_refreshed_in_place(tmp_path, seconds):
    shown = busy(tmp_path)
    console = Console(file=io.StringIO(), width=80, height=25, force_terminal=True)
    display_ = Display(console, "experiment")
    sizes = []
    for _ in range(11):
        display_.show(shown.progress)
        sizes.append(len(console.file.getvalue()))
        seconds.now += 0.1
    # Twice a second.
    assert sizes[0] == sizes[4] < sizes[5] == sizes[9] < sizes[10]
    display_.note("interactor0 died")
    shown.board[VALUERL]["updates"] = 5_000_000
    display_.show(shown.progress, last=True)
    display_.close()
    output = console.file.getvalue()
    assert "interactor0 died" in output
    assert "5,000,000" in output
    display_.close()  # once more is harmless


class Gone(io.StringIO):
    """A terminal, or a pipe, whose other end is closed."""

    def write(self, text):
        raise BrokenPipeError

    flush = write


@pytest.mark.parametrize("terminal", [False, True])
def test_a_display_that_nobody_reads_any_more_does_no_harm(tmp_path, seconds, terminal):
    shown = busy(tmp_path)
    display_ = Display(Console(file=Gone(), force_terminal=terminal), "experiment")
    for _ in range(3):
        display_.note("a note")
        display_.show(shown.progress)
        seconds.now += 20
    display_.show(shown.progress, last=True)
    display_.close()


class Full(io.StringIO):
    """A file on a disk that is full at first."""

    is_full = True

    def flush(self):
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("terminal", [False, True])
def test_after_a_full_disk_it_prints_again(terminal):
    file = Full()
    display_ = Display(Console(file=file, force_terminal=terminal), "experiment")
    display_.note("valuerl waits for space")
    file.is_full = False
    display_.note("valuerl has space again")
    display_.note("interactor0 is restarted")
    lines = file.getvalue().splitlines()
    assert lines[-2:] == ["valuerl has space again", "interactor0 is restarted"]
    assert terminal or lines.count("valuerl waits for space") == 1


def test_a_terminal_without_a_cursor_gets_plain_lines(tmp_path, seconds, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    shown = busy(tmp_path)
    console = Console(file=io.StringIO(), force_terminal=True)
    display_ = Display(console, "experiment")
    for _ in range(11):
        display_.show(shown.progress)
        seconds.now += 1
    # At 0 and 10 seconds.
    first, second = console.file.getvalue().splitlines()
    assert first.startswith("0:00:00 | learning | frames 12,000")
    assert second.startswith("0:00:10 | learning")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_path_in_a_note_is_text(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    Display(console, "experiment").note("results go to runs/:100:/[b]x")
    assert console.file.getvalue() == "results go to runs/:100:/[b]x\n"


# Transitions lost to failing environments


def test_lost_transitions_are_shown_only_where_there_are_some(tmp_path):
    shown = Shown(tmp_path, model=False)
    assert "lost" not in plain_line(shown.progress)
    shown.board["interactor0"]["dropped"] = 2
    shown.board["evaluator1"]["dropped"] = 1
    assert "lost 3 transitions" in plain_line(shown.progress)
