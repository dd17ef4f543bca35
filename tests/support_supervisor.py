"""What the tests of the supervisor share: a display that keeps what it is told."""

import time

from support import PATIENCE

from steve.running.supervisor import Child


class FakeDisplay:
    """Keeps the notes; `on_show` is called at each tick of the watch."""

    def __init__(self):
        self.notes = []
        self.on_show = lambda: None
        self.closed = False
        self._deadline = time.monotonic() + PATIENCE

    def note(self, line):
        self.notes.append(line)

    def show(self, progress, last=False):
        if not last:
            assert time.monotonic() < self._deadline, "it does not end"
            self.on_show()

    def close(self):
        self.closed = True


def child_of(name, function="obey", **environ):
    kind = name.rstrip("0123456789")
    return Child(name, kind, f"support_children:{function}", environ)
