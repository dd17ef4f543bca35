"""Reads configuration files: where they are looked up, what JSON is taken.

A path is looked up in the working folder first, then among the packaged files; the
same holds on the command line and in `inherits`.
"""

import difflib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..util import UserError, check_path
from .keys import known_keys
from .schema import Config

KeyPath = tuple[str, ...]

PACKAGE = Path(__file__).resolve().parents[1]
MAX_FILE_BYTES = 1 << 20
MAX_DIGITS = 1000
MAX_FILES = 200  # read for one configuration; also bounds how deep they nest


def locate(name: str | Path, package: Path = PACKAGE) -> Path:
    """Where a configuration file, or a folder of them, is.

    Args:
        name: a path in the working folder; or else one in the package, as
            "config/quickstart.json" or for short as "quickstart".
        package: the folder that holds the packaged `config`.

    Returns:
        the first that is there; the name itself where none is.

    Raises:
        UserError: no file can have that name.
    """
    check_path(name, "the path of a configuration")
    path = Path(name)
    if path.exists() or path.is_absolute():
        return path
    short = package / "config" / path
    for packaged in (package / path, short, short.with_name(f"{short.name}.json")):
        if packaged.exists():
            return packaged
    return path


class Unacceptable(ValueError):
    """Valid for Python's JSON reader, but not for ours."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = {}
    for key, value in pairs:
        if key in result:
            raise Unacceptable(f"the key {quoted(key)} stands twice in one object")
        result[key] = value
    return result


def _finite(text: str) -> float:
    number = float(text) if text not in ("NaN", "Infinity", "-Infinity") else math.nan
    if not math.isfinite(number):
        raise Unacceptable(f"{cut(text)} is not a finite number")
    return number


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise Unacceptable(f"{cut(text)} has more than {MAX_DIGITS} digits")
    return int(text)


def parse_json(text: str) -> Any:
    """JSON without its usual leniencies: no doubled key, no NaN, no infinity."""
    return json.loads(
        text,
        object_pairs_hook=_no_duplicates,
        parse_constant=_finite,
        parse_float=_finite,
        parse_int=_whole,
    )


def _nearest(path: Path, package: Path) -> str | None:
    """The packaged file that a misspelt path may mean."""
    there = [
        str(each.relative_to(package)) for each in package.glob("config/**/*.json")
    ]
    return next(iter(difflib.get_close_matches(str(path), there, 1, 0.85)), None)


def _read_object(
    path: Path, label: str, heir: str | None, package: Path
) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: where the file is.
        label: what messages call it.
        heir: the file that inherits it, if any.
        package: as of `locate`; messages name it.

    Raises:
        UserError: no such file, no permission, too large, not UTF-8, not JSON.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{label}: not a file")
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        hint = f"; there is {label}.json" if Path(f"{path}.json").is_file() else ""
        if not hint and (near := _nearest(path, package)):
            hint = f"; did you mean {near}?"
        by = f", inherited by {heir}" if heir else ""
        looked = ""
        if not path.is_absolute():
            looked = f", looked for in {Path.cwd()}"
            if package != Path.cwd():
                looked += f" and among the packaged ones in {package}"
        raise UserError(f"{label}: no such file{by}{looked}{hint}") from None
    except OSError as error:
        raise UserError(f"{label}: cannot be read ({error.strerror})") from None
    if len(content) > MAX_FILE_BYTES:
        raise UserError(f"{label}: larger than {MAX_FILE_BYTES} bytes")
    try:
        value = parse_json(content.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{label}: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        comma = error.msg.startswith(("Expecting property name", "Illegal trailing"))
        raise UserError(
            f"{label}: not valid JSON at line {error.lineno}, column {error.colno}: "
            f"{error.msg}{' (is there a comma too many?)' if comma else ''}"
        ) from None
    except Unacceptable as error:
        raise UserError(f"{label}: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{label}: must hold a JSON object, not {quoted(value)}")
    return value


class Files:
    """Reads a configuration's files in the order in which they are merged.

    Args:
        named: the file that the user named, or the content of one.
        package: as of `locate`.

    Attributes:
        label: what messages call `named`.
        notes: lines that the user should see.
    """

    def __init__(
        self, named: str | Path | Mapping[str, Any], package: Path = PACKAGE
    ) -> None:
        self._named = named
        self._package = package
        self.label = "config" if isinstance(named, Mapping) else shown(named)
        self.notes: list[str] = []
        homes = [package / "config", Path("config")]
        if not isinstance(named, Mapping):
            homes.append(locate(named, package).parent)
        self._homes = [Path(os.path.realpath(folder)) for folder in homes]
        self._read = 0

    def layers(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (label, updates) of each file, those that one inherits before it.

        Raises:
            UserError: a file cannot be read or is no configuration file.
        """
        if isinstance(self._named, Mapping):
            yield from self._of_content(dict(self._named), self.label, {})
        else:
            yield from self._of_file(self._named, {})

    def _of_file(
        self, name: str | Path, chain: dict[str, str]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The layers of one file; `chain` are those that led here, path to label."""
        path, label = locate(name, self._package), shown(name)
        place = os.path.realpath(path)
        if place in chain:
            circle = " -> ".join([*chain.values(), label])
            raise UserError(f"{label}: circular inherits: {circle}")
        self._read += 1
        if self._read > MAX_FILES:
            raise UserError(f"{self.label}: inherits more than {MAX_FILES} files")
        heir = next(reversed(chain.values()), None)
        if chain:
            self._note_if_outside(path, label)
        content = _read_object(path, label, heir, self._package)
        yield from self._of_content(content, label, {**chain, place: label})

    def _of_content(
        self, content: dict[str, Any], label: str, chain: dict[str, str]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        inherits, updates = _split(content, label)
        for entry in inherits:
            yield from self._of_file(entry, chain)
        yield label, updates

    def _note_if_outside(self, path: Path, label: str) -> None:
        place = Path(os.path.realpath(path))
        note = (
            f"{self.label} inherits {label}, which lies outside config/ and "
            f"the folder of {shown(Path(self.label).name)}"
        )
        if not any(map(place.is_relative_to, self._homes)) and note not in self.notes:
            self.notes.append(note)


def _split(content: dict[str, Any], label: str) -> tuple[list[str], dict[str, Any]]:
    """The two parts of a file, each of the right kind."""
    inherits, updates = content.get("inherits", []), content.get("updates", {})
    for key in (key for key in content if key not in ("inherits", "updates")):
        near = difflib.get_close_matches(key, ("inherits", "updates"), 1, 0.0)[0]
        if key.removeprefix("*") in known_keys(Config):
            near = f"updates.{key}"
        raise UserError(
            f"{label}: {shown(key)} is not a known key of a file (those are inherits "
            f"and updates); did you mean {near}?"
        )
    names = inherits if isinstance(inherits, list) else [None]
    if not all(isinstance(name, str) and name and name.isprintable() for name in names):
        raise UserError(
            f"{label}: inherits must be a list of file names, not {quoted(inherits)}"
        )
    if not isinstance(updates, dict):
        raise UserError(f"{label}: updates must be an object, not {quoted(updates)}")
    return inherits, updates


# ---- showing ------------------------------------------------------------------------


def cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def shown(name: str | Path) -> str:
    """A name from outside, on one line."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(name))


def dotted(path: KeyPath) -> str:
    return cut(shown(".".join(path)))


def quoted(value: Any) -> str:
    return cut(json.dumps(value, default=str))
