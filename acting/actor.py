"""What interactors and evaluators have in common: heartbeats, waits, notes."""

import time
from collections.abc import Callable

from ..running.child import Context
from ..settings.roles import Kind
from ..settings.seeds import seed_globals
from ..storage.board import Wait
from ..util import wait_until
from .policy import PolicyReader
from .safe_env import CLOSE_PATIENCE


class Actor:
    """A process that steps environments.

    Subclasses register `close` with `context.ends`.

    Args:
        context: of the process.
        kind: what it does.
    """

    def __init__(self, context: Context, kind: Kind) -> None:
        self._context = context
        self._config = context.run.config
        self._number = int(context.name.removeprefix(kind))
        self._row = context.board[context.name]
        self._reader = PolicyReader(context)
        seed_globals(context.seed)

    def close(self) -> None:
        """Extends the heartbeat by CLOSE_PATIENCE."""
        self._row["heartbeat"] = time.monotonic() + CLOSE_PATIENCE

    def _beat(self) -> None:
        self._row["heartbeat"] = time.monotonic()

    def _stopping(self) -> bool:
        self._beat()
        return self._context.stop()

    def _wait(self, condition: Callable[[], bool], what: Wait) -> bool:
        """Waits for a condition; False: the process was asked to stop before."""
        met = False

        def cause() -> Wait | None:
            nonlocal met
            met = condition()
            return None if met or self._stopping() else what

        wait_until(self._context.while_there_is(cause))
        return met

    def _lose(self) -> None:
        """Counts a lost transition."""
        self._row["dropped"] += 1

    def _note_failure(self) -> None:
        self._note_nondeterminism("an environment failed and was made again")

    def _note_nondeterminism(self, why: str) -> None:
        self._context.note_nondeterminism(self._frames(), why)

    def _frames(self) -> int:
        """How far the run is, for a note that it cannot be repeated from there on."""
        raise NotImplementedError
