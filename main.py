"""Trains a policy: python main.py CONFIG.json GPU_ID [--resume]

Reads the configuration, lays out the experiment's folder, starts the learners,
interactors and evaluators, and watches them until the run's limit or Ctrl-C.
"""

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack

if __name__ == "__main__":  # Ctrl-C ends the imports without a stack trace
    signal.signal(signal.SIGINT, signal.SIG_DFL)

try:
    import steve  # noqa: F401
except ModuleNotFoundError:
    sys.exit("main.py: the package steve is not installed; run: pip install -e .")

from steve import __version__
from steve.command_line import (
    OneLineParser,
    drop_unwritten_output,
    example,
    exit_code,
    output_console,
    prepare_command,
    print_once,
    script_words,
)
from steve.running.display import Display
from steve.running.launch import end_of, opened, run_processes
from steve.settings.files import locate
from steve.settings.request import Request, Start
from steve.storage.folders import Folders
from steve.util import UserError, shown_path, stop_as_by_ctrl_c


def parse_arguments(
    arguments: Sequence[str] | None, program: str = "main.py"
) -> argparse.Namespace:
    parser = OneLineParser(
        prog=program,
        usage=f"{program} CONFIG.json GPU_ID [options]\n"
        f"       {program} --describe CONFIG.json [--set KEY=VALUE ...]\n"
        f"       {program} --describe KEY\n"
        f"       {program} --list [WORD ...]",
        description="Trains a policy by STEVE or one of its relatives.",
        epilog=f"example: {example(program, 'main.py')} config/quickstart.json cpu "
        "--name first --set seed=1",
    )
    parser.add_argument(
        "config",
        nargs="?",
        metavar="CONFIG.json",
        help="experiment file, in the working folder or among those that come along",
    )
    parser.add_argument(
        "gpu_id",
        nargs="?",
        metavar="GPU_ID",
        help="GPU of the value learner, counted from 0 among those that are visible; "
        'the next one gets the world model; or "cpu"',
    )
    parser.add_argument(
        "--list",
        nargs="*",
        metavar="WORD",
        help="show the experiments that come along, or those that hold all the words",
    )
    parser.add_argument(
        "--describe",
        action="store_true",
        help="show the merged configuration and where each value comes from; or, of a "
        "key in its place, what it means",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--resume", action="store_true", help="continue an interrupted run"
    )
    how.add_argument(
        "--resume-or-start",
        action="store_true",
        help="continue an interrupted run, or start it where there is none yet",
    )
    how.add_argument(
        "--overwrite",
        action="store_true",
        help="start again; the earlier output is renamed, not deleted",
    )
    how.add_argument(
        "--resume-from",
        type=int,
        metavar="N",
        help="continue from the numbered checkpoint of N updates; the present state of "
        "the output is kept under another name",
    )
    parser.add_settings("replace values, such as policy_config.batch_size=128")
    parser.add_argument("--name", help="the experiment's name; by default the file's")
    parser.add_argument(
        "--frames", type=int, metavar="N", help="stop after N environment frames"
    )
    parser.add_argument(
        "--hours", type=float, metavar="H", help="stop after H hours of learning"
    )
    parser.add_argument("--version", action="version", version=f"steve {__version__}")
    # Intermixed: options may also stand between the two positional arguments.
    parsed = parser.parse_intermixed_args(arguments)
    needed = {"CONFIG.json": parsed.config, "GPU_ID": parsed.gpu_id or parsed.describe}
    missing = [name for name, given in needed.items() if not given]
    if missing and parsed.list is None:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return parsed


def request_of(arguments: argparse.Namespace) -> Request:
    """What the command line asks for."""
    start = Start.FRESH
    if arguments.resume or arguments.resume_from is not None:
        start = Start.RESUME
    elif arguments.resume_or_start:
        start = Start.RESUME_OR_START
    elif arguments.overwrite:
        start = Start.OVERWRITE
    return Request(
        config=arguments.config,
        device=arguments.gpu_id,
        start=start,
        rewind_to=arguments.resume_from,
        overrides=tuple(arguments.set),
        name=arguments.name,
        frames=arguments.frames,
        hours=arguments.hours,
    )


def show(arguments: argparse.Namespace, program: str) -> None:
    """Prints what `--list` or `--describe` asks for.

    Raises:
        UserError: a mistake in the configuration.
    """
    from steve.settings import catalogue  # here: a run has no use for it

    if arguments.list is not None:
        command = example(program, "main.py")
        print_once(catalogue.list_experiments(command=command, words=arguments.list))
    elif (keys := catalogue.keys_called(arguments.config)) and not locate(
        arguments.config
    ).is_file():
        print_once(catalogue.describe_keys(keys))
    else:
        near = catalogue.nearest_key(arguments.config)
        if near and not locate(arguments.config).exists():
            raise UserError(
                f"{arguments.config}: neither a key nor a file; did you mean {near}?"
            )
        loaded = request_of(arguments).loaded
        print_once(catalogue.describe(arguments.config, loaded))


def train(request: Request, program: str) -> int:
    """Opens the output, runs, and says what to do next; returns the exit code.

    Raises:
        UserError: a mistake; nothing has been written if it shows before the start.
    """
    display = Display(output_console(), request.experiment)
    with ExitStack() as ends:
        with opened(request, display.note) as run:
            if run is None:
                return 0
            outcome = run_processes(run, display, ends)
        if outcome.error:
            print(outcome.error, file=sys.stderr)
            return outcome.code
        for line in next_steps(request, program, run.folders, outcome.finished):
            display.note(line)
        return outcome.code


def next_steps(
    request: Request, program: str, folders: Folders, finished: bool
) -> list[str]:
    """The commands that come next."""
    lines = []
    if not finished:
        command = resuming_command(program, request)
        lines += ["to resume:", f"  {command}"]
    if folders.policy.exists():
        words = [*script_words(program, "visualizer.py"), shown_path(folders.root)]
        lines += ["to look at the policy:", f"  {shlex.join(words)}"]
    return lines


def resuming_command(program: str, request: Request) -> str:
    """The command line that resumes a run.

    Args:
        program: how this one was called.
        request: of this run.
    """
    words = [*script_words(program, "main.py"), str(request.config), request.device]
    words.append("--resume")
    for option in ("name", "frames", "hours"):
        value = getattr(request, option)
        words += [] if value is None else [f"--{option}={value}"]
    settings = ["--set", *request.overrides] if request.overrides else []
    return shlex.join([*words, *settings])


def main(arguments: Sequence[str] | None = None, program: str = "main.py") -> int:
    """The command; returns the exit code (SPEC section 12)."""
    parsed = parse_arguments(arguments, program)
    if parsed.list is not None or parsed.describe:
        return exit_code(program, lambda: show(parsed, program))
    try:
        with stop_as_by_ctrl_c():  # until the supervisor takes over
            return train(request_of(parsed), program)
    except (UserError, OSError) as error:
        line, code = end_of(error)
        print(f"{program}: {line}", file=sys.stderr)
        return code
    except KeyboardInterrupt:
        print("stopped before the start", file=sys.stderr)
        return 0
    finally:
        drop_unwritten_output()


if __name__ == "__main__":
    prepare_command()
    sys.exit(main())
