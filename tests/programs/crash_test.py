"""Kills runs at random moments and looks whether anything was lost.

    python tests/programs/crash_test.py --kills 200

A tiny run of the counting environment is started; a process of it, or all of them, is
killed by SIGKILL at a random moment; where that ended it, it is resumed. After each
launch nothing that was stored may be missing. At the end the same run is done again
without kills: transitions, scores and digests must be the same, byte by byte. In every
second run, by the seed, the replay buffer's ring wraps. The exit code is 1 where
anything was violated; the folder stays then.
"""

import argparse
import collections
import contextlib
import csv
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))  # support modules

import support_env
from support import PROJECT

from steve.batch import Batch
from steve.replay import ReplayBuffer
from steve.replay_file import Origin
from steve.settings.roles import VALUERL, WORLDMODEL, process_names
from steve.settings.schema import Config
from steve.storage import checkpoint
from steve.storage.board import Board
from steve.storage.digests import read_digests
from steve.storage.record import read_json
from steve.util import RunError, UserError

RESUME_PATIENCE = 60.0  # seconds in which a resumed run must learn again
LEARNING_PATIENCE = 300.0  # seconds; the short form counts updates, not time
ORPHAN_PATIENCE = 5.0  # seconds after which no process of a killed run is left
NOTICE_PATIENCE = 5.0  # seconds in which the launcher notices that a child ended
STOP_PATIENCE = 15.0  # seconds in which a run that is asked to end has ended
STEP_TIMEOUT = 5.0  # seconds after which a process that shows no life is killed
TAG = "STEVE_CRASH_TEST"  # a variable by which a run's processes are known
LOG_EVERY, EPOCH_EVERY, BACKUP_EVERY = 20, 100, 2000
LENGTH = 7  # steps of an episode

LEARNER = {
    "batch_size": 16,
    "frames_before_learning": 20,
    "frames_per_update": 0.5,
    "log_every_n": LOG_EVERY,
    "epoch_every_n": EPOCH_EVERY,
    "backup_every_n": BACKUP_EVERY,
    "xla": False,  # which each start would compile for seconds
}


def configuration(folder: Path, seed: int) -> dict[str, object]:
    """A run that learns within seconds and has no end."""
    size = {"replay_size": 100 if seed % 2 else 500_000}
    return {
        "seed": seed,
        "env": {
            "name": support_env.NAME,
            "module": "support_env",
            "make_kwargs": {"length": LENGTH, "repeatable": True, "luck": True},
            "max_frames": 2 * LENGTH,
            "step_timeout": STEP_TIMEOUT,
        },
        "agent_config": {"count": 2, "batch_size": 2, "full_random_n": 40},
        "evaluator_config": {"count": 2},
        "policy_config": {
            **LEARNER,
            **size,
            "hidden_dim": 4,
            "layers": 2,
            "value_expansion": {"rollout_len": 1},
        },
        "model_config": {
            **LEARNER,
            **size,
            "transition_hidden_dim": 4,
            "transition_layers": 2,
            "aux_hidden_dim": 4,
            "aux_layers": 2,
            "pretrain_n": 200,
        },
        "output_root": str(folder / "output"),
        "keep_all_replay_buffers": True,
    }


def processes(tag: str) -> Iterator[tuple[int, bytes, bytes]]:
    """Every living process of a run: its id, command line and environment."""
    wanted = f"{TAG}={tag}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            variables = (entry / "environ").read_bytes()
            line = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if wanted in variables.split(b"\0") and line:
            yield int(entry.name), line, variables


@dataclass
class Seen:
    """What the harness has seen stored; none of it may ever be missing."""

    frames: int = 0
    first: int = 0  # the frame of the first row of `content`
    content: np.ndarray | None = None
    scores: bytes = b""
    updates: dict[str, int] = field(default_factory=dict)


class Harness:
    """One run, with all its launches.

    Attributes:
        killed: how often each kind of victim was killed.
        violations: what must not have happened, one line each.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.rng = random.Random(seed)
        self.tag = f"{os.getpid()}.{seed}"
        content = configuration(folder, seed)
        (folder / "run.json").write_text(json.dumps({"updates": content}))
        self.names = process_names(Config.model_validate(content))[1:]
        self.kinds = {name.rstrip("0123456789") for name in self.names}
        self.root = folder / "output" / support_env.NAME / "run"
        self.seen = Seen()
        self.killed: collections.Counter[str] = collections.Counter()
        self.counts: collections.Counter[str] = collections.Counter()
        self.resumes: list[float] = []  # seconds
        self.violations: list[str] = []
        self.launcher: subprocess.Popen | None = None
        self._board: Board | None = None
        self.killed_here: collections.Counter[str] = collections.Counter()
        self.stops_before = 0  # of earlier launches

    def violation(self, text: str) -> None:
        self.violations.append(text)
        print(f"VIOLATION {text}", flush=True)

    # -- launches and kills --------------------------------------------------------

    def launch(self) -> None:
        """Starts the run, with --resume where there is something to resume."""
        self.killed_here.clear()
        self._board = None
        hyperparameters = self.root / "log" / "hps.json"
        options = ["--resume"] if hyperparameters.exists() else []
        self.counts["resumes" if options else "fresh starts"] += 1
        with open(self.folder / "output.txt", "ab") as output:
            self.stops_before = self.stops()
            self.launcher = subprocess.Popen(
                [sys.executable, "main.py", self.folder / "run.json", "cpu", *options],
                cwd=PROJECT,
                env={
                    **os.environ,
                    "PYTHONPATH": str(PROJECT / "tests"),
                    TAG: self.tag,
                },
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started = time.monotonic()

    def output(self) -> str:
        return (self.folder / "output.txt").read_text(errors="replace")

    def stops(self) -> int:
        return self.output().count("stopping: ")

    def notices(self) -> int:
        """How often the launcher said that a child is dead."""
        return self.output().count(" was ended by SIGKILL and") + self.stops()

    def is_stopping(self) -> bool:
        """Whether this launch ends already; it then restarts nobody."""
        return self.stops() > self.stops_before

    def board(self) -> Board | None:
        """That of this launch, also when it is over; None where there is none yet."""
        with contextlib.suppress(RunError):  # the file is of the last launch
            self._board = self._board or Board.open(self.root / "log" / "status.bin")
        return self._board

    def is_ready(self) -> bool:
        board = self.board()
        return board is not None and all(
            board[name]["ready"] for name in (VALUERL, WORLDMODEL)
        )

    def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Waits while the launcher lives; whether the condition came true."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline or self.launcher.poll() is not None:
                return condition()
            time.sleep(0.05)
        return True

    def victims(self) -> dict[str, list[int]]:
        """The processes there are, by what they are."""
        board = self.board()
        names = {}
        if board is not None:
            names = {int(board[name]["pid"]): name for name in self.names}
        found = collections.defaultdict(list)
        for pid, line, variables in processes(self.tag):
            if pid == self.launcher.pid:
                found["launcher"].append(pid)
            elif b"resource_tracker" in line:
                found["resource tracker"].append(pid)
            elif pid in names:
                found[names[pid].rstrip("0123456789")].append(pid)
            elif b"TF_FORCE_GPU_ALLOW_GROWTH" in variables:
                found["learner while it starts"].append(pid)
            elif b"OMP_NUM_THREADS=1" in variables:
                found["actor while it starts"].append(pid)
            else:
                found["measuring process"].append(pid)
        return found

    def kill_any(self) -> None:
        """Kills a random victim or all, or has a victim hang."""
        victims = self.victims()
        kind = self.rng.choice([*sorted(victims), "group"])
        if kind in self.kinds and self.rng.random() < 0.1:
            self.hang(kind, self.rng.choice(victims[kind]))
        else:
            self.kill(kind)

    def kill(self, kind: str) -> None:
        """Kills a victim of a kind, or the whole "group"."""
        victims = self.victims()
        notes = self.notices()
        self.note_state()
        if kind == "group":
            os.killpg(self.launcher.pid, signal.SIGKILL)
        elif kind in victims:
            try:
                os.kill(self.rng.choice(victims[kind]), signal.SIGKILL)
            except ProcessLookupError:
                return
        self.killed[kind] += 1
        self.killed_here[kind] += 1
        if kind in ("launcher", "group"):
            self.launcher.wait()
        elif kind not in ("resource tracker", "measuring process"):
            noticed = self.until(lambda: self.notices() > notes, NOTICE_PATIENCE)
            if not noticed and not self.is_stopping():
                self.violation(f"the death of {kind} was not noticed")

    def hang(self, kind: str, pid: int) -> None:
        """Stops a process, which the launcher must notice, kill and restart."""
        board = self.board()
        (row,) = (board[name] for name in self.names if board[name]["pid"] == pid)
        notes = self.notices()
        os.kill(pid, signal.SIGSTOP)
        stat = Path(f"/proc/{pid}/stat")
        self.until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", 1)
        writes = row["heartbeat"] > time.monotonic()  # a slow disk is no hanging
        if writes or (kind in (VALUERL, WORLDMODEL) and not row["ready"]):
            os.kill(pid, signal.SIGCONT)
            return
        self.killed[f"{kind} (stopped, as if it hung)"] += 1
        self.killed_here[kind] += 1
        patience = STEP_TIMEOUT + NOTICE_PATIENCE
        noticed = self.until(lambda: self.notices() > notes, patience)
        if not noticed and not self.is_stopping():
            self.violation(f"{kind} hung and was not noticed in {patience:g} s")

    def may_have_ended(self) -> bool:
        """Whether the launcher has a reason to be gone."""
        here = self.killed_here
        learners = here[VALUERL] + here[WORLDMODEL] + here["learner while it starts"]
        actors = here["interactor"] + here["evaluator"] + here["actor while it starts"]
        return bool(
            here["launcher"]
            or here["group"]
            or here["measuring process"]
            or learners > 1
            or actors > 5
        )

    def one_life(self, kills: int) -> int:
        """A launch with up to so many kills, and the checks after its end."""
        self.launch()
        if kills == 0 or self.rng.random() < 0.5:
            self.wait_until_it_learns()
        done = 0
        while done < kills and self.launcher.poll() is None:
            time.sleep(self.rng.uniform(0, 1.5))
            self.kill_any()
            done += 1
        self.end()
        return done

    def end(self) -> None:
        """Ends a launch that still lives, and checks what it left."""
        self.stop()
        self.check_orphans()
        self.check_at_rest()

    def wait_until_it_learns(self) -> None:
        if self.until(self.is_ready, RESUME_PATIENCE):
            self.resumes.append(time.monotonic() - self.started)
        else:
            self.violation(f"it does not learn: {self.output()[-500:]}")

    def learn_to(self, updates: int) -> None:
        """Waits until each learner has made so many, pretraining not counted."""

        def is_there() -> bool:
            board = self.board()
            return board is not None and all(
                board[name]["updates"] >= updates for name in (VALUERL, WORLDMODEL)
            )

        if not self.until(is_there, LEARNING_PATIENCE):
            self.violation(f"not at {updates} updates: {self.output()[-500:]}")

    def stop(self) -> None:
        """Asks a launcher that still lives to end."""
        if self.launcher.poll() is not None:
            if not self.may_have_ended():
                self.violation(f"it ended by itself: {self.output()[-500:]}")
            return
        os.kill(self.launcher.pid, signal.SIGTERM)
        self.counts["stops by SIGTERM"] += 1
        try:
            code = self.launcher.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            self.violation("asked to end, it did not")
            os.killpg(self.launcher.pid, signal.SIGKILL)
            self.launcher.wait()
            return
        if code != 0 and not self.may_have_ended():
            self.violation(f"asked to end, it gave exit code {code}")

    # -- invariants ----------------------------------------------------------------

    def note_state(self) -> None:
        """Notes what is acknowledged at this moment."""
        board = self.board()
        if board is not None:
            for name in (VALUERL, WORLDMODEL):
                count = int(board[name]["updates"]) + int(board[name]["pretrained"])
                self.seen.updates[name] = count
        try:
            with ReplayBuffer.open(self.root / "checkpoints" / "replay") as replay:
                self.seen.frames = max(self.seen.frames, replay.frames)
        except UserError:
            if self.seen.frames:
                self.violation("the replay buffer cannot be opened")

    def check_orphans(self) -> None:
        deadline = time.monotonic() + ORPHAN_PATIENCE
        while left := list(processes(self.tag)):
            if time.monotonic() > deadline:
                self.violation(f"orphans: {left}")
                for pid, _, _ in left:
                    os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.05)

    def check_at_rest(self) -> None:
        """Everything that must be true while no process of the run lives."""
        self.note_state()
        self.check_checkpoints()
        self.check_replay()
        self.check_scores()
        for name in (VALUERL, WORLDMODEL):
            self.check_log(name)

    def check_checkpoints(self) -> None:
        """Each is whole, and the newest is at most an epoch old."""
        for path in (self.root / "checkpoints").glob("[!.]*.safetensors"):
            self.counts["checkpoints read"] += 1
            try:
                checkpoint.load(path)
            except checkpoint.CheckpointError as error:
                self.violation(str(error))
        for name, updates in self.seen.updates.items():
            path = self.root / "checkpoints" / f"{name}.safetensors"
            saved = 0
            if path.exists():
                state = checkpoint.load(path).metadata
                saved = int(state["updates"]) + int(state.get("pretrained", 0))
            if updates - saved > EPOCH_EVERY:
                self.violation(f"{name} lost {updates - saved} updates")
            self.counts["updates lost, at most"] = max(
                self.counts["updates lost, at most"], updates - saved
            )

    def check_replay(self) -> None:
        """No acknowledged transition is lost, none doubled, changed or reordered."""
        if not (self.root / "checkpoints" / "replay" / "replay.bin").exists():
            return
        with ReplayBuffer.open(self.root / "checkpoints" / "replay") as replay:
            if replay.frames < self.seen.frames:
                self.violation(f"{self.seen.frames - replay.frames} frames are gone")
            first, count = replay.oldest, replay.size
            try:
                rows = words_of(replay.read(first, count), replay.origins(first, count))
            except (UserError, IndexError) as error:
                self.violation(str(error))
                return
            origin = replay.origins(first, count)
        if self.seen.content is not None:
            known = self.seen.content[first - self.seen.first :]
            if not np.array_equal(rows[: len(known)], known):
                self.violation("transitions have changed")
        self.seen.first, self.seen.content = first, rows
        for env in np.unique(origin.env):
            mine = origin.env == env
            numbers = origin.episode[mine] * LENGTH + origin.step[mine]
            if not np.array_equal(numbers, numbers[0] + np.arange(len(numbers))):
                self.violation(f"environment {env}: lost, doubled or reordered")
        self.counts["transitions stored"] = first + count

    def check_scores(self) -> None:
        """Rows stay as they were; none is torn, doubled or missing."""
        path = self.root / "log" / "run.greedy.csv"
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            self.counts["torn tails of the csv, not yet mended"] += 1
        if not whole.startswith(self.seen.scores):
            self.violation("rows of the csv have changed or are gone")
        self.seen.scores = whole
        rows = list(csv.DictReader(io.StringIO(whole.decode())))
        for row in rows:
            try:
                [float(value) for value in row.values()]
            except (TypeError, ValueError):
                self.violation(f"torn row of the csv: {row}")
        epochs = collections.Counter(row["epochs"] for row in rows)
        evaluators = sum(name.startswith("evaluator") for name in self.names)
        doubled = [epoch for epoch, n in epochs.items() if n > evaluators]
        if doubled:
            self.violation(f"policies evaluated too often: {doubled}")
        self.counts["csv rows"] = len(rows)

    # -- the same run without kills ------------------------------------------------

    def compare_with_an_uninterrupted_run(self) -> None:
        """Runs the same configuration again and compares what both have."""
        replay = self.root / "checkpoints" / "replay"
        with ReplayBuffer.open(replay) as killed:
            frames = killed.frames
        again = self.root.with_name("again")
        log = self.folder / "again.txt"
        with open(log, "wb") as output:
            subprocess.run(
                [
                    *(sys.executable, "main.py", self.folder / "run.json", "cpu"),
                    *("--name", "again", "--frames", str(frames)),
                ],
                cwd=PROJECT,
                env={
                    **os.environ,
                    "PYTHONPATH": str(PROJECT / "tests"),
                },
                stdout=output,
                stderr=subprocess.STDOUT,
                check=True,
            )
        with (
            ReplayBuffer.open(replay) as one,
            ReplayBuffer.open(again / "checkpoints" / "replay") as other,
        ):
            first = max(one.oldest, other.oldest)
            count = min(one.frames, other.frames) - first
            rows = [
                words_of(each.read(first, count), each.origins(first, count))
                for each in (one, other)
            ]
        if not np.array_equal(*rows):
            self.violation("transitions are not those of an uninterrupted run")
        digests = [
            read_digests(root / "log/digests.csv") for root in (self.root, again)
        ]
        shared = max(0, min(map(len, digests)) - 1)  # the last one may end earlier
        for ours, theirs in zip(*(lines[:shared] for lines in digests), strict=True):
            if ours != theirs:
                self.violation(f"{ours} is not the {theirs} of an uninterrupted run")
        scores = [scores_of(self.root / "log/run.greedy.csv")]
        scores.append(scores_of(again / "log/again.greedy.csv"))
        shared_rows = max(0, min(len(scores[0]), len(scores[1]) - 2))
        if scores[0][:shared_rows] != scores[1][:shared_rows]:
            self.violation("scores are not those of an uninterrupted run")
        self.counts["epochs equal to the bit"] = shared
        self.counts["rows equal to the bit"] = count
        self.counts["scores equal to the bit"] = shared_rows
        reasons = read_json(self.root / "log/run.json").get("not_reproducible", [])
        if reasons:
            self.violation(f"said not to be reproducible: {reasons}")

    def check_log(self, learner: str) -> None:
        """Lines are whole and follow each other without a gap."""
        path = self.root / "log" / f"{learner}.log"
        content = path.read_text() if path.exists() else ""
        rows = list(csv.DictReader(io.StringIO(content)))
        if not content.endswith("\n") and rows:
            self.counts["torn tails of logs, not yet mended"] += 1
            rows.pop()
        try:
            counts = [
                int(row["updates"]) + int(row.get("pretrained") or 0) for row in rows
            ]
            [[float(value) for value in row.values()] for row in rows]
        except (TypeError, ValueError, KeyError):
            self.violation(f"torn line in {path.name}")
            return
        if counts != list(range(LOG_EVERY, LOG_EVERY * (len(rows) + 1), LOG_EVERY)):
            self.violation(f"{path.name} has doubled or missing lines")
        self.counts[f"lines of {path.name}"] = len(rows)


def words_of(batch: Batch, origin: Origin) -> np.ndarray:
    """Rows as numbers that are compared exactly, [B, words]."""
    floats = np.column_stack([*batch]).astype(np.float64)
    return np.column_stack([floats, *origin])


def scores_of(path: Path) -> list[str]:
    """The whole lines of a csv of scores without their hours."""
    content = path.read_text() if path.exists() else ""
    lines = content[: content.rfind("\n") + 1].splitlines()
    return [line.partition(",")[2] for line in lines]


@contextlib.contextmanager
def new_harness(seed: int) -> Iterator[Harness]:
    """A harness in a folder of its own; no process outlives it."""
    harness = Harness(Path(tempfile.mkdtemp(prefix="crash-")), seed)
    try:
        yield harness
    finally:
        if harness.launcher and harness.launcher.poll() is None:
            os.killpg(harness.launcher.pid, signal.SIGKILL)


def run_kills(kills: int, seconds: float, seed: int) -> Harness:
    """Kills until so many kills are done or the time is up, then resumes once more."""
    until, done = time.monotonic() + seconds, 0
    with new_harness(seed) as harness:
        while done < kills and time.monotonic() < until:
            done += harness.one_life(min(kills - done, harness.rng.randint(1, 8)))
        harness.one_life(0)
        harness.compare_with_an_uninterrupted_run()
    return harness


@pytest.mark.slow  # tests/test_reproducible.py kills as well
def test_a_run_that_is_killed_again_and_again_loses_nothing():
    """Each kill comes after so many updates: on any machine there is much to lose."""
    with new_harness(seed=0) as harness:
        harness.launch()
        harness.learn_to(150)
        harness.kill("interactor")
        harness.learn_to(250)
        harness.kill("group")
        harness.end()
        harness.launch()
        harness.learn_to(350)
        harness.end()
        harness.compare_with_an_uninterrupted_run()
    assert harness.violations == []
    assert harness.counts["epochs equal to the bit"] >= 3
    shutil.rmtree(harness.folder)


def report(harness: Harness) -> dict[str, object]:
    """What is printed, and appended to a file of results."""
    return {
        "kills": dict(harness.killed),
        "counts": dict(harness.counts),
        "slowest start until it learns, seconds": max(harness.resumes, default=0.0),
        "violations": harness.violations,
    }


def add(total: dict[str, object], part: dict[str, object]) -> dict[str, object]:
    """The sum of two reports; of times and of what was lost at most, the larger."""
    both = {}
    for key in total | part:
        a, b = total.get(key), part.get(key)
        if a is None or b is None:
            both[key] = b if a is None else a
        elif isinstance(a, dict):
            both[key] = add(a, b)
        else:
            both[key] = max(a, b) if "most" in key or "slowest" in key else a + b
    return both


def show(total: dict[str, object]) -> None:
    for part in ("kills", "counts"):
        print(f"{part}: {sum(total[part].values())}" if part == "kills" else part)
        for name, count in sorted(total[part].items()):
            print(f"    {count:>9,}  {name}")
    slowest = total["slowest start until it learns, seconds"]
    print(f"slowest start until both learners learn: {slowest:.1f} s")
    print(f"violations: {len(total['violations'])}")
    for violation in total["violations"]:
        print(f"    {violation}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin no more after this"
    )
    parser.add_argument(
        "--results",
        type=Path,
        help="a file to which this call's counts are added; its total is printed",
    )
    given = parser.parse_args()
    harness = run_kills(given.kills, given.seconds, given.seed)
    total = report(harness)
    if given.results:
        with open(given.results, "a") as file:
            file.write(json.dumps(total) + "\n")
        total = {}
        for line in given.results.read_text().splitlines():
            total = add(total, json.loads(line))
    show(total)
    if harness.violations:
        print(f"the run's folder stays: {harness.folder}")
        return 1
    shutil.rmtree(harness.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
