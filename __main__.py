"""The command `steve`, also `python -m steve`: each script as a subcommand."""

import importlib
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple

from steve import __version__
from steve.command_line import OneLineParser, prepare_command


class Command(NamedTuple):
    """A subcommand.

    Attributes:
        module: whose `main(arguments, program)` it calls.
        help: what it does.
        first: arguments in front of the user's.
    """

    module: str
    help: str
    first: tuple[str, ...] = ()


COMMANDS = {
    "train": Command("steve.main", "train a policy"),
    "describe": Command(
        "steve.main", "show a merged configuration and its sources", ("--describe",)
    ),
    "list": Command("steve.main", "show the experiments that come along", ("--list",)),
    "visualize": Command("steve.visualizer", "run a trained policy: video and figures"),
    "export": Command("steve.export", "write a policy for other programs"),
    "plot": Command("steve.plot", "draw learning curves"),
    "verify": Command("steve.verify", "run an experiment again and compare the bits"),
    "status": Command("steve.status", "show how far runs are"),
    "sweep": Command("steve.sweep", "run many experiments, here or through Slurm"),
    "toy": Command("steve.toy_demo", "run the paper's toy experiment"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Calls a subcommand; returns its exit code."""
    prepare_command()
    words = list(sys.argv[1:] if arguments is None else arguments)
    width = max(map(len, COMMANDS))
    parser = OneLineParser(
        prog="steve",
        usage="steve COMMAND [arguments]",
        description="Stochastic Ensemble Value Expansion: train, look, compare.",
        epilog="commands:\n"
        + "\n".join(f"  {name:{width}}  {c.help}" for name, c in COMMANDS.items())
        + "\n\nsteve COMMAND --help explains one of them.",
        formatter_class=OneLineParser.PLAIN,
    )
    parser.add_argument("--version", action="version", version=f"steve {__version__}")
    parser.add_argument(
        "command", choices=COMMANDS, metavar="COMMAND", help="one of them"
    )
    if not words:
        parser.error(f"which command? {', '.join(COMMANDS)}")
    name = parser.parse_args(words[:1]).command
    command = COMMANDS[name]
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no stack trace of an import
    module = importlib.import_module(command.module)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return module.main([*command.first, *words[1:]], program=f"steve {name}")


if __name__ == "__main__":
    sys.exit(main())
