"""Environments in processes of their own: the same rows, the same faults, an end."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import PATIENCE, make_config, poll
from support_actors import Script, context_of, new_run

from steve.acting.interactor import Interactor, interact, step_all
from steve.acting.remote_env import RemoteEnv
from steve.acting.safe_env import SafeEnv
from steve.replay import ReplayBuffer
from steve.storage.record import read_run
from steve.util import UserError

SPAWN = multiprocessing.get_context("spawn")
# The action decides what happens: an error, NaN, a wrong size, an end, a wait.
MODULE = """
import os
import subprocess
import time
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium import spaces


class Env(gymnasium.Env):
    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, folder):
        self.folder = folder
        for _ in range(1000):
            if not (Path(folder) / "hold").exists():
                break
            time.sleep(0.01)
        else:
            raise TimeoutError("nobody was told of the failure")
        self.simulator = subprocess.Popen(["sleep", "600"])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.start = self.np_random.random()
        return np.full(2, self.start), {}

    def step(self, action):
        (what,) = np.round(action * 10)
        if what == 1:
            raise ValueError("broken")
        if what == 2:
            return np.full(2, np.nan), 0.0, False, False, {}
        if what == 3:
            return np.zeros(5), 0.0, False, False, {}
        if what == 4:
            self.simulator.kill()
            os._exit(7)
        if what == 5:  # waits until two environments are here
            (Path(self.folder) / f"here-{os.getpid()}").touch()
            for _ in range(1000):
                if len(list(Path(self.folder).glob("here-*"))) == 2:
                    break
                time.sleep(0.01)
            else:
                raise TimeoutError("alone")
        return np.array([os.getpid(), self.start]), 1.0, False, False, {}

    def close(self):
        self.simulator.terminate()
        self.simulator.wait()
        (Path(self.folder) / f"closed-{os.getpid()}").touch()
"""
FINE, BROKEN, NAN, WRONG, GONE, MEET = (np.full(1, n / 10) for n in range(6))


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Of a run with the environment of `MODULE`; it tells of its end in a folder."""
    (tmp_path / "remote_case.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    closed = tmp_path / "closed"
    closed.mkdir()
    env = {
        "name": "Remote",
        "module": None,
        "entry_point": "remote_case:Env",
        "make_kwargs": {"folder": str(closed)},
    }
    return make_config(tmp_path, env=env, agent_config={"vectorization": "async"})


@pytest.fixture
def made(config):
    """Makes environments, and closes them at the end."""
    envs = []

    def make(lost=None, failed=None):
        callbacks = [
            (lambda to=to: None if to is None else to.append(1))
            for to in (lost, failed)
        ]
        envs.append(RemoteEnv(config.env, [], "me", *callbacks, 0, number=len(envs)))
        return envs[-1]

    yield make
    for env in envs:
        env.close()


def ends(config):
    folder = config.env.make_kwargs["folder"]
    names = [name for name in os.listdir(folder) if name.startswith("closed-")]
    return [int(name.removeprefix("closed-")) for name in names]


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def rows_of(tmp_path, vectorization, frames=120):
    """All rows of an interactor that was replaced half-way, and whether it notes it."""
    run, board = new_run(
        tmp_path / vectorization,
        env={"make_kwargs": {"length": 7, "luck": True, "repeatable": True}},
        agent_config={"batch_size": 3, "vectorization": vectorization},
        policy_config={"frames_before_learning": 1000, "explore_chance": 0.5},
    )
    replay = ReplayBuffer.create(run.folders.replay, 3, 1, 100_000)
    for until in (frames // 2, frames):
        stop = Script(lambda until=until: replay.frames >= until, limit=10**6)
        context = context_of(run, board, "interactor0", stop)
        with context.ends:
            interact(context)
    assert "not_reproducible" not in read_run(run.folders)
    return np.array(replay._rows[: replay.frames])


def test_rows_are_the_same_to_the_bit(tmp_path):
    sync, in_processes = (rows_of(tmp_path, how) for how in ("sync", "async"))
    assert len(sync) == 120
    np.testing.assert_array_equal(in_processes, sync)


def test_faults_come_through_as_they_are_in_one_process(made, config, capfd):
    lost, failed = [], []
    env = made(lost, failed)
    env.wait_until_made()
    local = SafeEnv(config.env, "me", lambda: None)
    np.testing.assert_array_equal(env.reset(3), local.reset(3))
    pid, start = env.step(FINE).obs
    assert pid != os.getpid()
    assert start == local.step(FINE).obs[1]
    assert (env.step(NAN), lost, failed) == (None, [1], [])
    env.reset(4)
    assert (env.step(BROKEN), lost, failed) == (None, [1, 1], [1])
    env.reset(5)
    with pytest.raises(UserError, match=r"5 numbers \(shape \(5,\)\) instead of 2"):
        env.step(WRONG)
    assert "ValueError: broken" in capfd.readouterr().err
    local.close()


def test_a_failure_is_told_before_the_environment_is_made_again(made, config):
    hold = Path(config.env.make_kwargs["folder"]) / "hold"
    told = []
    env = RemoteEnv(
        config.env, [], "me", lambda: told.append("loss"), lambda: hold.unlink(), 0, 0
    )
    env.wait_until_made()
    env.reset(0)
    hold.touch()
    assert env.step(BROKEN) is None
    assert told == ["loss"]
    env.close()


def test_an_environment_that_cannot_be_made_is_the_users_mistake(tmp_path):
    run, board = new_run(
        tmp_path,
        env={"name": "Nowhere-v0"},
        agent_config={"batch_size": 2, "vectorization": "async"},
    )
    ReplayBuffer.create(run.folders.replay, 3, 1, 1000)
    context = context_of(run, board, "interactor0")
    mistake = pytest.raises(UserError, match="Nowhere-v0: no such environment")
    with mistake, context.ends:
        Interactor(context)


def test_its_process_imports_the_modules_that_it_needs(tmp_path, monkeypatch):
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "witness.py").write_text(
        "import os\nopen(f'{__file__}-{os.getpid()}', 'x').close()\n"
    )
    monkeypatch.syspath_prepend(folder)
    run, board = new_run(
        tmp_path, agent_config={"batch_size": 2, "vectorization": "async"}
    )
    run = replace(run, env_modules=("witness",))
    ReplayBuffer.create(run.folders.replay, 3, 1, 1000)
    context = context_of(run, board, "interactor0")
    with context.ends:
        Interactor(context)
    assert len(list(folder.glob("witness.py-*"))) == 2


def test_environments_that_are_slow_to_make_have_a_minute_more(tmp_path, monkeypatch):
    run, board = new_run(
        tmp_path, agent_config={"batch_size": 2, "vectorization": "async"}
    )
    ReplayBuffer.create(run.folders.replay, 3, 1, 1000)
    context = context_of(run, board, "interactor0")
    wait, left = RemoteEnv.wait_until_made, []

    def wait_and_look(env):
        left.append(board["interactor0"]["heartbeat"] - time.monotonic())
        wait(env)

    monkeypatch.setattr(RemoteEnv, "wait_until_made", wait_and_look)
    with context.ends:
        Interactor(context)
    assert left == pytest.approx([60, 60], abs=10)


SERVE_ON_A_FULL_DISK = """
import multiprocessing
import os
import sys
from types import SimpleNamespace

from steve.acting.remote_env import _serve
from steve.settings.schema import Environment


class Pipe:
    def send(self, message):
        os.write(2, message[0].encode())

    def recv(self):
        print("of the environment", flush=True)
        os.write(2, b", printed")
        raise EOFError


os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
parent = SimpleNamespace(sentinel=os.pipe()[0])
multiprocessing.parent_process = lambda: parent
_serve(Pipe(), Environment.model_validate_json(sys.argv[1]), [], "me", 0, 0)
"""


def test_lines_that_find_no_space_end_no_environment(config):
    program = [sys.executable, "-c", SERVE_ON_A_FULL_DISK]
    done = subprocess.run(
        [*program, config.env.model_dump_json(by_alias=True)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "result, printed")


def test_the_end_of_its_process_is_an_error(made):
    env = made()
    env.wait_until_made()
    env.reset(0)
    with pytest.raises(RuntimeError, match=r"ended \(exit code 7\)"):
        env.step(GONE)


def test_environments_step_at_the_same_time(made):
    envs = [made(), made()]
    obs = np.stack([(env.wait_until_made(), env.reset(0))[1] for env in envs])
    taken = step_all(envs, obs, np.stack([MEET, MEET]), lambda: None)
    np.testing.assert_array_equal(taken.kept, [0, 1])
    first, second = taken.next_obs[:, 0]
    assert first != second, "they are in two processes"


def test_closing_closes_the_environment_and_ends_its_process(made, config):
    env = made()
    env.wait_until_made()
    env.reset(0)
    pid = int(env.step(FINE).obs[0])
    env.close()
    assert ends(config) == [pid]
    assert is_gone(pid)


def hold_environments(config, pipe):
    envs = [RemoteEnv(config.env, [], "me", print, print, 0, i) for i in range(2)]
    for env in envs:
        env.wait_until_made()
        env.reset(0)
    pipe.send([int(env.step(FINE).obs[0]) for env in envs])
    signal.pause()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_environments_are_closed_after_their_interactor_was_killed(config, number):
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=hold_environments, args=(config, theirs))
    process.start()
    theirs.close()
    pids = ours.recv()
    os.kill(process.pid, number)
    process.join()
    poll(lambda: sorted(ends(config)) == sorted(pids), "environments are closed")
    poll(lambda: all(map(is_gone, pids)), "their processes end")
