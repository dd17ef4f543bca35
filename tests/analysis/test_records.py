"""Experiments' files: which are found, what is read from them, how runs are named."""

import gzip
import shutil
from pathlib import Path

import pytest
from support import PROJECT
from support_results import (
    DDPG,
    MVE_TDK,
    SCORES,
    STEVE,
    settings,
    write_csv,
    write_experiment,
)

from steve.analysis.records import find_runs, grouped, read_config, remarks
from steve.settings import loading
from steve.settings.schema import Config
from steve.util import UserError

ROWS = [(0.1, 1, 100, 5.0), (0.2, 2, 200, 7.5), (0.2, 2, 200, 8.5)]
LOG = ("hours", "epoch", "updates", "frames")


def into_log_folder(csv: Path) -> None:
    """Moves an experiment's files where main.py writes them."""
    files = list(csv.parent.iterdir())
    log = csv.parent / "log"
    log.mkdir()
    for file in files:
        file.rename(log / file.name)


# ---- Finding ------------------------------------------------------------------------


def test_results_and_output_are_found_gzipped_or_not(tmp_path):
    write_experiment(tmp_path / "results" / "steve0", ROWS, suffix=".gz")
    into_log_folder(write_experiment(tmp_path / "output" / "steve1", ROWS))
    for run in find_runs([tmp_path / "results", tmp_path / "output"]):
        x, y = run.series("score", "frames")
        assert x.tolist() == [100, 200]
        assert y.tolist() == [5.0, 8.0]  # one value for each policy
        assert run.environment == "Chain-v0"
        assert run.group("experiment") == "steve"


def test_an_experiment_counts_once_however_it_is_named(tmp_path):
    path = write_experiment(tmp_path / "a" / "run0", ROWS)
    write_csv(path.with_name(path.name + ".gz"), SCORES, ROWS)
    (run,) = find_runs([tmp_path, path.parent, tmp_path / "a"])
    assert run.path == path


def test_what_was_put_aside_is_passed_over_unless_named(tmp_path):
    for name in ("run0", "run0.old1", ".run0.rewound"):
        folder = tmp_path / name
        write_experiment(folder, ROWS)
        (folder / f"{name}.greedy.csv").rename(folder / "run0.greedy.csv")
    (run,) = find_runs([tmp_path])
    assert run.path.parent.name == "run0"
    (run,) = find_runs([tmp_path / "run0.old1"])
    assert run.path.parent.name == "run0.old1"
    both = grouped(find_runs([tmp_path, tmp_path / "run0.old1"]), "algorithm")
    assert [name for _, name in both] == ["DDPG", "DDPG (run0.old1)"]


def test_a_folder_without_experiments_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"holds no EXPERIMENT\.greedy\.csv"):
        find_runs([tmp_path])
    with pytest.raises(UserError, match="is not a folder"):
        find_runs([tmp_path / "missing"])


# ---- Reading ------------------------------------------------------------------------


def test_a_torn_last_line_is_left_out(tmp_path):
    path = write_experiment(tmp_path / "run0", ROWS)
    path.write_bytes(path.read_bytes()[:-3])  # 8.5 without its end reads as 8
    assert find_runs([tmp_path])[0].series("score", "frames").tolist() == [
        [100, 200],
        [5.0, 7.5],
    ]


@pytest.mark.parametrize("content", ["", "hours,epo", "hours,epochs,frames,score\n"])
def test_a_run_that_has_just_begun_has_no_scores(tmp_path, content):
    write_experiment(tmp_path / "run0", ROWS).write_text(content)
    runs = find_runs([tmp_path])
    assert runs[0].series("score", "frames") is None
    (line,) = remarks(runs)
    assert line.endswith("run0.greedy.csv has no evaluation yet")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("hours,frames,score\n1,2,3\n", "no column 'epochs'"),
        ("hours,epochs,frames,score\n1,2,3,x\n", "no line is whole"),
        ("hours,epochs,frames,score\n1,1,1,1,1\n", "no line is whole"),
        ("hours,epochs,frames,score\n1,2,,4\n", "no line is whole"),
        ("hours,epochs,frames,score,hours\n1,2,3,4,5\n", "has a column twice"),
    ],
)
def test_a_broken_csv_is_one_line_that_names_it(tmp_path, content, said):
    path = write_experiment(tmp_path / "run0", ROWS)
    path.write_text(content)
    with pytest.raises(UserError, match=said) as error:
        find_runs([tmp_path])
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("line", ["1,2,3,nan", "1,2,3", "", "1,2,3,\udcff", "\0" * 9])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damaged_lines_are_left_out_and_counted(tmp_path, line, suffix):
    path = write_experiment(tmp_path / "run0", ROWS, suffix=suffix)
    expected = find_runs([tmp_path])[0].series("score", "frames")
    unpack, pack = (gzip.decompress, gzip.compress) if suffix else (bytes, bytes)
    header, *lines = unpack(path.read_bytes()).splitlines()
    damaged = line.encode(errors="surrogateescape")
    path.write_bytes(pack(b"\n".join([header, damaged, *lines, b""])))
    runs = find_runs([tmp_path])
    assert runs[0].series("score", "frames").tolist() == expected.tolist()
    assert any("1 damaged line left out" in remark for remark in remarks(runs))


@pytest.mark.parametrize("damage", [lambda b: b[:-12], lambda b: b"no gzip"])
def test_a_damaged_gzip_file_is_one_line(tmp_path, damage):
    path = write_experiment(tmp_path / "run0", ROWS, suffix=".gz")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="cannot be read"):
        find_runs([tmp_path])


def test_a_run_without_a_readable_configuration_is_one_line(tmp_path):
    path = write_experiment(tmp_path / "run0", ROWS).with_name("hps.json")
    for content, said in (
        ("{", "cannot be read"),
        ("[]", "is not a JSON object"),
        ('{"env": {"name": "A", "nmae": 1}}', r"env\.nmae"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=said) as error:
            read_config(path)
        assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(UserError, match=r"hps\.json is missing"):
        find_runs([tmp_path])


OWN = DDPG | {
    "module": ["not_here"],
    "policy_config": {
        "value_expansion": {
            "rollout_len": 3,
            "weighting": "my_own",
            "weighting_settings": {"power": 2},
        }
    },
    "model_config": {},
}


@pytest.mark.parametrize(
    ("record", "name", "logs_usage"),
    [
        (None, "single-net my own", True),
        ("{", "single-net my own", True),
        ('{"weighting": 1}', "single-net my own", True),
        (
            '{"weighting": {"title": "{Own}", "adaptive": false, "ensembles": true}}',
            "single-net {Own}",
            False,
        ),
        (
            '{"weighting": {"title": "Own", "adaptive": true, "ensembles": false}}',
            "Own",
            True,
        ),
    ],
)
def test_run_json_tells_of_a_weighting_whose_module_is_not_here(
    tmp_path, record, name, logs_usage
):
    path = write_experiment(tmp_path / "run0", ROWS, OWN)
    for kept in ("run.json", "compute.json"):  # the latter of a collected run
        if record is not None:
            path.with_name(kept).write_text(record)
        config = find_runs([tmp_path])[0].config
        assert (config.algorithm, config.logs_usage) == (name, logs_usage)
        path.with_name(kept).unlink(missing_ok=True)


def test_updates_of_scores_come_from_epochs(tmp_path):
    content = DDPG | {"policy_config": {"epoch_every_n": 50}}
    write_experiment(tmp_path / "run0", ROWS, content)
    x, _ = find_runs([tmp_path])[0].series("score", "updates")
    assert x.tolist() == [0, 50]


def test_series_are_sorted_by_x(tmp_path):
    lines = [(0.2, 2, 1000, 600, 3.0), (0.1, 1, 500, 300, 4.0)]
    log = ((*LOG, "q_loss"), lines)
    write_experiment(tmp_path / "run0", ROWS[::-1], valuerl=log)
    (run,) = find_runs([tmp_path])
    for quantity, expected in (("score", [5.0, 8.0]), ("q_loss", [4.0, 3.0])):
        x, y = run.series(quantity, "hours")
        assert x.tolist() == [0.1, 0.2]
        assert y.tolist() == expected


def test_metrics_come_from_either_log_without_the_pretraining(tmp_path):
    logs = {
        "valuerl": ((*LOG, "q_loss"), [(0.1, 1, 500, 300, 4.0)]),
        "worldmodel": (
            (*LOG, "reward_loss"),
            [(0.0, 0, 0, 100, 9.0), (0.1, 1, 500, 300, 2.0)],
        ),
    }
    for suffix in ("", ".gz"):
        write_experiment(tmp_path / f"run{suffix}", ROWS, STEVE, suffix=suffix, **logs)
    for run in find_runs([tmp_path]):
        assert run.series("q_loss", "frames").tolist() == [[300], [4.0]]
        assert run.series("reward_loss", "updates").tolist() == [[500], [2.0]]
        assert run.series("no_loss", "frames") is None


def test_model_usage_is_steves_alone(tmp_path):
    log = ((*LOG, "model_usage"), [(0.1, 1, 500, 300, 0.25)])
    write_experiment(tmp_path / "steve0", ROWS, STEVE, valuerl=log)
    write_experiment(tmp_path / "mve0", ROWS, MVE_TDK, valuerl=log)
    mve, steve = find_runs([tmp_path])
    assert mve.series("model_usage", "frames") is None
    assert steve.series("model_usage", "frames")[1].tolist() == [0.25]


@pytest.mark.parametrize(
    "damage",
    [
        lambda csv: csv.write_text("hours,epochs,frames,score\n1,1,1,nan\n"),
        lambda csv: csv.write_text("hours,epochs,frames,score\n1,1,1\n"),
        lambda csv: csv.with_name("hps.json").write_text('{"newer": 1}'),
        lambda csv: csv.with_name("hps.json").unlink(),
        lambda csv: csv.with_name("valuerl.log").write_bytes(b"\xff\n"),
    ],
)
def test_a_run_that_cannot_be_read_is_named_and_the_others_are_there(tmp_path, damage):
    whole = write_experiment(tmp_path / "a0", ROWS)
    damage(write_experiment(tmp_path / "a1", ROWS, seed=1))
    said: list[str] = []
    assert [run.path for run in find_runs([tmp_path], said.append)] == [whole]
    (line,) = said
    assert "a run is left out" in line
    assert str(tmp_path / "a1") in line
    with pytest.raises(UserError):  # nothing is left to look at
        find_runs([tmp_path / "a1"], said.append)


# ---- Grouping -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("goodruns/humanoid/ddpg0", "DDPG"),
        ("goodruns/hopper/mve_tdk1", "MVE-TDk"),
        ("goodruns/hopper/steve3", "STEVE"),
        ("ablations/horizons/steve_1h0", "STEVE H=1"),
        ("ablations/horizons/steve_2h0", "STEVE H=2"),
        ("ablations/horizons/steve_5h0", "STEVE H=5"),
        ("ablations/baselines/ensemble_mve_tdk0", "ensemble MVE-TDk"),
        ("ablations/baselines/mve_25tdlambda0", "TD-lambda 0.25 MVE"),
        ("ablations/baselines/mve_75tdlambda0", "TD-lambda 0.75 MVE"),
        ("ablations/baselines/mve_meank0", "mean-MVE"),
        ("ablations/baselines/steve_cov0", "COV-STEVE"),
        ("speedruns/humanoid/speedy_ddpg0", "DDPG unpaced"),
        ("speedruns/humanoid/speedy_steve0", "STEVE unpaced"),
    ],
)
def test_algorithms_of_the_papers_experiments(file, name):
    path = PROJECT / "config" / "experiments" / f"{file}.json"
    assert loading.load(path).config.algorithm == name


def with_ensembles(policy=None, transition=None, reward=1, expands=True):
    """A configuration of STEVE, or of DDPG with a world model, with such ensembles."""

    def size(count):
        return dict.fromkeys(
            ("ensemble_size", "train_sample_count", "eval_sample_count"), count
        )

    content = settings(steve_reweight=True)
    if not expands:
        del content["policy_config"]["value_expansion"]
    if policy:
        content["policy_config"]["bayesian"] = size(policy)
    if transition:
        content["model_config"]["bayesian"] = {
            "transition": size(transition),
            "reward": size(reward),
        }
    return content


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (settings(), "MVE"),
        (settings(lambda_return=0), "TD-lambda 0 MVE"),
        (settings(steve_reweight=True), "single-net STEVE"),
        (settings(model=False, ensembles=True), "ensemble DDPG"),
        (with_ensembles(policy=1), "single-net STEVE"),
        (with_ensembles(policy=1, transition=1, reward=1), "single-net STEVE"),
        (with_ensembles(policy=1, transition=1, reward=2), "STEVE"),
        (with_ensembles(transition=2), "STEVE"),
        (with_ensembles(policy=2, expands=False), "ensemble DDPG"),
        (with_ensembles(policy=1, transition=2, expands=False), "DDPG"),
    ],
)
def test_a_name_says_what_departs_from_the_usual_form(content, name):
    assert Config.model_validate(content).algorithm == name


@pytest.mark.parametrize("section", ["policy_config", "model_config"])
def test_a_run_one_of_whose_learners_keeps_no_pace_is_unpaced(section):
    content = settings(ensembles=True, steve_reweight=True)
    content[section]["frames_per_update"] = False
    assert Config.model_validate(content).algorithm == "STEVE unpaced"


def test_groups_are_algorithms_or_experiments_without_their_digits(tmp_path):
    for name, content in (
        ("steve0", STEVE),
        ("steve1", STEVE),
        ("wide_0", STEVE),
        ("7", DDPG),
    ):
        write_experiment(tmp_path / name, ROWS, content)
    runs = find_runs([tmp_path])
    sizes = {k: len(group) for k, group in grouped(runs, "algorithm").items()}
    assert sizes == {("Chain-v0", "DDPG"): 1, ("Chain-v0", "STEVE"): 3}
    sizes = {k[1]: len(group) for k, group in grouped(runs, "experiment").items()}
    assert sizes == {"7": 1, "steve": 2, "wide": 1}


def test_runs_of_an_algorithm_are_told_apart_by_the_keys_that_differ(tmp_path):
    for rate in (0.001, 0.0003):
        for seed in range(2):
            content = {**DDPG, "policy_config": {"learning_rate": rate}}
            name = f"ddpg_{rate}_{seed}"
            write_experiment(tmp_path / name, ROWS, content, seed=seed)
    runs = find_runs([tmp_path])
    groups = grouped(runs, "algorithm")
    assert {name: len(group) for (_, name), group in groups.items()} == {
        "DDPG, learning_rate 0.0003": 2,
        "DDPG, learning_rate 0.001": 2,
    }
    assert remarks(runs) == []


def test_what_makes_no_difference_to_learning_makes_no_group(tmp_path):
    expansions = {"steve_reweight": True}, {"weighting": "steve"}
    for i, expansion in enumerate(expansions):
        content = settings(ensembles=True, rollout_len=3, **expansion)
        if i:
            content["env"] |= {"obs_dims": [3], "action_dim": 1, "inertia": "2.1"}
        write_experiment(tmp_path / f"run{i}", ROWS, content, seed=i)
    groups = grouped(find_runs([tmp_path]), "algorithm")
    assert {name: len(group) for (_, name), group in groups.items()} == {"STEVE": 2}
    content["policy_config"]["value_expansion"]["weighting_settings"] = {"epsilon": 0.1}
    write_experiment(tmp_path / "run2", ROWS, content, seed=2)
    names = [name for _, name in grouped(find_runs([tmp_path]), "algorithm")]
    assert set(names) == {"STEVE, epsilon 1e-08", "STEVE, epsilon 0.1"}


def test_settings_that_make_too_long_a_name_give_the_experiments(tmp_path):
    for name, size in (("slow", 64), ("quick", 32)):
        keys = {"batch_size": size, "layers": size, "hidden_dim": size}
        content = {**DDPG, "policy_config": {**keys, "explore_chance": size / 100}}
        write_experiment(tmp_path / f"{name}0", ROWS, content)
    names = [name for _, name in grouped(find_runs([tmp_path]), "algorithm")]
    assert names == ["DDPG (quick)", "DDPG (slow)"]


def test_horizons_are_in_the_order_of_the_number_and_each_says_its_own(tmp_path):
    for horizon in (10, 1, 2, 3):
        content = settings(ensembles=True, steve_reweight=True, rollout_len=horizon)
        write_experiment(tmp_path / f"h{horizon}_0", ROWS, content)
    names = [name for _, name in grouped(find_runs([tmp_path]), "algorithm")]
    assert names == ["STEVE H=1", "STEVE H=2", "STEVE H=3", "STEVE H=10"]


def test_seeds_of_one_length_and_setting_need_no_remark(tmp_path):
    for seed in range(3):
        write_experiment(tmp_path / f"steve{seed}", ROWS, STEVE, seed=seed)
    write_experiment(tmp_path / "ddpg0", ROWS[:1], DDPG)
    assert remarks(find_runs([tmp_path])) == []


def test_what_a_reader_should_know_is_remarked(tmp_path):
    write_experiment(tmp_path / "a0", ROWS)
    write_experiment(tmp_path / "a1", ROWS[:1], DDPG | {"policy_config": {"layers": 3}})
    short, settings_differ, seeds = remarks(find_runs([tmp_path]), "experiment")
    assert "a1.greedy.csv ends at 100 frames" in short
    assert "Chain-v0" in short
    assert "200" in short
    assert settings_differ.endswith("differ in policy_config.layers")
    assert "a seed occurs twice: [0, 0]; its runs are no replicates" in seeds


def test_a_copied_experiment_is_remarked_as_a_seed_that_occurs_twice(tmp_path):
    path = write_experiment(tmp_path / "output" / "a4", ROWS, seed=4)
    shutil.copytree(path.parent, tmp_path / "results" / "a4")
    (line,) = remarks(find_runs([tmp_path]))
    assert line.endswith(
        "[4, 4]; its runs are no replicates: name the folders that belong together"
    )


def test_damaged_lines_of_a_log_count_too(tmp_path):
    log = ((*LOG, "q_loss"), [(0.1, 1, 500, 300, 4.0)])
    csv = write_experiment(tmp_path / "run0", ROWS, valuerl=log)
    with open(csv.with_name("valuerl.log"), "a") as file:
        file.write("0.2,x,1000,600,3.0\n")
    (run,) = find_runs([tmp_path])
    assert run.damaged == 1
