"""The list of mutants fits the code, and the program that tries them out is right."""

import subprocess

import mutants
import pytest
from support import PROJECT

CODE = "ANSWER = 42\nQUESTION = None\n"
TESTS = """
from steve.code import ANSWER

def test_answer():
    assert ANSWER == 42

def test_nothing():
    pass
"""
NOTICED = {
    "file": "code.py",
    "before": "ANSWER = 42",
    "after": "ANSWER = 41",
    "tests": "tests/test_code.py::test_answer",
}
SURVIVES = NOTICED | {"tests": "tests/test_code.py::test_nothing"}


def test_every_mutant_fits_the_code_and_names_tests_that_are_there():
    found = mutants.read_mutants()
    assert found
    assert list(mutants.faults(found, PROJECT)) == []


@pytest.fixture
def tree(tmp_path):
    """A small package with a test that notices something, and one that does not."""
    for name, text in (
        ("__init__.py", ""),
        ("code.py", CODE),
        ("tests/test_code.py", TESTS),
    ):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path / "tree", check=True)
    return tmp_path / "tree"


def run(tree, entries, *arguments):
    """Runs the program on mutants given by name; returns its exit code."""
    path = tree / mutants.LISTS.relative_to(PROJECT) / "some.toml"
    path.parent.mkdir(parents=True)
    path.write_text(
        "\n".join(
            line
            for name, entry in entries.items()
            for line in [f"[{name}]", *(f"{k} = '{v}'" for k, v in entry.items())]
        )
    )
    return mutants.main(arguments, tree)


def test_a_mutant_that_no_test_notices_is_printed_and_the_exit_code_is_1(tree, capsys):
    assert run(tree, {"good": NOTICED, "bad": SURVIVES}, "--jobs", "2") == 1
    *_, count, survivor = capsys.readouterr().out.splitlines()
    assert count == "1 of 2 mutants were noticed"
    assert "SURVIVED" in survivor
    assert survivor.endswith("some/bad")
    assert (tree / "code.py").read_text() == CODE


def test_only_the_chosen_mutants_run(tree, capsys):
    assert run(tree, {"bad": SURVIVES, "good": NOTICED}, "2") == 0
    assert "1 of 1 mutants were noticed" in capsys.readouterr().out


def test_a_mutant_of_which_no_test_can_be_run_is_not_noticed(tree, capsys):
    broken = NOTICED | {"after": "ANSWER ="}
    assert run(tree, {"broken": broken}) == 1
    assert "pytest ended with exit code" in capsys.readouterr().out


def test_tests_that_fail_without_a_mutant_are_said(tree, capsys):
    (tree / "code.py").write_text(CODE + "ANSWER = 43\n")
    assert run(tree, {"good": NOTICED}) == 1
    assert "without any mutant" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"before": "ANSWER = 40"}, "some/bad: code.py has its text 0 times, not once"),
        ({"before": "="}, "some/bad: code.py has its text 2 times, not once"),
        ({"file": "gone.py"}, "some/bad: gone.py has its text 0 times, not once"),
        ({"after": "ANSWER = 42"}, "some/bad: its two texts are the same"),
        (
            {"tests": "tests/test_code.py::test_gone"},
            "some/bad: there is no test tests/test_code.py::test_gone",
        ),
    ],
)
def test_a_mutant_that_does_not_fit_is_one_line_and_none_is_run(
    tree, capsys, change, said
):
    assert run(tree, {"bad": NOTICED | change}) == 1
    assert capsys.readouterr().out.startswith(said)


def test_they_can_be_listed(tree, capsys):
    assert run(tree, {"good": NOTICED, "bad": SURVIVES}, "--list", "bad") == 0
    assert capsys.readouterr().out == "   2 some/bad: code.py\n"
