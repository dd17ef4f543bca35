"""Takes over the good rows of a replay buffer that cannot be opened any more."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..replay_file import (
    DATA_NAME,
    HEADER_BYTES,
    MAX_CAPACITY,
    READABLE,
    Layout,
    checksums,
    good_frames,
    new_file,
    origin_of,
    write_all,
)
from ..util import first_free, fsync_folder, regular_opener


def salvage(
    folder: Path, obs_dim: int, action_dim: int, capacity: int
) -> tuple[int, Path] | None:
    """Makes a buffer of the good rows of a file that cannot be opened.

    To be called while no other process uses it. Of the rows that lie where they
    belong with a matching checksum the longest unbroken run is taken over. The
    damaged file stays, under another name.

    Args:
        folder: where it is.
        obs_dim, action_dim, capacity: what the damaged header should say.

    Returns:
        (rows taken over, where the damaged file is now), or None if there is no
        good row; then nothing is changed.
    """
    path = folder / DATA_NAME
    workplace = folder / "salvaged"
    if workplace.exists():
        shutil.rmtree(workplace)  # of an attempt that was killed
    with open(path, "rb", opener=regular_opener) as file:
        layout, (start, end) = _best_layout(
            file.fileno(), Layout(obs_dim, action_dim, capacity)
        )
        capacity = layout.capacity
        if layout.has_origins and not _ends_at(file.fileno(), layout, end):
            end = _begin_of_last_step(file.fileno(), layout, start, end)
        if start == end:
            return None
        with new_file(workplace, layout) as descriptor:
            for frame in range(start, end):
                place = layout.offset(frame)
                row = os.pread(file.fileno(), layout.row_bytes, place)
                write_all(descriptor, row, place)
            header = layout.header(max(end, start + capacity if start else 0), end)
            write_all(descriptor, header, 0)
    aside = first_free(path, ".damaged")
    os.link(path, aside)
    fsync_folder(folder)  # before the name of the damaged one is taken
    os.replace(workplace / DATA_NAME, path)
    workplace.rmdir()
    fsync_folder(folder)
    return end - start, aside


def _best_layout(descriptor: int, expected: Layout) -> tuple[Layout, tuple[int, int]]:
    """The layout under which a file has most good rows, and their frames.

    Tried are the expected one and those whose length fits the file: a file of format
    1, or of another capacity.
    """
    layouts = []
    content = os.fstat(descriptor).st_size - HEADER_BYTES
    for version in reversed(READABLE):
        layout = replace(expected, version=version)
        capacity, rest = divmod(content, layout.row_bytes)
        if rest == 0 and 1 <= capacity <= MAX_CAPACITY:
            layouts.append(replace(layout, capacity=capacity))
    layouts += [expected, replace(expected, version=1)]
    tried = dict.fromkeys(layouts)
    found = [(layout, good_frames(descriptor, layout)) for layout in tried]
    return max(found, key=lambda each: each[1][1] - each[1][0])


def _ends_at(descriptor: int, layout: Layout, frames: int) -> bool:
    """Whether the row of frame `frames` was never written, or in the last lap."""
    content = os.pread(descriptor, layout.row_bytes, layout.offset(frames))
    if len(content) < layout.row_bytes:
        return False
    row = np.frombuffer(content, "<u4")[None]
    return not row.any() or bool(checksums(row)[0] == row[0, -1])


def _begin_of_last_step(descriptor: int, layout: Layout, start: int, end: int) -> int:
    """The first of good frames that is of the last vector step.

    That step may not be whole; it is done again. Where it is all there is, it stays.
    """
    turns = []
    for frame in range(end - 1, start - 1, -1):
        content = os.pread(descriptor, layout.row_bytes, layout.offset(frame))
        row = np.frombuffer(content, "<u4")
        turns.append(int(origin_of(row[None]).turn[0]))
        if turns[-1] != turns[0]:
            return frame + 1
    return end
