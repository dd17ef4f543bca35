"""The commands' --help, and the order of their arguments."""

import itertools
from pathlib import Path

import pytest
from support import PROJECT

from steve import export, main, toy_demo, visualizer


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
