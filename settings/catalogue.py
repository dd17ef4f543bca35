"""What there is to run (`--list`), and what a configuration says (`--describe`)."""

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ..util import UserError, one_line
from . import loading
from .files import PACKAGE, KeyPath
from .keys import all_paths, allowed, field_at, known_keys, section_of
from .loading import LoadedConfig

QUICKSTART = Path("config/quickstart.json")
CONFIG = Path("config")
# Below CONFIG.
EXPERIMENTS = ("experiments/**/*.json", "fullsize/**/*.json", "cpu/**/*.json")
MOST_SHOWN = 3  # values in which an experiment differs
WIDEST = 1000  # columns: no table is wider
# By folder below CONFIG. One that is not named here is listed without a word.
SHOWS = {
    "experiments/goodruns": "learning curves: score against environment frames",
    "experiments/ablations/horizons": "rollouts of 1, 2 and 5 steps",
    "experiments/ablations/baselines": "each part of STEVE on its own",
    "experiments/speedruns": "score against hours: neither side waits",
    "fullsize": "to compare with runs of the 2018 release",
    "cpu": "the comparison at a size for two CPU cores",
    str(CONFIG): "a first run, of a minute or so on two CPU cores",
}


# ---- --list -------------------------------------------------------------------------


def list_experiments(
    root: Path = PACKAGE, command: str = "python main.py", words: Sequence[str] = ()
) -> RenderableType:
    """The experiments under config/, grouped; repeats of one experiment are one row.

    Args:
        root: the folder that holds `config`.
        command: how to call main.py.
        words: what a row must hold, in its file's name or in its text; each of them.

    Raises:
        UserError: no row holds them all.
    """
    parts: list[RenderableType] = []
    groups = {f"{CONFIG}/{folder}": files for folder, files in _grouped(root).items()}
    groups[str(QUICKSTART.parent)] = {QUICKSTART.name: QUICKSTART}
    for folder, files in groups.items():
        rows = {
            pattern: what
            for pattern, what in _experiments(root, files).items()
            if _holds(f"{folder}/{pattern} {what}", words)
        }
        if not rows:
            continue
        title = Text(folder, "bold")
        shows = SHOWS.get(folder.removeprefix(f"{CONFIG}/"))
        parts.append(title.append(f": {shows}" if shows else "", "not bold"))
        parts += [_experiments_table(rows), ""]
    if not parts:
        raise UserError(f"no experiment holds {' and '.join(words)}; --list shows all")
    parts += [
        "[0-3]: one file for each seed",
        f"to run one:        {command} CONFIG.json GPU_ID    (or cpu)",
        f"to look into one:  {command} --describe CONFIG.json",
        f"what a key means:  {command} --describe KEY",
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


def _experiments(root: Path, files: dict[str, Path]) -> dict[str, str]:
    """What runs on what; of several that would read the same, what differs."""
    rows: dict[str, str] = {}
    first: dict[str, dict[str, Any]] = {}
    for pattern, path in files.items():
        try:
            loaded = loading.load(root / path, root=root)
        except UserError as error:
            rows[pattern] = f"cannot be used: {error}"
            continue
        config = loaded.config
        # The group says that nobody waits.
        what = f"{config.algorithm.removesuffix(' unpaced')} on {config.env.name}"
        values = {".".join(p): value for p, value in loading.leaves(loaded.merged)}
        others = _differences(first.setdefault(what, values), values)
        rows[pattern] = ", ".join([what, *others])
    return rows


def _differences(first: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """The values in which an experiment differs from the first of its kind."""
    changed = [
        f"{key.rpartition('.')[2]} {json.dumps(value)}"
        for key, value in values.items()
        if key != "seed" and first.get(key) != value
    ]
    found = list(dict.fromkeys(changed))  # of both learners alike
    return [*found[:MOST_SHOWN], "..."] if len(found) > MOST_SHOWN else found


def _holds(text: str, words: Sequence[str]) -> bool:
    return all(word.lower() in text.lower() for word in words)


def _experiments_table(rows: dict[str, str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True, min_width=33)
    table.add_column(overflow="fold")
    for pattern, what in rows.items():
        table.add_row(Text(pattern), Text(what))
    return table


# ---- --describe ---------------------------------------------------------------------


def keys_called(name: str) -> list[KeyPath]:
    """The keys of that dotted name, or with that last part of it."""
    path = tuple(name.split("."))
    return [each for each in all_paths() if each[-len(path) :] == path]


def nearest_key(name: str) -> str | None:
    """The key that a misspelt one may mean, written in as many parts."""
    parts = name.count(".") + 1
    known = {".".join(path[-parts:]) for path in all_paths() if len(path) >= parts}
    return next(iter(difflib.get_close_matches(name, sorted(known), 1, 0.75)), None)


def describe_keys(paths: Sequence[KeyPath]) -> RenderableType:
    """What keys mean, what they take, and what they are by default."""
    parts: list[RenderableType] = []
    for path in paths:
        field = field_at(path)
        assert field is not None, "a known key"
        inner = section_of(field)
        if inner is not None:
            rest = f"keys: {', '.join(known_keys(inner))}"
        elif field.is_required():
            rest = "must be given"
        else:
            rest = f"default: {json.dumps(field.get_default())}"
        parts += [
            Text(".".join(path), "bold"),
            Text(f"  {one_line(field.description)}"),
            Text(f"  {allowed(field)}; {rest}"),
        ]
    return Group(*parts)


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
        anything = options.update(max_width=WIDEST)
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
