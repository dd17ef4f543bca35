"""What all commands share: their arguments, process, exit codes and output."""

import argparse
import io
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .util import NO_SPACE, RunError, UserError, stop_signals

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

NOT_A_TERMINAL = 1000  # columns: in a file no line is broken
STANDARD_STREAMS = {"stdin": "r", "stdout": "w", "stderr": "w"}  # by their numbers
# The scripts as subcommands of `steve`.
SUBCOMMANDS = {
    "main.py": "train",
    "visualizer.py": "visualize",
    "export.py": "export",
    "plot.py": "plot",
    "sweep.py": "sweep",
    "status.py": "status",
    "verify.py": "verify",
    "toy_demo.py": "toy",
}


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with the command line in one line; exit code 2."""

    PLAIN = argparse.RawDescriptionHelpFormatter  # keeps the lines of its texts

    def add_settings(
        self,
        help_text: str = "replace values of the configuration, as for main.py",
        metavar: str = "KEY=VALUE",
        dest: str = "set",
    ) -> None:
        """Adds `--set`, which may be given several times with several values."""
        self.add_argument(
            "--set",
            action="extend",
            nargs="+",
            default=[],
            metavar=metavar,
            help=help_text,
            dest=dest,
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help explains)\n")


def import_from_working_folder() -> None:
    """Lets a command import the user's modules, as `python -m` does.

    The working folder goes to the end of the search path, where no file of the user's
    hides a library's. The folder of this package leaves it: Python puts it there when
    a script of ours is run, and then ours would hide the user's (`util`, `policy`).
    """
    try:
        working = os.path.realpath(os.getcwd())
    except FileNotFoundError:
        print("the working folder was removed: change to another", file=sys.stderr)
        sys.exit(2)
    ours = os.path.realpath(os.path.dirname(__file__))
    others = [
        entry
        for entry in sys.path
        if os.path.realpath(entry or working) not in (working, ours)
    ]
    sys.path[:] = [*others, working]


def prepare_command() -> None:
    """Prepares the process of a command, once its modules are imported.

    Its standard streams are there, whatever it was started with: a closed one leads to
    /dev/null, else the next file that is opened takes its number. They escape
    characters that their encoding lacks.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < len(STANDARD_STREAMS):
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, (name, mode) in enumerate(STANDARD_STREAMS.items()):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode))  # noqa: SIM115 - to the end
    hear_signals()
    escape_unknown_characters()
    import_from_working_folder()


def hear_signals() -> None:
    """Undoes what the starting program ignored or blocked: a process inherits that.

    With SIGCHLD ignored the end of a child is not seen, and a blocked SIGTERM asks
    nobody to end.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stop_signals())


def escape_unknown_characters() -> None:
    """Has stdout and stderr escape what their encoding lacks, such as of a path."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def script_words(program: str, other: str) -> list[str]:
    """How to call another command of ours in the way in which this one was called.

    Args:
        program: how this one was called: "main.py", or "steve train".
        other: a script such as "visualizer.py".
    """
    if program.startswith("steve "):
        return ["steve", SUBCOMMANDS[other]]
    script = Path(sys.argv[0])
    path = str(script.with_name(other)) if script.name == program else other
    return [python_word(), path]


def python_word() -> str:
    """How to call this Python: "python" where that is this one, or else its path."""
    found = shutil.which("python")
    ours = Path(sys.executable)
    is_ours = found and Path(found).absolute().parent == ours.parent
    return "python" if is_ours else str(ours)


def example(program: str, script: str) -> str:
    """How the help shows a call of a script: `python SCRIPT`, or the subcommand."""
    _, *words = script_words(program, script)
    return " ".join(["steve" if program.startswith("steve ") else "python", *words])


def exit_code(program: str, command: Callable[[], int | None]) -> int:
    """Runs a command; what its user can mend is one line on stderr, no stack trace.

    Returns:
        the exit code: the command's own (None: 0); 2 after a UserError, 1 where it is a
        RunError; 1 after an OSError that names a file, or where nobody reads the output
        any more; 130 after Ctrl-C. Any other exception is a bug of ours and is raised.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as during the imports
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = command() or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunError) else 2
    except BrokenPipeError:
        drop_unwritten_output()  # `| head`, say
        return 1
    except OSError as error:
        if error.filename is None and error.errno in NO_SPACE:
            drop_unwritten_output()
            error.filename = "stdout"
        if error.filename is None:
            raise
        print(f"{program}: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130


def drop_unwritten_output() -> None:
    """Flushes stdout; what it does not take is dropped.

    Python's own flush at the end would else meet the same, and give exit code 120.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def whole_number(lowest: int, highest: int) -> Callable[[str], int]:
    """An argparse type: an integer in lowest .. highest."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) <= highest:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not an integer in {lowest} .. {highest}"
            )
        return int(text)

    return parse


def number(lowest: float, highest: float) -> Callable[[str], float]:
    """An argparse type: a finite number in lowest .. highest."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and lowest <= value <= highest):
            limits = f" in [{lowest:g}, {highest:g}]" if highest < math.inf else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not a number{limits}")
        return value

    return parse


def terminal_width() -> int | None:
    """Columns of the terminal on stdout; None where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def output_console() -> "Console":
    """A console on stdout; a terminal only where stdout is one, and text is text.

    FORCE_COLOR makes no terminal of a file, and ":100:" in a path no picture.
    """
    from rich.console import Console  # here: most who import this print nothing

    is_terminal = sys.stdout.isatty()
    return Console(highlight=False, emoji=False, force_terminal=is_terminal)


def print_once(shown: "RenderableType") -> None:
    """Prints it; what is redirected to a file is plain and not wrapped."""
    console = output_console()
    if console.is_terminal:
        console.print(shown)
        return
    console.width = NOT_A_TERMINAL
    with console.capture() as captured:
        console.print(shown)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))
