"""An environment in a process of its own, for environments whose steps are slow.

It does what `SafeEnv` does, with the same results; but a call can be begun before its
result is awaited, so that several environments work at the same time.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from ..running.child import take_streams
from ..settings.extensions import import_modules
from ..settings.schema import Environment
from ..settings.seeds import seed_globals
from ..util import UserError
from .safe_env import CLOSE_PATIENCE, SafeEnv, Step

SPAWN = multiprocessing.get_context("spawn")
# What a message of the environment's process tells; what a call returned comes last.
LOSS, FAILURE, RESULT = "loss", "failure", "result"


class RemoteEnv:
    """A `SafeEnv` in a process of its own, which ends with this one.

    The environment is closed when this process ends, however it ended.

    Args:
        env_config: as of `SafeEnv`.
        modules: which its process imports first, as of `Run.env_modules`.
        name: as of `SafeEnv`.
        on_loss, on_failure: as of `SafeEnv`; called in this process, at once where it
            waits for a result, else as soon as it does.
        seed: of the generators that its process shares, until the first reset.
        number: of the environment in its process; each has its own generators.
    """

    def __init__(
        self,
        env_config: Environment,
        modules: Sequence[str],
        name: str,
        on_loss: Callable[[], None],
        on_failure: Callable[[], None],
        seed: int,
        number: int,
    ) -> None:
        self._callbacks = {LOSS: on_loss, FAILURE: on_failure}
        self._begun = True  # a call, whose result is not taken yet: the making
        self._pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(
            target=_serve, args=(theirs, env_config, modules, name, seed, number)
        )
        self._process.start()
        theirs.close()

    def wait_until_made(self) -> None:
        """Waits for the environment.

        Raises:
            UserError: as `make_env`.
        """
        self._result()

    def begin_reset(self, seed: int) -> None:
        """Begins what `reset` waits for."""
        self._begin("reset", seed)

    def begin_step(self, action: np.ndarray) -> None:
        """Begins what `step` waits for."""
        self._begin("step", action)

    def reset(self, seed: int) -> np.ndarray:
        """As `SafeEnv.reset`."""
        if not self._begun:
            self.begin_reset(seed)
        return self._result()

    def step(self, action: np.ndarray) -> Step | None:
        """As `SafeEnv.step`."""
        if not self._begun:
            self.begin_step(action)
        return self._result()

    def begin_close(self) -> None:
        """Begins what `close` waits for."""
        if not self._pipe.closed:
            self._pipe.close()
            self._give_up = time.monotonic() + CLOSE_PATIENCE

    def close(self, patience: float = CLOSE_PATIENCE) -> None:
        """Closes the environment and ends its process.

        Args:
            patience: seconds that it may take at least; CLOSE_PATIENCE since
                `begin_close`, where that is more.
        """
        self.begin_close()
        self._process.join(max(patience, self._give_up - time.monotonic()))
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _begin(self, method: str, argument: Any) -> None:
        # One that has ended is noticed when its result is awaited.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._pipe.send((method, argument))
        self._begun = True

    def _result(self) -> Any:
        told, result = self._receive()
        while told != RESULT:
            self._callbacks[told]()
            told, result = self._receive()
        self._begun = False
        if isinstance(result, UserError):
            raise result
        return result

    def _receive(self) -> tuple[str, Any]:
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(CLOSE_PATIENCE)
            raise RuntimeError(
                "the process of an environment ended (exit code "
                f"{self._process.exitcode})"
            ) from None


def _serve(
    pipe: Connection,
    env_config: Environment,
    modules: Sequence[str],
    name: str,
    seed: int,
    number: int,
) -> None:
    """The environment's process: does what it is asked until nobody asks any more.

    It sends (LOSS or FAILURE, None) when that happens and, at the end of each call,
    (RESULT, what it returned or its UserError).
    """
    for each in (signal.SIGINT, signal.SIGTERM):
        # It ends with the process above. Not SIG_IGN: a simulator's own processes would
        # inherit it, and no longer be ended by these signals.
        signal.signal(each, lambda *_: None)
    take_streams()
    threading.Thread(target=_end_after_parent, daemon=True).start()

    def answered(call: Callable[..., Any], *arguments: Any) -> Any:
        """What a call returns; its end, good or bad, is sent."""
        try:
            result = call(*arguments)
        except UserError as error:
            pipe.send((RESULT, error))
            raise
        pipe.send((RESULT, None if call is make else result))
        return result

    def make() -> SafeEnv:
        import_modules(modules)
        seed_globals(seed, number)
        tell_loss, tell_failure = (
            partial(pipe.send, (what, None)) for what in (LOSS, FAILURE)
        )
        return SafeEnv(env_config, name, tell_loss, tell_failure)

    env: SafeEnv | None = None
    code = 0
    try:
        with contextlib.suppress(EOFError, OSError, UserError):
            env = answered(make)
            while True:
                method, argument = pipe.recv()
                answered(getattr(env, method), argument)
    except BaseException:
        traceback.print_exc()
        code = 1
    if env is not None:
        env.close()
    os._exit(code)  # threads of libraries must not keep it alive


def _end_after_parent() -> None:
    """Ends this process when its parent is gone and the environment does not close."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    threading.Event().wait(2 * CLOSE_PATIENCE)  # a step may be under way
    os._exit(1)
