"""Copies what finished runs left into this folder.

    python results/collect.py output/cpu

ENVIRONMENT/EXPERIMENT/ gets the scores, the learners' logs, the configuration and
`compute.json`: versions, starts and the end. A run that is not finished is passed over,
one that is here with the same scores is left alone, one that is here with others is
refused: a result is replaced only by hand.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from steve.analysis.records import read_config
from steve.settings.roles import learners
from steve.storage.folders import Folders
from steve.storage.record import read_run
from steve.util import OneLineParser, UserError, appearing, exit_code

RESULTS = Path(__file__).resolve().parent


KEPT = ("time", "resumed", "python", "versions", "commit", "devices")  # of a start


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
        folders = Folders(root, path.parent, root / config.save_model_path, root.name)
        record = read_run(folders)
        if not record["finished"]:
            continue
        target = results / root.parent.name / root.name
        if target.exists():
            here = target / folders.scores.name
            if here.read_bytes() != folders.scores.read_bytes():
                raise UserError(f"{target}: another run is here; remove it first")
            continue
        with appearing(target) as unfinished:
            logs = map(folders.learner_log, learners(config))
            for source in (folders.scores, folders.hyperparameters, *logs):
                shutil.copyfile(source, unfinished / source.name)
            starts = [{key: start[key] for key in KEPT} for start in record["starts"]]
            compute = {"starts": starts, "finished": record["finished"]}
            content = json.dumps(compute, indent=2) + "\n"
            (unfinished / "compute.json").write_text(content)
        lines.append(str(target.relative_to(results)))
    return lines


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
