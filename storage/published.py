"""Published policies and world models, each under the number of its updates.

A run that keeps a pace uses the one that its counters name, not the newest. So a
published file stays until no process can need it.
"""

import os
from pathlib import Path

from ..util import fsync_folder


class Published:
    """What one learner has published, in the folder of a run's checkpoints.

    Args:
        folder: where the files lie; made when the first one comes.
        name: what they hold: "policy", "worldmodel".
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self._name = name

    def path(self, updates: int) -> Path:
        """Where the one of so many updates lies, or will lie."""
        return self.folder / f"{self._name}-{updates}.safetensors"

    def numbers(self) -> list[int]:
        """The numbers of updates of those that are there, ascending."""
        stems = (path.stem for path in self.folder.glob(f"{self._name}-*.safetensors"))
        numbers = (stem.removeprefix(f"{self._name}-") for stem in stems)
        return sorted(int(number) for number in numbers if number.isdecimal())

    def nearest(self, updates: int) -> int:
        """Of those that are there the newest before `updates`, or else the oldest.

        Raises:
            IndexError: there is none.
        """
        there = self.numbers()
        earlier = [number for number in there if number < updates]
        return earlier[-1] if earlier else there[0]

    def add(self, updates: int, file: Path) -> None:
        """Gives a complete file a second name here; it takes no further space.

        Raises:
            OSError: the disk is full, say; a later call may succeed.
        """
        self.folder.mkdir(exist_ok=True)
        path = self.path(updates)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.unlink(missing_ok=True)  # of a process that was killed here
        os.link(file, temporary)
        os.replace(temporary, path)
        fsync_folder(self.folder)

    def drop_before(self, updates: int) -> None:
        """Removes those of fewer updates."""
        for number in self.numbers():
            if number < updates:
                self.path(number).unlink(missing_ok=True)
