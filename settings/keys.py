"""What is known of a key: section, meaning, what it takes, when it may change."""

from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from ..util import one_line
from .schema import Config, Section
from .values import ON_RESUME, Allowed, Range


def known_keys(section: type[Section]) -> dict[str, FieldInfo]:
    """The keys of a section as they stand in JSON."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def section_of(field: FieldInfo) -> type[Section] | None:
    """The section that a key holds; None where it holds a plain value, or a list."""
    if get_origin(field.annotation) is list:
        return None
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def meaning(field: FieldInfo) -> str:
    """The part of a key's description that says what it means."""
    return one_line(field.description).partition(" 2018: ")[0].removesuffix(".")


def allowed(field: FieldInfo) -> str:
    """What a key takes; it finishes the sentence "KEY must be ..."."""
    *others, last = _alternatives(field.annotation, field.metadata)
    return f"{', '.join(others)} or {last}" if others else last


def _alternatives(kind: Any, metadata: Sequence[Any]) -> list[str]:
    for note in metadata:
        if isinstance(note, Allowed):
            return [note.text]
    inner = get_args(kind)
    if get_origin(kind) is Annotated:
        return _alternatives(inner[0], kind.__metadata__)
    if get_origin(kind) is Literal:
        return [f'"{name}"' for name in inner]
    if get_origin(kind) in (Union, UnionType):
        others = [each for each in inner if each not in (bool, NoneType)]
        found = [words for each in others for words in _alternatives(each, ())]
        if bool in inner:  # with a number, true is refused
            found += ["false"] if found else ["true", "false"]
        return found + ["null"] * (NoneType in inner)
    if kind is bool:
        return ["true or false"]
    if kind in (int, float):
        (limits,) = (note for note in metadata if isinstance(note, Range))
        return [f"a {'whole ' * (kind is int)}number {limits}"]
    return ["an object"]


def is_free_object(field: FieldInfo) -> bool:
    """Whether a key holds an object whose own keys are not fixed (`make_kwargs`)."""
    return get_origin(field.annotation) is dict


def field_at(path: tuple[str, ...]) -> FieldInfo | None:
    """What is known of the key at a path; None where there is no such key.

    A key inside a free object counts as that object.
    """
    section: type[Section] | None = Config
    field = None
    for name in path:
        field = known_keys(section).get(name) if section else None
        if field is None or is_free_object(field):
            return field
        section = section_of(field)
    return field


def is_changeable(path: tuple[str, ...]) -> bool:
    """Whether a resumed run may change the key at a path (SPEC section 9)."""
    fields = [field_at(path[:depth]) for depth in range(1, len(path) + 1)]
    return any(field is not None and ON_RESUME in field.metadata for field in fields)


def all_paths(section: type[Section] = Config) -> Iterator[tuple[str, ...]]:
    """Every known key, as the path of names that leads to it."""
    for name, field in known_keys(section).items():
        yield (name,)
        for rest in all_paths(inner) if (inner := section_of(field)) else ():
            yield (name, *rest)
