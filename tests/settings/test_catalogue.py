"""What --list and --describe print."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from support import PROJECT

from steve import main
from steve.settings import catalogue, loading
from steve.settings.keys import all_paths, allowed, field_at
from steve.settings.schema import Config
from steve.util import UserError


def printed(renderable, width=80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def listed_files(lines: list[str]) -> list[Path]:
    """The files that the rows stand for, x[0-2].json being three."""
    files, folder = [], ""
    for line in lines:
        if heading := re.match(r"(config\S*?):? ", line + " "):
            folder = heading[1]
        elif row := re.match(r"(\S+?)(?:\[(\d+)-(\d+)\])?\.json ", line):
            seeds = range(int(row[2]), int(row[3]) + 1) if row[2] else [""]
            files += [Path(folder, f"{row[1]}{seed}.json") for seed in seeds]
    return files


# --list


def test_every_shipped_experiment_is_listed_once():
    files = listed_files(printed(catalogue.list_experiments()))
    shipped = [
        path.relative_to(PROJECT) for path in (PROJECT / "config").rglob("*.json")
    ]
    parts = ("algos", "core", "envs", "experimental_setups")
    expected = {path for path in shipped if path.parts[1] not in parts}
    assert sorted(files) == sorted(expected)
    papers = [path for path in files if path.parts[1] not in ("cpu", "fullsize")]
    assert len(papers) == 133


def test_the_list_fits_into_80_columns_and_says_what_runs_on_what():
    lines = printed(catalogue.list_experiments())
    rows = [" ".join(line.split()) for line in lines]
    assert "hopper/mve_tdk[0-3].json MVE-TDk on Hopper-v1" in rows
    assert "steve_5h[0-2].json STEVE H=5 on Humanoid-v1" in rows
    assert "mve_75tdlambda[0-2].json TD-lambda 0.75 MVE on Humanoid-v1" in rows
    assert "quickstart.json STEVE on InvertedPendulum-v5" in rows
    assert max(map(len, lines)) <= 80
    assert " ".join(rows).split() == " ".join(printed_wide()).split()


def test_experiments_that_would_read_the_same_say_what_differs():
    rows = {" ".join(line.split()) for line in printed_wide()}
    assert "halfcheetah/ddpg[0-4].json DDPG on HalfCheetah-v1" in rows
    for name, value in (
        ("lowrate", "learning_rate 0.0003"),
        ("noexplore", "explore_chance 0.0"),
    ):
        row = f"halfcheetah/ddpg_{name}[0-2].json DDPG on HalfCheetah-v1, {value}"
        assert row in rows
    assert all("seed" not in row for row in rows if ".json" in row)


def test_the_list_can_be_searched_by_words():
    shown = printed(catalogue.list_experiments(words=["LOWRATE", "mve"]))
    assert [str(file) for file in listed_files(shown)] == [
        f"config/cpu/halfcheetah/mve_tdk_lowrate{seed}.json" for seed in range(3)
    ]
    assert len(listed_files(printed(catalogue.list_experiments(words=["quick"])))) == 1
    with pytest.raises(UserError, match="no experiment holds steve and nowhere"):
        catalogue.list_experiments(words=["steve", "nowhere"])


def printed_wide() -> list[str]:
    return printed(catalogue.list_experiments(), width=300)


def test_a_broken_file_is_listed_with_what_is_wrong(tmp_path):
    folder = tmp_path / "config/experiments/mine"
    folder.mkdir(parents=True)
    (folder / "good.json").write_text('{"updates": {"env": {"name": "Hopper-v1"}}}')
    (folder / "bad3.json").write_text('{"updates": {"env": {}}}')
    text = "\n".join(printed(catalogue.list_experiments(tmp_path), width=300))
    assert re.search(r"good.json +DDPG on Hopper-v1", text)
    assert re.search(r"bad\[3\].json +cannot be used: .*env.name is missing", text)


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [([0, 1, 2, 3], "0-3"), ([0, 2], "0,2"), ([7], "7"), ([1, 2], "1-2")],
)
def test_repeats_in_short(numbers, shown):
    assert catalogue._ranged(numbers) == shown


# --describe


@pytest.fixture
def files(tmp_path):
    def write(name, inherits=(), **updates):
        content = {"inherits": list(inherits), "updates": updates}
        (tmp_path / name).write_text(json.dumps(content))

    write("base.json", env={"name": "Hopper-v1", "discount": 0.5}, seed=1)
    write("middle.json", ["base.json"], env={"discount": 0.6}, agent_config={})
    write("top.json", ["middle.json"], seed=2, env={"make_kwargs": {"x": [1, 2]}})
    return tmp_path


def described(files: Path, *overrides: str, **options) -> dict[str, tuple[str, str]]:
    """Key to (value, source)."""
    path = str(files / "top.json")
    loaded = loading.load(path, overrides=overrides, root=files, **options)
    lines = printed(catalogue.describe(path, loaded), width=400)
    rows = [re.split(r" {2,}", line) for line in lines[lines.index("") + 1 :]]
    return {key: (value, Path(source).name) for key, value, source in rows}


def test_each_value_is_shown_with_what_set_it_last(files):
    rows = described(files, "evaluator_config.count=7", frames=50_000)
    assert rows["env.name"] == ('"Hopper-v1"', "base.json")
    assert rows["env.discount"] == ("0.6", "middle.json")
    assert rows["seed"] == ("2", "top.json")
    assert rows["env.make_kwargs.x"] == ("[1, 2]", "top.json")
    assert rows["evaluator_config.count"] == ("7", "--set")
    assert rows["total_frames"] == ("50000", "--frames")
    assert rows["env.max_frames"] == ("1000", "default")
    assert rows["agent_config.count"] == ("1", "default")  # "{}" sets none of its keys


def test_a_replaced_object_leaves_no_source_of_what_was_in_it(files):
    rows = described(files, 'env={"name": "Hopper-v2"}', "seed=5", "seed=6")
    assert rows["env.name"] == ('"Hopper-v2"', "--set")
    assert rows["env.discount"] == ("0.99", "default")
    assert "env.make_kwargs.x" not in rows
    assert rows["seed"] == ("6", "--set")


def test_on_80_columns_nothing_is_broken_and_each_key_is_under_its_section(monkeypatch):
    monkeypatch.chdir(PROJECT)
    path = "config/quickstart.json"
    loaded = loading.load(path)
    wide = printed(catalogue.describe(path, loaded), width=400)
    narrow = printed(catalogue.describe(path, loaded), width=80)
    expected = [line.split() for line in wide[wide.index("") + 1 :]]
    rows, section = [], ""
    for line in narrow[narrow.index("") + 1 :]:
        if not line.startswith(" "):
            section = "" if line == "top level" else f"{line}."
        else:
            rows.append(f"{section}{line.strip()}".split())
    assert rows == expected


def test_every_value_of_the_configuration_is_shown(files):
    rows = described(files)
    defaults = Config.model_validate({"env": {"name": "Hopper-v1"}})
    values = defaults.model_dump(by_alias=True)
    leaves = {".".join(path) for path, _ in loading.leaves(values)}
    shown = {key.replace("make_kwargs.x", "make_kwargs") for key in rows}
    assert shown == leaves


@pytest.mark.parametrize("path", list(all_paths()), ids=".".join)
def test_each_key_can_be_described(path):
    text = " ".join(printed(catalogue.describe_keys([path]), width=1000))
    for part in (".".join(path), "2018: ", "Acts in: ", allowed(field_at(path))):
        assert part in text


def test_a_key_is_found_by_its_whole_name_or_by_the_end_of_it():
    assert catalogue.keys_called("env.discount") == [("env", "discount")]
    assert catalogue.keys_called("lambda_return") == [
        ("policy_config", "value_expansion", "lambda_return")
    ]
    sections = ("agent_config", "evaluator_config", "policy_config", "model_config")
    assert catalogue.keys_called("batch_size") == [(s, "batch_size") for s in sections]
    assert catalogue.keys_called("quickstart") == []


# The command


def test_a_key_is_described_and_words_search_the_list(capsys, monkeypatch):
    monkeypatch.chdir(PROJECT)
    assert main.main(["--describe", "policy_config.explore_chance"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "policy_config.explore_chance"
    assert shown[2] == "  a number from 0 to 1; default: 0.05"
    assert main.main(["--list", "hopper", "speedy"]) == 2
    assert "no experiment holds hopper and speedy" in capsys.readouterr().err
    assert main.main(["--list", "horizons"]) == 0
    assert capsys.readouterr().out.count("].json ") == 3
    assert main.main(["--describe", "nothing"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "main.py", *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_in_a_file_the_output_is_plain_and_nothing_is_broken():
    listed = run("--list")
    described = run("--describe", "config/quickstart.json", "--set", "seed=7")
    for done in (listed, described):
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout
        assert all(line == line.rstrip() for line in done.stdout.splitlines())
    assert re.search(r"^seed +7 +--set$", described.stdout, re.MULTILINE)
    order = "core/basic.json, config/core/model.json, config/core/bayesian.json"
    assert f"merged in this order: config/{order}, config/algos" in described.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--describe", "config/none.json"], "config/none.json: no such file"),
        (["--describe"], "required: CONFIG.json"),
        (
            ["--describe", "replaysize"],
            "replaysize: neither a key nor a file; did you mean replay_size?",
        ),
        (["--describe", "policy_config.lerning_rate"], "policy_config.learning_rate?"),
        (["--describe", "config/quikstart.json"], "mean config/quickstart.json?"),
        (["--describe", "config/quickstart.json", "--set", "sed=1"], "did you mean"),
    ],
)
def test_a_mistake_is_one_line(arguments, said):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
