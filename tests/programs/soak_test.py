"""Watches a long run: its processes must neither grow nor slow down.

    python tests/programs/soak_test.py            # 20 minutes
    python tests/programs/soak_test.py --seconds 80 --warm-up 30

STEVE on InvertedPendulum as in the paper's speedruns (nobody waits for anybody), with
four interactors. Private memory (RssAnon) and open files of every process are read once
a second. From the end of the warm-up on, memory must stay within 5% of where it was and
the number of files that stay open constant. The updates and frames per second must not
fall by a third, which is how waiting for files or locks would show; they share two
cores, so what one gets more of the others get less of.
Prints a table; the exit code is 1 where something grew.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # support modules

from support import PROJECT

from steve.replay import ReplayBuffer
from steve.storage.board import Board

TOLERANCE = 0.05  # of private memory
SLOWDOWN = 1 / 3
SETTINGS = (
    "total_frames=null",
    "agent_config.count=4",
    "evaluator_config.count=1",
    "policy_config.frames_per_update=false",
    "model_config.frames_per_update=false",
    "policy_config.replay_size=1000000",
    "model_config.replay_size=1000000",
)
NAMES = (
    *("launcher", "valuerl", "worldmodel", "evaluator0"),
    *(f"interactor{number}" for number in range(4)),
)


@dataclass
class Course:
    """What was read of one process, or counted, at each second.

    Attributes:
        memory: kB.
        files: open ones.
    """

    memory: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def read(self, pid: int) -> None:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("RssAnon:"))
        self.memory.append(int(line.split()[1]))
        self.files.append(len(os.listdir(f"/proc/{pid}/fd")))

    def files_left_open(self) -> tuple[int, int]:
        """Files that were open all through the first, and the last, third.

        What is open for the moment of a save is none of them.
        """
        third = max(1, len(self.files) // 3)
        return min(self.files[:third]), min(self.files[-third:])

    def growth(self) -> float:
        """The largest distance from the first value, as a part of it."""
        first = self.memory[0]
        return max(abs(value - first) for value in self.memory) / first


def rates(counts: list[int]) -> tuple[float, float]:
    """Counts per second in the first and the last third of the time."""
    third = max(1, (len(counts) - 1) // 3)
    first, last = counts[third] - counts[0], counts[-1] - counts[-1 - third]
    return first / third, last / third


def episode_values(
    courses: dict[str, Course], counts: dict[str, list[int]]
) -> list[tuple[str, str]]:
    """(name, what is wrong with it) for all that grew or slowed down."""
    wrong = []
    for name, course in courses.items():
        if course.growth() > TOLERANCE:
            wrong.append((name, f"memory moved by {course.growth():.1%}"))
        first, last = course.files_left_open()
        if first != last:
            wrong.append((name, f"{first} open files became {last}"))
    for name, course in counts.items():
        first, last = rates(course)
        if last < (1 - SLOWDOWN) * first:
            wrong.append((name, f"fell from {first:.1f} to {last:.1f} a second"))
    return wrong


def watch(
    root: Path, seconds: float, warm_up: float
) -> tuple[dict[str, Course], dict[str, list[int]]]:
    """Reads the run in `root` once a second, from the end of the warm-up on."""
    courses = {name: Course() for name in NAMES}
    counts: dict[str, list[int]] = {"frames": [], "valuerl": [], "worldmodel": []}
    started = time.monotonic()
    while time.monotonic() < started + warm_up:
        time.sleep(0.5)
    board = Board.open(root / "log" / "status.bin")
    launcher = int(Path(f"/proc/{board['valuerl']['pid']}/stat").read_text().split()[3])
    with ReplayBuffer.open(root / "checkpoints" / "replay") as replay:
        while time.monotonic() < started + seconds:
            for name, course in courses.items():
                pid = launcher if name == "launcher" else int(board[name]["pid"])
                course.read(pid)
            counts["frames"].append(replay.frames)
            for learner in ("valuerl", "worldmodel"):
                counts[learner].append(int(board[learner]["updates"]))
            time.sleep(1)
    return courses, counts


def show(courses: dict[str, Course], counts: dict[str, list[int]]) -> None:
    print(f"{'process':14}{'RssAnon MB':>12}{'last':>8}{'moved':>8}{'files':>12}")
    for name, course in courses.items():
        files = course.files_left_open()
        print(
            f"{name:14}{course.memory[0] / 1024:12.1f}{course.memory[-1] / 1024:8.1f}"
            f"{course.growth():8.1%}{' to '.join(map(str, files)):>12}"
        )
    for name, course in counts.items():
        first, last = rates(course)
        print(f"{name:14}{first:12.1f} a second at first, {last:.1f} at the end")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=1200.0)
    parser.add_argument("--warm-up", type=float, default=120.0, metavar="SECONDS")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        run = subprocess.Popen(
            [
                *(sys.executable, "main.py", "config/quickstart.json", "cpu"),
                *("--name", "soak", "--set", f"output_root={folder}", *SETTINGS),
            ],
            cwd=PROJECT,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            root = Path(folder) / "InvertedPendulum-v5" / "soak"
            courses, counts = watch(root, given.seconds, given.warm_up)
            run.send_signal(signal.SIGTERM)
            code = run.wait(20)
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()
    show(courses, counts)
    wrong = episode_values(courses, counts)
    for name, what in wrong:
        print(f"VIOLATION {name}: {what}")
    print(f"violations: {len(wrong)}; exit code of the run: {code}")
    return 1 if wrong or code else 0


def test_growth_new_files_and_slowing_down_are_seen():
    steady = Course([1000, 1049, 960], [9, 10, 9])
    even = list(range(0, 100, 10))
    assert episode_values({"launcher": steady}, {"frames": even}) == []
    grown, opened = (
        Course([1000, 1051], [9, 9]),
        Course([1000, 1000, 1000], [9, 10, 10]),
    )
    slower = [0, 10, 20, 30, 36, 42, 48, 54, 60, 66]
    wrong = episode_values(
        {"valuerl": grown, "interactor0": opened}, {"frames": slower}
    )
    assert [name for name, _ in wrong] == ["valuerl", "interactor0", "frames"]


if __name__ == "__main__":
    sys.exit(main())
