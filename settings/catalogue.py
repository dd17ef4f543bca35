"""What there is to run (`--list`), and what a configuration says (`--describe`)."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ..util import NOT_A_TERMINAL, UserError
from . import loading
from .files import PACKAGE
from .loading import LoadedConfig

QUICKSTART = Path("config/quickstart.json")
CONFIG = Path("config")
EXPERIMENTS = ("experiments/**/*.json", "cpu/**/*.json")  # below CONFIG
# By folder below CONFIG. One that is not named here is listed without a word.
SHOWS = {
    "experiments/goodruns": "learning curves: score against environment frames",
    "experiments/ablations/horizons": "rollouts of 1, 2 and 5 steps",
    "experiments/ablations/baselines": "each part of STEVE on its own",
    "experiments/speedruns": "score against hours: neither side waits",
    "cpu": "the comparison at a size for two CPU cores",
}


# ---- --list -------------------------------------------------------------------------


def list_experiments(
    root: Path = PACKAGE, command: str = "python main.py"
) -> RenderableType:
    """The experiments under config/, grouped; repeats of one experiment are one row."""
    parts: list[RenderableType] = []
    for folder, files in _grouped(root).items():
        title = Text(f"{CONFIG}/{folder}", "bold")
        shows = SHOWS.get(folder)
        parts.append(title.append(f": {shows}" if shows else "", "not bold"))
        parts += [_experiments_table(root, files), ""]
    parts += [
        Text(f"{QUICKSTART.parent}", "bold").append(
            ": a first run, of a minute or so on two CPU cores", "not bold"
        ),
        _experiments_table(root, {QUICKSTART.name: QUICKSTART}),
        "",
        "[0-3]: one file for each seed",
        f"to run one:        {command} CONFIG.json GPU_ID    (or cpu)",
        f"to look into one:  {command} --describe CONFIG.json",
    ]
    return Group(*parts)


def _grouped(root: Path) -> dict[str, dict[str, Path]]:
    """Group to pattern of file names to one of the files, in the order of SHOWS."""
    repeats: dict[Path, list[int]] = {}
    files: dict[Path, Path] = {}
    found = (path for pattern in EXPERIMENTS for path in (root / CONFIG).glob(pattern))
    for path in sorted(found):
        name = path.stem.rstrip("0123456789")
        number = path.stem.removeprefix(name)
        base = path.relative_to(root / CONFIG).with_name(name)
        repeats.setdefault(base, []).extend([int(number)] if number else [])
        files.setdefault(base, path.relative_to(root))
    groups: dict[str, dict[str, Path]] = {folder: {} for folder in SHOWS}
    for base, numbers in repeats.items():
        parents = [str(parent) for parent in base.parents]
        group = next((f for f in SHOWS if f in parents), str(base.parent))
        seeds = f"[{_ranged(sorted(numbers))}]" if numbers else ""
        pattern = f"{base.relative_to(group)}{seeds}.json"
        groups.setdefault(group, {})[pattern] = files[base]
    return {folder: rows for folder, rows in groups.items() if rows}


def _ranged(numbers: list[int]) -> str:
    """0-3 for 0, 1, 2, 3; else all of them."""
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ",".join(map(str, numbers))


def _experiments_table(root: Path, files: dict[str, Path]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(overflow="fold", min_width=33)
    table.add_column(overflow="fold")
    for pattern, path in files.items():
        try:
            config = loading.load(root / path, root=root).config
            # The group says that nobody waits.
            what = f"{config.algorithm.removesuffix(' unpaced')} on {config.env.name}"
        except UserError as error:
            what = f"cannot be used: {error}"
        table.add_row(Text(pattern), Text(what))
    return table


# ---- --describe ---------------------------------------------------------------------


def describe(path: str, loaded: LoadedConfig) -> RenderableType:
    """A merged and checked configuration, and where each value comes from."""
    head = f"{path}: {loaded.config.algorithm} on {loaded.config.env.name}"
    chain = "merged in this order: " + ", ".join(dict.fromkeys(loaded.files))
    notes = map(Text, loaded.notes)
    return Group(Text(head, "bold"), Text(chain), *notes, "", _Values(loaded))


class _Values:
    """All values: with dotted keys where there is room for them, else by sections."""

    def __init__(self, loaded: LoadedConfig) -> None:
        values = {".".join(p): value for p, value in loading.leaves(loaded.merged)}
        self._rows = [
            (key, json.dumps(value), loaded.sources.get(key, "default"))
            for key, value in values.items()
        ]

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        table = _value_table(self._rows)
        anything = options.update(max_width=NOT_A_TERMINAL)
        if Measurement.get(console, anything, table).maximum <= options.max_width:
            yield table
            return
        sections: dict[str, list[tuple[str, ...]]] = {}
        for key, *cells in self._rows:
            section, _, name = key.rpartition(".")
            sections.setdefault(section, []).append((f"  {name}", *cells))
        for section, rows in sections.items():
            yield Text(section or "top level", "bold")
            yield _value_table(rows, key_width=26, value_width=22)


def _value_table(
    rows: Sequence[tuple[str, ...]], key_width: int = 0, value_width: int = 0
) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for width in (key_width, value_width, 0):
        table.add_column(overflow="fold", min_width=width)
    for cells in rows:
        style = "dim" if cells[-1] == "default" else ""
        table.add_row(*map(Text, cells), style=style)
    return table
