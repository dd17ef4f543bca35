"""docs/extending.md: its files and configurations, run as they stand there."""

import csv
import json
import os
import re
import subprocess
import sys

import pytest
from support import PROJECT

from steve.analysis.records import find_runs
from steve.settings import loading
from steve.storage import checkpoint

TEXT = (PROJECT / "docs" / "extending.md").read_text()
FILES = {
    code.splitlines()[0].removeprefix("# "): code
    for code in re.findall(r"```python\n(# my_.*?)```", TEXT, re.DOTALL)
}
CONFIGS = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", TEXT, re.S)]
SHORT = (
    *("total_frames=620", "final_episodes=1", "evaluator_config.count=1"),
    "policy_config.log_every_n=20",
)


def steve(folder, *arguments):
    """`steve` as a user calls it in a folder of their own."""
    return subprocess.run(
        [sys.executable, "-m", "steve", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def folder(tmp_path):
    """A user's folder with all files of the page."""
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    return tmp_path


def merged(*configs):
    """Several of the page's configurations as one."""
    result = {}
    for config in configs:
        for key, value in config["updates"].items():
            old = result.get(key)
            if isinstance(old, dict):
                result[key] = {**old, **value}
            else:
                result[key] = (old or []) + value if isinstance(value, list) else value
    return {"inherits": configs[0]["inherits"], "updates": result}


def test_the_page_has_a_file_and_a_configuration_of_each_kind():
    kinds = ("weighting", "model", "env", "logger")
    assert list(FILES) == [f"my_{kind}.py" for kind in kinds]
    assert len(CONFIGS) == len(kinds)


def test_all_examples_together_train_and_are_shown(folder):
    (folder / "mine.json").write_text(json.dumps(merged(*CONFIGS)))
    settings = [*SHORT, "model_config.log_every_n=20", "model_config.pretrain_n=20"]
    settings += [f"{part}.xla=false" for part in ("policy_config", "model_config")]
    done = steve(folder, "train", "mine.json", "cpu", "--set", *settings)
    assert done.returncode == 0, done.stdout + done.stderr

    experiment = folder / "output" / "PointMass" / "mine"
    with open(experiment / "log" / "worldmodel.log") as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["mean_change"]) > 0
    assert "reward_loss" not in last
    state = checkpoint.load(experiment / "checkpoints" / "worldmodel.safetensors")
    assert {name.split("/")[0] for name in state.tensors} == {
        "transition",
        "termination",
        "adam",
    }
    with open(experiment / "log" / "valuerl.log") as file:
        last = list(csv.DictReader(file))[-1]
    assert 0 < float(last["model_usage"]) < 1  # as the weights adapt
    name, *points = (folder / "points.txt").read_text().splitlines()
    assert name.startswith("PointMass/mine ")
    groups = {point.split()[0] for point in points}
    assert groups == {"valuerl", "worldmodel", "evaluation"}
    assert find_runs([experiment])[0].config.algorithm == "inverse-std"

    shown = steve(
        *(folder, "visualize", str(experiment), "--episodes=1", "--video=none")
    )
    assert shown.returncode == 0, shown.stderr
    assert "inverse-std's weights along the episodes" in shown.stdout


def test_describe_calls_the_weighting_by_its_name_without_importing_it(folder):
    (folder / "my_weighting.py").write_text("raise SystemExit('imported')")
    (folder / "mine.json").write_text(json.dumps(CONFIGS[0]))
    done = steve(folder, "describe", "mine.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("mine.json: inverse std on InvertedPendulum-v5\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"module": ["my_env"]},
            "policy_config.value_expansion.weighting: no weighting is called",
        ),
        ({"module": ["no_such"]}, "module no_such: cannot be imported"),
        ({"module": ["leaves"]}, "module leaves: ends the program"),
        (
            {
                "policy_config": {
                    "value_expansion": {
                        "steve_reweight": False,
                        "weighting": "inverse_std",
                        "weighting_settings": {"temperature": 1},
                    }
                }
            },
            "has no temperature (settings of inverse_std: epsilon)",
        ),
    ],
)
def test_what_a_module_does_not_register_is_one_line_before_the_start(
    folder, change, said
):
    (folder / "leaves.py").write_text("raise SystemExit(3)")
    config = {**CONFIGS[0], "updates": {**CONFIGS[0]["updates"], **change}}
    (folder / "mine.json").write_text(json.dumps(config))
    done = steve(folder, "train", "mine.json", "cpu")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert not (folder / "output").exists()


def test_a_world_model_with_a_fault_is_one_line_before_the_start(folder):
    code = FILES["my_model.py"].replace("1, tf.shape(obs)[0]", "1, 1")
    (folder / "my_model.py").write_text(code)
    (folder / "mine.json").write_text(json.dumps(CONFIGS[1]))
    done = steve(folder, "train", "mine.json", "cpu")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    said = "model_config.kind: known_reward gives float32 of shape (1, 1) as rewards"
    assert said in done.stderr
    assert not (folder / "output").exists()


@pytest.mark.parametrize(
    ("entry_point", "said"),
    [
        ("my_env:Nothing", "my_env has no Nothing"),
        ("nowhere:PointMass", "env.entry_point nowhere: cannot be imported"),
        ("my_env:np.array", '"package.module:Class"'),
        ("__main__:Mine", 'save it in a file, such as my_env.py, and name it "my_env:'),
        ("collections:Counter", "gives Counter, which is no gymnasium.Env"),
    ],
)
def test_an_entry_point_that_gives_no_environment_is_one_line(
    folder, entry_point, said
):
    env = {**CONFIGS[2]["updates"]["env"], "entry_point": entry_point}
    env["make_kwargs"] = {}
    config = {**CONFIGS[2], "updates": {"env": env}}
    (folder / "mine.json").write_text(json.dumps(config))
    done = steve(folder, "train", "mine.json", "cpu")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr


def test_a_name_that_no_module_could_register_is_refused_at_once(tmp_path):
    text = json.dumps(
        {**CONFIGS[0], "updates": {**CONFIGS[0]["updates"], "module": []}}
    )
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(loading.UserError, match="must be one of last, mean"):
        loading.load(tmp_path / "mine.json")
