"""A thin layer over all calls by which a process changes files; the n-th goes wrong.

STEVE_TEST_FAULT="N:HOW" says which and how:

    kill    SIGKILL in place of the call
    torn    SIGKILL after half of a write; other calls as `after`
    after   SIGKILL after the call, before anything that follows it
    EIO     the call fails, those after it work
    ENOSPC  the call fails, those after it work: space was freed
    full    half of a write; from there on every call that takes space fails

Stores through a memory map are no calls: between two calls they are all made (`kill`
at the second) or none (`after` at the first).
"""

import builtins
import errno
import io
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

VARIABLE = "STEVE_TEST_FAULT"
KILLS = ("kill", "torn", "after")
ERRORS = ("EIO", "ENOSPC", "full")
WRITES = {"write", "pwrite"}
FREE = {"unlink", "rmdir", "truncate"}  # take no space


class Layer:
    """Counts the calls of this process.

    Attributes:
        calls: the names of those that were reached, in order.
    """

    def __init__(self, at: int, how: str) -> None:
        self._at = at
        self._how = how
        self._lock = threading.Lock()
        self.calls: list[str] = []

    def reach(
        self, name: str, call: Callable[[], object], half: Callable[[], object] | None
    ) -> object:
        """Makes a call, or what comes in its place.

        Args:
            name: of the call.
            call: makes it.
            half: makes half of it, where that is possible.
        """
        with self._lock:
            self.calls.append(name)
            number = len(self.calls)
        if number < self._at or (number > self._at and self._how != "full"):
            return call()
        how = self._how
        try:
            if how in ("torn", "after"):
                (half if how == "torn" and half else call)()
        finally:
            if how in KILLS:
                os.kill(os.getpid(), signal.SIGKILL)
        if how == "full" and name in FREE:
            return call()
        if how == "full" and number == self._at and half:
            return half()
        code = errno.EIO if how == "EIO" else errno.ENOSPC
        raise OSError(code, os.strerror(code))


@contextmanager
def armed() -> Iterator[Layer]:
    """Puts the layer under this process, armed as the variable says."""
    at, how = os.environ.get(VARIABLE, "0:kill").split(":")
    layer = Layer(int(at), how)
    with mock.patch.multiple(os, **_os_calls(layer)):
        opened = _open(layer)
        with (
            mock.patch.object(builtins, "open", opened),
            mock.patch.object(io, "open", opened),
        ):
            yield layer


def _os_calls(layer: Layer) -> dict[str, Callable]:
    """The functions of `os` in their counted form."""

    def counted(name: str) -> Callable:
        original = getattr(os, name)

        def call(*arguments: object, **keys: object) -> object:
            half = None
            if name in WRITES:
                descriptor, content, *rest = arguments
                content = bytes(content)
                some = content[: len(content) // 2]

                def half() -> object:
                    return original(descriptor, some, *rest)

            return layer.reach(name, lambda: original(*arguments, **keys), half)

        return call

    names = (
        *("write", "pwrite", "sendfile", "fsync", "fdatasync", "rename", "replace"),
        *("link", "unlink", "truncate", "ftruncate", "posix_fallocate", "mkdir"),
        "rmdir",
    )
    calls = {name: counted(name) for name in names}
    original = os.open

    def opened(path: object, flags: int, *rest: object, **keys: object) -> int:
        if not flags & os.O_CREAT:
            return original(path, flags, *rest, **keys)
        return layer.reach("create", lambda: original(path, flags, *rest, **keys), None)

    return calls | {"open": opened}


def _open(layer: Layer) -> Callable:
    """`open`, whose files are counted where they are open for writing."""
    original = open

    class CountedFile(io.FileIO):
        def write(self, content: object) -> int | None:
            content = bytes(content)
            write = super().write
            return layer.reach(
                "write",
                lambda: write(content),
                lambda: write(content[: len(content) // 2]),
            )

        def truncate(self, size: int | None = None) -> int:
            cut = super().truncate
            return layer.reach("truncate", lambda: cut(size), None)

    def opened(
        file: object,
        mode: str = "r",
        buffering: int = -1,
        *text: object,
        **keys: object,
    ) -> object:
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return original(file, mode, buffering, *text, **keys)
        plain = mode.replace("b", "").replace("t", "")
        raw = layer.reach(
            "create" if set(mode) & set("wax") else "open",
            lambda: CountedFile(file, plain),
            None,
        )
        if buffering == 0:
            return raw
        kind = io.BufferedRandom if "+" in mode else io.BufferedWriter
        buffered = kind(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *text, **keys)

    return opened
