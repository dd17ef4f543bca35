"""The runs in results/: how they get there, and that what is there can be used."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import make_config, make_run, publish_policy
from support_replay import append_episodes
from support_results import DDPG, write_experiment

import steve
from steve import verify
from steve.analysis.records import find_runs
from steve.replay import ReplayBuffer
from steve.settings.interface import Interface, Leaf
from steve.storage import checkpoint
from steve.storage.conditions import processor_kind
from steve.storage.digests import Digest, append_digest
from steve.storage.record import describe_start, write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
CSV = "hours,epochs,frames,score\n0.1,1,100,{score}\n"


def write_run(output: Path, name: str, *, score: float = 1.0, finished: bool = True):
    """A run's output as main.py leaves it, as far as it matters here."""
    config = make_config(output, model=True)
    run = make_run(config, name)
    folders = run.folders
    folders.scores.write_text(CSV.format(score=score))
    folders.final_scores.write_text(CSV.format(score=2 * score))
    append_digest(folders.digests, Digest(1, 0, 100, "a", "b", "-", "c"))
    publish_policy(folders.policy, action=0.5, frames=100)
    with ReplayBuffer.create(folders.replay, 3, 1, 100) as replay:
        append_episodes(replay, 2, 3)
    for learner in ("valuerl", "worldmodel"):
        folders.learner_log(learner).write_text(f"hours,frames,updates\n{learner}\n")
    merged = config.model_dump(mode="json", by_alias=True)
    write_json(folders.hyperparameters, merged)
    record = {
        "experiment": name,
        "starts": [describe_start(config, {"valuerl": "cpu"}, False)],
        "weighting": {"title": "Own"},
        "finished": {"time": "then", "frames": 100, "hours": 0.1} if finished else None,
    }
    write_json(folders.run, record)
    return folders


def called(program: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, f"results/{program}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def collect(output: Path, results: Path) -> subprocess.CompletedProcess:
    return called("collect.py", str(output), "--to", str(results))


@pytest.fixture
def program(monkeypatch):
    """The module itself."""
    monkeypatch.syspath_prepend(str(RESULTS))
    import collect

    return collect


def test_finished_runs_are_copied_once_and_what_is_there_stays(tmp_path):
    output, results = tmp_path / "output", tmp_path / "results"
    folders = write_run(output, "steve0")
    write_run(output, "steve1", finished=False)
    aside = write_run(output, "steve2")
    aside.root.rename(f"{aside.root}.old0")
    environment = folders.root.parent.name
    done = collect(output, results)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{environment}/steve0\n"
    copy = results / environment / "steve0"
    assert {path.name for path in copy.iterdir()} == {
        *("steve0.greedy.csv", "steve0.final.csv", "steve0.acting.csv"),
        *("valuerl.log", "worldmodel.log", "digests.csv"),
        *("hps.json", "compute.json", "policy.safetensors"),
    }
    for path in copy.glob("*.[cl]*"):
        if path.name != "steve0.acting.csv":
            assert path.read_bytes() == (folders.log / path.name).read_bytes()
    # Rewards 0 to 5 of two environments in turn, three steps each.
    assert (copy / "steve0.acting.csv").read_text() == (
        "frames,score\n5,6.000000\n6,9.000000\n"
    )
    compute = json.loads((copy / "compute.json").read_text())
    assert compute["finished"]["hours"] == 0.1
    assert compute["weighting"] == {"title": "Own"}
    assert "host" not in compute["starts"][0]
    settings = json.loads((copy / "hps.json").read_text())
    expected = json.loads(folders.hyperparameters.read_text())
    assert settings == expected | {"output_root": "output"}
    assert str(tmp_path) not in (copy / "hps.json").read_text()

    assert collect(output, results).stdout == "nothing new\n"
    folders.scores.write_text(CSV.format(score=2.0))
    done = collect(output, results)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"collect.py: {copy}: another run is here; remove it first\n"
    )
    assert "1.0" in (copy / "steve0.greedy.csv").read_text()


def test_a_run_continued_to_more_frames_replaces_what_is_here_of_it(tmp_path, program):
    output, results = tmp_path / "output", tmp_path / "results"
    folders = write_run(output, "steve0")
    program.collect(output, results)
    with open(folders.scores, "a") as scores:
        scores.write("0.2,2,200,3.0\n")
    name = f"{folders.root.parent.name}/steve0"
    assert program.collect(output, results) == [name]
    copy = results / name
    assert (copy / "steve0.greedy.csv").read_bytes() == folders.scores.read_bytes()
    assert [path.name for path in copy.parent.iterdir()] == ["steve0"]


def test_a_run_made_again_is_the_same_run_at_another_speed(tmp_path, program):
    output, results = tmp_path / "output", tmp_path / "results"
    folders = write_run(output, "steve0")
    name = f"{folders.root.parent.name}/steve0"
    program.collect(output, results)
    kept = (results / name / "steve0.greedy.csv").read_text()
    header, first, *more = kept.splitlines(keepends=True)
    slower = "".join([header, "7.5" + first[first.index(",") :], *more])
    folders.scores.write_text(slower)
    assert program.collect(output, results) == []
    assert (results / name / "steve0.greedy.csv").read_text() == kept
    folders.scores.write_text(slower + "9.0,2,200,3.0\n")
    assert program.collect(output, results) == [name]


def test_a_collected_policy_acts(tmp_path, program):
    folders = write_run(tmp_path / "output", "steve0")
    state = checkpoint.load(folders.policy)
    interface = Interface(
        (Leaf((), 3, (3,)),), (-1.0,), (1.0,), (1,), "float32", False, 0.0
    )
    described = {**state.metadata, "interface": interface.to_json()}
    checkpoint.publish(folders.policy, state.tensors, described)
    program.collect(tmp_path / "output", tmp_path / "results")
    copy = tmp_path / "results" / folders.root.parent.name / "steve0"
    policy = steve.load_policy(copy)
    assert policy.path == copy / "policy.safetensors"
    assert policy.frames == 100
    np.testing.assert_allclose(policy.act(np.zeros(3)), [0.5], rtol=1e-6)
    assert steve.load_run(copy).policy().updates == policy.updates


def test_a_collected_run_can_be_verified(tmp_path, program):
    folders = write_run(tmp_path / "output", "steve0")
    program.collect(tmp_path / "output", tmp_path / "results")
    copy = tmp_path / "results" / folders.root.parent.name / "steve0"
    merged, here = verify.experiment_at(copy)
    assert merged["env"]["name"] == folders.root.parent.name
    assert verify.read_digests(here.digests) == [
        Digest(1, 0, 100, "a", "b", "-", "c"),
    ]
    assert verify.other_conditions(here, here) == []
    assert verify.record_of(here)["starts"][0]["processor_kind"] == processor_kind()


def test_a_folder_without_runs_is_one_line(tmp_path):
    done = collect(tmp_path, tmp_path / "results")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_random_actions_are_scored():
    done = subprocess.run(
        [sys.executable, "results/random_policy.py", "config/quickstart.json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    name, _, mean, _, _ = done.stdout.split()
    assert name == "InvertedPendulum-v5:"
    assert 3 < float(mean.strip(",")) < 8  # upright for a few steps, with reward 1 each


FRAMES = (25_000, 46_000, 50_000)
RUNS = sorted(RESULTS.glob("*/*/hps.json"))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.parent.name)
def test_a_kept_run_is_complete_and_came_to_its_end(path):
    (run,) = find_runs([path.parent])
    assert run.end("frames") >= run.config.total_frames
    compute = json.loads(path.with_name("compute.json").read_text())
    assert compute["finished"]["frames"] >= run.config.total_frames
    log = "worldmodel.log" if run.config.has_model else "valuerl.log"
    assert path.with_name(log).is_file()


def test_the_readme_has_the_tables_of_the_runs_that_are_here():
    """`python results/tables.py` prints them; paste them when a run is added."""
    printed = subprocess.run(
        [sys.executable, "results/tables.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    readme = (RESULTS / "README.md").read_text()
    tables = printed.strip().split("\n\n")
    assert len(tables) == 4
    for table in tables:
        assert table in readme


def test_a_table_by_hand(tmp_path):
    """Three evaluations of each of two runs; a window is 5,000 of 100,000 frames."""
    for environment, seed, scores in (
        ("HalfCheetah-v1", 0, (0, 800, 1200)),
        ("HalfCheetah-v1", 1, (0, 0, 600)),
        ("Hopper-v1", 0, (0, 200, 400)),
    ):
        run = tmp_path / environment / f"ddpg{seed}"
        run.mkdir(parents=True)
        rows = [
            f"0.{i},{i},{frames},{score}"
            for i, (frames, score) in enumerate(zip(FRAMES, scores, strict=True))
        ]
        (run / f"ddpg{seed}.greedy.csv").write_text(
            "\n".join(["hours,epochs,frames,score", *rows, ""])
        )
        config = {
            "env": {"name": environment},
            "seed": seed,
            "total_frames": 100_000,
        }
        (run / "hps.json").write_text(json.dumps(config))
        log = "updates,frames,hours,policy_loss\n1,48000,0,-2\n2,50000,0,-4\n"
        (run / "valuerl.log").write_text(log)
        (run / "compute.json").write_text('{"finished": {"hours": 0.05}}')
    printed = subprocess.run(
        [sys.executable, "results/tables.py", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert (
        "| HalfCheetah-v1 | ddpg | 0, 1 | 1,000: 50,000, never | "
        "0 (0, 0) | 650 (1,000, 300) |"
    ) in printed
    # Q: the mean of 2 and 4; the return: 650 / 1000 steps / (1 - 0.99).
    assert "| HalfCheetah-v1 | ddpg | - | - |" in printed
    assert "| 3 / 65 |" in printed
    # Where episodes end: less than the score.
    assert "| 3 / < 300 |" in printed
    assert "| HalfCheetah-v1 | ddpg | 2 | 3.0, 3.0 | 6 |" in printed


def test_runs_at_full_size_are_in_no_table_of_the_small_ones(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(RESULTS))
    import tables

    for name in ("ddpg0", "full_ddpg0"):
        run = tmp_path / "HalfCheetah-v1" / name
        rows = [(0.1, 1, 50_000, 5.0)]
        log = (("updates", "frames", "hours", "policy_loss"), [(1, 50_000, 0, -2)])
        write_experiment(run, rows, DDPG, environment="HalfCheetah-v1", valuerl=log)
        (run / "compute.json").write_text('{"finished": {"hours": 0.05}}')
    tables.run(tmp_path)
    printed = capsys.readouterr().out
    assert "| HalfCheetah-v1 | ddpg |" in printed
    assert "full_ddpg" not in printed


def test_a_question_to_curves_writes_nothing():
    table = ROOT / "analysis" / "results.csv.gz"
    before = table.stat().st_mtime_ns
    assert called("curves.py", "--help").stdout.startswith("usage: curves.py")
    wrong = called("curves.py", "somewhere")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert table.stat().st_mtime_ns == before


def test_an_animation_that_cannot_be_made_is_one_line(tmp_path):
    folders = write_run(tmp_path, "first")
    for out, said in (("x.gif", "none of the paper's"), ("x.mp4", "end in .gif")):
        done = called("animation.py", str(folders.root), "--out", str(tmp_path / out))
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert said in done.stderr
