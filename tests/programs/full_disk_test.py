"""Fills the disk under a run, frees it again, and looks whether anything was lost.

    python tests/programs/full_disk_test.py
    python tests/programs/full_disk_test.py --filesystem btrfs

The run of crash_test writes into a filesystem of its own. tmpfs, of 64 MiB, needs the
right to mount one: user namespaces, or root. btrfs, where each write to what is there
takes space as well, needs root, mkfs.btrfs and a loop device. The disk is full at the
first transition, in the middle of learning, when the run is asked to end, when it is
killed, and when it is resumed. Everything that crash_test wants of a run at rest must
be true whenever it is. The exit code is 1 where anything was violated.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from crash_test import Harness

from steve.replay import ReplayBuffer
from steve.settings.roles import VALUERL, WORLDMODEL
from steve.util import stop_as_by_ctrl_c

TMPFS, BTRFS = "tmpfs", "btrfs"
SIZES = {TMPFS: 64 << 20, BTRFS: 256 << 20}
BLOCK = 4096
PATIENCE = 60.0  # seconds: those who wait try again every ten
STILL = 3.0  # seconds without a step or an update after which the run stands still
INSIDE = "--inside"  # the call within the new namespace


class FullDisk:
    """A run whose disk is filled and freed."""

    def __init__(self, folder: Path, filesystem: str) -> None:
        self.harness = Harness(folder, seed=0)
        self.disk = folder / "output"
        self.disk.mkdir()
        size = SIZES[filesystem]
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
        if filesystem == BTRFS:
            image = folder / "image"
            image.touch()
            os.truncate(image, size)
            # Mixed: data and metadata have one space, which can be full.
            make = ["mkfs.btrfs", "--quiet", "--mixed", image]
            subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
            mount = ["mount", "-o", "loop", image]
        subprocess.run([*mount, self.disk], check=True)

    def fill(self, leave: int = 0) -> None:
        """Takes all space that can be had, and gives back so many bytes.

        btrfs calls some of it free that nobody gets.
        """
        with open(self.disk / "ballast", "ab", buffering=0) as file:
            size = shutil.disk_usage(self.disk).free
            while size >= BLOCK:
                end = os.fstat(file.fileno()).st_size
                try:
                    os.posix_fallocate(file.fileno(), end, size)
                    size = shutil.disk_usage(self.disk).free
                except OSError:
                    size //= 2
            if leave:
                os.truncate(file.fileno(), os.fstat(file.fileno()).st_size - leave)

    def free(self) -> None:
        (self.disk / "ballast").unlink()

    def check(self, what: str, condition: Callable[[], bool]) -> None:
        """What must become true while the run lives."""
        if self.harness.until(condition, PATIENCE):
            print(f"seen: {what}", flush=True)
        else:
            end = self.harness.output()[-500:]
            self.harness.violation(f"not seen: {what}; the last output: {end}")

    def says(self, text: str, times: int = 1) -> Callable[[], bool]:
        return lambda: self.harness.output().count(text) >= times

    def at_rest(self, what: str) -> None:
        self.harness.check_orphans()
        self.harness.check_at_rest()
        stored = self.harness.counts["transitions stored"]
        print(f"seen: {what}; {stored:,} transitions are there", flush=True)

    def learns_on(self) -> Callable[[], bool]:
        """Whether both learners get beyond what they have done by now."""
        self.harness.note_state()
        before = dict(self.harness.seen.updates)

        def more() -> bool:
            self.harness.note_state()
            now = self.harness.seen.updates
            return all(now[name] > before[name] + 200 for name in (VALUERL, WORLDMODEL))

        return more

    def waiting(self) -> Callable[[], bool]:
        """Whether the run waits for space: a process says so, and nothing moves.

        Others may wait for that process: for frames, a world model, or scores.
        """
        last, since = None, 0.0

        def wait() -> bool:
            nonlocal last, since
            board, now = self.harness.board(), time.monotonic()
            if board is None:
                return False
            with ReplayBuffer.open(self.harness.root / "checkpoints/replay") as replay:
                updates = [
                    int(board[name]["updates"]) for name in (VALUERL, WORLDMODEL)
                ]
                moved = [replay.frames, *updates]
            if moved != last:
                last, since = moved, now
            is_full = any(board[name]["disk_full"] for name in self.harness.names)
            return is_full and now > since + STILL

        return wait

    def filled(self, what: str) -> None:
        """Fills the disk and awaits that the run waits for space, and says so."""
        said = self.harness.output().count("waits for space")
        self.fill()
        self.check(what, self.waiting())
        self.check("  and say so", self.says("waits for space", said + 1))

    def run(self) -> None:
        harness = self.harness
        self.fill(leave=4 << 20)  # enough to start, too little for transitions
        harness.launch()
        self.check("interactors wait", self.says("interactor0 waits for space"))
        self.check("  with the free bytes", self.says("bytes are free); interactor0"))
        self.free()
        self.check("both learn", harness.is_ready)
        self.check("  and go on", self.learns_on())

        self.filled("the run waits")
        harness.note_state()
        said = harness.output().count("has space again and continues")
        self.free()
        self.check("goes on", self.says("has space again and continues", said + 1))
        self.check("  learning", self.learns_on())

        self.filled("the run waits again")
        harness.launcher.send_signal(signal.SIGTERM)
        code = harness.launcher.wait(PATIENCE)
        if code != 1 or "free some space" not in harness.output().lower():
            harness.violation(f"exit code {code}: {harness.output()[-500:]}")
        self.at_rest("asked to end, it ended")

        harness.launch()  # the disk is still full
        code = harness.launcher.wait(PATIENCE)
        if code != 2 or "Traceback" in harness.output():
            harness.violation(f"exit code {code}: {harness.output()[-500:]}")
        self.at_rest("a resume is refused in one line")

        self.free()
        harness.launch()
        self.check("resumed, both learn", harness.is_ready)
        self.check("  and go on", self.learns_on())
        self.filled("the run waits a third time")
        os.killpg(harness.launcher.pid, signal.SIGKILL)
        harness.launcher.wait()
        self.at_rest("killed while it waits")

        self.free()
        harness.launch()
        self.check("resumed, both learn", harness.is_ready)
        self.check("  and go on", self.learns_on())
        harness.stop()
        self.at_rest("ended")


def outside(filesystem: str) -> int:
    """Calls this program again in a namespace in which it may mount."""
    as_root = ["--map-root-user"] * (filesystem == TMPFS)
    command = ["unshare", *as_root, "--mount", sys.executable, __file__]
    with subprocess.Popen([*command, INSIDE, "--filesystem", filesystem]) as test:
        try:
            return test.wait()
        except KeyboardInterrupt:
            test.terminate()  # it ends its run
            return test.wait()


def inside(filesystem: str) -> int:
    """The test, where it may mount."""
    folder = Path(tempfile.mkdtemp(prefix="full-disk-"))
    test = FullDisk(folder, filesystem)
    started = time.monotonic()
    try:
        test.run()
    finally:
        if test.harness.launcher.poll() is None:
            os.killpg(test.harness.launcher.pid, signal.SIGKILL)
            test.harness.launcher.wait()
    violations = test.harness.violations
    print(f"violations: {len(violations)}; {time.monotonic() - started:.0f} s")
    subprocess.run(["umount", test.disk], check=True)
    shutil.rmtree(folder)
    return 1 if violations else 0


@pytest.mark.mount
@pytest.mark.parametrize("filesystem", SIZES)
def test_a_full_disk_stops_a_run_only_until_there_is_space(filesystem):
    if filesystem == BTRFS and (os.getuid() or not shutil.which("mkfs.btrfs")):
        pytest.skip("needs root and mkfs.btrfs")
    assert outside(filesystem) == 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--filesystem", choices=SIZES, default=TMPFS, help="that is filled (tmpfs)"
    )
    given = parser.parse_args()
    with stop_as_by_ctrl_c():
        sys.exit((inside if given.inside else outside)(given.filesystem))
