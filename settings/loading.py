"""Loads a configuration: reads files, merges them, checks the result (SPEC section 8).

A file is a JSON object with `inherits` (files, looked up as `files.locate` says) and
`updates`. The files are merged in order, each one's `inherits` before its `updates`;
then come `--set`, `--frames` and `--hours`. Objects merge key by key, anything else
replaces. An object under a key that starts with `*` only fills an object that is
already there. Nothing is written; a mistake is a UserError of one line that names the
file, or the option, in which the offending key was last set.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ..util import UserError, check_path
from . import extensions
from .files import (
    PACKAGE,
    Files,
    KeyPath,
    Unacceptable,
    cut,
    dotted,
    parse_json,
    quoted,
    shown,
)
from .keys import (
    all_paths,
    allowed,
    field_at,
    is_changeable,
    is_free_object,
    known_keys,
    meaning,
    section_of,
)
from .schema import Config, Section
from .values import SAFE_NAME

MODEL_WITHOUT_EFFECT = (
    "model_config: the world model has no effect on the policy, because there is no "
    "policy_config.value_expansion"
)
_MISSING = object()


@dataclass(frozen=True)
class LoadedConfig:
    """What `load` found.

    Attributes:
        config: the checked configuration.
        merged: the same as JSON, complete with the defaults; for `log/hps.json`.
        notes: lines that the user should see.
        files: the files that were merged, in this order.
        sources: what set a value last, a file or an option, by its dotted key; a
            default has no entry.
    """

    config: Config
    merged: dict[str, Any]
    notes: list[str]
    files: list[str]
    sources: dict[str, str]


def load(
    path: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    frames: int | None = None,
    hours: float | None = None,
    root: Path = PACKAGE,
) -> LoadedConfig:
    """Reads, merges and checks one configuration file.

    Args:
        path: the file (`files.locate` says where it is looked up), or the content
            of one.
        overrides: the values of `--set`, "a.b.c=JSON", applied in order. What is not
            JSON is a string. A value replaces the old one, also where both are objects.
        frames: `--frames`, in place of total_frames.
        hours: `--hours`, in place of total_hours.
        root: the folder that holds the packaged `config`.

    Raises:
        UserError: anything wrong with a file, a key, a value or an option.
    """
    files = Files(path, root)
    settings = _Settings(files.label)
    faults: list[tuple[str, KeyPath, str]] = []
    merged_files: list[str] = []
    try:
        for source, updates in files.layers():
            merged_files.append(source)
            faults += [(source, *fault) for fault in _key_faults(updates)]
            settings.merge(updates, source)
        if faults:
            source, where, fault = faults[0]
            raise _user_error(f"{source}: {fault or _unknown_key(where)}", len(faults))
        for text in overrides:
            _apply_override(settings, text)
        if frames is not None:
            settings.replace(("total_frames",), frames, "--frames")
        if hours is not None:
            settings.replace(("total_hours",), hours, "--hours")
        config = _validate(settings)
        _check_output_root(settings, config)
    except RecursionError:
        raise UserError(
            f"{files.label}: objects or lists are nested too deeply"
        ) from None
    merged = config.model_dump(mode="json", by_alias=True)
    sources = settings.sources()
    notes = [*files.notes, *_without_effect(config), *_name_of_another(config, sources)]
    return LoadedConfig(config, merged, notes, merged_files, sources)


def _name_of_another(config: Config, sources: Mapping[str, str]) -> list[str]:
    """A line where an environment of the user's has kept the name of another one."""
    name, entry_point = sources.get("env.name"), sources.get("env.entry_point")
    if config.env.entry_point is None or name == entry_point:
        return []
    return [
        f"env.name {config.env.name} comes from {name} and env.entry_point from "
        f"{entry_point}: the results are filed under that name; set env.name as well"
    ]


def _without_effect(config: Config) -> list[str]:
    """Lines about keys that are set and change nothing."""
    expansion = config.policy_config.value_expansion
    if expansion is None:
        return [MODEL_WITHOUT_EFFECT] if config.has_model else []
    weighting, _ = expansion.choice
    return [
        f"policy_config.value_expansion.{key} has no effect on the weighting "
        f'"{weighting}"'
        for key in expansion.without_effect
    ]


def experiment_name(
    path: str | Path | Mapping[str, Any], name: str | None = None
) -> str:
    """The experiment's name: `--name`, else the file's name without `.json`.

    A configuration that is no file is called "experiment".

    Raises:
        UserError: the name would not do as the name of one folder.
    """
    if isinstance(path, Mapping):
        path = "experiment"
    chosen = Path(path).name.removesuffix(".json") if name is None else name
    if not re.fullmatch(SAFE_NAME, chosen):
        source = f"{shown(path)}: the file's name" if name is None else "--name"
        raise UserError(
            f"{source} must be one plain folder name of at most 200 letters, digits "
            f"and . _ - + = , with no dot in front, not {quoted(chosen)}"
            + ("; give another with --name" if name is None else "")
        )
    return chosen


def check_registered(config: Config) -> None:
    """Checks that the weighting and the world model that a run has are known by now.

    Raises:
        UserError: no module has registered it, or it has no such setting.
    """
    expansion, model = config.policy_config.value_expansion, config.world_model_config
    if expansion is not None:
        key = "policy_config.value_expansion.weighting"
        extensions.check(extensions.WEIGHTINGS, *expansion.choice, key)
    if model is not None:
        chosen = model.kind, model.kind_settings
        extensions.check(extensions.WORLD_MODELS, *chosen, "model_config.kind")


def changed_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The dotted keys in which two merged configurations differ.

    Those that a resumed run may change are left out (`keys.is_changeable`). false
    differs from 0; 1 and 1.0 are the same; a key that is missing has its default.
    """
    found = _differences(old, new, ())
    return [".".join(path) for path, _, _ in found if not is_changeable(path)]


def changes(
    old: dict[str, Any], new: dict[str, Any], on_resume: bool = False
) -> list[str]:
    """Differences of two merged configurations: "KEY BEFORE -> NOW", in JSON.

    Args:
        old: the one before.
        new: the one now.
        on_resume: whether those that a resumed run may have, or all others. Without
            `output_root`, which moves with its folder.
    """
    return [
        f"{'.'.join(path)} {_canonical(before)} -> {_canonical(after)}"
        for path, before, after in _differences(old, new, ())
        if is_changeable(path) == on_resume and path != ("output_root",)
    ]


def _differences(
    old: dict[str, Any], new: dict[str, Any], above: KeyPath
) -> Iterator[tuple[KeyPath, Any, Any]]:
    for key in dict.fromkeys([*old, *new]):
        path = (*above, key)
        before, after = (
            values[key] if key in values else _default(path) for values in (old, new)
        )
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, path)
        elif _canonical(before) != _canonical(after):
            yield path, before, after


def _default(path: KeyPath) -> Any:
    """What a key is where it is not set; `_MISSING` where it must be, or is unknown.

    An hps.json of an earlier version lacks the keys that came later. What an object of
    free keys, such as make_kwargs, lacks is missing: its keys have no defaults.
    """
    field = field_at(path)
    if field is None or field.is_required() or field is field_at(path[:-1]):
        return _MISSING
    value = field.get_default(call_default_factory=True)
    return value.model_dump(mode="json") if isinstance(value, Section) else value


def _canonical(value: Any) -> str:
    if value is _MISSING:
        return "nothing"  # no JSON
    # Python holds False == 0 == 0.0; JSON text keeps false apart.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True)


# ---- merging ------------------------------------------------------------------------


class _Settings:
    """The merged values, and for each key what set it last.

    Args:
        label: the file that the user named; it answers for what nobody has set.
    """

    def __init__(self, label: str) -> None:
        self.values: dict[str, Any] = {}
        self._labels = [label]
        self._origins: dict[KeyPath, int] = {(): 0}

    def merge(self, updates: dict[str, Any], source: str) -> None:
        """Merges one file's updates, by the `*` rule where a key starts with it."""
        self._labels.append(source)
        self._merge(self.values, updates, ())

    def _merge(self, target: dict, updates: dict, path: KeyPath) -> None:
        # Starred keys last: what they find must not depend on the order in a file.
        for key in sorted(updates, key=lambda key: key.startswith("*")):
            value, name = updates[key], key.removeprefix("*")
            old, here = target.get(name), (*path, name)
            if key.startswith("*") and not isinstance(old, dict):
                continue
            if not isinstance(value, dict):
                self._put(target, here, value)
                continue
            if not isinstance(old, dict):
                self._put(target, here, {})
            self._merge(target[name], value, here)

    def _put(self, target: dict, path: KeyPath, value: Any) -> None:
        target[path[-1]] = value
        self._origins[path] = len(self._labels) - 1

    def replace(self, path: KeyPath, value: Any, source: str) -> None:
        """Sets one key to a value; the sections above it are made where missing."""
        self._labels.append(source)
        target = self.values
        for name in path[:-1]:
            target = target.setdefault(name, {})
        self._put(target, path, value)

    def get(self, path: KeyPath, default: Any = None) -> Any:
        """The value at a path; `default` where there is none."""
        value = self.values
        for name in path:
            if not isinstance(value, dict) or name not in value:
                return default
            value = value[name]
        return value

    def source(self, *paths: KeyPath) -> str:
        """What set a key, or the section around it; of several, the latest."""
        return self._labels[max(map(self._origin, paths))]

    def sources(self) -> dict[str, str]:
        """What set each value that is no object or an empty one, by its dotted key."""
        found: dict[str, str] = {}
        origins: dict[KeyPath, int] = {}  # of the objects around a value
        for path, _ in leaves(self.values):
            above = path[:-1]
            if above not in origins:
                origins[above] = self._origin(above)
            origin = max(origins[above], self._origins.get(path, 0))
            found[".".join(path)] = self._labels[origin]
        return found

    def _origin(self, path: KeyPath) -> int:
        # An object that was set later than one of its keys has replaced that.
        around = (path[:depth] for depth in range(len(path) + 1))
        return max(self._origins.get(each, 0) for each in around)


def leaves(
    values: dict[str, Any], above: KeyPath = ()
) -> Iterator[tuple[KeyPath, Any]]:
    """Each key that holds no further keys, by its path, with its value."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*above, name))
        else:
            yield (*above, name), value


def _apply_override(settings: _Settings, text: str) -> None:
    """Applies one `--set a.b.c=VALUE`.

    Raises:
        UserError: no such key, a key inside a section that is null, a malformed value.
    """
    key, equals, raw = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals:
        raise UserError(f"--set: {quoted(text)} is not of the form KEY=VALUE")
    _check_override_path(settings, path)
    try:
        value = parse_json(raw)
    except json.JSONDecodeError as error:
        if raw.lstrip().startswith(("{", "[")):
            raise UserError(
                f"--set: {dotted(path)}: {quoted(raw)} is not valid JSON "
                f"({error.msg}); quote it for the shell"
            ) from None
        value = raw
    except Unacceptable as error:
        raise UserError(f"--set: {dotted(path)}: {error}") from None
    settings.replace(path, value, "--set")


def _check_override_path(settings: _Settings, path: KeyPath) -> None:
    """A key can be set where it is known and the sections around it are there.

    A section that is not there is made, unless its default is null.
    """
    for depth in range(1, len(path) + 1):
        here = path[:depth]
        field = field_at(here)
        if field is None:
            raise UserError(f"--set: {_unknown_key(here)}")
        value = settings.get(here, _MISSING)
        is_makeable = value is _MISSING and field.default is not None
        if depth < len(path) and not isinstance(value, dict) and not is_makeable:
            raise UserError(
                f"--set: {dotted(path)} cannot be set, as {dotted(here)} is "
                f"{'null' if value is _MISSING else quoted(value)} in this "
                f"configuration"
            )


# ---- checking -----------------------------------------------------------------------


def _key_faults(
    updates: dict[str, Any], section: type = Config, path: KeyPath = ()
) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong with a file's keys, also with those that merging would drop.

    Yields:
        the key and what is wrong; nothing where it is unknown.
    """
    known = known_keys(section)
    for key, value in updates.items():
        name = key.removeprefix("*")
        here = (*path, name)
        if name not in known:
            yield (*path, key), ""
            continue
        inner = section_of(known[name])
        holds_object = inner is not None or is_free_object(known[name])
        if key.startswith("*") and not (holds_object and isinstance(value, dict)):
            starred = (*path, key)
            yield (
                starred,
                f"{dotted(starred)} must be an object in place of an object, as its "
                "key starts with *",
            )
        elif inner is not None and isinstance(value, dict):
            yield from _key_faults(value, inner, here)


def _validate(settings: _Settings) -> Config:
    try:
        return Config.model_validate(settings.values)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
    # A union reports once per member; by key, each fault counts once.
    faults: dict[tuple[KeyPath, bool], ErrorDetails] = {}
    for detail in details:
        path = _schema_path(detail["loc"])
        faults.setdefault((path, detail["type"] == "broken_rule"), detail)
    # A misspelt key first: it may be why another one is missing.
    first = min(faults, key=lambda key: faults[key]["type"] != "extra_forbidden")
    raise _user_error(_fault(settings, *first, faults[first]), len(faults))


def _check_output_root(settings: _Settings, config: Config) -> None:
    """Also where the folder is relative, its whole path must do."""
    source = settings.source(("output_root",))
    check_path(config.output_root, f"{source}: output_root")
    check_path(Path(config.output_root).absolute(), "the path of output_root")


def _schema_path(location: tuple[str | int, ...]) -> KeyPath:
    """The keys of an error's place, without union members and list indices."""
    path: KeyPath = ()
    for part in location:
        field = field_at(path) if path else None
        if path and (field is None or section_of(field) is None):
            break
        path = (*path, str(part))
    return path


def _fault(
    settings: _Settings, path: KeyPath, is_rule: bool, detail: ErrorDetails
) -> str:
    if is_rule:
        keys = [(*path, *key.split(".")) for key in detail["ctx"]["keys"]]
        text = f"{dotted(keys[0])} {detail['ctx']['text']}"
        return f"{settings.source(*keys)}: {text}"
    is_in_list = any(isinstance(part, int) for part in detail["loc"])
    if detail["type"] == "missing" and not is_in_list:
        text = f"{dotted(path)} is missing"
    elif detail["type"] == "extra_forbidden" and not is_in_list:
        text = _unknown_key(path)
    else:
        field = field_at(path)
        assert field is not None, "a value has a key"
        text = f"{dotted(path)} must be {allowed(field)}, not "
        text += f"{quoted(settings.get(path))} ({meaning(field)})"
    return f"{settings.source(path)}: {text}"


def _unknown_key(path: KeyPath) -> str:
    """Says that a key is unknown and names the nearest one; a sibling counts more."""

    def nearness(candidate: KeyPath) -> float:
        ratio = difflib.SequenceMatcher(None, cut(path[-1]), candidate[-1]).ratio()
        return ratio + 0.25 * (candidate[:-1] == path[:-1])

    nearest = max(all_paths(), key=nearness)
    is_sibling = nearest[:-1] == path[:-1]
    suggestion = nearest[-1] if is_sibling else dotted(nearest)
    return f"{dotted(path)} is not a known key; did you mean {suggestion}?"


def _user_error(first: str, count: int) -> UserError:
    more = f" (and {count - 1} more)" if count > 1 else ""
    return UserError(first + more)
