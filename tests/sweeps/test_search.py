"""A search by Optuna: what it may try, what a run is worth, and how it continues."""

import builtins
import sys
from types import ModuleType

import pytest

from steve.sweeps.search import METRICS, Space, Study, space
from steve.util import UserError

RATE = Space("policy_config.learning_rate", 1e-4, 1e-2, log=True)
WIDTH = Space("policy_config.hidden_dim", 8, 64)
KIND = Space("env.rescale_actions", choices=("true", "false"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("policy_config.learning_rate=1e-4:1e-2:log", RATE),
        ("policy_config.hidden_dim=8:64", WIDTH),
        ("env.rescale_actions=true,false", KIND),
        ("a=-1:0.5", Space("a", -1, 0.5)),
    ],
)
def test_ranges_and_choices_are_read(text, expected):
    assert space(text) == expected


@pytest.mark.parametrize(
    "text",
    ["a", "a=", "=1:2", "a=2:1", "a=1:1", "a=0:1:log", "a=1:2:ln", "a=x:2", "a=1:nan"],
)
def test_anything_else_is_a_mistake(text):
    with pytest.raises(UserError, match="give KEY=LOW:HIGH"):
        space(text)


def test_a_run_is_worth_its_mean_score_over_frames_or_its_last_scores(tmp_path):
    scores = tmp_path / "scores.csv"
    assert METRICS["auc"](scores) is None
    rows = [(100, 0.0), (300, 10.0), (400, 10.0)]
    lines = [f"0.1,1,{frames},{score}\n" for frames, score in rows]
    scores.write_text("hours,epochs,frames,score\n" + "".join(lines) + "damaged\n")
    # 5 over 200 frames, then 10 over 100.
    assert METRICS["auc"](scores) == pytest.approx(2000 / 300)
    assert METRICS["final"](scores) == pytest.approx(20 / 3)
    scores.write_text(f"hours,epochs,frames,score\n{lines[1]}{lines[1]}")
    assert METRICS["auc"](scores) == 10


def test_each_policy_has_one_weight_in_the_area_whatever_its_episodes(tmp_path):
    scores = tmp_path / "scores.csv"
    rows = [
        f"0.1,{epoch},{100 * epoch},{score}\n"
        for epoch in (1, 2, 3)
        for score in (100, 0, 0, 0)
    ]
    scores.write_text("hours,epochs,frames,score\n" + "".join(rows))
    assert METRICS["auc"](scores) == 25
    assert METRICS["final"](scores) == 20  # two of the last ten are 100


def test_without_optuna_one_line_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *arguments):
        if name == "optuna":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"pip install 'steve-rl\[optuna\]'"):
        Study(tmp_path / "x.optuna", [RATE], "")
    assert list(tmp_path.iterdir()) == []


def test_a_mere_folder_named_optuna_is_not_taken_for_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", ModuleType("optuna"))
    monkeypatch.delitem(sys.modules, "optuna.logging", raising=False)
    with pytest.raises(UserError, match="optuna is not installed"):
        Study(tmp_path / "x.optuna", [RATE], "")


def opened(tmp_path, asked="auc"):
    pytest.importorskip("optuna")
    return Study(tmp_path / "x.optuna", [RATE, WIDTH, KIND], asked)


def test_trials_are_values_of_the_spaces_and_the_same_in_each_search(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    one, other = ([opened(f).begin(n) for n in range(3)] for f in folders)
    assert one == other
    assert [trial.number for trial in one] == [0, 1, 2]
    assert len({tuple(trial.settings) for trial in one}) == 3
    for trial in one:
        rate, width, kind = (text.partition("=")[2] for text in trial.settings)
        assert 1e-4 <= float(rate) <= 1e-2
        assert 8 <= int(width) <= 64
        assert kind in ("true", "false")


def test_a_search_continues_with_what_has_not_ended(tmp_path):
    study = opened(tmp_path)
    first, second = study.begin(0), study.begin(1)
    study.tell(first, 1.0)
    again = opened(tmp_path)  # after a kill
    assert again.open_numbers(3) == [1, 2]
    assert again.begun() == [second]
    assert again.begin(0) is None
    assert again.begin(1) == second
    third = again.begin(2)
    again.tell(second, None)
    again.tell(third, 5.0)
    assert again.open_numbers(3) == []
    assert opened(tmp_path).open_numbers(4) == [3]
    assert opened(tmp_path).best() == (third, 5.0)


def test_processes_share_a_study_in_any_order(tmp_path):
    """Each number is one trial, and what it is worth is what was said first."""
    one, other = opened(tmp_path), opened(tmp_path)
    fifth = other.begin(5)
    assert one.begin(5) == fifth
    third = one.begin(3)
    assert other.begun() == [fifth, third]
    one.tell(fifth, 1.0)
    other.tell(fifth, 2.0)
    other.tell(fifth, None)
    assert one.best() == other.best() == (fifth, 1.0)


@pytest.mark.parametrize("call", ["set_trial_param", "set_trial_user_attr"])
def test_a_trial_that_was_killed_while_it_was_chosen_takes_no_place(
    tmp_path, monkeypatch, call
):
    study = opened(tmp_path)
    expected = study.begin(0)

    def die(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(study._study._storage, call, die)
        with pytest.raises(KeyboardInterrupt):
            study.begin(1)
    again = opened(tmp_path)
    assert again.begun() == [expected]
    trial = again.begin(1)
    assert again.begun() == [expected, trial]
    assert len(trial.settings) == 3


def test_a_line_that_a_killed_process_did_not_end_is_cut(tmp_path):
    study = opened(tmp_path)
    study.tell(study.begin(0), 1.0)
    with open(tmp_path / "x.optuna", "a") as journal:
        journal.write('{"op_code":4,')
    other = opened(tmp_path)
    trial = other.begin(1)
    assert study.begin(1) == trial
    assert study.best()[1] == 1.0


@pytest.mark.parametrize("text", ["no journal\n", "[]\n", '{"op_code": 4}\n'])
def test_a_damaged_journal_is_one_line_and_is_kept(tmp_path, text):
    path = tmp_path / "x.optuna"
    path.write_text(text)
    with pytest.raises(UserError, match="is damaged, and the search cannot continue"):
        opened(tmp_path)
    assert path.read_text().startswith(text)


def test_a_study_of_another_search_is_left_alone(tmp_path):
    study = opened(tmp_path)
    assert study.best() is None
    with pytest.raises(UserError, match="is of another search"):
        opened(tmp_path, "final")
