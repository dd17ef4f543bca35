"""Draws learning curves: python plot.py OUTPUT_FOLDERS... [--x frames|hours|updates]

From the csv and logs of any number of experiments (`records`, `curves`): the score of
the greedy policy, model usage and losses, a panel for each environment, a line for each
algorithm; and tables of the score at some frame counts and of the frames and hours to
reach a score.
"""

import argparse
import math
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # Ctrl-C ends the imports without a stack trace
    signal.signal(signal.SIGINT, signal.SIG_DFL)

try:
    import steve
except ModuleNotFoundError:
    sys.exit("plot.py: the package steve is not installed; run: pip install -e .")

import pandas as pd

from steve.analysis.aggregates import OverEnvironments, over_environments
from steve.analysis.curve_figures import SHORT_HOURS, aggregate_figure, all_figures
from steve.analysis.curves import RANGE_RUNS, SMOOTH, reach_table, score_table
from steve.analysis.drawing import KINDS, origin, rendered, significant, text_table
from steve.analysis.published import reference_runs
from steve.analysis.records import (
    GROUPINGS,
    SCORE,
    X_AXES,
    Record,
    find_runs,
    grouped,
    remarks,
)
from steve.command_line import (
    OneLineParser,
    example,
    exit_code,
    number,
    prepare_command,
    whole_number,
)
from steve.util import UserError, atomic_write, unused

SUFFIXES = (".png", ".pdf", ".svg")
DEFAULT_FOLDER = Path("output/plots")


# ---- Tables for the terminal -------------------------------------------------------


def printed_scores(table: pd.DataFrame) -> str:
    """The table of scores, for the terminal; it says where an interval is a range."""
    has_intervals = table["runs"].max() > RANGE_RUNS
    spread = "95% interval" if has_intervals else "range"
    header = f"environment,algorithm,frames,runs,mean,{spread},IQM,hours"
    rows = [tuple(header.split(","))]
    for row in table.itertuples():
        interval = f"{significant(row.low)} .. {significant(row.high)}"
        if has_intervals and row.runs <= RANGE_RUNS:
            interval += " (range)"
        rows.append(
            (
                row.environment,
                row.algorithm,
                f"{row.frames:,}",
                f"{row.seeds} of {row.runs}",
                significant(row.mean) if row.seeds else "-",
                "-" if math.isnan(row.low) else interval,
                "-" if math.isnan(row.iqm) else significant(row.iqm),
                duration(row.hours) if row.seeds else "-",
            )
        )
    return text_table(rows)


def printed_reach(table: pd.DataFrame) -> str:
    """The table of frames and hours to reach a score, for the terminal."""
    rows = [("environment", "algorithm", "reached", "frames", "hours")]
    for row in table.itertuples():
        never = math.isinf(row.frames)
        rows.append(
            (
                row.environment,
                row.algorithm,
                f"{row.reached} of {row.runs}",
                "-" if never else f"{row.frames:,.0f}",
                "-" if never else duration(row.hours),
            )
        )
    return text_table(rows)


def duration(hours: float) -> str:
    """Hours; below a tenth, minutes with their unit."""
    return f"{hours:.3g}" if hours >= SHORT_HOURS else f"{60 * hours:.2g} min"


def printed_aggregate(over: OverEnvironments) -> str:
    """Statistics over environments, and who is better than whom, for the terminal."""
    rows = [("algorithm", "runs", "IQM", "95% interval", "mean", "optimality gap")]
    for row in over.scores.itertuples():
        interval = _interval(row.low, row.high, 3)
        if len(over.environments) == 1 and 1 < row.runs <= RANGE_RUNS:
            interval += " (range)"
        cells = (f"{row.iqm:.3f}", interval, f"{row.mean:.3f}", f"{row.gap:.3f}")
        rows.append((row.algorithm, str(row.runs), *cells))
    better = [("P(better)", "than", "is", "95% interval")]
    for row in over.improvement.itertuples():
        interval = _interval(row.low, row.high, 2)
        better.append((row.algorithm, row.than, f"{row.probability:.2f}", interval))
    tables = [text_table(rows), *([text_table(better)] if better[1:] else [])]
    return "\n\n".join(tables)


def _interval(low: float, high: float, digits: int) -> str:
    return "-" if math.isnan(low) else f"{low:.{digits}f} .. {high:.{digits}f}"


def printed_groups(runs: Sequence[Record], group_by: str) -> str:
    """Which runs each line is of."""
    return "\n".join(
        f"  {environment}, {name}: {', '.join(_folder(run) for run in group)}"
        for (environment, name), group in grouped(runs, group_by).items()
    )


def _folder(run: Record) -> str:
    folder = run.path.parent
    return str(folder.parent if folder.name == run.config.log_path else folder)


# ---- The command line ---------------------------------------------------------------


def reference_scores(text: str) -> tuple[str, tuple[float, float]]:
    """ENVIRONMENT=LOW,HIGH of the command line."""
    name, _, scores = text.rpartition("=")
    try:
        low, high = map(float, scores.split(","))
    except ValueError:
        low = high = math.nan
    if not name or not -math.inf < low < high < math.inf:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no ENVIRONMENT=LOW,HIGH with two scores, LOW below HIGH"
        )
    return name, (low, high)


def parse_arguments(
    arguments: Sequence[str] | None, program: str = "plot.py"
) -> argparse.Namespace:
    parser = OneLineParser(
        prog=program,
        description="Draws learning curves of any number of experiments and prints "
        "tables of their scores.",
        epilog=f"example: {example(program, 'plot.py')} output --reach 900",
    )
    option = parser.add_argument
    option(
        "folders",
        nargs="+",
        type=Path,
        metavar="OUTPUT_FOLDER",
        help="an experiment's folder, or one that holds some at any depth",
    )
    option("--x", choices=X_AXES, default="frames", help="the x axis (frames)")
    option(
        "--group",
        choices=GROUPINGS,
        default="algorithm",
        help="what one line is: an algorithm, or the experiments whose names differ "
        "only in the digits at their end",
    )
    option(
        "--smooth",
        type=number(0, 1),
        default=SMOOTH,
        metavar="SHARE",
        help=f"of the x axis over which a run's scores are averaged ({SMOOTH})",
    )
    option(
        "--at",
        type=whole_number(1, 10**12),
        nargs="+",
        metavar="FRAMES",
        help="frame counts of the table of scores; by default a quarter, a half and "
        "all of an environment's shortest run",
    )
    option(
        "--reach",
        type=number(-math.inf, math.inf),
        metavar="SCORE",
        help="adds a table of the frames and hours to reach this score",
    )
    option(
        "--out",
        type=Path,
        metavar="FILE",
        help="the figure of the scores, .png, .pdf or .svg; the rest goes next to it "
        f"as FILE_NAME; by default all goes to {DEFAULT_FOLDER}, with a number if that "
        "is taken, as PNG and PDF",
    )
    option(
        "--reference",
        action="store_true",
        help="draws the runs of results/ on the same environments, too",
    )
    option(
        "--normalize",
        nargs="+",
        action="extend",
        type=reference_scores,
        metavar="ENVIRONMENT=LOW,HIGH",
        help="adds statistics over these environments, of scores that are 0 at LOW "
        "(a random policy's, say) and 1 at HIGH",
    )
    option("--overwrite", action="store_true", help="replace the files of --out")
    return parser.parse_args(arguments)


def destinations(
    out: Path | None, figures: Sequence[str], tables: Sequence[str]
) -> dict[tuple[str, str], Path]:
    """Where each (name, kind) goes."""
    if out is None:
        folder = unused(DEFAULT_FOLDER)
        files = [(name, kind) for name in figures for kind in KINDS]
        files += [(name, "csv") for name in tables]
        return {(name, kind): folder / f"{name}.{kind}" for name, kind in files}
    kind = out.suffix.removeprefix(".")
    files = [(name, kind) for name in figures] + [(name, "csv") for name in tables]
    return {
        (name, kind): out
        if name == SCORE
        else out.with_name(f"{out.stem}_{name}.{kind}")
        for name, kind in files
    }


def write(content: dict[Path, bytes], overwrite: bool) -> None:
    """Writes the files; what is there already with the same content is no obstacle.

    Raises:
        UserError: there is a file with other content, or something that is no file;
            nothing has been written then.
        OSError: a file cannot be written.
    """
    for path, data in content.items():
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is there, and is no file: pass another --out")
        if overwrite or not os.path.lexists(path):
            continue
        if not path.is_file() or path.read_bytes() != data:
            raise UserError(f"{path} is there already; --overwrite replaces such files")
    for path, data in content.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, data)


def run(arguments: argparse.Namespace) -> None:
    """Reads the experiments, writes figures and tables, prints the tables.

    Raises:
        UserError, OSError: as `write`.
    """
    out = arguments.out
    if out is not None and out.suffix not in SUFFIXES:
        raise UserError(f"--out {out}: the name must end in {', '.join(SUFFIXES)}")
    notes: list[str] = []
    runs = find_runs(arguments.folders, notes.append)
    for line in [*notes, *remarks(runs, arguments.group)]:
        print(f"note: {line}")
    if arguments.reference:
        if arguments.x == "updates":
            raise UserError("--reference knows no updates: --x frames or hours")
        runs += reference_runs(runs)
    if not any(run.end("frames") for run in runs):
        raise UserError("no run has an evaluation yet")
    settings = {"group_by": arguments.group, "smooth": arguments.smooth}
    references = dict(arguments.normalize or [])
    over = over_environments(runs, references, **settings) if references else None
    if over and over.left_out:
        left = ", ".join(over.left_out)
        print(f"note: without runs on all of {', '.join(over.environments)}: {left}")
    figures, curves = all_figures(runs, arguments.x, **settings)
    tables = {"table": score_table(runs, arguments.at, **settings)}
    if arguments.reach is not None:
        tables["reach"] = reach_table(runs, arguments.reach, **settings)
    tables["curves"] = curves
    if over:
        tables["aggregate"], tables["improvement"] = over.scores, over.improvement
        figures["aggregate"] = aggregate_figure(over)
    paths = destinations(out, list(figures), list(tables))
    about = origin(_command(arguments), steve.__version__)
    content = {
        path: tables[name].to_csv(index=False, float_format="%.6g").encode()
        if kind == "csv"
        else rendered(figures[name], kind, about)
        for (name, kind), path in paths.items()
    }
    write(content, arguments.overwrite)
    print(printed_scores(tables["table"]))
    if "reach" in tables:
        print(f"\nuntil the score is {arguments.reach:g}, median over runs:")
        print(printed_reach(tables["reach"]))
    if over:
        print(f"\nover {', '.join(sorted(references))}, scores normalised, at the end:")
        print(printed_aggregate(over))
    print("\nthe runs of each line:", printed_groups(runs, arguments.group), sep="\n")
    print("\nwritten:", *content, sep="\n  ")


def _command(arguments: argparse.Namespace) -> str:
    """The command of a figure; where it was written does not matter."""
    words = ["plot.py", *map(str, arguments.folders)]
    words += ["--x", arguments.x, "--group", arguments.group]
    if arguments.reference:
        words.append("--reference")
    for name, (low, high) in arguments.normalize or []:
        words += ["--normalize", f"{name}={low!r},{high!r}"]
    return shlex.join([*words, "--smooth", f"{arguments.smooth:g}"])


def main(arguments: Sequence[str] | None = None, program: str = "plot.py") -> int:
    """Returns the exit code: 0, 1 for a failure, 2 for a user's mistake."""
    parsed = parse_arguments(arguments, program)
    return exit_code(program, lambda: run(parsed))


if __name__ == "__main__":
    prepare_command()
    sys.exit(main())
