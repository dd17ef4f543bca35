"""Shows how far runs are: python status.py FOLDER...

A line for each run of main.py or sweep.py in and below the folders, and a second one
that says why where a run failed.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # Ctrl-C ends the imports without a stack trace
    signal.signal(signal.SIGINT, signal.SIG_DFL)

try:
    import steve  # noqa: F401
except ModuleNotFoundError:
    sys.exit("status.py: the package steve is not installed; run: pip install -e .")

from steve.command_line import (
    OneLineParser,
    example,
    exit_code,
    prepare_command,
    terminal_width,
)
from steve.sweeps import status
from steve.sweeps.table import table


def parse_arguments(
    arguments: Sequence[str] | None, program: str = "status.py"
) -> argparse.Namespace:
    parser = OneLineParser(
        prog=program,
        description="Shows how far runs are, one line each, and why where one failed.",
        epilog=f"example: {example(program, 'status.py')} output",
    )
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="FOLDER",
        type=Path,
        help="an output root, or the folder of an environment or an experiment",
    )
    return parser.parse_args(arguments)


def show(folders: Sequence[Path]) -> None:
    """Prints the table of all runs in and below folders.

    Raises:
        UserError: no such folder, or there is no run in it.
    """
    found = status.below(folders, lambda line: print(line, file=sys.stderr))
    print("\n".join(table(found, terminal_width())))


def main(arguments: Sequence[str] | None = None, program: str = "status.py") -> int:
    """The command; returns the exit code."""
    parsed = parse_arguments(arguments, program)
    return exit_code(program, lambda: show(parsed.folders))


if __name__ == "__main__":
    prepare_command()
    sys.exit(main())
