"""Trains a policy: python main.py CONFIG.json GPU_ID [--resume]

Reads the configuration, lays out the experiment's folder, starts the learners,
interactors and evaluators, and watches them until the run's limit or Ctrl-C.
"""

import argparse
import errno
import sys
from collections.abc import Sequence
from pathlib import Path

from steve.running.launch import launch, load
from steve.storage.disk import full_disk_line, is_full
from steve.util import (
    OneLineParser,
    UserError,
    exit_code,
    print_once,
    stop_as_by_ctrl_c,
)

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="main.py",
        usage="main.py CONFIG.json GPU_ID [options]\n"
        "       main.py --describe CONFIG.json [--set KEY=VALUE ...]\n"
        "       main.py --list",
        description="Trains a policy by STEVE or one of its relatives.",
        epilog="example: python main.py config/quickstart.json cpu --name first "
        "--set seed=1",
    )
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG.json", help="experiment file"
    )
    parser.add_argument(
        "gpu_id",
        nargs="?",
        metavar="GPU_ID",
        help="GPU of the value learner, counted from 0 among those that are visible; "
        'the next one gets the world model; or "cpu"',
    )
    parser.add_argument(
        "--list", action="store_true", help="show the experiments that come along"
    )
    parser.add_argument(
        "--describe",
        action="store_true",
        help="show the merged configuration and where each value comes from",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--resume", action="store_true", help="go on with an interrupted run"
    )
    how.add_argument(
        "--resume-or-start",
        action="store_true",
        help="go on with an interrupted run, or start it where there is none yet",
    )
    how.add_argument(
        "--overwrite",
        action="store_true",
        help="start anew; the earlier output is renamed, not deleted",
    )
    how.add_argument(
        "--resume-from",
        type=int,
        metavar="N",
        help="go on from the numbered checkpoint of N updates; the present state of "
        "the output is kept under another name",
    )
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="replace values, such as policy_config.batch_size=128",
    )
    parser.add_argument("--name", help="the experiment's name; by default the file's")
    parser.add_argument(
        "--frames", type=int, metavar="N", help="stop after N environment frames"
    )
    parser.add_argument(
        "--hours", type=float, metavar="H", help="stop after H hours of learning"
    )
    # Intermixed: options may also stand between the two positional arguments.
    parsed = parser.parse_intermixed_args(arguments)
    needed = {"CONFIG.json": parsed.config, "GPU_ID": parsed.gpu_id or parsed.describe}
    missing = [name for name, given in needed.items() if not given]
    if missing and not parsed.list:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return parsed


def show(arguments: argparse.Namespace) -> None:
    """Prints what `--list` or `--describe` asks for.

    Raises:
        UserError: a mistake in the configuration.
    """
    from steve.settings import catalogue  # here: a run has no use for it

    if arguments.list:
        shown = catalogue.list_experiments()
    else:
        shown = catalogue.describe(arguments.config, load(arguments))
    print_once(shown)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code (SPEC section 12)."""
    stop_as_by_ctrl_c()  # until the supervisor takes over
    parsed = parse_arguments(arguments)
    if parsed.list or parsed.describe:
        return exit_code("main.py", lambda: show(parsed))
    try:
        return launch(parsed)
    except UserError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise  # a bug of ours
        line = f"{error.filename}: {error.strerror}"
        if is_full(error):
            line = f"{full_disk_line(error, Path.cwd())}; free some and --resume"
        print(f"main.py: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped before the start", file=sys.stderr)
        return 0


if __name__ == "__main__":
    sys.exit(main())
