"""The parts of the documentation that are made from the code, as Markdown."""

import contextlib
import importlib
import io
import json
import os
from collections.abc import Iterator
from unittest import mock

from steve.__main__ import COMMANDS
from steve.settings.keys import allowed, field_at, is_changeable, known_keys, section_of
from steve.settings.schema import Config
from steve.sweep import COMMANDS as SWEEP
from steve.util import one_line

HELP_WIDTH = "80"


def configuration() -> str:
    """Every key: its meaning, what it takes, its default and its value in 2018."""
    keys = [(name,) for name in known_keys(Config)]
    plain = [path for path in keys if section_of(_field(path)) is None]
    parts = ["## The run", *(part for path in plain for part in _key(path))]
    for path in keys:
        if path not in plain:
            parts += _section(path)
    return "\n\n".join(parts)


def _field(path: tuple[str, ...]):
    field = field_at(path)
    assert field is not None, "a known key"
    return field


def _section(path: tuple[str, ...]) -> Iterator[str]:
    """A section and all below it, the plain keys first."""
    yield f"## {'.'.join(path)}"
    yield _meaning(path)[0]
    inner = section_of(_field(path))
    assert inner is not None, "a section"
    below = [(*path, name) for name in known_keys(inner)]
    sections = [each for each in below if section_of(_field(each))]
    for each in below:
        if each not in sections:
            yield from _key(each)
    for each in sections:
        yield from _section(each)


def _key(path: tuple[str, ...]) -> Iterator[str]:
    field = _field(path)
    meaning, in_2018, acts_in = _meaning(path)
    default = "must be given"
    if not field.is_required():
        default = f"`{json.dumps(field.get_default())}`"
    resumed = "yes" if is_changeable(path) else "no"
    yield f"### {'.'.join(path)}"
    yield meaning
    yield "\n".join(
        (
            f"- takes: {allowed(field)}",
            f"- default: {default}",
            f"- in 2018: {in_2018}",
            f"- acts in: {acts_in}",
            f"- a resumed run may change it: {resumed}",
        )
    )


def _meaning(path: tuple[str, ...]) -> tuple[str, str, str]:
    """The parts of a key's description: meaning, value in 2018, where it acts."""
    meaning, _, rest = one_line(_field(path).description).partition(" 2018: ")
    in_2018, _, acts_in = rest.partition(" Acts in: ")
    return meaning, in_2018.removesuffix("."), acts_in.removesuffix(".")


def command_line() -> str:
    """The --help of each subcommand of `steve`."""
    parts = []
    for words in (*((name,) for name in COMMANDS), *(("sweep", n) for n in SWEEP)):
        parts.append(f"## steve {' '.join(words)}")
        parts.append(f"```text\n{help_of(*words)}```")
    return "\n\n".join(parts)


def help_of(name: str, *words: str) -> str:
    """What `steve NAME WORDS --help` prints."""
    shown = io.StringIO()
    width = mock.patch.dict(os.environ, COLUMNS=HELP_WIDTH)
    command = importlib.import_module(COMMANDS[name].module)
    with width, contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        command.main([*words, "--help"], program=f"steve {name}")
    return shown.getvalue()


PARTS = {"configuration": configuration, "command line": command_line}
