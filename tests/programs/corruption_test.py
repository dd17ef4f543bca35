"""Damages the files of a run in every place, and looks what a resume makes of it.

    python tests/programs/corruption_test.py

prints a table: what was damaged, what was found, what the run goes on from. Under
pytest each line of it is a test.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

sys.path.append(str(Path(__file__).resolve().parents[1]))  # support modules

import support_env
from support import append_frames, make_config

from steve.replay import HEADER_BYTES, ReplayBuffer
from steve.storage import checkpoint
from steve.storage.folders import Folders, Run
from steve.storage.opening import open_output
from steve.util import UserError

SIZES = (support_env.OBS_DIM, support_env.ACTION_DIM)
CAPACITY, FRAMES = 16, 12
ROW = 4 * (2 * SIZES[0] + SIZES[1] + 11)  # bytes

Damage = Callable[[bytes], bytes | None]  # None: what there is now is no file


# -- ways to damage a file ---------------------------------------------------------


def flip(position: int, bit: int = 0) -> Damage:
    def damage(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[position] ^= 1 << bit
        return bytes(changed)

    return damage


def cut(size: int) -> Damage:
    """Keeps so many bytes; negative: all but so many."""
    return lambda content: content[:size]


def header_end(content: bytes) -> int:
    """Where a checkpoint's payload begins."""
    return 8 + int.from_bytes(content[:8], "little")


def within(place: Callable[[bytes], int]) -> Damage:
    return lambda content: flip(place(content))(content)


def other_version(content: bytes) -> bytes:
    """A checkpoint whole in itself, of format version 0."""
    loaded = safetensors.numpy.load(content)
    strings = json.loads(content[8 : header_end(content)])["__metadata__"]
    return safetensors.numpy.save(loaded, {**strings, "format": "0"})


def foreign(content: bytes) -> bytes:
    return safetensors.numpy.save({"w": np.zeros(3, np.float32)})


PICKLE = (
    b"\x80\x04cposix\nsystem\n(S'touch " + b"%s" + b"'\ntR."
)  # by hand: no test of ours imports pickle

STATES: dict[str, Damage] = {
    "length of the header, lowest byte": flip(0),
    "length of the header, highest byte": flip(7, 6),
    "first byte of the header": flip(8),
    "header: name of a tensor": within(lambda c: c.index(b'"w"') + 1),
    "header: offset of a tensor": within(lambda c: c.index(b"data_offsets") + 15),
    "header: scalars": within(lambda c: c.index(b'"steve"') + 12),
    "header: digest of the payload": within(lambda c: c.index(b'"sha256"') + 12),
    "header: its own digest": within(lambda c: c.index(b'"header_sha256"') + 20),
    "last byte of the header": within(lambda c: header_end(c) - 1),
    "first byte of the payload": within(header_end),
    "middle of the payload": within(lambda c: (header_end(c) + len(c)) // 2),
    "last byte of the payload": flip(-1),
    "empty": cut(0),
    "cut in the length": cut(5),
    "cut in the header": cut(60),
    "cut behind the header": lambda c: c[: header_end(c)],
    "cut by one byte": cut(-1),
    "a byte too many": lambda c: c + b"\0",
    "twice": lambda c: c + c,
    "zeros": lambda c: bytes(len(c)),
    "an older format version": other_version,
    "another program's safetensors": foreign,
    "a picture": lambda c: b"\x89PNG\r\n\x1a\n" + c,
    "a pickle": lambda c: PICKLE,
    "a text": lambda c: b"{}",
    "a folder": lambda c: None,
}

REPLAYS: dict[str, Damage] = {
    "header: magic": flip(0),
    "header: version": flip(8),
    "header: obs_dim": flip(12),
    "header: action_dim": flip(16),
    "header: row length": flip(20),
    "header: capacity": flip(24),
    "header: its checksum": flip(32),
    "index: frames, higher": flip(72, 1),
    "index: frames, far too high": flip(72, 7),
    "index: frames, lower": flip(72, 2),
    "index: intent, lower": flip(64, 3),
    "index: intent, higher": flip(64, 4),
    "index: complement of frames": flip(96, 1),
    "index: complement of intent": flip(88, 0),
    "index: reserved rows": flip(80, 6),
    "index: no complements, as in older files": lambda c: c[:88] + bytes(24) + c[112:],
    "first row: observation": flip(HEADER_BYTES),
    "first row: trailer": flip(HEADER_BYTES + ROW - 1),
    "row 5: next observation": flip(HEADER_BYTES + 5 * ROW + 4 * SIZES[0]),
    "row 5: reward": flip(HEADER_BYTES + 6 * ROW - 44),
    "row 5: frame number": flip(HEADER_BYTES + 6 * ROW - 12),
    "row 5: checksum": flip(HEADER_BYTES + 6 * ROW - 4),
    "last row: observation": flip(HEADER_BYTES + 11 * ROW),
    "last row: terminated": flip(HEADER_BYTES + 12 * ROW - 40),
    "last row: trailer": flip(HEADER_BYTES + 12 * ROW - 1),
    "last two rows: zeros": lambda c: (
        c[: HEADER_BYTES + 10 * ROW] + bytes(2 * ROW) + c[HEADER_BYTES + 12 * ROW :]
    ),
    "a row that was never written": flip(HEADER_BYTES + 14 * ROW),
    "all rows: zeros": lambda c: c[:HEADER_BYTES] + bytes(len(c) - HEADER_BYTES),
    "empty": cut(0),
    "cut in the header": cut(100),
    "cut behind the header": cut(HEADER_BYTES),
    "cut in the rows": cut(HEADER_BYTES + 3 * ROW + 7),
    "cut by one byte": cut(-1),
    "a byte too many": lambda c: c + b"\0",
    "a picture": lambda c: b"\x89PNG\r\n\x1a\n" + c,
    "a pickle": lambda c: PICKLE,
}


# -- a resume ----------------------------------------------------------------------


def damaged(path: Path, damage: Damage) -> None:
    content = damage(path.read_bytes())
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)


def new_run(folder: Path) -> tuple[Run, dict]:
    """A folder with two states of the value learner and twelve transitions."""
    config = make_config(folder / "output", policy_config={"replay_size": CAPACITY})
    run = Run(config, Folders.of(config, "run"), *SIZES, 0, True)
    merged = config.model_dump(mode="json", by_alias=True)
    open_output(run, merged)
    with ReplayBuffer.open(run.folders.replay, writable=True) as replay:
        for _ in range(FRAMES):  # vector steps of one environment
            append_frames(replay, 1)
    for number in (1, 2):
        tensors = {"w": np.full(9, number, np.float32)}
        path = run.folders.state("valuerl")
        checkpoint.publish(path, tensors, {"n": number}, keep_previous=True)
    return run, merged


def resume_state(folder: Path, damage: Damage) -> tuple[str, str]:
    """Damages the newest state; returns what a resume says and goes on from."""
    run, merged = new_run(folder)
    path = run.folders.state("valuerl")
    damaged(path, damage)
    (note,) = open_output(run, merged)
    state, warning = checkpoint.load_newest(path)
    assert warning == note
    assert state.metadata["n"] == 1
    assert (state.tensors["w"] == 1).all()
    return note.replace(f"{path}: ", ""), "the state before"


def resume_replay(folder: Path, damage: Damage) -> tuple[str, str]:
    """The same with the replay buffer."""
    run, merged = new_run(folder)
    path = run.folders.replay / "replay.bin"
    damaged(path, damage)
    before = path.read_bytes()
    try:
        notes = open_output(run, merged)
    except UserError as error:
        said = str(error)
        assert path.read_bytes() == before
    else:
        said = " ".join(notes)
    assert "\n" not in said
    if "damaged1" in said:
        assert path.with_name("replay.bin.damaged1").read_bytes() == before
    if path.read_bytes() == before and said:
        assert said.startswith(f"{path}: ")
        return said.replace(f"{path}: ", ""), "refused; nothing is changed"
    with ReplayBuffer.open(run.folders.replay, writable=True) as replay:
        kept = replay.read(replay.oldest, replay.size).reward.tolist()
        assert kept == list(range(replay.oldest, replay.frames))
        text = f"frames {replay.oldest} to {replay.frames - 1}"
        if not kept:
            text = "an empty buffer"
        before = replay.frames
        append_frames(replay, 2)
        assert replay.frames == before + 2
    said = re.sub(rf"{run.folders.replay}(/replay.bin)?: ", "", said)
    return said or "nothing that is lost", text


def table(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """(file, what was damaged, what was found, what the run goes on from)"""
    kinds = (("state", STATES, resume_state), ("replay", REPLAYS, resume_replay))
    for kind, damages, resume in kinds:
        for number, (name, damage) in enumerate(damages.items()):
            place = folder / f"{kind}{number}"
            place.mkdir()
            yield kind, name, *resume(place, damage)


@pytest.mark.parametrize("name", STATES)
def test_a_damaged_state_is_named_and_the_one_before_used(tmp_path, name):
    said, used = resume_state(tmp_path, STATES[name])
    assert "valuerl.previous.safetensors is used instead" in said
    assert used == "the state before"


REMAINS = {  # by how the name of the damage begins
    "first row": (1, 11),
    "row 5": (6, 11),
    "last row": (0, 9),  # and the vector step before it, perhaps not whole
    "last two rows": (0, 8),
    "cut in the rows": (0, 1),
    "cut in the header": None,
    "cut behind the header": None,
    "empty": None,
    "a picture": None,
    "a pickle": None,
    "all rows": (0, -1),
}


@pytest.mark.parametrize("name", REPLAYS)
def test_a_damaged_replay_goes_on_with_its_good_rows_or_is_refused(tmp_path, name):
    said, used = resume_replay(tmp_path, REPLAYS[name])
    remains = next(
        (value for start, value in REMAINS.items() if name.startswith(start)), (0, 11)
    )
    if remains is None:
        assert used == "refused; nothing is changed"
        return
    first, last = remains
    assert used == (f"frames {first} to {last}" if last >= 0 else "an empty buffer")
    kept = last + 1 - first
    if "damaged1" in said:
        assert f"its {kept} good transitions were taken over" in said
    elif kept < FRAMES:
        assert f"{FRAMES - kept} damaged transitions were dropped" in said


def test_a_pickle_that_would_run_a_command_never_does(tmp_path):
    marker = tmp_path / "it ran"
    for name, resume in (("state", resume_state), ("replay", resume_replay)):
        place = tmp_path / name
        place.mkdir()
        resume(place, lambda content: PICKLE % os.fsencode(marker))
    assert not marker.exists()


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    with tempfile.TemporaryDirectory(prefix="corruption-") as name:
        for row in table(Path(name)):
            print(" | ".join(row))


if __name__ == "__main__":
    main()
