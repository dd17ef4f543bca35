"""The supervisor of real processes: signals, restarts, hangs, and how it ends them.

The processes run the functions of support_children.
"""

import json
import os
import re
import signal
import threading
import time
from dataclasses import dataclass

import pytest
from support import PATIENCE, append_frames, is_over, open_run, poll
from support_supervisor import FakeDisplay, child_of

from steve.replay import ReplayBuffer
from steve.running import supervisor as supervisor_module
from steve.running.child import STOPPED
from steve.running.supervisor import ONE_REQUEST, Child, Supervisor
from steve.settings.roles import LAUNCHER, VALUERL
from steve.storage.board import FINAL_EPISODES, Board
from steve.storage.folders import Run

pytestmark = pytest.mark.usefixtures("no_stray_signal")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(supervisor_module, "TICK", 0.02)
    # A failing test must not wait for all of it.
    monkeypatch.setattr(supervisor_module, "STOP_PATIENCE", 10.0)


@dataclass
class Scene:
    """A run under a supervisor, with what the supervisor was given."""

    run: Run
    board: Board
    replay: ReplayBuffer
    children: list[Child]
    display: FakeDisplay


@pytest.fixture
def watched(tmp_path):
    """Makes a supervisor of real processes; none of them outlives the test."""
    scenes = []

    def make(functions, environ=None, **keys):
        run, board, replay = open_run(tmp_path, **keys)
        children = [
            child_of(name, function, **(environ or {}))
            for name, function in functions.items()
        ]
        scene = Scene(run, board, replay, children, FakeDisplay())
        scenes.append(scene)
        return Supervisor(run, board, children, scene.display), scene

    yield make
    for child in scenes[0].children:
        if child.alive:
            child.process.kill()
            child.process.join()


def marked(scene, what):
    """The names of the children that wrote a file "NAME.what"."""
    return {path.stem for path in scene.run.folders.log.glob(f"*.{what}")}


def names_of(scene):
    return {child.name for child in scene.children}


def once(scene, condition, action):
    """Has an action done at the first tick at which a condition holds."""

    def on_show():
        if condition():
            scene.display.on_show = lambda: None
            action()

    scene.display.on_show = on_show


def when_ready(scene, action):
    names = names_of(scene)
    once(scene, lambda: marked(scene, "ready") == names, action)


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


def facts_of(scene, name):
    return json.loads((scene.run.folders.log / f"{name}.ready").read_text())


def assert_none_is_left(scene):
    for child in scene.children:
        assert not child.alive
        assert child.process.exitcode is not None


ALL = (VALUERL, "interactor0", "evaluator0")


def test_children_have_their_variables_their_niceness_and_a_seed_of_their_own(
    watched, monkeypatch
):
    monkeypatch.setenv("STEVE_TEST_SHARED", "the launcher's")
    monkeypatch.setenv("STEVE_TEST_OUTSIDE", "inherited")
    before = dict(os.environ)
    supervisor, scene = watched(dict.fromkeys(ALL, "describe"))
    for child in scene.children:
        child.environ = {
            "STEVE_TEST_OWN": child.name,
            "STEVE_TEST_SHARED": f"the {child.name}'s",
        }
    when_ready(scene, lambda: send(signal.SIGTERM))
    assert supervisor.run().code == 0
    assert dict(os.environ) == before
    own = os.nice(0)
    facts = {name: facts_of(scene, name) for name in ALL}
    for name in ALL:
        assert facts[name]["environ"] == {
            "STEVE_TEST_OWN": name,
            "STEVE_TEST_SHARED": f"the {name}'s",
            "STEVE_TEST_OUTSIDE": "inherited",
        }
    nices = {name: facts[name]["nice"] for name in ALL}
    nicer = min(own + 10, 19)
    assert nices == {VALUERL: own, "interactor0": nicer, "evaluator0": nicer}
    assert len({facts[name]["seed"] for name in ALL}) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_what_is_sent_to_all_processes_does_nothing_to_the_children(watched, number):
    """By Ctrl-C, a closed terminal, or a cluster; the launcher alone answers."""
    supervisor, scene = watched(dict.fromkeys(ALL, "describe"))

    def interrupt():
        assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        for name in ALL:
            os.kill(facts_of(scene, name)["pid"], number)
        send(signal.SIGTERM)

    when_ready(scene, interrupt)
    assert supervisor.run().code == 0
    for child in scene.children:
        assert number in facts_of(scene, child.name)["blocked"]
        assert (child.starts, child.process.exitcode) == (1, STOPPED)
    assert marked(scene, "saved") == set(ALL)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
)
def test_the_first_signal_ends_all_gracefully(watched, number):
    supervisor, scene = watched({VALUERL: "obey_slowly", "interactor0": "obey"})
    when_ready(scene, lambda: send(number))
    outcome = supervisor.run()
    assert (outcome.code, outcome.finished, outcome.error) == (0, False, None)
    assert marked(scene, "saved") == names_of(scene)
    assert scene.display.notes == ["stopping: saving what was learned"]
    assert scene.display.closed
    assert_none_is_left(scene)


def test_two_signals_at_nearly_the_same_time_are_one(watched, monkeypatch):
    monkeypatch.setattr(supervisor_module, "ONE_REQUEST", PATIENCE)
    supervisor, scene = watched({VALUERL: "obey_slowly"})
    when_ready(scene, lambda: send(signal.SIGINT, signal.SIGTERM))
    assert supervisor.run().code == 0
    assert marked(scene, "saved") == {VALUERL}


def test_a_second_signal_kills_at_once(watched, monkeypatch):
    monkeypatch.setattr(supervisor_module, "STOP_PATIENCE", PATIENCE)
    supervisor, scene = watched({VALUERL: "ignore", "interactor0": "ignore"})
    when_ready(scene, lambda: send(signal.SIGTERM))
    asked_at = []

    def insist():
        asked = names_of(scene)
        poll(lambda: marked(scene, "asked") == asked, "the first request")
        later = time.monotonic() + 1.2 * ONE_REQUEST
        poll(lambda: time.monotonic() > later, "some time between the requests")
        asked_at.append(time.monotonic())
        send(signal.SIGINT)

    thread = threading.Thread(target=insist)
    thread.start()
    outcome = supervisor.run()
    thread.join()
    assert time.monotonic() - asked_at[0] < 5
    assert outcome.code == 1
    assert outcome.error == (
        "valuerl killed before the end of its saving; --resume continues from its last "
        "state"
    )
    assert_none_is_left(scene)


def test_children_that_do_not_end_when_asked_are_killed_after_a_while(
    watched, monkeypatch
):
    monkeypatch.setattr(supervisor_module, "STOP_PATIENCE", 2.0)
    supervisor, scene = watched({VALUERL: "obey", "interactor0": "ignore"})
    when_ready(scene, lambda: send(signal.SIGTERM))
    assert supervisor.run().code == 0
    assert marked(scene, "saved") == {VALUERL}
    assert scene.children[1].process.exitcode == -signal.SIGKILL
    assert scene.display.notes == ["stopping: saving what was learned"]


def test_a_learner_that_is_killed_before_it_has_saved_is_no_success(
    watched, monkeypatch
):
    monkeypatch.setattr(supervisor_module, "STOP_PATIENCE", 0.5)
    supervisor, scene = watched({VALUERL: "ignore", "interactor0": "obey"})
    when_ready(scene, lambda: send(signal.SIGTERM))
    outcome = supervisor.run()
    assert outcome.code == 1
    assert outcome.error.startswith("valuerl killed before the end of its saving")


def test_a_learner_that_is_killed_while_it_starts_had_nothing_to_save(
    watched, monkeypatch
):
    monkeypatch.setattr(supervisor_module, "STOP_PATIENCE", 0.5)
    supervisor, scene = watched({VALUERL: "ignore_while_it_starts"})
    when_ready(scene, lambda: send(signal.SIGTERM))
    assert supervisor.run().code == 0
    assert scene.children[0].process.exitcode == -signal.SIGKILL
    assert scene.display.notes == ["stopping: saving what was learned"]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("fail_to_save", "ended with exit code 1 when asked to end"),
        ("die_while_saving", "was ended by SIGKILL when asked to end"),
    ],
)
def test_an_actor_that_fails_at_the_end_is_a_note(watched, function, said):
    """It has nothing to save; what was learned is saved."""
    supervisor, scene = watched({VALUERL: "obey", "interactor0": function})
    when_ready(scene, lambda: send(signal.SIGTERM))
    outcome = supervisor.run()
    assert (outcome.code, outcome.error) == (0, None)
    assert scene.display.notes[-1] == f"interactor0 {said}"
    assert marked(scene, "saved") == {VALUERL}


def test_who_has_lost_the_first_request_is_asked_again(watched):
    functions = {VALUERL: "obey", "interactor0": "lose_the_first_signal"}
    supervisor, scene = watched(functions)
    when_ready(scene, lambda: send(signal.SIGTERM))
    assert supervisor.run().code == 0
    assert marked(scene, "saved") == names_of(scene)


def test_an_exception_while_it_watches_still_ends_the_children_gracefully(watched):
    supervisor, scene = watched({VALUERL: "obey_slowly", "interactor0": "obey"})

    def explode():
        raise RuntimeError("a bug of the display")

    when_ready(scene, explode)
    with pytest.raises(RuntimeError, match="a bug of the display"):
        supervisor.run()
    assert marked(scene, "saved") == names_of(scene)
    assert_none_is_left(scene)


def test_a_failure_beyond_the_restarts_shows_its_last_traceback_and_saves_the_rest(
    watched,
):
    supervisor, scene = watched({"interactor0": "obey", VALUERL: "fail"})
    path = scene.run.folders.process_output(VALUERL)
    path.write_text("Traceback (most recent call last)\nof an earlier launch\n")
    outcome = supervisor.run()
    assert outcome.code == 1
    first, *_, cause, last = outcome.error.splitlines()
    assert first == "Traceback (most recent call last):"
    assert "LookupError: what led to it" in outcome.error
    assert "survived" not in outcome.error
    assert cause == "ValueError: failure 2"
    assert last == (
        "valuerl ended with exit code 1 after 1 restarts; the run stops "
        f"(its output: {path})"
    )
    assert "failure 1" not in outcome.error
    assert "an earlier launch" not in outcome.error
    # The other was stopped as it came: its first start may not have been over.
    assert scene.children[0].starts == 1
    assert_none_is_left(scene)


@pytest.mark.parametrize(
    ("function", "code", "line"),
    [("mistake", 2, "the key is wrong"), ("hopeless", 1, "learning has diverged")],
)
def test_a_childs_line_is_what_the_launcher_says(watched, function, code, line):
    supervisor, scene = watched({VALUERL: "obey", "interactor0": function})
    outcome = supervisor.run()
    said = f"interactor0: {line}"
    assert (outcome.code, outcome.finished, outcome.error) == (code, False, said)
    assert [child.starts for child in scene.children] == [1, 1]


def test_what_is_wrong_only_after_a_restart_is_no_mistake_of_the_call(watched):
    supervisor, scene = watched(
        {VALUERL: "obey", "interactor0": "mistake_after_a_restart"}
    )
    outcome = supervisor.run()
    assert (outcome.code, outcome.error) == (1, "interactor0: the key is wrong")
    assert [child.starts for child in scene.children] == [1, 2]


@pytest.mark.parametrize(
    ("function", "line"),
    [
        ("cannot_save", "valuerl: .*/file: No space left on device .*--resume"),
        ("fail_to_save", "valuerl ended with exit code 1 when asked to end"),
        ("die_while_saving", "valuerl was ended by SIGKILL when asked to end"),
        ("lose_its_handler", "valuerl was ended by SIGTERM when asked to end"),
    ],
)
def test_who_is_asked_to_end_and_cannot_save_is_no_success(watched, function, line):
    supervisor, scene = watched({VALUERL: function, "interactor0": "obey"})
    names = {VALUERL, "interactor0"}
    scene.display.on_show = lambda: (
        marked(scene, "ready") == names and send(signal.SIGTERM)
    )
    outcome = supervisor.run()
    assert (outcome.code, outcome.finished) == (1, False)
    *before, last = outcome.error.strip().splitlines()
    assert re.fullmatch(line, last)
    assert ("ValueError: failure 1" in before) == (function == "fail_to_save")
    assert marked(scene, "saved") == {"interactor0"}


def test_a_process_that_hangs_is_killed_and_started_again(watched):
    functions = {VALUERL: "obey", "interactor0": "hang_once"}
    supervisor, scene = watched(functions, env={"step_timeout": 1.5})
    hung_at = []
    seen = {}

    def on_show():
        if not hung_at and marked(scene, "hung"):
            hung_at.append(time.monotonic())
        if "killed" not in seen and len(scene.display.notes) >= 2:
            seen["killed"] = time.monotonic()
        if marked(scene, "ready") == set(functions):
            send(signal.SIGTERM)

    scene.display.on_show = on_show
    assert supervisor.run().code == 0
    assert scene.display.notes[:2] == [
        "interactor0 shows no life for 1.5 s and is killed",
        "interactor0 was ended by SIGKILL and is restarted",
    ]
    assert seen["killed"] - hung_at[0] < 10
    assert marked(scene, "saved") == set(functions)


def test_a_run_whose_folder_is_renamed_ends_in_one_line(watched):
    supervisor, scene = watched(dict.fromkeys(ALL, "obey"))
    root = scene.run.folders.root
    when_ready(scene, lambda: root.rename(root.with_name("renamed")))
    outcome = supervisor.run()
    assert outcome.code == 1
    assert outcome.error == (
        f"{root} was renamed or removed; the run stops. Give it back its name and "
        "--resume"
    )
    assert not any("Traceback" in note for note in scene.display.notes)
    assert_none_is_left(scene)


@pytest.mark.parametrize("function", ["leave_a_program", "leave_a_program_and_fail"])
def test_what_a_process_had_started_ends_with_it(watched, monkeypatch, function):
    monkeypatch.setattr(supervisor_module, "STOP_PATIENCE", 0.0)
    functions = {VALUERL: "obey", "interactor0": function}
    supervisor, scene = watched(functions)

    def program(number):
        path = scene.run.folders.log / f"interactor0.program{number}"
        return int(path.read_text())

    def restarted():
        poll(lambda: is_over(program(1)), "the end of the first program")
        assert not is_over(program(2))
        send(signal.SIGTERM)

    when_ready(scene, restarted)
    supervisor.run()
    poll(lambda: is_over(program(2)), "the end of the second program")


def test_learners_end_then_interactors_stop_then_evaluators_finish(watched):
    supervisor, scene = watched(
        {VALUERL: "end_last", "interactor0": "obey", "evaluator0": "finish"},
        policy_config={"frames_before_learning": 4},
        evaluator_config={"count": 1},
        total_frames=8,
    )
    append_frames(scene.replay, 8)
    phases = []

    def on_show():
        phases.append(int(scene.board[LAUNCHER]["phase"]))
        assert phases[-1] == FINAL_EPISODES or not marked(scene, "finished")

    scene.display.on_show = on_show
    outcome = supervisor.run()
    assert (outcome.code, outcome.finished, outcome.error) == (0, True, None)
    assert marked(scene, "saved") == {"interactor0"}
    path = scene.run.folders.log / "evaluator0.finished"
    assert json.loads(path.read_text()) is True  # by itself, not asked to stop
    assert [child.starts for child in scene.children] == [1, 1, 1]
    assert "stopping: saving what was learned" not in scene.display.notes
    assert re.fullmatch("0*1*", "".join(map(str, phases)))
