"""The supervisor: starts, restarts, hangs, stops, and what it tells its launcher.

Where processes matter they are real, with the functions of support_children in them.
Counts, windows and timeouts are tested on processes that only a fake clock knows.
"""

import json
import os
import re
import signal
import threading
import time
from types import SimpleNamespace

import pytest
from support import PATIENCE, append_frames, open_run, poll

from steve.running import child as child_module
from steve.running import supervisor as supervisor_module
from steve.running.child import FULL_DISK
from steve.running.supervisor import ONE_REQUEST, STOP_PATIENCE, TICK, Child, Supervisor
from steve.settings.roles import LAUNCHER, VALUERL, WORLDMODEL
from steve.storage.board import FINAL_EPISODES

SHIPPED_PATIENCE = STOP_PATIENCE
HOPELESS, MISTAKE, STOPPED = (
    child_module.HOPELESS,
    child_module.MISTAKE,
    child_module.STOPPED,
)


class FakeDisplay:
    """Keeps the notes; `on_show` is called at each tick of the watch."""

    def __init__(self):
        self.notes = []
        self.on_show = lambda: None
        self.closed = False
        self._deadline = time.monotonic() + PATIENCE

    def note(self, line):
        self.notes.append(line)

    def show(self, progress, last=False):
        if not last:
            assert time.monotonic() < self._deadline, "it does not end"
            self.on_show()

    def close(self):
        self.closed = True


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(supervisor_module, "TICK", 0.02)
    # A failing test must not wait for all of it.
    monkeypatch.setattr(supervisor_module, "STOP_PATIENCE", 10.0)


def child_of(name, function="obey", **environ):
    kind = name.rstrip("0123456789")
    return Child(name, kind, f"support_children:{function}", environ)


# On processes that are only pretended


class World:
    """Time, and processes that live as long as a test says.

    Args:
        lives: by child's name, seconds until each of its starts ends; None: for ever.
        codes: by child's name, with what exit code; 1 where it is not given.

    Attributes:
        silent: the children that show no life.
        started: names, in the order of their starts.
        restarts: (name, the number of the start, from 0), as the children are told.
        killed: (name, seconds).
    """

    def __init__(self, board, lives, codes=None):
        self.now = 0.0
        self.board = board
        self.lives = lives
        self.codes = codes or {}
        self.silent = set()
        self.started = []
        self.restarts = []
        self.killed = []

    def make(self, target, name, args):
        _, _, _, restart, _ = args
        self.restarts.append((name, restart))
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
            self._code = 0

    def kill(self):
        if self.is_alive():
            self._code = -signal.SIGKILL
            self._world.killed.append((self._name, self._world.now))

    def join(self):
        assert not self.is_alive()


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Makes a supervisor of pretended processes, a value learner among them."""

    def make(lives, codes=None, **keys):
        lives = {VALUERL: None} | lives
        run, board, replay = open_run(tmp_path, model=WORLDMODEL in lives, **keys)
        world = World(board, lives, codes)
        clock = SimpleNamespace(monotonic=lambda: world.now)
        monkeypatch.setattr(supervisor_module, "time", clock)
        monkeypatch.setattr(supervisor_module, "wait", world.wait)
        children = [child_of(name) for name in lives]
        supervisor = Supervisor(run, children, FakeDisplay())
        supervisor._spawn = SimpleNamespace(Process=world.make)
        return supervisor, world, replay

    return make


def stop_at(supervisor, world, seconds):
    """Asks the supervisor to stop at a time of its world."""

    def on_show():
        if world.now >= seconds:
            os.kill(os.getpid(), signal.SIGTERM)

    supervisor._display.on_show = on_show


@pytest.mark.parametrize("name", ["interactor0", "evaluator0"])
def test_an_actor_is_restarted_five_times_in_ten_minutes(pretend, name):
    supervisor, world, _ = pretend({name: 119.0})  # from the first end 5 * 119 s
    outcome = supervisor.run()
    assert world.started == [VALUERL] + [name] * 6
    assert world.restarts[1:] == [(name, restart) for restart in range(6)]
    assert outcome.code == 1
    assert not outcome.finished
    assert f"{name} ended with exit code 1 after 5 restarts" in outcome.error
    assert world.now == 6 * 119


def test_deaths_longer_ago_than_ten_minutes_do_not_count(pretend):
    supervisor, world, _ = pretend({"interactor0": 121.0})  # 5 * 121 s > 10 minutes
    stop_at(supervisor, world, 2000)
    assert supervisor.run().code == 0
    assert world.started.count("interactor0") == 17  # 2000 / 121 restarts


def test_deaths_are_counted_for_each_actor(pretend):
    lives = {"interactor0": 150.0, "interactor1": 150.0}
    supervisor, world, _ = pretend(lives, agent_config={"count": 2})
    stop_at(supervisor, world, 1000)
    assert supervisor.run().code == 0
    assert world.started.count("interactor1") == 7


@pytest.mark.parametrize("name", [VALUERL, WORLDMODEL])
def test_a_learner_is_restarted_once_however_long_it_lived(pretend, name):
    lives = dict.fromkeys((VALUERL, WORLDMODEL, "interactor0")) | {name: 2000.0}
    supervisor, world, _ = pretend(lives)
    outcome = supervisor.run()
    assert world.started.count(name) == 2
    assert outcome.code == 1
    assert f"{name} ended with exit code 1 after 1 restarts" in outcome.error
    assert supervisor._display.notes == [
        f"{name} ended with exit code 1 and is restarted",
        "stopping: saving what was learned",
    ]


def test_the_signal_that_ended_a_child_is_named(pretend):
    supervisor, _, _ = pretend({VALUERL: 10.0}, {VALUERL: -signal.SIGSEGV})
    path = supervisor._run.folders.process_output(VALUERL)
    path.write_text("Traceback (most recent call last)\nof an earlier launch\n")
    outcome = supervisor.run()
    assert "valuerl died by SIGSEGV after 1 restarts" in outcome.error
    assert "an earlier launch" not in outcome.error
    assert supervisor._display.notes[0] == "valuerl died by SIGSEGV and is restarted"


@pytest.mark.parametrize(("code", "launcher_code"), [(MISTAKE, 2), (HOPELESS, 1)])
def test_what_a_restart_would_meet_again_ends_the_run_at_once(
    pretend, code, launcher_code
):
    supervisor, world, _ = pretend({"evaluator0": 5.0})
    world.codes["evaluator0"] = code
    path = supervisor._run.folders.process_output("evaluator0")
    path.write_text("of an earlier launch\n")

    def write_more():
        if world.now == 4:
            with open(path, "a") as file:
                file.write("a note\nthe cause\n")

    supervisor._display.on_show = write_more
    outcome = supervisor.run()
    assert (outcome.code, outcome.error) == (
        launcher_code,
        "evaluator0: the cause",
    )
    assert world.started == [VALUERL, "evaluator0"]


@pytest.mark.parametrize("name", [VALUERL, "interactor0", "evaluator0"])
def test_to_end_before_the_work_is_done_is_to_die(pretend, name):
    supervisor, _, _ = pretend(
        {"interactor0": None, "evaluator0": None, name: 7.0},
        {name: STOPPED},
        total_frames=20_000,
    )
    outcome = supervisor.run()
    assert outcome.code == 1
    assert f"{name} ended with exit code 0" in outcome.error


def test_an_actor_without_a_sign_of_life_is_killed_and_restarted(pretend):
    supervisor, world, _ = pretend({"interactor0": None}, env={"step_timeout": 30.0})
    last_sign = 200

    def on_show():
        if world.now == last_sign:
            world.silent.add("interactor0")
        if world.started.count("interactor0") == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    supervisor._display.on_show = on_show
    assert supervisor.run().code == 0
    assert world.killed == [("interactor0", last_sign + 31)]
    assert supervisor._display.notes[:2] == [
        "interactor0 shows no life for 30 s and is killed",
        "interactor0 died by SIGKILL and is restarted",
    ]


def test_an_actor_that_starts_has_a_minute_more(pretend):
    supervisor, world, _ = pretend({"evaluator0": None}, env={"step_timeout": 30.0})
    world.silent.add("evaluator0")
    stop_at(supervisor, world, 200)
    supervisor.run()
    assert world.killed == [("evaluator0", 91), ("evaluator0", 182)]


def test_actors_that_hang_again_and_again_end_the_run(pretend):
    supervisor, world, _ = pretend({"evaluator0": None}, env={"step_timeout": 30.0})
    world.silent.add("evaluator0")
    assert supervisor.run().code == 1
    assert len(world.killed) == 6


@pytest.mark.parametrize(("timeout", "patience"), [(30.0, 34), (1.0, 5)])
def test_a_learner_that_hangs_is_killed_and_restarted_once(pretend, timeout, patience):
    supervisor, world, _ = pretend({}, env={"step_timeout": timeout})

    def on_show():
        if world.now == 200 * world.started.count(VALUERL):
            world.board[VALUERL]["ready"] = True
            world.silent.add(VALUERL)

    supervisor._display.on_show = on_show
    outcome = supervisor.run()
    assert outcome.code == 1
    assert "valuerl died by SIGKILL after 1 restarts" in outcome.error
    first, second = world.killed
    assert first == (VALUERL, 200 + patience + 1)
    assert second[0] == VALUERL
    assert (
        f"valuerl shows no life for {patience} s and is killed"
        in supervisor._display.notes
    )


def test_a_learner_has_half_an_hour_to_build_and_compile_its_graphs(pretend):
    supervisor, world, _ = pretend({}, env={"step_timeout": 1.0})
    world.silent.add(VALUERL)
    stop_at(supervisor, world, 1900)
    supervisor.run()
    # The minute is that in which it imports, before its first sign of life.
    assert world.killed == [(VALUERL, 60 + 1801)]


def test_a_learner_that_starts_anew_may_build_and_compile_anew(pretend):
    supervisor, world, _ = pretend({VALUERL: 100}, env={"step_timeout": 1.0})
    world.board[VALUERL]["ready"] = True
    supervisor._start(supervisor._children[0])
    assert not world.board[VALUERL]["ready"]


def test_after_a_pause_of_the_launcher_itself_nobody_counts_as_hung(pretend):
    """Ctrl-Z, or a cluster that suspends jobs, stops all processes of a run."""
    supervisor, world, _ = pretend({"interactor0": None}, env={"step_timeout": 30.0})

    def on_show():
        if world.now == 200:
            world.now += 3600
            world.silent.add("interactor0")  # it comes back, but does not go on
        if world.now == 3900:
            os.kill(os.getpid(), signal.SIGTERM)

    supervisor._display.on_show = on_show
    supervisor.run()
    assert world.killed == [("interactor0", 3801 + 31)]


def test_who_waits_for_space_on_the_disk_is_said_once(pretend):
    supervisor, world, _ = pretend({"interactor0": None})

    def on_show():
        world.board["interactor0"]["disk_full"] = 10 <= world.now < 20
        if world.now == 30:
            os.kill(os.getpid(), signal.SIGTERM)

    supervisor._display.on_show = on_show
    supervisor.run()
    root = supervisor._run.folders.root
    waits, goes_on, _ = supervisor._display.notes
    assert re.fullmatch(
        rf"{root}: No space left on device \([\d,]+ bytes are free\); "
        "interactor0 waits for space",
        waits,
    )
    assert goes_on == "interactor0 has space again and goes on"


def test_a_full_disk_has_its_line_also_where_the_child_could_not_write_it(pretend):
    supervisor, _, _ = pretend({"interactor0": 5.0}, codes={"interactor0": FULL_DISK})
    outcome = supervisor.run()
    assert outcome.code == 1
    assert "No space left on device" in outcome.error
    assert "bytes are free); the run stops. Free some space and --resume" in (
        outcome.error
    )


@pytest.mark.parametrize("limit", ["total_frames", "total_hours"])
def test_at_the_limit_the_slower_learner_and_the_evaluators_are_waited_for(
    pretend, limit
):
    supervisor, world, replay = pretend(
        {VALUERL: 10.0, WORLDMODEL: 20.0, "interactor0": None, "evaluator0": 30.0},
        {VALUERL: STOPPED, WORLDMODEL: STOPPED, "evaluator0": STOPPED},
        **{limit: 10_001 if limit == "total_frames" else 1.5},
        agent_config={"count": 1},
    )
    append_frames(replay, 10_001 if limit == "total_frames" else 7)
    world.board[VALUERL]["hours"] = 0.1 if limit == "total_frames" else 1.6
    phases = []
    supervisor._display.on_show = lambda: phases.append(world.board[LAUNCHER]["phase"])
    outcome = supervisor.run()
    assert (outcome.code, outcome.finished, outcome.error) == (0, True, None)
    assert phases.index(FINAL_EPISODES) == 20
    assert world.now == 30
    assert world.killed == []
    assert world.started == [VALUERL, WORLDMODEL, "interactor0", "evaluator0"]
    assert supervisor._display.closed


# On real processes


@pytest.fixture
def watched(tmp_path):
    """Makes a supervisor of real processes; none of them outlives the test."""
    supervisors = []

    def make(functions, environ=None, **keys):
        run, _, replay = open_run(tmp_path, **keys)
        children = [
            child_of(name, function, **(environ or {}))
            for name, function in functions.items()
        ]
        supervisors.append(Supervisor(run, children, FakeDisplay()))
        return supervisors[-1], replay

    yield make
    for child in supervisors[0]._children:
        if child.alive:
            child.process.kill()
            child.process.join()


@pytest.fixture(autouse=True)
def _handlers():
    """A signal that the supervisor does not take fails the test and nothing else."""

    def unexpected(number, frame):
        raise AssertionError(f"{signal.Signals(number).name} met no supervisor")

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, unexpected) for number in numbers}
    yield
    after = {number: signal.signal(number, before[number]) for number in numbers}
    assert set(after.values()) == {unexpected}, "handlers are not as before"


def marked(supervisor, what):
    """The names of the children that wrote a file "NAME.what"."""
    return {path.stem for path in supervisor._run.folders.log.glob(f"*.{what}")}


def names_of(supervisor):
    return {child.name for child in supervisor._children}


def once(supervisor, condition, action):
    """Has an action done at the first tick at which a condition holds."""

    def on_show():
        if condition():
            supervisor._display.on_show = lambda: None
            action()

    supervisor._display.on_show = on_show


def when_ready(supervisor, action):
    names = names_of(supervisor)
    once(supervisor, lambda: marked(supervisor, "ready") == names, action)


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


def facts_of(supervisor, name):
    return json.loads((supervisor._run.folders.log / f"{name}.ready").read_text())


def assert_none_is_left(supervisor):
    for child in supervisor._children:
        assert not child.alive
        assert child.process.exitcode is not None


ALL = (VALUERL, "interactor0", "evaluator0")


def test_children_have_their_variables_their_niceness_and_a_seed_of_their_own(
    watched, monkeypatch
):
    monkeypatch.setenv("STEVE_TEST_SHARED", "the launcher's")
    monkeypatch.setenv("STEVE_TEST_OUTSIDE", "inherited")
    before = dict(os.environ)
    supervisor, _ = watched(dict.fromkeys(ALL, "describe"))
    for child in supervisor._children:
        child.environ = {
            "STEVE_TEST_OWN": child.name,
            "STEVE_TEST_SHARED": f"the {child.name}'s",
        }
    when_ready(supervisor, lambda: send(signal.SIGTERM))
    assert supervisor.run().code == 0
    assert dict(os.environ) == before
    own = os.nice(0)
    facts = {name: facts_of(supervisor, name) for name in ALL}
    for name in ALL:
        assert facts[name]["environ"] == {
            "STEVE_TEST_OWN": name,
            "STEVE_TEST_SHARED": f"the {name}'s",
            "STEVE_TEST_OUTSIDE": "inherited",
        }
    nices = {name: facts[name]["nice"] - own for name in ALL}
    assert nices == {VALUERL: 0, "interactor0": 10, "evaluator0": 10}
    assert len({facts[name]["seed"] for name in ALL}) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_the_terminal_sends_to_the_children_does_nothing(watched, number):
    """By Ctrl-C, or because it is closed; the launcher alone answers."""
    supervisor, _ = watched(dict.fromkeys(ALL, "describe"))

    def interrupt():
        assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        for name in ALL:
            os.kill(facts_of(supervisor, name)["pid"], number)
        send(signal.SIGTERM)

    when_ready(supervisor, interrupt)
    assert supervisor.run().code == 0
    for child in supervisor._children:
        assert number in facts_of(supervisor, child.name)["blocked"]
        assert (child.starts, child.process.exitcode) == (1, 0)
    assert marked(supervisor, "saved") == set(ALL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_ends_all_gracefully(watched, number):
    supervisor, _ = watched({VALUERL: "obey_slowly", "interactor0": "obey"})
    when_ready(supervisor, lambda: send(number))
    outcome = supervisor.run()
    assert (outcome.code, outcome.finished, outcome.error) == (0, False, None)
    assert marked(supervisor, "saved") == names_of(supervisor)
    assert supervisor._display.notes == ["stopping: saving what was learned"]
    assert supervisor._display.closed
    assert_none_is_left(supervisor)


def test_a_run_that_is_asked_to_end_has_ended_within_15_seconds():
    at_last = SHIPPED_PATIENCE + TICK
    assert at_last < 15 - 2  # seconds, for the launcher's own last lines


def test_two_signals_at_nearly_the_same_time_are_one(watched, monkeypatch):
    monkeypatch.setattr(supervisor_module, "ONE_REQUEST", PATIENCE)
    supervisor, _ = watched({VALUERL: "obey_slowly"})
    when_ready(supervisor, lambda: send(signal.SIGINT, signal.SIGTERM))
    assert supervisor.run().code == 0
    assert marked(supervisor, "saved") == {VALUERL}


def test_a_second_signal_kills_at_once(watched, monkeypatch):
    monkeypatch.setattr(supervisor_module, "STOP_PATIENCE", PATIENCE)
    supervisor, _ = watched({VALUERL: "ignore", "interactor0": "ignore"})
    when_ready(supervisor, lambda: send(signal.SIGTERM))
    asked_at = []

    def insist():
        asked = names_of(supervisor)
        poll(lambda: marked(supervisor, "asked") == asked, "the first request")
        since = supervisor._asked_at
        later = since + 1.2 * ONE_REQUEST
        poll(lambda: time.monotonic() > later, "some time between the requests")
        asked_at.append(time.monotonic())
        send(signal.SIGINT)

    thread = threading.Thread(target=insist)
    thread.start()
    outcome = supervisor.run()
    thread.join()
    assert time.monotonic() - asked_at[0] < 5
    assert outcome.code == 1
    assert (
        "valuerl killed before the end of its saving; --resume goes on from its last "
        "state"
    ) in supervisor._display.notes
    assert_none_is_left(supervisor)


def test_children_that_do_not_end_when_asked_are_killed_after_a_while(
    watched, monkeypatch
):
    monkeypatch.setattr(supervisor_module, "STOP_PATIENCE", 2.0)
    supervisor, _ = watched({VALUERL: "obey", "interactor0": "ignore"})
    when_ready(supervisor, lambda: send(signal.SIGTERM))
    assert supervisor.run().code == 0
    assert marked(supervisor, "saved") == {VALUERL}
    assert supervisor._children[1].process.exitcode == -signal.SIGKILL
    assert supervisor._display.notes == ["stopping: saving what was learned"]


def test_an_exception_while_it_watches_still_ends_the_children_gracefully(watched):
    supervisor, _ = watched({VALUERL: "obey_slowly", "interactor0": "obey"})

    def explode():
        raise RuntimeError("a bug of the display")

    when_ready(supervisor, explode)
    with pytest.raises(RuntimeError, match="a bug of the display"):
        supervisor.run()
    assert marked(supervisor, "saved") == names_of(supervisor)
    assert_none_is_left(supervisor)


def test_a_failure_beyond_the_restarts_shows_its_last_traceback_and_saves_the_rest(
    watched,
):
    supervisor, _ = watched({"interactor0": "obey", VALUERL: "fail"})
    path = supervisor._run.folders.process_output(VALUERL)
    path.write_text("Traceback (most recent call last)\nof an earlier launch\n")
    outcome = supervisor.run()
    assert outcome.code == 1
    first, *_, cause, last = outcome.error.splitlines()
    assert first == "Traceback (most recent call last):"
    assert cause == "ValueError: failure 2"
    assert last == (
        "valuerl ended with exit code 1 after 1 restarts; the run stops "
        f"(its output: {path})"
    )
    assert "failure 1" not in outcome.error
    assert "an earlier launch" not in outcome.error
    # The other was stopped as it came: its first start may not have been over.
    assert supervisor._children[0].starts == 1
    assert_none_is_left(supervisor)


@pytest.mark.parametrize(
    ("function", "code", "line"),
    [("mistake", 2, "the key is wrong"), ("hopeless", 1, "learning has diverged")],
)
def test_a_childs_line_is_what_the_launcher_says(watched, function, code, line):
    supervisor, _ = watched({VALUERL: "obey", "interactor0": function})
    outcome = supervisor.run()
    said = f"interactor0: {line}"
    assert (outcome.code, outcome.finished, outcome.error) == (code, False, said)
    assert [child.starts for child in supervisor._children] == [1, 1]


@pytest.mark.parametrize(
    ("function", "line"),
    [
        ("cannot_save", "valuerl: .*/file: No space left on device .*--resume"),
        ("fail_to_save", "valuerl ended with exit code 1 when asked to end"),
        ("die_while_saving", "valuerl died by SIGKILL when asked to end"),
    ],
)
def test_who_is_asked_to_end_and_cannot_save_is_no_success(watched, function, line):
    supervisor, _ = watched({VALUERL: function, "interactor0": "obey"})
    names = {VALUERL, "interactor0"}
    supervisor._display.on_show = lambda: (
        marked(supervisor, "ready") == names and send(signal.SIGTERM)
    )
    outcome = supervisor.run()
    assert (outcome.code, outcome.finished) == (1, False)
    *before, last = outcome.error.strip().splitlines()
    assert re.fullmatch(line, last)
    assert ("ValueError: failure 1" in before) == (function == "fail_to_save")
    assert marked(supervisor, "saved") == {"interactor0"}


def test_a_process_that_hangs_is_killed_and_started_again(watched):
    functions = {VALUERL: "obey", "interactor0": "hang_once"}
    supervisor, _ = watched(functions, env={"step_timeout": 1.5})
    hung_at = []
    seen = {}

    def on_show():
        if not hung_at and marked(supervisor, "hung"):
            hung_at.append(time.monotonic())
        if "killed" not in seen and len(supervisor._display.notes) >= 2:
            seen["killed"] = time.monotonic()
        if marked(supervisor, "ready") == set(functions):
            send(signal.SIGTERM)

    supervisor._display.on_show = on_show
    assert supervisor.run().code == 0
    assert supervisor._display.notes[:2] == [
        "interactor0 shows no life for 1.5 s and is killed",
        "interactor0 died by SIGKILL and is restarted",
    ]
    assert seen["killed"] - hung_at[0] < 10
    assert marked(supervisor, "saved") == set(functions)


def test_learners_end_then_interactors_stop_then_evaluators_finish(watched):
    supervisor, replay = watched(
        {VALUERL: "end_last", "interactor0": "obey", "evaluator0": "finish"},
        policy_config={"frames_before_learning": 4},
        evaluator_config={"count": 1},
        total_frames=8,
    )
    append_frames(replay, 8)
    phases = []

    def on_show():
        phases.append(int(supervisor._board[LAUNCHER]["phase"]))
        assert phases[-1] == FINAL_EPISODES or not marked(supervisor, "finished")

    supervisor._display.on_show = on_show
    outcome = supervisor.run()
    assert (outcome.code, outcome.finished, outcome.error) == (0, True, None)
    assert marked(supervisor, "saved") == {"interactor0"}
    path = supervisor._run.folders.log / "evaluator0.finished"
    assert json.loads(path.read_text()) is True  # by itself, not asked to stop
    assert [child.starts for child in supervisor._children] == [1, 1, 1]
    assert "stopping: saving what was learned" not in supervisor._display.notes
    assert re.fullmatch("0*1*", "".join(map(str, phases)))
