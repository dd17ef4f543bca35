"""The commands' --help, and the order of their arguments."""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import PROJECT, QUICKSTART

import steve
from steve import __main__, export, main, toy_demo, visualizer
from steve.__main__ import COMMANDS
from steve.command_line import SUBCOMMANDS, exit_code, python_word
from steve.settings import loading
from steve.storage.folders import Folders
from steve.util import RunError, UserError


def test_options_may_stand_between_configuration_and_gpu():
    for arguments in itertools.permutations(["c.json", "0"]):
        first, second = arguments
        parsed = main.parse_arguments([first, "--name", "x", second, "--set", "a=1"])
        assert (parsed.config, parsed.gpu_id) == arguments
        assert (parsed.name, parsed.set) == ("x", ["a=1"])


@pytest.mark.parametrize("module", [main, visualizer, export, toy_demo])
def test_help_has_an_example_that_the_program_accepts(module, capsys):
    with pytest.raises(SystemExit) as ended:
        module.parse_arguments(["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    program, *arguments = text.partition("example: python ")[2].split()
    assert program == Path(module.__file__).name
    module.parse_arguments(arguments)
    for argument in arguments:
        assert not argument.startswith("config/") or (PROJECT / argument).is_file()


# The command `steve`


@pytest.mark.parametrize("name", COMMANDS)
def test_each_script_is_a_subcommand_that_calls_itself_so(name, capsys):
    with pytest.raises(SystemExit) as ended:
        __main__.main([name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: steve {name} ")
    assert ".py " not in shown.partition("example:")[2]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--version"], 0, f"steve {steve.__version__}"),
        (["train", "--version"], 0, f"steve {steve.__version__}"),
        (["--help"], 0, "visualize"),
        ([], 2, "steve: which command? train, describe, "),
        (["trian"], 2, "steve: argument COMMAND: invalid choice: 'trian'"),
        (["train"], 2, "steve train: the following arguments are required"),
    ],
)
def test_what_is_asked_of_steve_itself(words, code, said, capsys):
    with pytest.raises(SystemExit) as ended:
        __main__.main(words)
    assert ended.value.code == code
    captured = capsys.readouterr()
    assert said in (captured.err if code else captured.out)


def test_a_mistake_names_the_subcommand(capsys):
    assert __main__.main(["train", "nowhere.json", "cpu"]) == 2
    assert capsys.readouterr().err.startswith("steve train: nowhere.json: no such file")
    assert __main__.main(["describe", "quickstart", "--set", "seed=-1"]) == 2
    assert capsys.readouterr().err.startswith("steve describe: --set: seed must be")


@pytest.mark.parametrize(("kind", "code"), [(UserError, 2), (RunError, 1)])
def test_a_run_that_cannot_continue_is_no_mistake_of_the_call(
    monkeypatch, capsys, kind, code
):
    def train(*_):
        raise kind("what is wrong")

    monkeypatch.setattr(main, "train", train)
    assert main.main([QUICKSTART, "cpu"]) == code
    assert capsys.readouterr().err == "main.py: what is wrong\n"


@pytest.mark.parametrize(("kind", "code"), [(UserError, 2), (RunError, 1)])
def test_every_command_tells_a_mistake_from_what_failed(capsys, kind, code):
    def command():
        raise kind("what is wrong")

    assert exit_code("verify.py", command) == code
    assert capsys.readouterr().err == "verify.py: what is wrong\n"


def test_packaged_configurations_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = loading.load("quickstart").merged
    assert loading.load("config/quickstart.json").merged == short
    assert loading.load("quickstart.json").merged == short
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "quickstart.json").write_text(
        '{"inherits": ["config/experiments/goodruns/hopper/ddpg0.json"],'
        ' "updates": {"seed": 77}}'
    )  # the working folder first
    assert loading.load("config/quickstart.json").config.seed == 77
    assert loading.load("quickstart.json").merged == short


def test_the_next_command_is_the_one_that_was_used(monkeypatch):
    request = main.request_of(main.parse_arguments(["quickstart", "cpu"]))
    words = main.resuming_command("steve train", request)
    assert words == "steve train quickstart cpu --resume"
    monkeypatch.setattr(sys, "argv", ["../there/main.py"])
    words = main.resuming_command("main.py", request)
    assert words == f"{python_word()} ../there/main.py quickstart cpu --resume"


def test_the_policy_is_looked_at_by_its_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    request = main.request_of(main.parse_arguments(["quickstart", "cpu"]))
    settings = [f"output_root={tmp_path}"]
    config = loading.load("quickstart", overrides=settings).config
    folders = Folders.of(config, "a run")
    folders.policy.parent.mkdir(parents=True)
    folders.policy.touch()
    lines = main.next_steps(request, "steve train", folders, finished=True)
    assert lines == [
        "to look at the policy:",
        "  steve visualize 'InvertedPendulum-v5/a run'",
    ]


def test_the_next_command_is_for_the_interpreter_that_ran(monkeypatch, tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert python_word() == str(python)
    monkeypatch.setenv("PATH", str(python.parent))
    assert python_word() == "python"


def test_a_users_modules_are_found_and_ours_hide_none(tmp_path):
    """As the script itself and as `python -m steve`."""
    (tmp_path / "util.py").write_text("print('util')")
    (tmp_path / "valuerl.py").write_text("print('valuerl')")
    (tmp_path / "mine.py").write_text("import util, valuerl\n")
    (tmp_path / "mine.json").write_text(
        '{"inherits": ["config/quickstart.json"], "updates": {"env":'
        ' {"module": "mine", "name": "Nowhere-v0"}}}'
    )
    for command in ([str(PROJECT / "main.py")], ["-m", "steve", "train"]):
        done = subprocess.run(
            [sys.executable, *command, "mine.json", "cpu"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "no such environment" in done.stderr, done.stderr
        assert done.stdout == "util\nvaluerl\n"


@pytest.mark.parametrize(
    ("command", "module"),
    [
        *(([str(PROJECT / script)], "steve") for script in SUBCOMMANDS),
        (["-m", "steve", "train"], "steve.main"),
    ],
)
def test_ctrl_c_during_the_imports_gives_no_stack_trace(command, module, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
    )
    folders = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, *command, "--help"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
