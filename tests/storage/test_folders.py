"""An experiment's folder: where everything lies, and the seeds of its processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import PATIENCE, PROJECT, make_config

from steve.settings.roles import process_names
from steve.settings.schema import Config
from steve.storage import checkpoint
from steve.storage.folders import Folders, derive_seed

# Layout


def test_everything_lies_where_the_specification_says():
    config = Config.model_validate({"env": {"name": "Hopper-v1"}, "output_root": "out"})
    folders = Folders.of(config, "steve0")
    root = Path("out/Hopper-v1/steve0")
    assert folders.root == root
    assert folders.hyperparameters == root / "log/hps.json"
    assert folders.run == root / "log/run.json"
    assert folders.scores == root / "log/steve0.greedy.csv"
    assert folders.learner_log("valuerl") == root / "log/valuerl.log"
    assert folders.learner_log("worldmodel") == root / "log/worldmodel.log"
    assert folders.board.parent == root / "log"
    assert folders.process_output("evaluator1").parent.parent == root / "log"
    for path in (
        folders.policy,
        folders.replay,
        folders.state("valuerl"),
        folders.numbered_state("valuerl", 500),
        folders.numbered_replay(500),
    ):
        assert path.parent == root / "checkpoints"


def test_the_names_of_log_and_checkpoints_follow_the_configuration(tmp_path):
    config = make_config(tmp_path, save_model_path="models", log_path="logs")
    folders = Folders.of(config, "first")
    assert folders.log == folders.root / "logs"
    assert folders.state("valuerl").parent == folders.root / "models"


def test_no_two_things_share_a_path(folders):
    learners = ("valuerl", "worldmodel")
    processes = (*learners, "interactor0", "interactor1", "evaluator0")
    paths = [
        folders.hyperparameters,
        folders.run,
        folders.scores,
        folders.board,
        folders.policy,
        folders.replay,
        folders.numbered_replay(1),
        folders.numbered_replay(11),
        *(folders.learner_log(name) for name in learners),
        *(folders.process_output(name) for name in processes),
        *(folders.state(name) for name in learners),
        *(checkpoint.previous_path(folders.state(name)) for name in learners),
        *(folders.numbered_state(name, n) for name in learners for n in (1, 11)),
        *(folders.lock(kind) for kind in ("run", "processes")),
    ]
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("name", ["dm_control/cheetah-run-v0", "Env-v0"])
def test_an_environment_is_one_folder_whatever_its_id(tmp_path, name):
    config = Config.model_validate({"env": {"name": name}, "output_root": "out"})
    assert len(Folders.of(config, "first").root.parts) == 3


def test_locks_lie_outside_so_that_the_folder_can_move(folders):
    for kind in ("run", "processes"):
        assert folders.root not in folders.lock(kind).parents
        assert folders.lock(kind).name.startswith(".")


# Seeds


def test_every_process_launch_and_restart_has_a_seed_of_its_own(tmp_path):
    seeds = set()
    count = 0
    for seed in range(3):
        config = make_config(
            tmp_path,
            model=True,
            seed=seed,
            agent_config={"count": 3},
            evaluator_config={"count": 3},
        )
        for name in process_names(config):
            for launch in range(4):
                for restart in range(6):
                    seeds.add(derive_seed(config, name, launch, restart))
                    count += 1
    assert count == 3 * 9 * 4 * 6
    assert len(seeds) == count
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_equal_inputs_give_the_same_seed_in_every_process(tmp_path):
    config = make_config(tmp_path, model=True, seed=5)
    seeds = [derive_seed(config, name, 1, 2) for name in process_names(config)]
    again = make_config(tmp_path / "elsewhere", model=True, seed=5)
    assert seeds == [derive_seed(again, name, 1, 2) for name in process_names(again)]
    script = (
        "from support import make_config\n"
        "from steve.storage.folders import derive_seed\n"
        "from steve.settings.roles import process_names\n"
        f"config = make_config({str(tmp_path)!r}, model=True, seed=5)\n"
        "print([derive_seed(config, n, 1, 2) for n in process_names(config)])\n"
    )
    path = str(PROJECT / "tests")
    output = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert json.loads(output.stdout) == seeds
