"""Checkpoints: one state, tensors and a few scalars, in one safetensors file.

A learner publishes them, every other process picks them up (SPEC section 2). The file
is an ordinary safetensors container,

    header length (8 bytes), header (JSON), payload (the tensors' bytes)

whose header holds four strings of our own: `format`, the version; `steve`, the
scalars as JSON; `sha256`, the digest of the payload; `header_sha256`, that of what
comes before the payload, made with 64 zeros in its own place. So no byte of a file
can change unnoticed, a tensor's name as little as its content. Nothing is decoded
before both digests are verified, and nothing is a pickle.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as decode
from safetensors.numpy import save as encode

from ..util import UserError, atomic_write, fsync_folder

FORMAT_VERSION = 1
MAX_HEADER_BYTES = 1 << 20
MAX_FILE_BYTES = 4 << 30
LENGTH_BYTES = 8
DTYPES = {"F32": np.dtype(np.float32), "I64": np.dtype(np.int64)}
OUR_STRINGS = {"format", "steve", "sha256", "header_sha256"}
NO_DIGEST = "0" * 64

Scalar = str | int | float


class CheckpointError(UserError):
    """A checkpoint that cannot be used: one line that names the file and the cause."""


class NonFiniteError(ValueError):
    """A state with NaN or infinity, which must never replace a good one."""


@dataclass(frozen=True)
class Checkpoint:
    """A state as it was published; its arrays are read-only."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, Scalar]


def publish(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, Scalar],
    *,
    keep_previous: bool = False,
) -> None:
    """Writes a state so that every reader sees the old one or this one, whole.

    One process publishes under a name at a time; any number may read.

    Args:
        path: where; ends in `.safetensors`.
        tensors: float32 or int64 arrays of any shape, by name.
        metadata: str, int, float or bool, by name; they keep their types.
        keep_previous: the file that is replaced stays at `previous_path(path)`.

    Raises:
        NonFiniteError: a value is NaN or infinite; names it. Nothing is written.
        TypeError: a type that a checkpoint cannot hold; names it.
        CheckpointError: the file would have over MAX_FILE_BYTES, and could not be
            loaded. Nothing is written.
        OSError: the disk is full, say; the old state is still there.
    """
    content = _encode(tensors, metadata)
    if len(content) > MAX_FILE_BYTES:
        raise CheckpointError(
            f"{path}: would be too large: {len(content)} bytes, over {MAX_FILE_BYTES}"
        )
    if not keep_previous:
        atomic_write(path, content)
        return
    # The old file gets a second name before it loses its own, and becomes "previous"
    # only once the new one is in place: at every instant, two states or one good one.
    keeper = path.with_name(f".{path.name}.previous.tmp")
    keeper.unlink(missing_ok=True)  # of a process that was killed here
    try:
        try:
            os.link(path, keeper)
        except FileNotFoundError:
            atomic_write(path, content)
            return
        atomic_write(path, content)
        os.replace(keeper, previous_path(path))
    finally:
        keeper.unlink(missing_ok=True)
    fsync_folder(path.parent)


def previous_path(path: Path) -> Path:
    """Where `publish(..., keep_previous=True)` leaves the state before the last."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def is_there(path: Path) -> bool:
    """Whether `load_newest` has something to read, good or damaged."""
    return path.exists() or previous_path(path).exists()


def _encode(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Scalar]) -> bytes:
    """Returns the content of a checkpoint file."""
    arrays = {}
    for name, tensor in tensors.items():
        array = np.asarray(tensor, order="C")
        if array.dtype not in DTYPES.values():
            raise TypeError(f"tensor {name} is {array.dtype}, not float32 or int64")
        if not np.isfinite(array).all():
            raise NonFiniteError(f"tensor {name} has values that are not finite")
        arrays[name] = array
    for name, value in metadata.items():
        if not isinstance(value, Scalar):
            raise TypeError(f"metadata {name} is {type(value).__name__}, not a scalar")
        if isinstance(value, float) and not math.isfinite(value):
            raise NonFiniteError(f"metadata {name} is not finite")
    strings = {
        "format": str(FORMAT_VERSION),
        "steve": json.dumps(dict(metadata)),
        "sha256": NO_DIGEST,
        "header_sha256": NO_DIGEST,
    }
    content = encode(arrays, metadata=strings)
    start = LENGTH_BYTES + int.from_bytes(content[:LENGTH_BYTES], "little")
    if start > LENGTH_BYTES + MAX_HEADER_BYTES:
        raise ValueError(f"a header of {start} bytes, over {MAX_HEADER_BYTES}")
    payload = memoryview(content)[start:]
    digest = hashlib.sha256(payload).hexdigest()
    head = _with_digest(content[:start], "sha256", NO_DIGEST, digest)
    digest = hashlib.sha256(head).hexdigest()
    return _with_digest(head, "header_sha256", NO_DIGEST, digest) + payload


def _with_digest(head: bytes, key: str, old: str, new: str) -> bytes:
    """Replaces a digest in a header.

    It stands there once: within any other string its quotes would be escaped.
    """
    return head.replace(f'"{key}":"{old}"'.encode(), f'"{key}":"{new}"'.encode())


def load(path: Path) -> Checkpoint:
    """Reads and verifies a state; a file over MAX_FILE_BYTES is refused unread.

    Raises:
        CheckpointError: it is missing, cut off, damaged, foreign, too large, of
            another format version, or has values that are not finite.
    """
    with _opened(path) as file:
        head, header = _read_header(path, file)
        strings, extent = _check_header(path, header)
        length = os.fstat(file.fileno()).st_size - len(head)
        if length < extent:
            raise CheckpointError(
                f"{path}: is cut off: {length} of {extent} bytes of tensors"
            )
        if length > extent:
            raise CheckpointError(
                f"{path}: is damaged: {length - extent} bytes too many"
            )
        content = head + file.read(extent)
    payload = memoryview(content)[len(head) :]
    digest = strings["header_sha256"]
    blank = _with_digest(head, "header_sha256", digest, NO_DIGEST)
    if (
        hashlib.sha256(blank).hexdigest() != digest
        or hashlib.sha256(payload).hexdigest() != strings["sha256"]
    ):
        raise CheckpointError(f"{path}: is damaged: its checksum does not match")
    try:
        tensors = decode(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is not a checkpoint: {error}") from None
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise CheckpointError(f"{path}: tensor {name} has values not finite")
        tensor.flags.writeable = False
    return Checkpoint(tensors, _scalars(path, strings))


def digest(path: Path) -> str:
    """The SHA-256 of a state's tensors, as it stands in the file; verifies nothing.

    Raises:
        CheckpointError: it is missing, or no checkpoint.
    """
    with _opened(path) as file:
        _, header = _read_header(path, file)
    strings, _ = _check_header(path, header)
    return strings["sha256"]


def load_newest(path: Path) -> tuple[Checkpoint, str | None]:
    """Reads a state or, if it cannot be used, the one kept before it.

    Returns:
        the state, and None or one line saying what is wrong with `path`.

    Raises:
        CheckpointError: neither can be used.
    """
    try:
        return load(path), None
    except CheckpointError as error:
        newest_error = error
    previous = previous_path(path)
    if not previous.exists():
        raise newest_error
    try:
        checkpoint = load(previous)
    except CheckpointError as error:
        raise CheckpointError(f"{newest_error}; {error}") from None
    return checkpoint, f"{newest_error}; {previous.name} is used instead"


def check_tensors(
    path: Path, checkpoint: Checkpoint, expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Compares a state with the names and shapes that a program needs.

    Raises:
        CheckpointError: says how they differ, with one example of each kind.
    """
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    missing = [name for name in expected if name not in shapes]
    unknown = [name for name in shapes if name not in expected]
    reshaped = [
        f"{name} {list(shapes[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and tuple(shapes[name]) != tuple(shape)
    ]
    differences = [
        f"{len(names)} {what} ({names[0]}{', ...' if len(names) > 1 else ''})"
        for what, names in (
            ("missing", missing),
            ("unknown", unknown),
            ("of another shape", reshaped),
        )
        if names
    ]
    if differences:
        raise CheckpointError(
            f"{path}: its tensors do not fit this configuration: "
            + ", ".join(differences)
        )


def _opened(path: Path) -> BinaryIO:
    """Opens a regular file of at most MAX_FILE_BYTES."""
    try:
        # Else opening a named pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no checkpoint here") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{path}: is not a file")
    if status.st_size > MAX_FILE_BYTES:
        os.close(descriptor)
        raise CheckpointError(
            f"{path}: is too large: {status.st_size} bytes, over {MAX_FILE_BYTES}"
        )
    return open(descriptor, "rb")


def _read_header(path: Path, file: BinaryIO) -> tuple[bytes, dict[str, Any]]:
    """Reads up to the payload; returns those bytes, and the header decoded."""
    head = file.read(LENGTH_BYTES)
    length = int.from_bytes(head, "little")
    if not 2 <= length <= MAX_HEADER_BYTES:  # "{}" has 2
        raise CheckpointError(f"{path}: is not a checkpoint, or damaged at its start")
    text = file.read(length)
    if len(head) < LENGTH_BYTES or len(text) < length:
        raise CheckpointError(f"{path}: is cut off within its header")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: is not a checkpoint, or its header is damaged")
    return head + text, header


def _check_header(path: Path, header: dict[str, Any]) -> tuple[dict[str, str], int]:
    """Returns our strings of a header, and how long the payload must be."""
    tensors = dict(header)
    strings = tensors.pop("__metadata__", None)
    if not isinstance(strings, dict) or not set(strings) >= OUR_STRINGS:
        raise CheckpointError(f"{path}: is not a checkpoint of this program")
    if not str(strings["format"]).isdecimal():
        raise CheckpointError(f"{path}: is damaged: its format version")
    if strings["format"] != str(FORMAT_VERSION):
        raise CheckpointError(
            f"{path}: has checkpoint format version {strings['format']}; this program "
            f"reads and writes version {FORMAT_VERSION}"
        )
    try:
        known = {entry["dtype"] for entry in tensors.values()} <= set(DTYPES)
        extent = max(
            (entry["data_offsets"][1] for entry in tensors.values()), default=0
        )
    except (TypeError, KeyError, IndexError):
        known, extent = False, 0
    if not known or not isinstance(extent, int):
        raise CheckpointError(f"{path}: is damaged: its list of tensors")
    return strings, extent


def _scalars(path: Path, strings: dict[str, str]) -> dict[str, Scalar]:
    try:
        scalars = json.loads(strings["steve"])
    except (TypeError, ValueError, RecursionError):
        scalars = None
    if not isinstance(scalars, dict):
        raise CheckpointError(f"{path}: is damaged: its metadata")
    return scalars
