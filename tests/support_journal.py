"""The counting environment with a journal outside of the run's folder.

Named in `env.module`. What an environment writes down is what its process must have
stored by then: an interactor appends a step's transition before it steps again, an
evaluator records an episode's score before it resets again.
"""

import multiprocessing
import os
from pathlib import Path

import gymnasium
import support_env

NAME = "Journal-v0"


class JournalEnv(support_env.CountingEnv):
    """Counts as its base does, under a number that no other environment has.

    Args:
        folder: of the journals. NUMBER.steps has "episode,step" for each transition
            that is stored, NUMBER.scores the score of each recorded episode.
        length: steps of an episode.
    """

    def __init__(self, folder: str, length: int = 7) -> None:
        super().__init__(length)
        self._folder = Path(folder)
        self._kind = multiprocessing.current_process().name.rstrip("0123456789")
        self._number = self._draw_number()
        self._due: str | None = None  # what is stored once the process comes back

    def _draw_number(self) -> int:
        """The length of a file to which all environments append a byte."""
        descriptor = os.open(
            self._folder / "numbers", os.O_WRONLY | os.O_CREAT | os.O_APPEND
        )
        os.write(descriptor, b"x")
        number = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.close(descriptor)
        return number

    def _acknowledge(self, what: str) -> None:
        if self._due is not None:
            path = self._folder / f"{self._number}.{what}"
            with open(path, "ab", buffering=0) as file:
                file.write(f"{self._due}\n".encode())
        self._due = None

    def reset(self, *, seed=None, options=None):
        if self._kind == "evaluator":
            self._acknowledge("scores")
        super().reset(seed=seed, options=options)
        self.number = self._number
        return self._observed(), {}

    def step(self, action):
        if self._kind == "interactor":
            self._acknowledge("steps")
        result = super().step(action)
        if self._kind == "interactor":
            self._due = f"{self.episode},{self.step_number}"
        elif result[2]:
            self._due = repr(self.score)
        return result


gymnasium.register(NAME, JournalEnv)
