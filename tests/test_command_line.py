"""command_line: arguments, and how a command begins and ends."""

import argparse
import errno
import math
import os
import signal
import subprocess
import sys

import pytest
from support import PROJECT

from steve import command_line
from steve.command_line import number
from steve.util import UserError

# Arguments


@pytest.mark.parametrize("text", ["0", "0.5", "1", "1e-3"])
def test_a_number_in_its_limits_is_taken(text):
    assert number(0, 1)(text) == float(text)


@pytest.mark.parametrize("text", ["-0.1", "1.01", "nan", "inf", "much", ""])
def test_another_number_is_refused_with_the_limits(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"in \[0, 1\]"):
        number(0, 1)(text)
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not a number$"):
        number(-math.inf, math.inf)("inf")


# The end


def raising(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no such key"), 2, "x.py: no such key"),
        (OSError(errno.EACCES, "denied", "/a/b"), 1, "x.py: /a/b: denied"),
        (KeyboardInterrupt(), 130, "x.py: interrupted"),
    ],
)
def test_what_a_user_can_mend_is_one_line(error, code, line, capsys):
    assert command_line.exit_code("x.py", raising(error)) == code
    assert capsys.readouterr().err == f"{line}\n"


def test_a_bug_keeps_its_stack_trace():
    for error in (ValueError("ours"), OSError(errno.EIO, "no file is named")):
        with pytest.raises(type(error)):
            command_line.exit_code("x.py", raising(error))


def test_a_commands_own_code_counts():
    assert command_line.exit_code("x.py", lambda: None) == 0
    assert command_line.exit_code("x.py", lambda: 3) == 3


def test_a_reader_that_goes_away_is_no_bug():
    """As in `plot.py | head`: both a print and the last flush may meet it."""
    lines = (
        "import sys\n"
        "from steve import command_line\n"
        "sys.exit(command_line.exit_code('x', lambda: print('y\\n' * {})))"
    )
    for count in (1, 100_000):
        program = subprocess.Popen(
            [sys.executable, "-c", "input()\n" + lines.format(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        program.stdout.close()
        _, said = program.communicate(b"go\n")
        assert (program.returncode, said) == (1, b"")


@pytest.mark.parametrize("output", ["/dev/full", "an open file"])
def test_output_that_finds_no_space_is_one_line_and_exit_code_1(output, tmp_path):
    lines = (
        "import sys\n"
        "from steve import command_line\n"
        "sys.exit(command_line.exit_code('x.py', lambda: print('y')))"
    )
    path = output if output == "/dev/full" else str(tmp_path / "file")
    with open(path, "w") as file:
        done = subprocess.run(
            [sys.executable, "-c", lines],
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    full = "x.py: stdout: No space left on device\n"
    expected = (1, full) if output == "/dev/full" else (0, "")
    assert (done.returncode, done.stderr) == expected


# The beginning


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams_lead_nowhere_and_their_numbers_are_taken(closed, tmp_path):
    """As by `>&-`; in a child process, too, which inherits them."""
    child = "import sys; print(sys.stdin and sys.stdout and sys.stderr and 1)"
    lines = (
        "import subprocess, sys\n"
        "from steve import command_line\n"
        "command_line.prepare_command()\n"
        "file = open(sys.argv[1], 'w')\n"
        "print(sys.stdin.read(), file=sys.stderr)\n"
        "print(flush=True)\n"
        f"subprocess.run([sys.executable, '-c', {child!r}], check=True)\n"
        f"told = subprocess.check_output([sys.executable, '-c', {child!r}])\n"
        "file.write(f'{file.fileno() > 2} {told.decode()}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", lines, str(tmp_path / "file")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        preexec_fn=lambda: [os.close(number) for number in closed],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_text() == "True 1\n"


def test_a_working_folder_that_is_gone_is_one_line(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run(
        [sys.executable, PROJECT / "main.py", "--list"],
        cwd=gone,
        preexec_fn=gone.rmdir,
        capture_output=True,
        text=True,
        check=False,
    )
    said = "the working folder was removed: change to another\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_a_command_hears_signals_that_who_started_it_did_not():
    lines = (
        "import signal, subprocess, sys\n"
        "from steve import command_line\n"
        "command_line.prepare_command()\n"
        "print(signal.getsignal(signal.SIGCHLD).name)\n"
        "print(signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    )

    def deafen():
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])

    shown = subprocess.check_output(
        [sys.executable, "-c", lines], preexec_fn=deafen, text=True
    )
    assert shown == "SIG_DFL\nset()\n"


def test_characters_that_the_output_cannot_show_are_escaped():
    lines = (
        "from steve.command_line import prepare_command\n"
        "prepare_command()\n"
        "print('f\\u00fcr/\\udcff')"
    )
    done = subprocess.run(
        [sys.executable, "-c", lines],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("f\\xfcr/\\udcff\n", "")


def test_a_file_is_no_terminal_and_a_path_is_text(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = command_line.output_console()
    assert not console.is_terminal
    console.print("runs/:100:/x", style="bold", markup=False)
    assert capsys.readouterr().out == "runs/:100:/x\n"
