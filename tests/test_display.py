"""What the terminal shows: the line, the table, the scores, and when."""

import io
import re

import numpy as np
import pytest
import support_env
from rich.console import Console
from support import make_config, make_run

from steve.replay import Batch, ReplayBuffer
from steve.running import display
from steve.running.display import Display, closing_lines, plain_line, render
from steve.running.progress import Progress
from steve.settings.roles import LAUNCHER, VALUERL, WORLDMODEL
from steve.storage.board import FINAL_EPISODES, Board
from steve.storage.tables import Scores
from steve.util import clock

HEADER = "hours,epochs,frames,score\n"


AT_ONCE = {"frames_before_learning": 0}


class Clock:
    """Monotonic seconds that pass when a test says so."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(display.time, "monotonic", lambda: self.now)


@pytest.fixture
def seconds(monkeypatch):
    return Clock(monkeypatch)


class Shown:
    """A run whose files a test fills, and the progress that is read from them."""

    def __init__(self, tmp_path, model, **keys):
        self.run = make_run(make_config(tmp_path, model, **keys))
        self.board = Board.create(self.run.folders.board, self.run.config)
        self._replay = ReplayBuffer.create(
            self.run.folders.replay, support_env.OBS_DIM, 1, 10_000_000
        )
        self.progress = Progress(self.run, self.board, self._replay)

    def add_frames(self, count):
        obs = np.zeros((count, support_env.OBS_DIM))
        zeros = np.zeros(count)
        self._replay.append(Batch(obs, zeros[:, None], zeros, obs, zeros))

    def fill(self, learner, metrics, **fields):
        row = self.board[learner]
        for field, value in fields.items():
            row[field] = value
        row["metrics"][: len(metrics)] = metrics

    def add_scores(self, text):
        with open(self.run.folders.scores, "a") as file:
            file.write(text)

    def line(self):
        line = plain_line(self.progress)
        assert "\n" not in line
        return line

    def table(self, width, title="experiment"):
        console = Console(
            record=True, width=width, force_terminal=True, file=io.StringIO()
        )
        console.print(render(self.progress, title))
        text = console.export_text()
        assert max(len(line) for line in text.splitlines()) <= width
        return text


def words(text):
    """The text, however its lines are broken."""
    return " ".join(text.split())


def busy(tmp_path, **keys):
    """A long run of STEVE, in full swing; its numbers are wide."""
    expansion = {"rollout_len": 3, "steve_reweight": True}
    keys["policy_config"] = {"value_expansion": expansion}
    shown = Shown(tmp_path, model=True, **keys)
    shown.add_frames(12_000)
    shown.fill(
        VALUERL,
        [123.456, -7654.321, 9, 0.4567],
        updates=4_000_123,
        epoch=8001,
        hours=12.0,
        updates_per_s=123.45,
    )
    shown.fill(
        WORLDMODEL,
        [9, 0.01234, 1.234e-05, 67.89],
        updates=3_999_876,
        pretrained=10_000,
        epoch=8000,
        updates_per_s=98.76,
    )
    return shown


# The clock


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (None, "-"),
        (0, "0:00:00"),
        (59.9, "0:00:59"),
        (60, "0:01:00"),
        (3599, "0:59:59"),
        (3600, "1:00:00"),
        (3661.5, "1:01:01"),
        (100 * 3600 + 62, "100:01:02"),
    ],
)
def test_clock(given, text):
    assert clock(given) == text


# The scores' follower


@pytest.fixture
def scores(tmp_path):
    run = make_run(make_config(tmp_path))
    return run.folders.scores, Scores(run)


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


def test_only_the_last_scores_are_kept(scores):
    path, follower = scores
    rows = "".join(f"0.1,{epoch},100,{epoch / 2}\n" for epoch in range(1, 31))
    append(path, HEADER + rows)
    follower.refresh()
    assert list(follower.rows) == [(e, e / 2) for e in range(21, 31)]


def test_a_follower_that_starts_late_reads_what_is_there(tmp_path):
    run = make_run(make_config(tmp_path))
    append(run.folders.scores, HEADER + "0.1,1,100,3.0\n")
    follower = Scores(run)
    follower.refresh()
    assert list(follower.rows) == [(1, 3.0)]


# Phases


def test_phases_of_a_run_with_a_model(tmp_path):
    first = {"frames_before_learning": 1000}
    shown = Shown(tmp_path, model=True, policy_config=first, model_config=first)
    assert shown.progress.phase == "collecting the first 1,000 frames"
    shown.add_frames(1000)
    assert shown.progress.phase == "collecting the first 1,000 frames"
    shown.add_frames(8)
    assert shown.progress.phase == "pretraining the world model"
    shown.board[WORLDMODEL]["epoch"] = 1
    assert shown.progress.phase == "preparing to learn"
    shown.board[VALUERL]["epoch"] = 1
    assert shown.progress.phase == "learning"
    shown.board[LAUNCHER]["phase"] = FINAL_EPISODES
    assert shown.progress.phase == "final evaluation"


def test_phases_of_a_run_without_a_model(tmp_path):
    shown = Shown(tmp_path, model=False, policy_config={"frames_before_learning": 1000})
    assert shown.progress.phase == "collecting the first 1,000 frames"
    shown.add_frames(1008)
    shown.board[VALUERL]["epoch"] = 1
    assert shown.progress.phase == "learning"


# Time left


def test_without_a_limit_no_time_is_left_to_tell(tmp_path, seconds):
    shown = Shown(tmp_path, model=False)
    assert shown.progress.seconds_left() is None
    seconds.now += 10
    shown.add_frames(100)
    assert shown.progress.seconds_left() is None


def test_time_left_follows_the_speed_of_the_frames(tmp_path, seconds):
    shown = Shown(tmp_path, model=False, policy_config=AT_ONCE, total_frames=1000)
    assert shown.progress.seconds_left() is None  # nothing moves yet
    seconds.now += 10
    shown.add_frames(100)
    assert shown.progress.seconds_left() == pytest.approx(90)  # 900 at 10 a second
    seconds.now += 10
    shown.add_frames(900)
    assert shown.progress.seconds_left() == 0


def test_time_left_forgets_the_speed_of_long_ago(tmp_path, seconds):
    shown = Shown(tmp_path, model=False, policy_config=AT_ONCE, total_frames=10_000)
    for _ in range(20):
        shown.progress.seconds_left()
        seconds.now += 10
        shown.add_frames(10)
    for _ in range(10):
        shown.progress.seconds_left()
        seconds.now += 10
        shown.add_frames(100)
    # 10,000 - 1,200 frames at 10 a second
    assert shown.progress.seconds_left() == pytest.approx(880)


def test_time_left_until_the_hours_are_over(tmp_path, seconds):
    shown = Shown(tmp_path, model=False, total_hours=2.0)
    shown.board[VALUERL]["hours"] = 0.5
    assert shown.progress.seconds_left() == pytest.approx(1.5 * 3600)
    shown.board[VALUERL]["hours"] = 2.5
    assert shown.progress.seconds_left() == 0


def test_the_nearer_of_two_limits_counts(tmp_path, seconds):
    shown = Shown(
        tmp_path, model=False, total_hours=1.0, policy_config=AT_ONCE, total_frames=1000
    )
    shown.progress.seconds_left()
    seconds.now += 10
    shown.add_frames(100)
    assert shown.progress.seconds_left() == pytest.approx(90)
    shown.board[VALUERL]["hours"] = 1 - 30 / 3600
    assert shown.progress.seconds_left() == pytest.approx(30)


# Random actions' score


@pytest.mark.parametrize("evaluators", [0, 1, 2])
def test_there_is_no_random_score_before_it_was_measured(tmp_path, evaluators):
    shown = Shown(tmp_path, model=False, evaluator_config={"count": evaluators})
    assert shown.progress.random_score() is None


def test_the_random_score_is_the_mean_of_all_evaluators_that_measured_it(tmp_path):
    shown = Shown(tmp_path, model=False)
    shown.board["evaluator1"]["random_score"] = -7.5
    assert shown.progress.random_score() == -7.5
    shown.board["evaluator0"]["random_score"] = -12.5
    assert shown.progress.random_score() == -10


# The line


def test_line_of_a_run_that_has_just_begun(tmp_path, seconds):
    shown = Shown(tmp_path, model=False)
    seconds.now += 61
    line = shown.line()
    assert line.startswith("0:01:01 | collecting the first 10,000 frames | frames 0 | ")
    assert line.endswith(" | valuerl 0 updates")  # no loss is known yet
    for absent in ("worldmodel", "scores", "left", " of ", "nan"):
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
        "steve0: DDPG on Counting-v0 phase collecting the first 10,000 frames frames 0 "
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
    shown = busy(tmp_path, total_frames=24_000)
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
    ]


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


# Transitions lost to failing environments


def test_lost_transitions_are_shown_only_where_there_are_some(tmp_path):
    shown = Shown(tmp_path, model=False)
    assert "lost" not in plain_line(shown.progress)
    shown.board["interactor0"]["dropped"] = 2
    shown.board["evaluator1"]["dropped"] = 1
    assert "lost 3 transitions" in plain_line(shown.progress)
