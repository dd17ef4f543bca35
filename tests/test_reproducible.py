"""Whole runs: the same seed gives the same bytes, through load and through kills."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support import PROJECT

from steve.settings.roles import LAUNCHER, VALUERL, WORLDMODEL, process_names
from steve.settings.schema import Config
from steve.storage.board import Board
from steve.storage.digests import read_digests
from steve.storage.folders import Folders
from steve.util import RunError

LEARNER = {
    "hidden_dim": 16,
    "layers": 2,
    "batch_size": 16,
    "frames_before_learning": 40,
    "frames_per_update": 0.5,
    "epoch_every_n": 20,
    "log_every_n": 20,
    "replay_size": 150,  # the run is longer: the ring wraps
}
MODEL = {
    "transition_hidden_dim": 16,
    "aux_hidden_dim": 16,
    "transition_layers": 2,
    "aux_layers": 2,
    "batch_size": 16,
    "frames_before_learning": 40,
    "frames_per_update": 0.5,
    "epoch_every_n": 30,
    "log_every_n": 20,
    "pretrain_n": 30,
    "replay_size": 200,
}
TWO = {"ensemble_size": 2, "train_sample_count": 2, "eval_sample_count": 2}
ALGORITHMS = {
    "ddpg": {},
    "mve": {"rollout_len": 2},
    "mve_tdk": {"rollout_len": 2, "tdk_trick": True},
    "mean_mve": {"rollout_len": 2, "mean_k_return": True},
    "td_lambda": {"rollout_len": 2, "lambda_return": 0.5},
    "steve": {"rollout_len": 2, "steve_reweight": True},
    "cov_steve": {"rollout_len": 2, "steve_reweight": True, "covariances": True},
}
WITHOUT_XLA = ["policy_config.xla=false", "model_config.xla=false"]
VARIANTS = {
    "default": [],
    "one interactor": ["agent_config.count=1"],
    "three interactors": ["agent_config.count=3"],
    "no evaluator": ["evaluator_config.count=0"],
    "one evaluator": ["evaluator_config.count=1"],
    "every second policy": ["evaluator_config.every_n_epochs=2"],
    "single updates": [
        "policy_config.updates_per_call=1",
        "model_config.updates_per_call=1",
    ],
    "calls of four": [
        "policy_config.updates_per_call=4",
        "model_config.updates_per_call=4",
    ],
    "unequal paces": ["model_config.frames_per_update=1"],
    "processes of their own": ['agent_config.vectorization="async"'],
}
PATIENCE = 240  # seconds for a whole run


def configuration(tmp_path, algorithm, **keys):
    expansion = ALGORITHMS[algorithm]
    content = {
        "env": {"name": "Pendulum-v1", "max_frames": 30, "rescale_actions": True},
        "agent_config": {"count": 2, "batch_size": 4, "full_random_n": 60},
        "evaluator_config": {"count": 2},
        "policy_config": dict(LEARNER),
        "total_frames": 500,
        "final_episodes": 2,
        "tensorboard": False,
        **keys,
    }
    if expansion:
        content["policy_config"]["value_expansion"] = expansion
        content["model_config"] = dict(MODEL)
    if "steve" in algorithm:
        content["policy_config"]["bayesian"] = TWO
        content["model_config"]["bayesian"] = {"transition": TWO, "reward": TWO}
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"updates": content}))
    return path


def launch(path, name, *settings, resume=False):
    settings = [f"output_root={json.dumps(str(path.parent / 'output'))}", *settings]
    command = [sys.executable, str(PROJECT / "main.py"), str(path), "cpu"]
    command += ["--name", name, "--set", *settings]
    command += ["--resume"] if resume else []
    with open(path.parent / f"{name}.txt", "a") as output:
        return subprocess.Popen(command, stdout=output, stderr=output)


def folders_of(path, name):
    content = json.loads(path.read_text())["updates"]
    content["output_root"] = str(path.parent / "output")
    return Folders.of(Config.model_validate(content), name)


def finish(process, path, name):
    code = process.wait(PATIENCE)
    assert code == 0, (path.parent / f"{name}.txt").read_text()


def bytes_of(folders):
    """Everything that two runs of one seed have in common, without hours."""
    scores = [
        [line.partition(",")[2] for line in file.read_text().splitlines()]
        for file in (folders.scores, folders.final_scores)
        if file.exists()  # without an evaluator there are none
    ]
    replay = (folders.replay / "replay.bin").read_bytes()
    return scores, replay, read_digests(folders.digests)


def pids_of(folders, process):
    """The processes of a run that are alive by their names, the launcher's first."""
    config = Config.model_validate(json.loads(folders.hyperparameters.read_text()))
    board = Board.open(folders.board)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    alive = set(map(int, children.split()))
    named = {name: int(board[name]["pid"]) for name in process_names(config)}
    return {LAUNCHER: process.pid} | {n: p for n, p in named.items() if p in alive}


def send(pid, number):
    with suppress(ProcessLookupError):  # the run has come to its end meanwhile
        os.kill(pid, number)


def kill_in_the_midst(path, name, dice, kills, settings=()):
    """Kills the launcher or one of its children when so many epochs are done."""
    process = launch(path, name, *settings)
    learners_killed = set()  # since the launch
    for kill in range(kills):
        digests = folders_of(path, name).digests
        deadline = time.monotonic() + PATIENCE
        while len(read_digests(digests)) < 3 * (kill + 1) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if process.poll() is not None:
            break
        time.sleep(0.1 * dice.random())
        pids = None
        while pids is None and process.poll() is None:
            with suppress(RunError):  # a launch has no board yet when it begins
                pids = pids_of(folders_of(path, name), process)
            time.sleep(0.02)
        if pids is None:
            break
        for pid in list(pids.values())[1:]:  # one stands still for a moment
            if dice.random() < 0.3:
                send(pid, signal.SIGSTOP)
                time.sleep(0.2 * dice.random())
                send(pid, signal.SIGCONT)
        victim = dice.choice(list(pids))
        send(pids[victim], signal.SIGKILL)
        if victim in (LAUNCHER, *learners_killed):  # a learner is restarted once
            process.wait(PATIENCE)
            process = launch(path, name, *settings, resume=True)
            learners_killed.clear()
        elif victim in (VALUERL, WORLDMODEL):
            learners_killed.add(victim)
    finish(process, path, name)


@pytest.mark.parametrize(
    "algorithm",
    [
        "steve",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ALGORITHMS
            if name != "steve"
        ),
    ],
)
def test_the_same_seed_gives_the_same_bytes_through_kills_and_stops(
    tmp_path, algorithm
):
    path, dice = configuration(tmp_path, algorithm), random.Random(os.urandom(8))
    finish(launch(path, "quiet", *WITHOUT_XLA), path, "quiet")
    kill_in_the_midst(path, "killed", dice, 2, WITHOUT_XLA)
    quiet, killed = (bytes_of(folders_of(path, name)) for name in ("quiet", "killed"))
    assert len(quiet[2]) == 47
    assert quiet == killed


@pytest.mark.slow
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_every_kind_of_run_is_the_same_through_kills_and_stops(tmp_path, settings):
    path, dice = configuration(tmp_path, "steve"), random.Random(os.urandom(8))
    finish(launch(path, "quiet", *settings), path, "quiet")
    kill_in_the_midst(path, "killed", dice, 3, settings)
    quiet, killed = (bytes_of(folders_of(path, name)) for name in ("quiet", "killed"))
    assert quiet[2]
    assert quiet == killed


@pytest.mark.slow
def test_another_seed_gives_another_run(tmp_path):
    path = configuration(tmp_path, "steve")
    found = []
    for seed in range(2):
        finish(launch(path, f"run{seed}", f"seed={seed}"), path, f"run{seed}")
        found.append(bytes_of(folders_of(path, f"run{seed}")))
    (scores, _, digests), (other_scores, _, others) = found
    assert scores[0] != other_scores[0]
    for ours, theirs in zip(digests, others, strict=True):
        assert ours[:3] == theirs[:3]  # epoch, updates and frames
        assert not set(ours[3:]) & set(theirs[3:])
