"""results/quickstart_seeds.py: what it runs, and what it says of made-up runs."""

import numpy as np
import pytest
from support import PROJECT
from support_results import STEVE, write_experiment

from steve.analysis.records import find_runs
from steve.util import UserError


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT / "results"))
    import quickstart_seeds

    return quickstart_seeds


def test_there_is_a_run_for_each_seed_with_the_values_asked_for(program, tmp_path):
    settings = ["policy_config.hidden_dim=32"]
    runs = program.planned(program.CONFIG, tmp_path, range(3), settings)
    assert [run.experiment for run in runs] == [
        f"quickstart-seed{seed}" for seed in range(3)
    ]
    assert all("policy_config.hidden_dim=32" in run.arguments for run in runs)
    assert runs[0].folders(tmp_path).root.parents[1] == tmp_path
    with pytest.raises(UserError, match="hidden_size"):
        program.planned(program.CONFIG, tmp_path, [0], ["policy_config.hidden_size=1"])


def test_the_last_ten_policies_count_and_the_least_seed_is_named(program, tmp_path):
    """A policy has one weight, however many episodes it has."""
    for seed, last in ((0, 1000.0), (1, 900.0)):
        rows = [(i / 3600, i, 50 * i, 1000.0) for i in range(1, 30)]
        # 9 of the last ten are 1000; the last has two episodes, of mean `last`.
        rows += [(30 / 3600, 30, 1500, last - 100), (30 / 3600, 30, 1500, last + 100)]
        write_experiment(tmp_path / f"quickstart-seed{seed}", rows, STEVE, seed=seed)
    runs = find_runs([tmp_path])
    (first,) = (run for run in runs if run.config.seed == 0)
    np.testing.assert_array_equal(program.last_policies(first), [1000.0] * 10)
    assert program.report(runs).splitlines() == [
        "seed 0: 1000.0 (worst policy 1000.0), 1,500 frames, 30 s",
        "seed 1: 990.0 (worst policy 900.0), 1,500 frames, 30 s",
        "least 990.0 (seed 1); 2 of 2 seeds at 950 or more",
    ]


def test_a_call_runs_what_is_left_and_reports(program, tmp_path, capsys, monkeypatch):
    asked = []

    def work(runs, output, parallel):
        asked.append((len(runs), output, parallel))
        rows = [(0.01, 1, 10_000, 123.0)]
        folder = runs[0].folders(output).log
        name = runs[0].experiment
        path = write_experiment(folder.parent / "made" / name, rows, STEVE)
        path.parent.rename(folder)
        return 0

    monkeypatch.setattr(program, "work", work)
    arguments = ["quickstart_seeds.py", str(tmp_path), "--seeds", "2"]
    monkeypatch.setattr("sys.argv", [*arguments, "--max-parallel", "3"])
    assert program.main() == 0
    assert asked == [(2, tmp_path, 3)]
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "least 123.0 (seed 0); 0 of 1 seeds at 950 or more",
        "0 of 2 runs are finished",
    ]
