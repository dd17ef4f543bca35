"""An experiment's folder: where everything lies."""

from pathlib import Path

import pytest
from support import make_config

from steve.settings.schema import Config
from steve.storage import checkpoint
from steve.storage.folders import Folders
from steve.util import UserError


def test_everything_lies_where_the_specification_says():
    config = Config.model_validate({"env": {"name": "Hopper-v1"}, "output_root": "out"})
    folders = Folders.of(config, "steve0")
    root = Path("out/Hopper-v1/steve0").absolute()
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
    assert folders.digests == root / "log/digests.csv"
    published = root / "checkpoints/published"
    assert folders.policies.path(500) == published / "policy-500.safetensors"
    assert folders.models.path(500) == published / "worldmodel-500.safetensors"


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
        folders.final_scores,
        folders.digests,
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
        *(folders.policies.path(n) for n in (0, 1, 11)),
        *(folders.models.path(n) for n in (0, 1, 11)),
        *(folders.lock(kind) for kind in ("run", "processes")),
    ]
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("name", ["dm_control/cheetah-run-v0", "Env-v0"])
def test_an_environment_is_one_folder_whatever_its_id(tmp_path, name):
    config = Config.model_validate({"env": {"name": name}, "output_root": "out"})
    root = Folders.of(config, "first").root
    assert len(root.relative_to(Path.cwd()).parts) == 3


def test_locks_lie_outside_so_that_the_folder_can_move(folders):
    for kind in ("run", "processes"):
        assert folders.root not in folders.lock(kind).parents
        assert folders.lock(kind).name.startswith(".")


@pytest.mark.parametrize(
    ("given", "root"),
    [
        ("~/runs", "/home/somebody/runs"),
        ("$SCRATCH/runs", "/scratch/1/runs"),
        ("${SCRATCH}", "/scratch/1"),
        ("a~b", "/work/a~b"),
        ("./~", "/work/~"),
    ],
)
def test_a_home_folder_and_variables_are_replaced(given, root, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("SCRATCH", "/scratch/1")
    monkeypatch.setattr("os.getcwd", lambda: "/work")
    found = Folders.of(
        make_config(Path()).model_copy(update={"output_root": given}), "run"
    ).root
    assert found == Path(root, "Counting-v0", "run")


@pytest.mark.parametrize("given", ["~nobody-of-this-name/x", "$UNSET_HERE/x", "a/${B}"])
def test_a_home_folder_or_variable_that_is_not_known_is_refused(given, monkeypatch):
    monkeypatch.delenv("B", raising=False)
    with pytest.raises(UserError, match="is not known here; give the whole path"):
        Folders.of(make_config(Path()).model_copy(update={"output_root": given}), "run")
