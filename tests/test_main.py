"""Bounded runs of the whole system, as a user starts it."""

import csv
import errno
import json
import math
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import make_config, make_run, read_events
from support_children import die_measuring, hang_measuring

from steve import main
from steve.command_line import python_word
from steve.main import resuming_command
from steve.running import devices
from steve.running import launch as launch_module
from steve.running.launch import measure_environment, plan_children
from steve.settings.roles import VALUERL, WORLDMODEL
from steve.settings.schema import Config, Environment
from steve.storage.board import Board
from steve.util import UserError, shown_path

PROJECT = Path(__file__).resolve().parents[1]
QUICKSTART = "config/quickstart.json"
DEADLINE = 120.0  # seconds that anything awaited here gets

# A run of two seconds of learning; the rest is TensorFlow's start.
TINY = [
    "total_frames=240",
    "final_episodes=1",
    "env.max_frames=100",
    "policy_config.xla=false",  # which takes longer to compile than the run
    "policy_config.hidden_dim=8",
    "policy_config.batch_size=16",
    "policy_config.frames_before_learning=40",
    "policy_config.frames_per_update=0.5",
    "policy_config.log_every_n=50",
    "policy_config.epoch_every_n=50",
    "policy_config.backup_every_n=100",
    "agent_config.batch_size=4",
    "agent_config.full_random_n=80",
]
TINY_MODEL = [
    "model_config.xla=false",
    "model_config.transition_hidden_dim=8",
    "model_config.aux_hidden_dim=8",
    "model_config.transition_layers=2",
    "model_config.batch_size=16",
    "model_config.frames_before_learning=40",
    "model_config.frames_per_update=0.5",
    "model_config.log_every_n=50",
    "model_config.epoch_every_n=50",
    "model_config.backup_every_n=100",
    "model_config.pretrain_n=20",
]
ONE_EVALUATOR = "evaluator_config.count=1"  # where it is enough
DDPG = ["model_config=null", "policy_config.value_expansion=null"]
SINGLE = ["policy_config.bayesian=null", "model_config.bayesian=null"]


def expansion(**keys: object) -> str:
    return "policy_config.value_expansion=" + json.dumps({"rollout_len": 2, **keys})


ALGORITHMS = {
    "ddpg": [*DDPG, "policy_config.bayesian=null"],
    "ensemble_ddpg": DDPG,
    "mve": [expansion(), *SINGLE],
    "mve_tdk": [expansion(tdk_trick=True), *SINGLE],
    "mean_mve": [expansion(mean_k_return=True), *SINGLE],
    "td_lambda": [expansion(lambda_return=0.25), *SINGLE],
    "ensemble_mve_tdk": [expansion(tdk_trick=True)],
    "steve": [expansion(steve_reweight=True)],
    "steve_cov": [expansion(steve_reweight=True, covariances=True)],
}


def command(folder: Path, *options: str, settings: tuple[str, ...] = ()) -> list[str]:
    overrides = [f"output_root={folder}", *TINY, *settings]
    if "model_config=null" not in settings:
        overrides[len(TINY) + 1 : len(TINY) + 1] = TINY_MODEL
    return [
        *(sys.executable, "main.py", QUICKSTART, "cpu", "--name", "run"),
        *options,
        *("--set", *overrides),
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PROJECT / "tests")}


def run(*arguments: str, **keys: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments, **keys),
        cwd=PROJECT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def start(*arguments: str, **keys: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments, **keys),
        cwd=PROJECT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Polls while the process lives; fails with its output when it ends before."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.05)


def experiment(folder: Path) -> Path:
    return folder / "InvertedPendulum-v5" / "run"


def table(path: Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [
            {key: float(value) for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def scores(folder: Path) -> list[dict[str, float]]:
    return table(experiment(folder) / "log" / "run.greedy.csv")


def learner_log(folder: Path, learner: str = "valuerl") -> list[dict[str, float]]:
    return table(experiment(folder) / "log" / f"{learner}.log")


def assert_events_are_logs_and_scores(folder: Path) -> None:
    """TensorBoard shows what is in the csv files, and each step once."""
    events = read_events(experiment(folder))
    for learner in ("valuerl", "worldmodel"):
        rows = learner_log(folder, learner)
        steps = [row["updates"] + row.get("pretrained", 0) for row in rows]
        for tag in [tag for tag in events if tag.startswith(f"{learner}/")]:
            points = events[tag]
            assert [step for step, _ in points] == steps
            expected = [np.float32(row[tag.split("/")[1]]) for row in rows]
            assert [value for _, value in points] == expected
    by_frames = {}
    for row in scores(folder):
        frames = max([row["frames"], *by_frames])
        by_frames.setdefault(frames, []).append(row["score"])
    means = [(frames, np.float32(np.mean(s))) for frames, s in by_frames.items()]
    assert events["evaluation/score"] == means


def board(folder: Path) -> Board:
    return Board.open(experiment(folder) / "log" / "status.bin")


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def assert_inside_band(rows: list[dict[str, float]], frames_per_update: float) -> None:
    """SPEC section 2: pacing in both directions, at every line of a learner's log."""
    for row in rows:
        lower = 40 + frames_per_update * (row["updates"] - 1)
        upper = 40 + frames_per_update * row["updates"] + 2 * 4
        assert row["frames"] > lower or row["updates"] == 0
        assert row["frames"] <= upper


WITH_ENSEMBLES = "ensemble_mve_tdk"
SOME = ("ddpg", WITH_ENSEMBLES)  # the other runs take minutes


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """The output folder of a run with ensembles that ended, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    done = run(folder, settings=tuple(ALGORITHMS[WITH_ENSEMBLES]))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


@pytest.fixture
def finished_copy(finished, tmp_path) -> Path:
    return shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)


@pytest.mark.parametrize(
    "algorithm",
    [
        pytest.param(name, marks=() if name in SOME else pytest.mark.slow)
        for name in ALGORITHMS
    ],
)
def test_every_algorithm_of_the_paper_trains_and_ends_at_its_limit(
    algorithm, tmp_path, request
):
    if algorithm == WITH_ENSEMBLES:
        output_root, printed = request.getfixturevalue("finished")
    else:
        output_root = tmp_path
        done = run(output_root, settings=tuple(ALGORITHMS[algorithm]))
        assert done.returncode == 0, done.stdout + done.stderr
        printed = done.stdout
    folder = experiment(output_root)
    has_model = "ddpg" not in algorithm

    rows = learner_log(output_root)
    assert [row["updates"] for row in rows] == list(range(50, 401, 50))
    assert all(math.isfinite(value) for row in rows for value in row.values())
    usage = [row["model_usage"] for row in rows]
    assert any(usage) == ("steve" in algorithm)
    assert_inside_band(rows, 0.5)
    assert (folder / "log" / "worldmodel.log").exists() == has_model
    if has_model:
        model_rows = learner_log(output_root, "worldmodel")
        assert_inside_band(model_rows, 0.5)
        assert [row["updates"] for row in model_rows][-1] == 400
        assert rows[-1]["models"] >= 2  # a newer model was taken up

    recorded = scores(output_root)
    assert list(recorded[0]) == ["hours", "epochs", "frames", "score"]
    assert recorded[0]["epochs"] >= 1
    assert [row["epochs"] for row in recorded].count(recorded[-1]["epochs"]) >= 2
    for key in ("hours", "epochs", "frames"):
        in_order = sorted(row[key] for row in recorded)
        assert [row[key] for row in recorded] == in_order
    assert recorded[-1]["frames"] == 240
    assert json.loads((folder / "log" / "hps.json").read_text())["total_frames"] == 240
    record = json.loads((folder / "log" / "run.json").read_text())
    assert record["finished"]["frames"] == 240
    assert len(record["starts"]) == 1
    assert len(set(record["starts"][0]["seeds"].values())) == (6 if has_model else 5)
    assert "score of random actions: " in printed
    assert str(folder / "log" / "run.greedy.csv") in printed
    look = f"visualizer.py {shown_path(folder)}"
    assert f"to look at the policy:\n  {python_word()} {look}\n" in printed

    again = run(output_root, "--resume", settings=tuple(ALGORITHMS[algorithm]))
    assert again.returncode == 0
    assert "is finished: nothing is left to do" in again.stdout
    assert len(scores(output_root)) == len(recorded)


def test_without_pacing_nobody_waits(tmp_path):
    unpaced = ["policy_config.frames_per_update=false"]
    unpaced += ["model_config.frames_per_update=false", "model_config.pretrain_n=false"]
    unpaced += ["policy_config.log_every_n=1", "total_frames=1000", ONE_EVALUATOR]
    done = run(tmp_path, settings=tuple(unpaced))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = learner_log(tmp_path)
    # Outside the band that frames_per_update 0.5 would keep.
    assert rows[-1]["frames"] > 48 + 0.5 * rows[-1]["updates"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["config/none.json", "cpu"], "config/none.json"),
        ([QUICKSTART, "7"], "GPU 7 does not exist"),
        ([QUICKSTART, "gpu"], 'GPU_ID must be a whole number or "cpu"'),
        ([QUICKSTART], "required: GPU_ID"),
        ([QUICKSTART, "cpu", "--resume"], "nothing to resume"),
        ([QUICKSTART, "cpu", "--resume", "--overwrite"], "not allowed with"),
        ([QUICKSTART, "cpu", "--resume-or-start", "--resume"], "not allowed with"),
        ([QUICKSTART, "cpu", "--frames", "0"], "--frames"),
        ([QUICKSTART, "cpu", "--name", "../x"], "../x"),
        ([QUICKSTART, "cpu", "--set", "policy_config.batchsize=1"], "batch_size"),
        ([QUICKSTART, "cpu", "--set", "env.name=Nowhere-v1"], "Nowhere-v1"),
        ([QUICKSTART, "cpu", "--set", "env.name=InvertedPendulum-v1"], "nearest known"),
        ([QUICKSTART, "cpu", "--set", "env.action_dim=9"], "action_dim"),
        ([QUICKSTART, "cpu", "--set", "env.name=CartPole-v1"], "CartPole-v1"),
        ([QUICKSTART, "cpu", "--set", f"policy_config.replay_size={10**10}"], "from 1"),
        ([QUICKSTART, "cpu", "--set", "policy_config.hidden_dim=65536"], "of memory"),
        ([QUICKSTART, "cpu", "--set", "env.step_timeout=1e300"], "1e+08"),
        ([QUICKSTART, "cpu", "--frames", "1" + "0" * 400], "total_frames must be"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_on_the_disk(
    arguments, said, tmp_path
):
    output = tmp_path / "output"
    if "--set" not in arguments:
        arguments = [*arguments, "--set"]
    done = subprocess.run(
        [sys.executable, "main.py", *arguments, f"output_root={output}"],
        cwd=PROJECT,
        env={**environment(), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("main.py: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert not output.exists()


def test_learners_get_their_gpus_and_all_others_none(tmp_path):
    config = make_config(
        tmp_path, model=True, agent_config={"count": 2}, evaluator_config={"count": 2}
    )
    gpus = {VALUERL: "3", WORLDMODEL: "GPU-4"}
    children = plan_children(replace(make_run(config), gpus=gpus))
    seen = {child.name: child.environ[devices.VARIABLE] for child in children}
    actors = ["interactor0", "interactor1", "evaluator0", "evaluator1"]
    assert seen == {VALUERL: "3", WORLDMODEL: "GPU-4"} | dict.fromkeys(actors, "-1")
    for child in children:
        if child.is_learner:
            assert child.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
            assert "OMP_NUM_THREADS" not in child.environ  # those of the configuration
        else:
            for library in ("OMP", "OPENBLAS", "MKL"):
                assert child.environ[f"{library}_NUM_THREADS"] == "1"
    mains = {child.name: child.main for child in children}
    assert mains[VALUERL] == "steve.valuerl_learner:main"
    assert mains[WORLDMODEL] == "steve.worldmodel_learner:main"
    assert mains["interactor1"] == "steve.acting.interactor:interact"
    assert mains["evaluator1"] == "steve.acting.evaluator:evaluate"


def test_without_a_model_there_is_no_world_model_learner(tmp_path):
    children = plan_children(make_run(make_config(tmp_path)))
    assert WORLDMODEL not in {child.name for child in children}


def test_a_module_that_reads_the_command_line_is_one_line(tmp_path):
    """And nobody sees the usage of another program."""
    (tmp_path / "their_script.py").write_text(
        "import argparse\nargparse.ArgumentParser().parse_args()\n"
    )
    keys = ("--set", f"output_root={tmp_path}", "env.module=their_script")
    done = subprocess.run(
        [sys.executable, PROJECT / "main.py", QUICKSTART, "cpu", *keys],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("main.py: env.module their_script: ends the program")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("measure", "patience", "said"),
    [
        (die_measuring, 60.0, "making the environment Hopper-v1 ended its process"),
        (hang_measuring, 0.5, "took over 0.5 s .* raise env.step_timeout"),
    ],
)
def test_an_environment_that_cannot_be_measured_is_one_line(
    measure, patience, said, monkeypatch
):
    """And no other child of the caller is touched."""
    monkeypatch.setattr(launch_module, "_measure", measure)
    monkeypatch.setattr(launch_module, "IMPORT_PATIENCE", 0.0)
    spawn = multiprocessing.get_context("spawn")
    other = spawn.Process(target=time.sleep, args=(600,))
    other.start()
    try:
        with pytest.raises(UserError, match=said):
            measure_environment(
                Config(env=Environment(name="Hopper-v1", step_timeout=patience))
            )
        assert other.is_alive()
    finally:
        other.kill()
        other.join()


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 0, "stopped before the start"),
        (OSError(errno.EACCES, "not allowed", "there"), 1, "main.py: there: not all"),
        (OSError(errno.ENOSPC, "full", "there"), 1, "free some and --resume"),
    ],
)
def test_what_happens_before_the_start_is_one_line(
    error, code, line, monkeypatch, capsys
):
    def train(*arguments):
        raise error

    monkeypatch.setattr(main, "train", train)
    assert main.main([QUICKSTART, "cpu"]) == code
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("option", [["--list"], ["--describe", QUICKSTART]])
def test_a_reader_that_goes_away_ends_what_is_shown(option):
    """As in `main.py --list | head -1`."""
    shown = subprocess.Popen(
        [sys.executable, "main.py", *option],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    shown.stdout.close()
    assert shown.communicate(timeout=DEADLINE)[1] == b""
    assert shown.returncode == 1


def test_the_command_named_at_the_end_is_that_of_the_same_run():
    given = [QUICKSTART, "cpu", "--overwrite", "--name", "a b", "--hours", "0.5"]
    given += ["--set", "env.name=Pendulum-v1", 'env.make_kwargs={"g": 1}']
    first = main.parse_arguments(given)
    request = main.request_of(first)
    words = shlex.split(resuming_command("main.py", request))
    assert words[:2] == [python_word(), "main.py"]
    second = main.parse_arguments(words[2:])
    assert vars(second) == {**vars(first), "overwrite": False, "resume": True}


def test_an_unwritable_output_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    done = run(tmp_path / "file")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "cannot write to" in done.stderr


def test_interrupted_refused_and_resumed(tmp_path):
    """Ctrl-C saves; a resume continues; another launch or configuration is refused."""
    endless = ("total_frames=null",)
    first = start(tmp_path, settings=endless)
    wait_for(lambda: len(scores(tmp_path)) >= 4, first)

    second = run(tmp_path, "--resume", settings=endless)
    assert second.returncode == 2
    assert "in use by another launch" in second.stderr
    assert second.stderr.count("\n") == 1

    interactor = int(board(tmp_path)["interactor0"]["pid"])
    os.kill(interactor, signal.SIGKILL)
    wait_for(lambda: board(tmp_path)["interactor0"]["pid"] != interactor, first)
    before = len(scores(tmp_path))
    wait_for(lambda: len(scores(tmp_path)) > before + 2, first)

    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=DEADLINE)
    assert first.returncode == 0, output
    assert "interactor0 was ended by SIGKILL and is restarted" in output
    assert "Traceback" not in output
    command = f"{python_word()} main.py config/quickstart.json cpu --resume "
    assert f"to resume:\n  {command}" in output
    stopped = scores(tmp_path)
    updates = learner_log(tmp_path)[-1]["updates"]

    fresh = run(tmp_path, settings=endless)
    assert fresh.returncode == 2
    assert "--resume continues it" in fresh.stderr
    other = run(
        tmp_path, "--resume", settings=(*endless, "policy_config.learning_rate=0.1")
    )
    assert other.returncode == 2
    assert "policy_config.learning_rate" in other.stderr

    limit = int(stopped[-1]["frames"]) + 200
    resumed = run(tmp_path, "--resume", settings=(f"total_frames={limit}",))
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    gone_on = scores(tmp_path)
    assert gone_on[: len(stopped)] == stopped
    assert gone_on[-1]["frames"] >= limit
    for key in ("hours", "epochs", "frames"):
        assert gone_on[len(stopped)][key] >= stopped[-1][key]
    rows = [row["updates"] for row in learner_log(tmp_path)]
    assert rows == sorted(set(rows)), "an update was logged twice"
    assert_events_are_logs_and_scores(tmp_path)
    assert rows[-1] > updates
    # Each policy is evaluated once by each evaluator, also across the resume.
    counts = [row["epochs"] for row in gone_on if row["epochs"] < gone_on[-1]["epochs"]]
    assert max(counts.count(epoch) for epoch in set(counts)) <= 2


def test_the_run_goes_on_after_a_killed_learner_and_a_killed_launcher(tmp_path):
    """With one and the same command, as sweep.py gives it, from the first start on."""
    endless = (ONE_EVALUATOR, "total_frames=null")
    launcher = start(tmp_path, "--resume-or-start", settings=endless)
    wait_for(lambda: len(scores(tmp_path)) >= 4, launcher)
    learner = int(board(tmp_path)["valuerl"]["pid"])
    os.kill(learner, signal.SIGKILL)
    wait_for(lambda: board(tmp_path)["valuerl"]["pid"] != learner, launcher)
    count = len(scores(tmp_path))
    wait_for(lambda: len(scores(tmp_path)) > count, launcher)

    names = ["valuerl", "worldmodel", "interactor0", "evaluator0"]
    pids = [int(board(tmp_path)[name]["pid"]) for name in names]
    assert all(is_alive(pid) for pid in pids)
    launcher.kill()
    output, _ = launcher.communicate()
    assert "valuerl was ended by SIGKILL and is restarted" in output
    deadline = time.monotonic() + 5
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "an orphan is left"
        time.sleep(0.05)

    before = scores(tmp_path)
    limit = int(before[-1]["frames"]) + 200
    limited = (ONE_EVALUATOR, f"total_frames={limit}")
    resumed = run(tmp_path, "--resume-or-start", settings=limited)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    after = scores(tmp_path)
    assert after[: len(before)] == before
    assert after[-1]["frames"] >= limit
    assert_events_are_logs_and_scores(tmp_path)
    record = json.loads((experiment(tmp_path) / "log" / "run.json").read_text())
    assert [start["resumed"] for start in record["starts"]] == [False, True]

    again = run(tmp_path, "--resume-or-start", settings=limited)
    assert again.returncode == 0
    assert "is finished: nothing is left to do" in again.stdout


def test_the_process_that_measures_the_environment_ends_with_its_killed_launcher(
    tmp_path,
):
    pid = tmp_path / "pid"
    (tmp_path / "hanging.py").write_text(
        "import os, signal\n"
        f"with open({str(pid)!r}, 'w') as file:\n"
        "    file.write(f'{os.getpid()}\\n')\n"
        "signal.pause()\n"
    )
    launcher = subprocess.Popen(
        command(tmp_path, settings=('env.module="hanging"',)),
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: pid.exists() and pid.read_text().endswith("\n"), launcher)
    assert is_alive(int(pid.read_text()))
    launcher.kill()
    launcher.communicate()
    deadline = time.monotonic() + 5
    while is_alive(int(pid.read_text())):
        assert time.monotonic() < deadline, "an orphan is left"
        time.sleep(0.05)


def test_a_run_that_diverges_stops_and_keeps_the_last_good_state(finished_copy):
    """Here in place of a finished one, which stays under another name."""
    earlier = scores(finished_copy)
    diverging = (*DDPG, ONE_EVALUATOR, "policy_config.learning_rate=1e30")
    done = run(finished_copy, "--overwrite", settings=diverging)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "the run stops. The last good state is" in done.stderr
    folder = experiment(finished_copy)
    state = folder / "checkpoints" / "valuerl.safetensors"
    assert str(state) in done.stderr
    kept = folder.with_name("run.old1") / "log" / "run.greedy.csv"
    assert table(kept) == earlier
    from steve.storage.checkpoint import load

    assert all(np.isfinite(t).all() for t in load(state).tensors.values())


def test_a_fresh_start_from_a_numbered_checkpoint(finished_copy):
    settings = tuple(ALGORITHMS[WITH_ENSEMBLES])
    folder = experiment(finished_copy)
    for learner in ("valuerl", "worldmodel"):
        for updates in (100, 200, 300, 400):
            assert (
                folder / "checkpoints" / f"{learner}-{updates}.safetensors"
            ).exists()
    finished = scores(finished_copy)

    missing = run(finished_copy, "--resume-from", "150", settings=settings)
    assert missing.returncode == 2
    assert "there are: 100, 200, 300, 400" in missing.stderr
    assert scores(finished_copy) == finished

    done = run(finished_copy, "--resume-from", "200", settings=settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert table(folder.with_name("run.old1") / "log" / "run.greedy.csv") == finished
    rows = learner_log(finished_copy)
    assert [row["updates"] for row in rows] == list(range(50, 401, 50))
    again = scores(finished_copy)
    epoch = next(row["epoch"] for row in rows if row["updates"] == 200)
    early = [row for row in finished if row["epochs"] <= epoch]
    assert again[: len(early)] == early
    assert_events_are_logs_and_scores(finished_copy)
    assert again[-1]["frames"] == 240


def test_without_shared_memory_one_line_names_it(monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(launch_module, "ProcessPoolExecutor", read_only)
    config = Config.model_validate({"env": {"name": "Pendulum-v1"}})
    with pytest.raises(UserError, match=r"^/dev/shm: Read-only file"):
        measure_environment(config)
