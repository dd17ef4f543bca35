"""Whether a run can be repeated to the bit: python verify.py FOLDER cpu [--epochs N]

Runs the experiment of a folder again, from its hps.json and in a temporary folder, and
compares the two lists of digests (log/digests.csv) epoch by epoch. No evaluators take
part: what they do changes nothing in what is learned.
"""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # Ctrl-C ends the imports without a stack trace
    signal.signal(signal.SIGINT, signal.SIG_DFL)

try:
    import steve  # noqa: F401
except ModuleNotFoundError:
    sys.exit("verify.py: the package steve is not installed; run: pip install -e .")

import numpy as np

from steve.analysis.records import read_config
from steve.command_line import (
    OneLineParser,
    example,
    exit_code,
    prepare_command,
    whole_number,
)
from steve.running.launch import FREE_SOME
from steve.running.training import Epoch, train
from steve.settings.request import Request
from steve.storage import checkpoint
from steve.storage.checkpoint import CheckpointError
from steve.storage.conditions import differences
from steve.storage.digests import Digest, read_digests
from steve.storage.folders import HYPERPARAMETERS, Folders
from steve.storage.record import read_json, read_run, reasons_of
from steve.util import RunError, UserError

# Of the repetition: nothing in it changes what is learned.
QUIET = (
    "total_hours=null",  # it ends where all has been compared
    "evaluator_config.count=0",
    "final_episodes=0",
    "tensorboard=false",
    "loggers=[]",
)


COMPARED = ("frames", "state", "policy", "model", "rows")


class _Enough(Exception):
    """Ends the repetition: what was asked for has been compared."""


@dataclass(frozen=True)
class Comparison:
    """What two lists of digests have in common.

    Attributes:
        same: epochs that are equal, from the first on.
        difference: the first that is not, and in what; None where there is none.
        wanted: epochs to compare.
    """

    same: int
    wanted: int
    difference: tuple[Digest, list[str]] | None = None


def compare(
    earlier: Sequence[Digest], again: Sequence[Digest], wanted: int
) -> Comparison:
    """Compares the first `wanted` epochs, as far as both lists go.

    Lines belong together by their updates: a run that was ended at a limit and then
    continued has an epoch more, where that end was. A damaged line is in no list.
    """
    others = {line.updates: (first, line) for first, line in _with_first_frame(again)}
    for same, (first, line) in enumerate(_with_first_frame(earlier[:wanted])):
        if line.updates not in others:
            if line.updates > max(others, default=-1):
                return Comparison(same, wanted)  # the repetition is not there yet
            continue
        other_first, other = others[line.updates]
        names = [n for n in COMPARED if getattr(line, n) != getattr(other, n)]
        if first != other_first:  # of other rows
            names = [name for name in names if name != "rows"]
        if names:
            return Comparison(same, wanted, (line, names))
    return Comparison(len(earlier[:wanted]), wanted)


def _with_first_frame(lines: Sequence[Digest]) -> Iterator[tuple[int, Digest]]:
    """Each line with the first frame that its `rows` are of."""
    return zip([0, *(line.frames for line in lines)], lines, strict=False)


def parse_arguments(
    arguments: Sequence[str] | None, program: str = "verify.py"
) -> argparse.Namespace:
    parser = OneLineParser(
        prog=program,
        description="Runs an experiment again and compares it epoch by epoch.",
        epilog=f"example: {example(program, 'verify.py')} "
        "output/InvertedPendulum-v5/quickstart cpu --epochs 20",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="an experiment's")
    parser.add_argument("device", metavar="GPU_ID", help="a GPU's number, or cpu")
    parser.add_argument(
        "--epochs",
        type=whole_number(1, 10**9),
        metavar="N",
        help="compare so many (all)",
    )
    return parser.parse_args(arguments)


def experiment_at(folder: Path) -> tuple[dict[str, Any], Folders]:
    """The merged configuration and the folders of an experiment's folder.

    Raises:
        UserError: there is no experiment, or it cannot be repeated.
    """
    collected = folder / HYPERPARAMETERS  # in results/ all lies side by side
    found = (
        [collected]
        if collected.is_file()
        else sorted(folder.glob(f"*/{HYPERPARAMETERS}"))
    )
    if not found:
        raise UserError(f"{folder}: has no log/hps.json; name an experiment's folder")
    merged = read_json(found[0])
    config = read_config(found[0])
    inner = (config.log_path, config.save_model_path)
    if found[0] == collected:
        inner = (".", ".")
    folders = Folders.at(folder, *inner, folder.resolve().name)
    for reason in reasons_of(record_of(folders)):
        print(f"note: {reason}")
    if not config.is_paced:
        raise UserError(f"{folder}: {config.sources_of_nondeterminism[0]}")
    if not read_digests(folders.digests):
        raise UserError(
            f"{folders.digests}: is missing or empty; the run has ended no epoch, or "
            "was made by an earlier version"
        )
    return merged, folders


def record_of(folders: Folders) -> dict[str, Any]:
    """run.json, or what results/ has in its place."""
    collected = folders.log / "compute.json"
    return read_json(collected) if collected.is_file() else read_run(folders)


def repeat(merged: dict[str, Any], folders: Folders, device: str, wanted: int) -> int:
    """Runs the experiment again and prints how far it is the same.

    Returns:
        the exit code: 0 where all that was wanted is identical, else 1.
    """
    earlier = read_digests(folders.digests)
    with tempfile.TemporaryDirectory(prefix="steve-verify-") as root:
        keys = (*QUIET, f"output_root={json.dumps(root)}")
        request = Request({"updates": merged}, device, overrides=keys, name="again")
        again = Folders.of(request.loaded.config, "again")
        found = Comparison(0, wanted)

        def look(_: Epoch | None) -> None:
            nonlocal found
            found = compare(earlier, read_digests(again.digests), wanted)
            if found.difference or found.same == wanted:
                raise _Enough  # the run is stopped by that

        try:
            train(
                request,
                look,
                show=lambda line: print(f"  {line}", flush=True),
                in_python=False,
            )
            look(None)
        except _Enough:
            pass
        except RunError as error:
            advice = "free some, or name a larger disk in TMPDIR"
            raise RunError(str(error).replace(FREE_SOME, advice)) from None
        for line in other_conditions(folders, again):
            print(f"note: {line}")
        print(report(found, len(earlier)))
        if found.difference:
            print(how_far(folders, again, found.difference[0].updates))
    return 0 if found.same == wanted else 1


def report(found: Comparison, of: int) -> str:
    """What was found, in one line."""
    if found.difference is None:
        all_of = " (all)" if found.same == of else f" of {of}"
        return f"identical to the bit up to epoch {found.same}{all_of}"
    line, names = found.difference
    return f"differs from epoch {line.epoch} on: {', '.join(names)}"


def other_conditions(folders: Folders, again: Folders) -> list[str]:
    """What was different when the first epochs were made: machine, versions, program.

    What one of the two records does not say is passed over.
    """
    then, now = (
        next((start for start in starts if start.get("computing")), starts[0])
        for starts in (record_of(each)["starts"] or [{}] for each in (folders, again))
    )
    return differences(then, now)


def how_far(folders: Folders, again: Folders, updates: int) -> str:
    """By how much two policies differ."""
    try:
        one, other = (
            checkpoint.load(each.policies.path(updates)).tensors
            for each in (folders, again)
        )
    except CheckpointError:
        return "by how much is not known: the policy of that epoch is not kept"
    largest = max(float(np.abs(one[name] - other[name]).max()) for name in one)
    return f"largest difference of a weight of the policy: {largest:.3g}"


def main(arguments: Sequence[str] | None = None, program: str = "verify.py") -> int:
    """The command; returns the exit code: 1 where something differs."""
    parsed = parse_arguments(arguments, program)
    return exit_code(program, lambda: run(parsed))


def run(arguments: argparse.Namespace) -> int:
    """What the command does, once its arguments are read."""
    merged, folders = experiment_at(arguments.folder)
    there = len(read_digests(folders.digests))
    wanted = there if arguments.epochs is None else min(arguments.epochs, there)
    return repeat(merged, folders, arguments.device, wanted)


if __name__ == "__main__":
    prepare_command()
    sys.exit(main())
