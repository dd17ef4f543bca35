"""Damages the files of a run in every place, and looks what a resume makes of it.

    python tests/programs/corruption_test.py

prints a table: what was damaged, what was found, where the run continues. Under
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

from steve.replay import ReplayBuffer
from steve.replay_file import HEADER_BYTES
from steve.settings.request import Start
from steve.storage import checkpoint
from steve.storage.board import ROW as ROW_OF_BOARD
from steve.storage.board import Board
from steve.storage.folders import Folders, Run
from steve.storage.opening import check_mode, open_output
from steve.storage.record import record_start
from steve.storage.tables import append_row
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


def line(number: int, change: Callable[[bytes], bytes]) -> Damage:
    """Changes one line, which is given with its end."""

    def damage(content: bytes) -> bytes:
        lines = content.splitlines(keepends=True)
        lines[number] = change(lines[number])
        return b"".join(lines)

    return damage


TABLES: dict[str, Damage] = {
    "first line: a letter": flip(1),
    "first line: no text": flip(2, 7),
    "first line: gone": line(0, lambda text: b""),
    "a line: no number": line(2, lambda text: b"x" + text[1:]),
    "a line: no text": line(2, lambda text: b"\xff" + text[1:]),
    "a line: a NUL": line(2, lambda text: b"\0" + text[1:]),
    "a line: not a number": line(2, lambda text: b"nan" + text[1:]),
    "a line: empty": line(2, lambda text: b"\n"),
    "a line: a value missing": line(2, lambda text: text[4:]),
    "a line: joined with the next": line(2, lambda text: text[:-1]),
    "a line: very long": line(2, lambda text: b"1" * 100_000 + text),
    "last line: torn": cut(-4),
    "last line: without its end": cut(-1),
    "zeros behind the last line": lambda c: c + bytes(9000),
    "zeros": lambda c: bytes(len(c)),
    "empty": cut(0),
    "twice": lambda c: c + c,
    "a picture": lambda c: b"\x89PNG\r\n\x1a\n" + c,
    "a pickle": lambda c: PICKLE,
    "a folder": lambda c: None,
}

OBJECTS: dict[str, Damage] = {
    "first byte": flip(0),
    "a key": flip(5),
    "a key: no text": flip(5, 7),
    "cut by half": lambda c: c[: len(c) // 2],
    "empty": cut(0),
    "zeros": lambda c: bytes(len(c)),
    "a list": lambda c: b"[]",
    "another object": lambda c: b"{}",
    "deep": lambda c: b"[" * 100_000,
    "twice": lambda c: c + c,
    "a picture": lambda c: b"\x89PNG\r\n\x1a\n" + c,
    "a pickle": lambda c: PICKLE,
    "a folder": lambda c: None,
}

BOARDS: dict[str, Damage] = {
    "a name": flip(1),
    "a name: no text": flip(1, 7),
    "where the counters are": flip(-100, 3),
    "cut in a row": cut(-5),
    "a row too few": cut(-ROW_OF_BOARD.itemsize),
    "empty": cut(0),
    "zeros": lambda c: bytes(len(c)),
    "bytes": lambda c: b"\xff" * len(c),
    "twice": lambda c: c + c,
    "a pickle": lambda c: PICKLE,
}

# The other files of a run: where each is, and what is done to it.
OTHERS: dict[str, tuple[Callable[[Folders], Path], dict[str, Damage]]] = {
    "scores": (lambda folders: folders.scores, TABLES),
    "log": (lambda folders: folders.learner_log("valuerl"), TABLES),
    "run.json": (lambda folders: folders.run, OBJECTS),
    "hps.json": (lambda folders: folders.hyperparameters, OBJECTS),
    "board": (lambda folders: folders.board, BOARDS),
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
    """Damages the newest state; returns what a resume says, and where it continues."""
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


def resume_other(folder: Path, kind: str, damage: Damage) -> tuple[str, str]:
    """The same with a file of log/; no line of a table that is whole is ever lost."""
    run, merged = new_run(folder)
    folders = run.folders
    record_start(run, resumed=False)
    Board.create(folders.board, run.config).keep("evaluator0")
    for number in (1, 2, 3):
        scores = {"hours": 0.5, "epochs": number, "frames": number, "score": 0.25}
        append_row(folders.scores, scores)
        append_row(folders.learner_log("valuerl"), {"updates": number, "loss": 0.5})
    path = OTHERS[kind][0](folders)
    original = set(path.read_bytes().splitlines()[1:])
    damaged(path, damage)
    before = path.read_bytes() if path.is_file() else None
    try:
        check_mode(folders, merged, Start.RESUME)
        notes = open_output(run, merged)
        record_start(run, resumed=True)
        board = Board.create(folders.board, run.config)
    except UserError as error:
        said = str(error).replace(f"{folders.root}/", "")
        if "\n" in said or before != (path.read_bytes() if path.is_file() else None):
            raise AssertionError(f"{said}: no line, or the file was changed") from None
        return said, "refused; nothing is changed"
    assert board["valuerl"]["updates"] == 0
    if kind in ("scores", "log"):
        assert before is not None
        whole = original & set(before.splitlines())
        files = folders.log.glob(f"{path.name}*")  # one may have been put aside
        there = b"".join(each.read_bytes() for each in files)
        assert whole <= set(there.splitlines())
        append_row(path, {"updates": 4, "loss": 0.5})
        assert path.read_bytes().endswith(b"\n4,0.5\n")
    said = " ".join(notes).replace(f"{folders.root}/", "")
    assert "\n" not in said
    return said or "nothing that is lost", "what is whole"


def table(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """(file, what was damaged, what was found, where the run continues)"""
    kinds = (("state", STATES, resume_state), ("replay", REPLAYS, resume_replay))
    for kind, damages, resume in kinds:
        for number, (name, damage) in enumerate(damages.items()):
            place = folder / f"{kind}{number}"
            place.mkdir()
            yield kind, name, *resume(place, damage)
    for kind, (_, damages) in OTHERS.items():
        for number, (name, damage) in enumerate(damages.items()):
            place = folder / f"{kind}{number}"
            place.mkdir()
            yield kind, name, *resume_other(place, kind, damage)


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


# A resume needs these, or could not say what they held.
REFUSED = {
    "scores": ("a folder",),
    "log": ("a folder",),
    "run.json": tuple(name for name in OBJECTS if name != "a key"),  # "experiment"
    "hps.json": tuple(OBJECTS),
    "board": (),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind, (_, damages) in OTHERS.items() for name in damages],
)
def test_another_damaged_file_costs_what_is_damaged_or_is_refused(tmp_path, kind, name):
    _, used = resume_other(tmp_path, kind, OTHERS[kind][1][name])
    assert (used == "refused; nothing is changed") == (name in REFUSED[kind])


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
