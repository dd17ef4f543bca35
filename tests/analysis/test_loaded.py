"""Experiments' folders read back, wherever they are and whatever they are called."""

import pytest
from support_results import write_experiment

import steve
from steve.analysis.loaded import load_run, load_runs

ROWS = [(0.1, 1, 100, 5.0), (0.2, 2, 200, 7.5)]


@pytest.fixture
def folder(tmp_path):
    write_experiment(tmp_path / "run0", ROWS)
    return tmp_path / "run0"


def test_scores_are_found_under_an_earlier_name_and_by_links(folder, monkeypatch):
    renamed = folder.rename(folder.with_name("other"))
    link = folder.with_name("link")
    link.symlink_to(renamed)
    monkeypatch.chdir(renamed)
    for path in (renamed, link, "."):
        run = load_run(path)
        assert run.scores["score"].tolist() == [5.0, 7.5]
        assert run.name == "other"


def test_a_run_without_scores_has_an_empty_table(folder):
    (folder / "run0.greedy.csv").unlink()
    assert load_run(folder).scores.empty


def test_scores_of_two_runs_in_a_folder_are_a_mistake(folder):
    (folder / "run1.greedy.csv").write_text("hours,epochs,frames,score\n")
    with pytest.raises(steve.UserError, match=r"run0\.greedy\.csv, run1\.greedy\.csv"):
        _ = load_run(folder).scores


def test_a_damaged_record_is_a_mistake(folder):
    assert not load_run(folder).finished
    (folder / "run.json").write_text("{")
    with pytest.raises(steve.UserError, match=r"run\.json"):
        _ = load_run(folder).finished


@pytest.mark.parametrize("count", [1, 2])
def test_a_folder_of_experiments_is_none(folder, count):
    for number in range(1, count):
        write_experiment(folder.with_name(f"run{number}"), ROWS)
    with pytest.raises(steve.UserError, match=f"holds {count} experiments?: name one"):
        load_run(folder.parent)


def test_other_folders_in_an_experiment_change_nothing(folder):
    log = folder / "log"
    log.mkdir()
    for path in list(folder.glob("*.*")):
        path.rename(log / path.name)
    (folder / "before").mkdir()
    (folder / "before" / "hps.json").write_text("{")
    assert load_run(folder).log_folder == log
    (log / "hps.json").unlink()
    with pytest.raises(steve.UserError, match="holds 1 experiment:"):
        load_run(folder)


def test_a_run_stays_where_it_was_read(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (run,) = load_runs(folder.name)
    same = load_run(folder.name)
    monkeypatch.chdir("/")
    assert run.folder == same.folder == folder
    assert same.config.env.name


def test_a_log_has_a_learners_name(folder):
    run = load_run(folder)
    assert list(run.log("worldmodel")) == ["hours", "updates", "frames"]
    with pytest.raises(steve.UserError, match="called ValueRL: valuerl, world"):
        run.log("ValueRL")
