"""The supervisor's counts, windows and timeouts.

Its clock and its processes are pretended: no test waits.
"""

import multiprocessing
import os
import re
import signal
import time

import pytest
from support import append_frames, open_run
from support_supervisor import FakeDisplay, child_of

from steve.running import supervisor as supervisor_module
from steve.running.child import FULL_DISK, HOPELESS, MISTAKE, STOPPED
from steve.running.supervisor import SPAWN, STOP_PATIENCE, TICK, Supervisor
from steve.settings.roles import LAUNCHER, VALUERL, WORLDMODEL
from steve.storage.board import FINAL_EPISODES
from steve.storage.record import record_nondeterminism

pytestmark = pytest.mark.usefixtures("no_stray_signal")


class World:
    """Time, and processes that live as long as a test says.

    Args:
        lives: by child's name, seconds until each of its starts ends; None: for ever.
        codes: by child's name, with what exit code; 1 where it is not given.

    Attributes:
        silent: the children that show no life.
        stuck: those that hang within the kernel: not even a SIGKILL ends them.
        started: names, in the order of their starts.
        restarts: (name, the number of the start, from 0).
        killed: (name, seconds).
        display: what the supervisor shows.
    """

    def __init__(self, run, board, replay, lives, codes=None):
        self.now = 0.0
        self.run = run
        self.board = board
        self.replay = replay
        self.display = FakeDisplay()
        self.lives = lives
        self.codes = codes or {}
        self.silent = set()
        self.stuck = set()
        self.started = []
        self.restarts = []
        self.killed = []

    def make(self, target, name, args):
        self.restarts.append((name, sum(name == each for each, _ in self.restarts)))
        return FakeProcess(self, name)

    def wait(self, sentinels, timeout):
        assert self.now < 5000, "it does not end"
        self.now += 1.0
        for name in set(self.started) - self.silent:
            self.board[name]["heartbeat"] = self.now


class FakeProcess:
    """One start of a child."""

    sentinel = None

    def __init__(self, world, name):
        self._world, self._name = world, name
        self._code = None

    def start(self):
        self._world.started.append(self._name)
        life = self._world.lives[self._name]
        self._end = None if life is None else self._world.now + life

    @property
    def exitcode(self):
        over = self._end is not None and self._world.now >= self._end
        if self._code is None and over:
            self._code = self._world.codes.get(self._name, 1)
        return self._code

    def is_alive(self):
        return self.exitcode is None

    def terminate(self):
        if self.is_alive():
            self._code = STOPPED

    def kill(self):
        if self.is_alive() and self._name not in self._world.stuck:
            self._code = -signal.SIGKILL
            self._world.killed.append((self._name, self._world.now))

    def join(self, timeout):
        assert timeout > 0


@pytest.fixture
def pretend(tmp_path):
    """Makes a supervisor of pretended processes, a value learner among them."""

    def make(lives, codes=None, **keys):
        lives = {VALUERL: None} | lives
        run, board, replay = open_run(tmp_path, model=WORLDMODEL in lives, **keys)
        world = World(run, board, replay, lives, codes)
        supervisor = Supervisor(
            run,
            board,
            [child_of(name) for name in lives],
            world.display,
            make_process=world.make,
            clock=lambda: world.now,
            wait=world.wait,
        )
        return supervisor, world

    return make


def stop_at(world, seconds):
    """Asks the supervisor to stop at a time of this world."""

    def on_show():
        if world.now >= seconds:
            os.kill(os.getpid(), signal.SIGTERM)

    world.display.on_show = on_show


@pytest.mark.parametrize("name", ["interactor0", "evaluator0"])
def test_an_actor_is_restarted_five_times_in_ten_minutes(pretend, name):
    supervisor, world = pretend({name: 119.0})  # from the first end 5 * 119 s
    outcome = supervisor.run()
    assert world.started == [VALUERL] + [name] * 6
    assert world.restarts[1:] == [(name, restart) for restart in range(6)]
    assert outcome.code == 1
    assert not outcome.finished
    assert f"{name} ended with exit code 1 after 5 restarts" in outcome.error
    assert world.now == 6 * 119


def test_exits_longer_ago_than_ten_minutes_do_not_count(pretend):
    supervisor, world = pretend({"interactor0": 121.0})  # 5 * 121 s > 10 minutes
    stop_at(world, 2000)
    assert supervisor.run().code == 0
    assert world.started.count("interactor0") == 17  # 2000 / 121 restarts


def test_exits_are_counted_for_each_actor(pretend):
    lives = {"interactor0": 150.0, "interactor1": 150.0}
    supervisor, world = pretend(lives, agent_config={"count": 2})
    stop_at(world, 1000)
    assert supervisor.run().code == 0
    assert world.started.count("interactor1") == 7


@pytest.mark.parametrize("name", [VALUERL, WORLDMODEL])
def test_a_learner_is_restarted_once_however_long_it_lived(pretend, name):
    lives = dict.fromkeys((VALUERL, WORLDMODEL, "interactor0")) | {name: 2000.0}
    supervisor, world = pretend(lives)
    outcome = supervisor.run()
    assert world.started.count(name) == 2
    assert outcome.code == 1
    assert f"{name} ended with exit code 1 after 1 restarts" in outcome.error
    assert world.display.notes == [
        f"{name} ended with exit code 1 and is restarted",
        "stopping: saving what was learned",
    ]


def test_the_signal_that_ended_a_child_is_named(pretend):
    supervisor, world = pretend({VALUERL: 10.0}, {VALUERL: -signal.SIGSEGV})
    path = world.run.folders.process_output(VALUERL)
    path.write_text("Traceback (most recent call last)\nof an earlier launch\n")
    outcome = supervisor.run()
    assert "valuerl was ended by SIGSEGV after 1 restarts" in outcome.error
    assert "an earlier launch" not in outcome.error
    assert world.display.notes[0] == "valuerl was ended by SIGSEGV and is restarted"


LOGGER = {"loggers": [{"entry_point": "support_loggers:Writer"}]}


def test_a_logger_that_ends_is_a_note_and_the_run_goes_on(pretend):
    supervisor, world = pretend({"logger": 100.0}, **LOGGER)

    def on_show():
        world.board["logger"]["ready"] = 1
        if world.now >= 200:
            os.kill(os.getpid(), signal.SIGTERM)

    world.display.on_show = on_show
    assert supervisor.run().code == 0
    assert world.started == [VALUERL, "logger"]
    note = world.display.notes[0]
    assert note.startswith("logger ended with exit code 1; `loggers` get nothing more")


def test_a_logger_that_cannot_be_made_ends_the_run(pretend):
    supervisor, world = pretend({"logger": 5.0}, {"logger": MISTAKE}, **LOGGER)
    world.run.folders.process_output("logger").write_text("")
    assert supervisor.run().code == 2


def test_a_logger_is_no_reason_to_wait_at_the_end_and_ends_last(pretend):
    lives = {VALUERL: 10.0, "evaluator0": 50.0, "logger": None}
    codes = {VALUERL: STOPPED, "evaluator0": STOPPED}
    limit = {"total_frames": 20, "policy_config": {"frames_before_learning": 0}}
    supervisor, world = pretend(lives, codes, **LOGGER, **limit)
    append_frames(world.replay, 20)
    outcome = supervisor.run()
    assert outcome.finished
    assert outcome.code == 0
    assert 50 <= world.now < 55
    assert world.killed == []


def close_slowly(world, name, at):
    """That child ends at a time of its own, however it is asked."""
    terminate, world.lives[name] = FakeProcess.terminate, at

    def obey(process):
        if process._name != name:
            terminate(process)

    return obey


@pytest.mark.parametrize(("at", "killed"), [(100.0, False), (500.0, True)])
def test_loggers_have_time_to_close_after_a_run_that_came_to_its_limit(
    pretend, monkeypatch, at, killed
):
    lives = {VALUERL: 10.0, "evaluator0": 50.0, "logger": None}
    codes = {VALUERL: STOPPED, "evaluator0": STOPPED, "logger": STOPPED}
    limit = {"total_frames": 20, "policy_config": {"frames_before_learning": 0}}
    supervisor, world = pretend(lives, codes, **LOGGER, **limit)
    monkeypatch.setattr(FakeProcess, "terminate", close_slowly(world, "logger", at))
    append_frames(world.replay, 20)
    outcome = supervisor.run()
    assert (outcome.code, outcome.finished) == (0, True)
    assert [name for name, _ in world.killed] == ["logger"] * killed
    lost = "logger was killed: what it had not passed on is lost"
    assert (lost in world.display.notes) == killed


def test_a_slow_actor_does_not_cost_the_loggers_their_time(pretend, monkeypatch):
    lives = {VALUERL: 10.0, "interactor0": None, "logger": None}
    codes = {VALUERL: STOPPED, "logger": STOPPED}
    limit = {"total_frames": 20, "policy_config": {"frames_before_learning": 0}}
    counts = {"evaluator_config": {"count": 0}}
    supervisor, world = pretend(lives, codes, **LOGGER, **limit, **counts)
    terminate = close_slowly(world, "logger", 60.0)
    monkeypatch.setattr(
        FakeProcess,
        "terminate",
        lambda p: None if p._name == "interactor0" else terminate(p),
    )
    append_frames(world.replay, 20)
    assert supervisor.run().finished
    assert [name for name, _ in world.killed] == ["interactor0"]
    assert world.now >= 60


def test_a_child_that_cannot_end_is_not_waited_for_when_the_launcher_exits(
    pretend, monkeypatch
):
    supervisor, _ = pretend({"interactor0": None})
    sleeper = SPAWN.Process(target=time.sleep, args=(600,))
    sleeper.start()
    kill, sleeper.kill = sleeper.kill, lambda: None
    monkeypatch.setattr(supervisor_module, "KILL_PATIENCE", 0.1)
    child = supervisor._children[1]
    child.process = sleeper
    try:
        assert sleeper in multiprocessing.active_children()
        supervisor._kill([child])
        assert sleeper not in multiprocessing.active_children()
    finally:
        kill()
        sleeper.join()


def test_who_asks_a_run_to_end_does_not_wait_for_loggers(pretend, monkeypatch):
    supervisor, world = pretend({VALUERL: None, "logger": None}, **LOGGER)
    monkeypatch.setattr(FakeProcess, "terminate", close_slowly(world, "logger", 500.0))
    stop_at(world, 20)
    assert supervisor.run().code == 0
    ((name, at),) = world.killed
    assert name == "logger"
    assert at < 20 + 15


def test_a_run_that_fails_does_not_wait_for_loggers(pretend, monkeypatch):
    supervisor, world = pretend({VALUERL: 10.0, "logger": None}, **LOGGER)
    monkeypatch.setattr(FakeProcess, "terminate", close_slowly(world, "logger", 500.0))
    assert supervisor.run().code == 1
    ((name, at),) = world.killed
    assert name == "logger"
    assert at < 20 + 15  # of two starts of 10 seconds


def test_a_signal_ends_the_time_of_loggers(pretend, monkeypatch):
    lives = {VALUERL: 10.0, "logger": None}
    limit = {"total_frames": 20, "policy_config": {"frames_before_learning": 0}}
    counts = {"evaluator_config": {"count": 0}}
    supervisor, world = pretend(lives, {VALUERL: STOPPED}, **LOGGER, **limit, **counts)
    monkeypatch.setattr(FakeProcess, "terminate", close_slowly(world, "logger", 500.0))
    append_frames(world.replay, 20)
    wait = world.wait

    def interrupt(*arguments):
        wait(*arguments)
        if world.now == 70:
            supervisor.on_signal(signal.SIGINT, None)

    supervisor._wait = interrupt
    outcome = supervisor.run()
    assert (outcome.code, outcome.finished) == (0, True)
    ((name, at),) = world.killed
    assert name == "logger"
    assert 80 < at < 70 + 15


def test_two_signals_are_no_failure_where_everything_was_saved(pretend, monkeypatch):
    supervisor, world = pretend({VALUERL: None, "evaluator0": None})
    close = close_slowly(world, "evaluator0", 500.0)
    monkeypatch.setattr(FakeProcess, "terminate", close)
    stop_at(world, 20)
    wait = world.wait

    def insist(*arguments):
        wait(*arguments)
        if world.now > 22:
            supervisor.on_signal(signal.SIGINT, None)

    supervisor._wait = insist
    outcome = supervisor.run()
    assert (outcome.code, outcome.error) == (0, None)
    assert [name for name, _ in world.killed] == ["evaluator0"]


def test_a_child_that_not_even_a_kill_ends_does_not_hold_the_launcher(pretend):
    supervisor, world = pretend({"interactor0": None})
    world.silent = {"interactor0"}
    world.stuck = {"interactor0"}
    FakeProcess_terminate = FakeProcess.terminate
    stop_at(world, 300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            FakeProcess,
            "terminate",
            lambda p: None if p._name in world.stuck else FakeProcess_terminate(p),
        )
        outcome = supervisor.run()
    assert outcome.code == 0
    assert world.now < 320
    said = [note for note in world.display.notes if "shows no life" in note]
    assert 2 <= len(said) < 6, "once for each time that it is killed, not at each tick"


@pytest.mark.parametrize(("code", "launcher_code"), [(MISTAKE, 2), (HOPELESS, 1)])
def test_what_a_restart_would_meet_again_ends_the_run_at_once(
    pretend, code, launcher_code
):
    supervisor, world = pretend({"evaluator0": 5.0})
    world.codes["evaluator0"] = code
    path = world.run.folders.process_output("evaluator0")
    path.write_text("of an earlier launch\n")

    def write_more():
        if world.now == 4:
            with open(path, "a") as file:
                file.write("a note\nthe cause\n")

    world.display.on_show = write_more
    outcome = supervisor.run()
    assert (outcome.code, outcome.error) == (
        launcher_code,
        "evaluator0: the cause",
    )
    assert world.started == [VALUERL, "evaluator0"]


@pytest.mark.parametrize("name", [VALUERL, "interactor0", "evaluator0"])
def test_to_end_before_the_work_is_done_is_a_failure(pretend, name):
    supervisor, _ = pretend(
        {"interactor0": None, "evaluator0": None, name: 7.0},
        {name: STOPPED},
        total_frames=20_000,
    )
    outcome = supervisor.run()
    assert outcome.code == 1
    assert f"{name} ended with exit code {STOPPED}" in outcome.error


def test_an_environment_that_leaves_does_not_end_the_final_episodes(pretend):
    """os._exit(0) in the code of an environment, or of a library that it calls."""
    supervisor, world = pretend(
        {VALUERL: 10.0, "evaluator0": 20.0},
        {VALUERL: STOPPED, "evaluator0": 0},
        total_frames=20,
        policy_config={"frames_before_learning": 0},
    )
    append_frames(world.replay, 20)

    def do_the_work():
        if world.started.count("evaluator0") == 2:
            world.codes["evaluator0"] = STOPPED

    world.display.on_show = do_the_work
    assert supervisor.run().finished
    assert world.display.notes == ["evaluator0 ended with exit code 0 and is restarted"]


def test_an_actor_without_a_sign_of_life_is_killed_and_restarted(pretend):
    supervisor, world = pretend({"interactor0": None}, env={"step_timeout": 30.0})
    last_sign = 200

    def on_show():
        if world.now == last_sign:
            world.silent.add("interactor0")
        if world.started.count("interactor0") == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    world.display.on_show = on_show
    assert supervisor.run().code == 0
    assert world.killed == [("interactor0", last_sign + 31)]
    assert world.display.notes[:2] == [
        "interactor0 shows no life for 30 s and is killed",
        "interactor0 was ended by SIGKILL and is restarted",
    ]


def test_an_actor_that_starts_has_a_minute_more(pretend):
    supervisor, world = pretend({"evaluator0": None}, env={"step_timeout": 30.0})
    world.silent.add("evaluator0")
    stop_at(world, 200)
    supervisor.run()
    assert world.killed == [("evaluator0", 91), ("evaluator0", 182)]


def test_actors_that_hang_again_and_again_end_the_run(pretend):
    supervisor, world = pretend({"evaluator0": None}, env={"step_timeout": 30.0})
    world.silent.add("evaluator0")
    assert supervisor.run().code == 1
    assert len(world.killed) == 6


@pytest.mark.parametrize(("timeout", "patience"), [(30.0, 34), (1.0, 5)])
def test_a_learner_that_hangs_is_killed_and_restarted_once(pretend, timeout, patience):
    supervisor, world = pretend({}, env={"step_timeout": timeout})

    def on_show():
        if world.now == 200 * world.started.count(VALUERL):
            world.board[VALUERL]["ready"] = True
            world.silent.add(VALUERL)

    world.display.on_show = on_show
    outcome = supervisor.run()
    assert outcome.code == 1
    assert "valuerl was ended by SIGKILL after 1 restarts" in outcome.error
    first, second = world.killed
    assert first == (VALUERL, 200 + patience + 1)
    assert second[0] == VALUERL
    assert (
        f"valuerl shows no life for {patience} s and is killed" in world.display.notes
    )


def test_a_learner_has_half_an_hour_to_build_and_compile_its_graphs(pretend):
    supervisor, world = pretend({}, env={"step_timeout": 1.0})
    world.silent.add(VALUERL)
    stop_at(world, 1900)
    supervisor.run()
    # The minute is that in which it imports, before its first sign of life.
    assert world.killed == [(VALUERL, 60 + 1801)]


def test_a_learner_that_is_restarted_may_build_and_compile_again(pretend):
    supervisor, world = pretend({VALUERL: 100}, env={"step_timeout": 1.0})
    world.board[VALUERL]["ready"] = True
    supervisor.start()
    assert not world.board[VALUERL]["ready"]
    world.board[VALUERL]["ready"] = True
    world.now = 100
    assert supervisor.watch_once() is None
    assert world.started == [VALUERL, VALUERL]
    assert not world.board[VALUERL]["ready"]


def test_after_a_pause_of_the_launcher_itself_nobody_counts_as_hung(pretend):
    """Ctrl-Z, or a cluster that suspends jobs, stops all processes of a run."""
    supervisor, world = pretend({"interactor0": None}, env={"step_timeout": 30.0})

    def on_show():
        if world.now == 200:
            world.now += 3600
            world.silent.add("interactor0")  # it comes back, but does not continue
        if world.now == 3900:
            os.kill(os.getpid(), signal.SIGTERM)

    world.display.on_show = on_show
    supervisor.run()
    assert world.killed == [("interactor0", 3801 + 31)]


def test_who_waits_for_space_on_the_disk_is_said_once(pretend):
    supervisor, world = pretend({"interactor0": None})

    def on_show():
        world.board["interactor0"]["disk_full"] = 10 <= world.now < 20
        if world.now == 30:
            os.kill(os.getpid(), signal.SIGTERM)

    world.display.on_show = on_show
    supervisor.run()
    root = world.run.folders.root
    waits, continues, _ = world.display.notes
    assert re.fullmatch(
        rf"{root}: No space left on device \([\d,]+ bytes are free\); "
        "interactor0 waits for space",
        waits,
    )
    assert continues == "interactor0 has space again and continues"


def test_a_full_disk_has_its_line_also_where_the_child_could_not_write_it(pretend):
    supervisor, _ = pretend({"interactor0": 5.0}, codes={"interactor0": FULL_DISK})
    outcome = supervisor.run()
    assert outcome.code == 1
    assert "No space left on device" in outcome.error
    assert "bytes are free); the run stops. Free some space and --resume" in (
        outcome.error
    )


def test_why_a_run_cannot_be_repeated_is_shown_once(pretend):
    reasons = {5: "interactor0: an environment failed", 10: "valuerl: rows are lost"}

    def on_show():
        if world.now in reasons:
            record_nondeterminism(world.run.folders, int(world.now), reasons[world.now])
        if world.now == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    supervisor, world = pretend({"interactor0": None})
    world.display.on_show = on_show
    supervisor.run()
    *shown, _ = world.display.notes
    assert shown == [
        f"from frame {frame} on this run cannot be repeated to the bit: {why}"
        for frame, why in reasons.items()
    ]


@pytest.mark.parametrize("limit", ["total_frames", "total_hours"])
def test_at_the_limit_the_slower_learner_and_the_evaluators_are_waited_for(
    pretend, limit
):
    supervisor, world = pretend(
        {VALUERL: 10.0, WORLDMODEL: 20.0, "interactor0": None, "evaluator0": 30.0},
        {VALUERL: STOPPED, WORLDMODEL: STOPPED, "evaluator0": STOPPED},
        **{limit: 10_001 if limit == "total_frames" else 1.5},
        agent_config={"count": 1},
    )
    append_frames(world.replay, 10_001 if limit == "total_frames" else 7)
    world.board[VALUERL]["hours"] = 0.1 if limit == "total_frames" else 1.6
    phases = []
    world.display.on_show = lambda: phases.append(world.board[LAUNCHER]["phase"])
    outcome = supervisor.run()
    assert (outcome.code, outcome.finished, outcome.error) == (0, True, None)
    assert phases.index(FINAL_EPISODES) == 20
    assert world.now == 30
    assert world.killed == []
    assert world.started == [VALUERL, WORLDMODEL, "interactor0", "evaluator0"]
    assert world.display.closed


def test_a_run_that_is_asked_to_end_has_ended_within_15_seconds():
    at_last = STOP_PATIENCE + TICK
    assert at_last < 15 - 2  # seconds, for the launcher's own last lines
