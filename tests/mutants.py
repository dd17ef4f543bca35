"""Mutants: small faults in the code, each of which the tests must notice.

    python tests/mutants.py [--list] [--jobs N] [NUMBER | WORD ...]

Each table in tests/data/mutants/*.toml is one: a file, a text that stands there exactly
once, what replaces it, and the tests that must then fail. Every mutant is applied to a
copy of the tree in a temporary folder, which its processes import as `steve`. Those
that no test notices are printed at the end, and the exit code is 1; so it is where a
text is not found exactly once, or where the tests fail without any mutant.
"""

import argparse
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
LISTS = PROJECT / "tests" / "data" / "mutants"
PASSED, FAILED = 0, 1  # exit codes of pytest
PATIENCE = 600.0  # seconds; tests that take longer have noticed the mutant, by hanging


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        number: from 1 on.
        name: its list's and its own, as in "replay/older-rows".
        file: the path, in the project, of the file that has the fault.
        before: what stands there, exactly once.
        after: what replaces it.
        tests: files or nodes for pytest, of which one must fail.
    """

    number: int
    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    def applied(self, tree: Path) -> str:
        """The mutated content of the file.

        Raises:
            ValueError: the text does not stand there exactly once; one line.
        """
        path = tree / self.file
        text = path.read_text() if path.is_file() else ""
        if (count := text.count(self.before)) != 1:
            raise ValueError(
                f"{self.name}: {self.file} has its text {count} times, not once:\n"
                f"{self.before}"
            )
        return text.replace(self.before, self.after)


def read_mutants(folder: Path = LISTS) -> list[Mutant]:
    """All mutants of the lists in a folder, in their order."""
    found: list[Mutant] = []
    for path in sorted(folder.glob("*.toml")):
        for name, entry in tomllib.loads(path.read_text()).items():
            tests = tuple(shlex.split(entry.pop("tests")))
            name = f"{path.stem}/{name}"
            found.append(Mutant(len(found) + 1, name, tests=tests, **entry))
    return found


def chosen(mutants: Sequence[Mutant], words: Sequence[str]) -> list[Mutant]:
    """Those with one of the numbers, or one of the words in their names; else all."""
    return [
        mutant
        for mutant in mutants
        if not words
        or any(
            int(word) == mutant.number if word.isdecimal() else word in mutant.name
            for word in words
        )
    ]


def faults(mutants: Sequence[Mutant], tree: Path) -> Iterator[str]:
    """What is wrong with the mutants themselves: texts and tests that are not there."""
    for mutant in mutants:
        try:
            changed = mutant.applied(tree)
        except ValueError as error:
            yield str(error)
            continue
        if changed == (tree / mutant.file).read_text():
            yield f"{mutant.name}: its two texts are the same"
        for test in mutant.tests:
            file, _, node = test.partition("::")
            path = tree / file
            function = node.partition("[")[0]
            if not path.is_file() or f"def {function}" not in path.read_text():
                yield f"{mutant.name}: there is no test {test}"


class Copy:
    """A copy of a tree that is imported as `steve` where `run` runs the tests.

    Args:
        tree: what is copied: the files that git knows or would add.
        folder: where.
    """

    def __init__(self, tree: Path, folder: Path) -> None:
        self.tree = folder / "tree"
        self._folder = folder
        command = ["git", "ls-files", "-z", "--cached", "--others"]
        listed = subprocess.run(
            [*command, "--exclude-standard"], cwd=tree, check=True, capture_output=True
        ).stdout
        for name in filter(None, listed.decode().split("\0")):
            if (tree / name).is_file():  # else it has been removed
                path = self.tree / name
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(tree / name, path)
        links = folder / "links"
        links.mkdir()
        (links / "steve").symlink_to(self.tree)
        before = os.environ.get("PYTHONPATH")
        self._environment = os.environ | {
            "PYTHONPATH": f"{links}{os.pathsep}{before}" if before else str(links),
            # Compiled files are told apart by second and size: a mutant may keep both.
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def run(self, tests: Sequence[str]) -> tuple[int | None, str]:
        """Runs tests until the first that fails.

        Returns:
            pytest's exit code, None where it took longer than PATIENCE; its output.
        """
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += [f"--basetemp={self._folder / 'temporary'}", *tests]
        report = self._folder / "report.txt"
        with open(report, "wb") as output:
            process = subprocess.Popen(
                command,
                cwd=self.tree,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            code: int | None = None
            try:
                code = process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                pass
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        return code, report.read_text(errors="replace")

    def try_out(self, mutant: Mutant) -> tuple[int | None, str]:
        """Runs a mutant's tests with the mutant in place; then takes it out again."""
        path = self.tree / mutant.file
        before = path.read_text()
        path.write_text(mutant.applied(self.tree))
        try:
            return self.run(mutant.tests)
        finally:
            path.write_text(before)


def run_all(mutants: Sequence[Mutant], tree: Path, jobs: int) -> bool:
    """Tries mutants out, prints what became of each; True where all were noticed."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for i in range(jobs):
            copies.put(Copy(tree, Path(folder) / str(i)))

        def try_out(mutant: Mutant) -> tuple[Mutant, int | None, str, float]:
            copy, start = copies.get(), time.monotonic()
            try:
                code, report = copy.try_out(mutant)
            finally:
                copies.put(copy)
            return mutant, code, report, time.monotonic() - start

        tests = sorted({test for mutant in mutants for test in mutant.tests})
        print(f"{len(tests)} tests without a mutant", flush=True)
        copy = copies.get()
        code, report = copy.run(tests)
        copies.put(copy)
        if code != PASSED:
            print(report)
            print("the tests fail, or cannot be run, without any mutant")
            return False
        unnoticed = []
        with ThreadPoolExecutor(jobs) as pool:
            running = [pool.submit(try_out, mutant) for mutant in mutants]
            for done in as_completed(running):
                mutant, code, report, seconds = done.result()
                what = {None: "noticed, hangs", FAILED: "noticed", PASSED: "SURVIVED"}
                said = what.get(code, f"pytest ended with exit code {code}")
                line = f"{mutant.number:4} {said:15} {seconds:4.0f} s  {mutant.name}"
                print(line, flush=True)
                if code not in (None, FAILED):
                    unnoticed.append(line)
                if code not in (None, FAILED, PASSED):
                    print(report)
    print(f"{len(mutants) - len(unnoticed)} of {len(mutants)} mutants were noticed")
    print(*unnoticed, sep="\n", end="\n" if unnoticed else "")
    return not unnoticed


def main(arguments: Sequence[str] | None = None, tree: Path = PROJECT) -> int:
    """Returns the exit code: 0 where every mutant was noticed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "which", nargs="*", metavar="NUMBER|WORD", help="run only these mutants"
    )
    parser.add_argument("--list", action="store_true", help="list them, run none")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="so many at once"
    )
    options = parser.parse_args(arguments)
    mutants = chosen(read_mutants(tree / LISTS.relative_to(PROJECT)), options.which)
    if not mutants:
        parser.error("there is no such mutant; see --list")
    if options.list:
        for mutant in mutants:
            print(f"{mutant.number:4} {mutant.name}: {mutant.file}")
        return 0
    if found := list(faults(mutants, tree)):
        print(*found, sep="\n")
        return 1
    return 0 if run_all(mutants, tree, max(1, options.jobs)) else 1


if __name__ == "__main__":
    sys.exit(main())
