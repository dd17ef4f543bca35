"""Copies what finished runs left into this folder.

    python results/collect.py output/cpu

ENVIRONMENT/EXPERIMENT/ gets the scores, those of the final episodes and of the acting
agent, the learners' logs, the digests, the configuration, the last policy and
`compute.json`: versions, starts and the end. A run that is not finished, or was put
aside, is passed over; one that is here with the same scores is left alone. One that was
continued, or made again, to more frames replaces what is here of it. One that is here
with other scores is refused: such a result is replaced only by hand.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from steve.analysis import acting_returns
from steve.analysis.records import read_config
from steve.command_line import OneLineParser, exit_code
from steve.replay import ReplayBuffer
from steve.settings.roles import learners
from steve.settings.schema import Config
from steve.storage.folders import ASIDE, Folders
from steve.storage.record import read_json, read_run, write_json
from steve.util import UserError, appearing

RESULTS = Path(__file__).resolve().parent
PLACE = "output"  # stands for the output_root of every run


# Of a start; one of version 1.0 does not name the processor.
KEPT = (
    "time",
    "resumed",
    "processor",
    "processor_kind",
    "variables",
    "libc",
    "python",
    "versions",
    "commit",
    "devices",
    "computing",
)


def collect(output_root: Path, results: Path) -> list[str]:
    """Copies all finished runs under `output_root`; a line for each that is new.

    Raises:
        UserError: there are no runs, or another run of that name is here.
    """
    paths = sorted(output_root.glob("*/*/log/hps.json"))
    if not paths:
        raise UserError(f"{output_root}: there is no ENVIRONMENT/EXPERIMENT/log here")
    lines = []
    for path in paths:
        config = read_config(path)
        root = path.parents[1]
        if ASIDE.fullmatch(root.name):
            continue
        folders = Folders(root, path.parent, root / config.save_model_path, root.name)
        record = read_run(folders)
        if not record["finished"]:
            continue
        target = results / root.parent.name / root.name
        if target.exists():
            here = scores_in_order(target / folders.scores.name)
            new = scores_in_order(folders.scores)
            if here == new:
                continue
            if new[: len(here)] != here:
                raise UserError(f"{target}: another run is here; remove it first")
        with appearing(target) as unfinished:
            copy(folders, config, unfinished)
            content = json.dumps(compute(record), indent=2) + "\n"
            (unfinished / "compute.json").write_text(content)
            before = target.with_name(f".{target.name}.before")
            shutil.rmtree(before, ignore_errors=True)
            if target.exists():
                target.rename(before)
        shutil.rmtree(before, ignore_errors=True)
        lines.append(str(target.relative_to(results)))
    return lines


def scores_in_order(path: Path) -> list[str]:
    """The lines of a score file without the hours, in which a repetition differs."""
    return [line.partition(",")[2] for line in path.read_text().splitlines()]


def copy(folders: Folders, config: Config, target: Path) -> None:
    """Copies what a run left; some of it is missing in runs of version 1.0."""
    logs = map(folders.learner_log, learners(config))
    for source in (folders.scores, *logs):
        shutil.copyfile(source, target / source.name)
    content = read_json(folders.hyperparameters)
    if "output_root" in content:  # where the run lay, on whatever machine
        content["output_root"] = PLACE
    write_json(target / folders.hyperparameters.name, content)
    for source in (folders.final_scores, folders.digests, folders.policy):
        if source.exists():
            shutil.copyfile(source, target / source.name)
    if folders.replay.exists():
        with ReplayBuffer.open(folders.replay) as replay:
            if replay.has_origins:
                content = acting_returns.acting_csv(
                    acting_returns.acting_returns(replay)
                )
                name = folders.experiment + acting_returns.SUFFIX
                (target / name).write_bytes(content)


def compute(record: dict[str, Any]) -> dict[str, Any]:
    """What is kept of run.json."""
    starts = [
        {key: start[key] for key in KEPT if key in start} for start in record["starts"]
    ]
    chance = record.get("not_reproducible")
    more = {"not_reproducible": chance} if chance else {}
    if "weighting" in record:
        more["weighting"] = record["weighting"]
    return {"starts": starts, "finished": record["finished"], **more}


def main() -> int:
    parser = OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument("output_root", metavar="OUTPUT_ROOT", type=Path)
    parser.add_argument("--to", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    return exit_code(
        "collect.py",
        lambda: print("\n".join(collect(given.output_root, given.to)) or "nothing new"),
    )


if __name__ == "__main__":
    sys.exit(main())
