"""Files and grids of settings become distinct, checked runs."""

import json
from pathlib import Path

import pytest
from support import PROJECT, QUICKSTART

from steve import main
from steve.settings import loading
from steve.storage.folders import Folders
from steve.storage.record import write_json
from steve.sweeps.runs import Request, _values, expand
from steve.util import UserError

EXPERIMENTS = str(PROJECT / "config" / "experiments")
RATE = "policy_config.learning_rate"


def write(path: Path, **updates: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    inherits = ["config/quickstart.json"]
    path.write_text(json.dumps({"inherits": inherits, "updates": updates}))
    return str(path)


def names(*paths: str, **keys: object) -> list[str]:
    return [run.experiment for run in expand(Request(paths or [QUICKSTART], **keys))[1]]


def error_of(*paths: str, **keys: object) -> str:
    with pytest.raises(UserError) as caught:
        expand(Request(paths or [QUICKSTART], **keys))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Files and folders


def test_the_papers_folder_gives_its_132_runs_each_with_a_folder_of_its_own():
    root, runs = expand(Request([EXPERIMENTS], frames=1_000_000))
    assert root == Path("output").absolute()
    assert len(runs) == len({run.name for run in runs}) == 132
    assert "HalfCheetah-v1/steve0" in {run.name for run in runs}
    assert {run.frames for run in runs} == {1_000_000}


def test_a_packaged_folder_is_found_from_any_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, found = expand(Request(["config/experiments"], frames=1_000_000))
    assert len(found) == 132


def test_a_folder_stands_for_the_files_below_it_and_a_file_counts_once(tmp_path):
    first = write(tmp_path / "b.json")
    write(tmp_path / "deep" / "a.json")
    (tmp_path / "notes.txt").write_text("")
    write(tmp_path / ".ipynb_checkpoints" / "b-checkpoint.json")
    assert names(str(tmp_path), first) == ["b", "a"]
    (tmp_path / "empty").mkdir()
    assert "holds no .json file" in error_of(str(tmp_path / "empty"))


def test_a_name_may_begin_as_an_option_does(tmp_path):
    path = write(tmp_path / "-x.json")
    (run,) = expand(Request([path], frames=1000, seeds=[3]))[1]
    assert main.parse_arguments(run.arguments).name == run.experiment == "-x-seed3"


def test_runs_that_would_share_a_folder_are_refused_by_name(tmp_path):
    paths = [write(tmp_path / folder / "same.json") for folder in "ab"]
    said = error_of(*paths)
    assert paths[0] in said
    assert paths[1] in said
    assert "same" in said
    assert "two runs would both be" in said


@pytest.mark.parametrize("values", ["0.1,0.1", "0.1,0.10"])
def test_a_value_that_is_given_twice_is_said_to_be(values):
    assert "is asked for twice" in error_of(settings=[f"{RATE}={values}"])


def test_one_bad_configuration_among_many_is_named_and_nothing_is_written(tmp_path):
    for number in range(20):
        write(tmp_path / f"good{number}.json")
    bad = write(tmp_path / "good7.json", policy_config={"batchsize": 1})
    said = error_of(str(tmp_path), settings=[f"output_root={tmp_path / 'output'}"])
    assert bad in said
    assert "did you mean batch_size?" in said
    assert not (tmp_path / "output").exists()


def test_one_mistake_in_set_is_one_mistake_whatever_the_number_of_files():
    said = error_of(EXPERIMENTS, frames=10**6, settings=["batchsize=1"])
    assert "batchsize is not a known key" in said
    assert "more" not in said


def test_runs_of_different_output_roots_are_refused(tmp_path):
    paths = [write(tmp_path / f"{n}.json", output_root=f"out{n}") for n in range(2)]
    said = error_of(*paths)
    assert "out0" in said
    assert "out1" in said


def test_a_run_without_a_limit_must_be_meant():
    file = f"{EXPERIMENTS}/goodruns/hopper/ddpg0.json"
    assert f"{file} has no limit" in error_of(file)
    assert names(file, endless=True) == names(file, hours=1.5) == ["ddpg0"]


def test_output_of_another_configuration_is_refused(tmp_path):
    settings = [f"output_root={tmp_path}"]
    root, (run,) = expand(Request([QUICKSTART], settings))
    folders = run.folders(root)
    folders.log.mkdir(parents=True)
    loaded = loading.load(QUICKSTART, overrides=settings)
    write_json(folders.hyperparameters, loaded.merged)
    assert names(settings=settings) == ["quickstart"]
    assert RATE in error_of(settings=[*settings, f"{RATE}=0.5"])


# Grids


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("k=1,2", ["1", "2"]),
        ("k=1", ["1"]),
        ("k=[1,2]", ["[1,2]"]),
        ("k=[1,2],[3]", ["[1, 2]", "[3]"]),
        ('k={"a": 1, "b": 2},null', ['{"a": 1, "b": 2}', "null"]),
        ("k=Hopper-v5,Swimmer-v5", ["Hopper-v5", "Swimmer-v5"]),
        ('k="a,b"', ['"a,b"']),
        ("k=", [""]),
        ("k", []),
    ],
)
def test_commas_separate_values_but_not_what_is_inside_one(setting, values):
    assert _values(setting) == values


def test_a_grid_is_every_combination_and_its_names_say_which():
    settings = [f"{RATE}=0.001,0.01", "policy_config.batch_size=64"]
    assert names(settings=settings, seeds=[0, 3]) == [
        "quickstart-learning_rate=0.001-seed0",
        "quickstart-learning_rate=0.001-seed3",
        "quickstart-learning_rate=0.01-seed0",
        "quickstart-learning_rate=0.01-seed3",
    ]


def test_keys_with_the_same_end_are_told_apart_and_objects_are_numbered():
    both = [f"{RATE}=0.1,0.2", "model_config.learning_rate=0.1,0.2"]
    assert names(settings=both)[1] == (
        f"quickstart-{RATE}=0.1-model_config.learning_rate=0.2"
    )
    objects = ['policy_config.value_expansion={"rollout_len": 1},{"rollout_len": 2}']
    assert names(settings=objects) == [
        "quickstart-value_expansion=v0",
        "quickstart-value_expansion=v1",
    ]


def test_main_is_told_exactly_what_was_checked():
    settings = ["env.name=Hopper-v5,Swimmer-v5", 'env.make_kwargs={"a b": "c,d"}']
    _, runs = expand(Request([QUICKSTART], settings, [4], frames=5000, hours=2.5))
    for run, env in zip(runs, ("Hopper-v5", "Swimmer-v5"), strict=True):
        parsed = main.parse_arguments(run.arguments)
        loaded = loading.load(
            parsed.config,
            overrides=parsed.set,
            frames=parsed.frames,
            hours=parsed.hours,
        )
        assert parsed.resume_or_start
        assert parsed.gpu_id == "cpu"
        assert loaded.config.env.name == env
        assert loaded.config.env.make_kwargs == {"a b": "c,d"}
        assert loaded.config.seed == 4
        assert (run.frames, run.hours) == (5000, 2.5)
        name = loading.experiment_name(parsed.config, parsed.name)
        folders = Folders.of(loaded.config, name)
        assert run.folders(Path(loaded.config.output_root)) == folders


def test_a_key_is_given_once():
    assert "stands twice" in error_of(settings=[f"{RATE}=1", f"{RATE}=2"])
    assert "--seeds" in error_of(settings=["seed=1"], seeds=[0])


def test_the_updates_of_a_paced_run_follow_from_its_frames():
    # (1,000,000 - 10,000) / 0.25; nobody waits in a speedrun.
    paced = f"{EXPERIMENTS}/goodruns/hopper/steve0.json"
    unpaced = f"{EXPERIMENTS}/speedruns/humanoid/speedy_steve0.json"
    _, runs = expand(Request([paced, unpaced], frames=1_000_000))
    assert [run.updates for run in runs] == [3_960_000, None]
    assert [run.processes for run in runs] == [5, 5]


def test_vector_steps_are_whole_where_updates_are_counted():
    (run,) = expand(Request(["config/quickstart.json"], frames=1001))[1]
    assert run.updates == 504  # 1004 frames less 500, one update each
