"""Checkpoints: content, damage of every kind, interrupted and concurrent publishing."""

import errno
import hashlib
import json
import math
import multiprocessing
import os
import resource
import signal
from itertools import pairwise

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from steve.storage import checkpoint
from steve.storage.checkpoint import (
    MAX_FILE_BYTES,
    Checkpoint,
    CheckpointError,
    NonFiniteError,
    check_tensors,
    load,
    load_newest,
    previous_path,
    publish,
)
from steve.util import UserError, file_stamp

SPAWN = multiprocessing.get_context("spawn")
PATIENCE = 30  # seconds until a test gives a process up
METADATA = {
    "name": "policy",
    "updates": 2**60,
    "hours": 0.1,
    "quote": '"ü\n',
    "on": True,
}


def state(number, size=6):
    """Tensors that all follow from one number."""
    return {
        "policy/0/kernel": np.full((2, size), number, np.float32),
        "policy/0/bias": np.full(size, number + 1, np.float32),
        "adam/step": np.array(number, np.int64),
    }


def number_of(loaded):
    """The number a state was made from, once everything in it agrees."""
    number = loaded.metadata["number"]
    for name, tensor in state(number, loaded.tensors["policy/0/bias"].size).items():
        np.testing.assert_array_equal(loaded.tensors[name], tensor)
    return number


def put(path, number, **options):
    publish(path, state(number), {"number": number}, **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "policy.safetensors"


# Content


def test_a_state_comes_back_as_it_was_published(path):
    tensors = state(3) | {
        "empty": np.zeros((0, 4), np.float32),
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    }
    publish(path, tensors, METADATA)
    loaded = load(path)
    assert loaded.metadata == METADATA
    for name, value in loaded.metadata.items():
        assert type(value) is type(METADATA[name])
    assert loaded.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(loaded.tensors[name], tensor)
        assert loaded.tensors[name].dtype == tensor.dtype
        assert loaded.tensors[name].shape == tensor.shape
        assert not loaded.tensors[name].flags.writeable


def test_a_state_may_be_empty(path):
    publish(path, {}, {})
    assert load(path) == Checkpoint({}, {})


def test_the_file_is_an_ordinary_safetensors_file(path):
    put(path, 4)
    np.testing.assert_array_equal(load_file(path)["adam/step"], 4)


def test_a_tensor_may_have_the_name_of_the_digest(path):
    publish(path, {"sha256": np.ones(1, np.float32)}, {"x": f'"sha256":"{"0" * 64}"'})
    assert load(path).metadata["x"] == f'"sha256":"{"0" * 64}"'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_state_that_is_not_finite_is_never_saved(path, value):
    put(path, 1)
    bad = state(2)
    bad["policy/0/bias"][3] = value
    with pytest.raises(NonFiniteError, match="tensor policy/0/bias has values"):
        publish(path, bad, {"number": 2}, keep_previous=True)
    with pytest.raises(NonFiniteError, match="metadata score is not finite"):
        publish(path, state(2), {"number": 2, "score": value})
    assert number_of(load(path)) == 1
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_other_types_are_refused_by_name(path):
    with pytest.raises(TypeError, match="tensor x is float64, not float32 or int64"):
        publish(path, {"x": np.zeros(3)}, {})
    with pytest.raises(TypeError, match="metadata x is list, not a scalar"):
        publish(path, {}, {"x": [1]})
    assert not path.exists()


def test_check_tensors_says_how_they_differ(path):
    put(path, 1)
    loaded = load(path)
    shapes = {name: tensor.shape for name, tensor in loaded.tensors.items()}
    check_tensors(path, loaded, shapes)
    del shapes["adam/step"]
    shapes |= {"policy/0/bias": (7,), "policy/1/kernel": (1,), "policy/1/bias": (1,)}
    with pytest.raises(CheckpointError) as caught:
        check_tensors(path, loaded, shapes)
    assert str(caught.value) == (
        f"{path}: its tensors do not fit this configuration: "
        "2 missing (policy/1/kernel, ...), 1 unknown (adam/step), "
        "1 of another shape (policy/0/bias [6] instead of [7])"
    )


# Damage


def header_length(content):
    return int.from_bytes(content[:8], "little")


def flipped(content, position, bits=1):
    return (
        content[:position] + bytes([content[position] ^ bits]) + content[position + 1 :]
    )


def rewritten(content, change):
    """The file with a changed header, and digests that fit it again."""
    length = header_length(content)
    payload = content[8 + length :]
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"]["sha256"] = hashlib.sha256(payload).hexdigest()
    header["__metadata__"]["header_sha256"] = "0" * 64
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    head = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(head).hexdigest()
    return head.replace(b"0" * 64, digest.encode()) + payload


def with_version(version):
    return lambda c: rewritten(
        c, lambda header: header["__metadata__"].update(format=version)
    )


def with_nan(content):
    content = content[:-4] + np.float32(math.nan).tobytes()
    return rewritten(content, lambda header: None)


def swapped_names(content):
    return content.replace(b"policy/0/bias", b"policy/0/bits")


DAMAGES = {
    "empty": (lambda c: b"", "is not a checkpoint, or damaged at its start"),
    "stub": (lambda c: c[:5], "is cut off"),
    "in the header": (lambda c: c[:50], "is cut off within its header"),
    "no payload": (lambda c: c[: 8 + header_length(c)], "is cut off: 0 of 80 bytes"),
    "one byte less": (lambda c: c[:-1], "is cut off: 79 of 80 bytes"),
    "one byte more": (lambda c: c + b"x", "is damaged: 1 bytes too many"),
    "length, low": (lambda c: flipped(c, 0), "or its header is damaged"),
    "length, high": (lambda c: flipped(c, 7, 128), "or damaged at its start"),
    "header syntax": (lambda c: flipped(c, 8), "or its header is damaged"),
    "tensor name": (swapped_names, "its checksum does not match"),
    "metadata": (lambda c: c.replace(b"number", b"numbes"), "its checksum"),
    "first payload byte": (lambda c: flipped(c, 8 + header_length(c)), "its checksum"),
    "last payload byte": (lambda c: flipped(c, len(c) - 1), "its checksum"),
    "foreign": (lambda c: b"\x89PNG" * 100, "is not a checkpoint"),
    "foreign tensors": (lambda c: save(state(1)), "not a checkpoint of this program"),
    "older version": (with_version("0"), "has checkpoint format version 0; this"),
    "nested": (lambda c: b"\0\0\x08" + bytes(5) + b"[" * (1 << 19), "is not a"),
    "not an object": (lambda c: b"\2" + bytes(7) + b"[]", "is not a checkpoint"),
    "not finite": (with_nan, "has values not finite"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_in_one_line_and_the_previous_state_used(path, damage):
    put(path, 1)
    put(path, 2, keep_previous=True)
    harm, message = DAMAGES[damage]
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert isinstance(caught.value, UserError)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    loaded, warning = load_newest(path)
    assert number_of(loaded) == 1
    assert warning == f"{caught.value}; policy.previous.safetensors is used instead"


def test_every_byte_is_protected(path):
    put(path, 1)
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(flipped(content, position, 1 << position % 8))
        with pytest.raises(CheckpointError):
            load(path)


def test_every_truncation_is_found(path):
    put(path, 1)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            load(path)


def test_the_digest_of_the_payload_stands_in_the_metadata(path):
    put(path, 1)
    content = path.read_bytes()
    length = header_length(content)
    strings = json.loads(content[8 : 8 + length])["__metadata__"]
    assert strings["sha256"] == hashlib.sha256(content[8 + length :]).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.update(x=1),
        lambda header: header.update(x={"dtype": "F32", "data_offsets": []}),
        lambda header: header.update(x={"dtype": [], "data_offsets": [0, 4]}),
        lambda header: header["adam/step"].update(dtype="F64"),
        lambda header: header["adam/step"].update(shape=[5]),
        lambda header: header["adam/step"].update(data_offsets=[0, "4"]),
        lambda header: header["__metadata__"].update(steve="[1]"),
        lambda header: header["__metadata__"].update(steve="{"),
        lambda header: header["__metadata__"].update(sha256=5),
        lambda header: header["__metadata__"].update(format="2\nTraceback\x1b[2J"),
        lambda header: header["__metadata__"].pop("steve"),
        lambda header: header.update(__metadata__=None),
    ],
)
def test_a_senseless_header_is_a_checkpoint_error(path, change):
    put(path, 1)
    content = path.read_bytes()
    try:
        path.write_bytes(rewritten(content, change))
    except TypeError:
        pytest.fail("the test's own change failed")
    with pytest.raises(CheckpointError, match=rf"^{path}: [ -~]+$"):
        load(path)


def test_a_huge_claim_or_file_is_not_read(path):
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="damaged at its start"):
        load(path)
    put(path, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    os.truncate(path, MAX_FILE_BYTES)  # sparse
    with pytest.raises(CheckpointError, match="bytes too many"):
        load(path)
    os.truncate(path, 1 << 40)
    with pytest.raises(CheckpointError, match=f"too large: {1 << 40} bytes, over"):
        load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 14  # KiB


def test_what_is_no_file_is_named(path):
    with pytest.raises(CheckpointError, match="there is no checkpoint here"):
        load(path)
    with pytest.raises(CheckpointError, match="is not a file"):
        load(path.parent)
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="is not a file"):
        load(path)


def test_with_neither_state_usable_both_are_named(path):
    with pytest.raises(CheckpointError, match="there is no checkpoint here"):
        load_newest(path)
    put(path, 1)
    put(path, 2, keep_previous=True)
    assert load_newest(path)[1] is None
    path.unlink()
    assert number_of(load_newest(path)[0]) == 1
    previous_path(path).write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        load_newest(path)
    assert f"{path}: there is no" in str(caught.value)
    assert f"{previous_path(path)}: is not" in str(caught.value)


# Publishing


def test_the_previous_state_is_kept(path):
    for number in range(4):
        put(path, number, keep_previous=True)
        assert number_of(load(path)) == number
        if number:
            assert number_of(load(previous_path(path))) == number - 1
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "policy.previous.safetensors",
        "policy.safetensors",
    ]


def test_a_damaged_state_replaces_the_kept_one_only_after_a_good_one_is_there(
    path, monkeypatch
):
    put(path, 1)
    put(path, 2, keep_previous=True)
    path.write_bytes(b"")
    replace = os.replace

    def checking_replace(source, target):
        load_newest(path)
        replace(source, target)
        load_newest(path)

    monkeypatch.setattr(os, "replace", checking_replace)
    put(path, 3, keep_previous=True)
    assert number_of(load(path)) == 3


def failing(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace", "link"])
def test_a_failed_publish_leaves_the_old_states(path, monkeypatch, call):
    put(path, 1)
    put(path, 2, keep_previous=True)
    before = sorted(file.name for file in path.parent.iterdir())
    with monkeypatch.context() as full:
        full.setattr(os, call, failing)
        with pytest.raises(OSError, match="No space left"):
            put(path, 3, keep_previous=True)
    assert number_of(load(path)) == 2
    assert number_of(load(previous_path(path))) == 1
    assert sorted(file.name for file in path.parent.iterdir()) == before


def die_in(call, path, nth):
    """Publishes a state, but is killed at the nth use of a system call."""
    original = getattr(os, call)
    uses = 0

    def deadly(*arguments):
        nonlocal uses
        uses += 1
        if uses == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    setattr(os, call, deadly)
    put(path, 3, keep_previous=True)


@pytest.mark.parametrize(
    ("call", "nth", "numbers"),
    [
        ("link", 1, (2, 1)),
        ("fsync", 1, (2, 1)),
        ("replace", 1, (2, 1)),
        ("fsync", 2, (3, 1)),
        ("replace", 2, (3, 1)),
        ("fsync", 3, (3, 2)),
    ],
)
def test_a_killed_publisher_leaves_complete_states(path, call, nth, numbers):
    put(path, 1)
    put(path, 2, keep_previous=True)
    process = SPAWN.Process(target=die_in, args=(call, path, nth))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    assert (number_of(load(path)), number_of(load(previous_path(path)))) == numbers
    put(path, 4, keep_previous=True)
    assert number_of(load(path)) == 4
    assert number_of(load(previous_path(path))) == numbers[0]


def test_an_unfinished_file_is_not_seen(path):
    (path.parent / f".{path.name}.1.tmp").write_bytes(b"half")
    assert file_stamp(path) is None
    with pytest.raises(CheckpointError, match="there is no checkpoint here"):
        load_newest(path)


def test_the_stamp_changes_with_every_publication(path):
    assert file_stamp(path) is None
    stamps = []
    for _ in range(20):
        put(path, 1)
        assert file_stamp(path) == file_stamp(path)
        stamps.append(file_stamp(path))
    assert all(a != b for a, b in pairwise(stamps))


def publish_until(path, stop):
    number = 2
    while not stop.is_set():
        publish(path, state(number, 50_000), {"number": number}, keep_previous=True)
        number += 1


def test_a_reader_sees_only_complete_states_while_others_are_published(path):
    put(path, 1)
    stop = SPAWN.Event()
    process = SPAWN.Process(target=publish_until, args=(path, stop))
    process.start()
    seen = [1]
    try:
        for _ in range(100_000):
            number = number_of(load(path))
            assert number >= seen[-1]
            if number != seen[-1]:
                seen.append(number)
            if len(seen) == 100:
                break
    finally:
        stop.set()
        process.join(PATIENCE)
    assert process.exitcode == 0
    assert len(seen) == 100
    assert number_of(load(previous_path(path))) == number_of(load(path)) - 1


def test_a_large_header_is_refused_when_published(path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_HEADER_BYTES", 100)
    with pytest.raises(ValueError, match="over 100"):
        put(path, 1)


def test_a_state_that_could_not_be_loaded_is_not_published(path, monkeypatch):
    checkpoint.publish(path, {"w": np.ones(9, np.float32)}, {"n": 1})
    before = path.read_bytes()
    monkeypatch.setattr(checkpoint, "MAX_FILE_BYTES", len(before))
    checkpoint.publish(path, {"w": np.zeros(9, np.float32)}, {"n": 2})
    assert checkpoint.load(path).metadata == {"n": 2}
    with pytest.raises(CheckpointError, match="would be too large"):
        checkpoint.publish(path, {"w": np.ones(99, np.float32)}, {"n": 3})
    assert checkpoint.load(path).metadata == {"n": 2}
    assert [each.name for each in path.parent.iterdir()] == [path.name]
