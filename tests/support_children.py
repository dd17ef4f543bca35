"""What the processes of a test's run do, as "support_children:function".

A process tells the test how far it is by files in the run's log folder, named
"PROCESS.what".
"""

import errno
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable

from steve.running import child as child_module
from steve.running.child import Context
from steve.settings.roles import LAUNCHER, process_names
from steve.settings.schema import Config
from steve.storage.board import FINAL_EPISODES
from steve.storage.checkpoint import CheckpointError
from steve.storage.folders import Run
from steve.util import RunError, UserError, atomic_write, wait_until

SHOWN_VARIABLES = ("STEVE_TEST_OWN", "STEVE_TEST_SHARED", "STEVE_TEST_OUTSIDE")


def mark(context: Context, what: str, content: object = "") -> None:
    atomic_write(
        context.run.folders.log / f"{context.name}.{what}", json.dumps(content).encode()
    )


def starts(context: Context) -> int:
    """How often this process was started, this time included."""
    path = context.run.folders.log / f"{context.name}.starts"
    with open(path, "a") as file:
        file.write("x")
    return path.stat().st_size


def beat_until_stopped(context: Context) -> None:
    row = context.board[context.name]

    def stopped() -> bool:
        row["heartbeat"] = time.monotonic()
        return context.stop()

    wait_until(stopped, longest=0.01)


# Those that end by themselves


def end(context: Context) -> None:
    print("nothing to do")


def end_without_streams(context: Context) -> None:
    """As an environment may leave them."""
    sys.stdout = sys.stderr = None


def mistake_without_streams(context: Context) -> None:
    sys.stdout = sys.stderr = None
    raise UserError("the key is wrong")


def end_last(context: Context) -> None:
    """Ends once all others than it and the launcher are ready."""
    others = len(process_names(context.run.config)) - 2
    wait_until(lambda: len([*context.run.folders.log.glob("*.ready")]) == others)


def speak(context: Context) -> None:
    """Prints by all ways there are, the last one past Python's buffers."""
    print("by print")
    print("by stderr", file=sys.stderr)
    os.write(1, b"by a library\n")


def speak_of_paths(context: Context) -> None:
    """Prints what no encoding has, and more than a buffer holds."""
    print("f\u00fcr/\udcff", flush=True)
    print("y" * 100_000, file=sys.stderr)


def leave_a_program(context: Context) -> None:
    """Starts a program, as an environment does; is killed, the first time."""
    leave_programs(context, lambda: os.kill(os.getpid(), signal.SIGKILL))


def leave_a_program_and_fail(context: Context) -> None:
    """Likewise, but fails by itself, as where an environment cannot be closed."""
    leave_programs(context, lambda: os._exit(5))


def leave_programs(context: Context, end: Callable[[], None]) -> None:
    count = starts(context)
    program = subprocess.Popen(["sleep", "98765"])
    mark(context, f"program{count}", program.pid)
    if count == 1:
        end()
    mark(context, "ready")
    beat_until_stopped(context)
    signal.pause()  # it does not end when asked


def fail(context: Context) -> None:
    """Has survived an exception before it meets one that another one led to."""
    try:
        raise LookupError("survived")
    except LookupError:
        traceback.print_exc()
    try:
        raise LookupError("what led to it")
    except LookupError as error:
        raise ValueError(f"failure {starts(context)}") from error


def mistake(context: Context) -> None:
    print("before the mistake")
    raise UserError("the key is wrong")


def mistake_after_a_restart(context: Context) -> None:
    if starts(context) == 1:
        raise ValueError("what brings the restart")
    mistake(context)


def hopeless(context: Context) -> None:
    raise RunError("learning has diverged")


def damaged(context: Context) -> None:
    raise CheckpointError("state: is damaged")


def full_disk(context: Context) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "/folder/file")


def full_quota(context: Context) -> None:
    raise OSError(errno.EDQUOT, "Disk quota exceeded")


def too_large(context: Context) -> None:
    """Writes more into a file than it may; Python ignores SIGXFSZ."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, most))
    atomic_write(context.run.folders.log / "file", bytes(20_000))


def forbidden(context: Context) -> None:
    raise OSError(errno.EACCES, "Permission denied", "/folder/file")


def leave(context: Context) -> None:
    raise SystemExit(0)


def abort(context: Context) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.abort()


# Those that are asked to end


def obey(context: Context) -> None:
    """Saves and ends when it is asked to."""
    mark(context, "ready")
    beat_until_stopped(context)
    mark(context, "saved")


def cannot_save(context: Context) -> None:
    mark(context, "ready")
    beat_until_stopped(context)
    full_disk(context)


def fail_to_save(context: Context) -> None:
    mark(context, "ready")
    beat_until_stopped(context)
    raise ValueError(f"failure {starts(context)}")


def die_while_saving(context: Context) -> None:
    mark(context, "ready")
    beat_until_stopped(context)
    os.kill(os.getpid(), signal.SIGKILL)


def lose_its_handler(context: Context) -> None:
    """Learns, and something has taken SIGTERM away from it."""
    context.board[context.name]["ready"] = 1
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    mark(context, "ready")
    signal.pause()


def obey_slowly(context: Context) -> None:
    """As `obey`, but saving takes a while."""
    mark(context, "ready")
    beat_until_stopped(context)
    mark(context, "asked")
    until = time.monotonic() + 0.5
    wait_until(lambda: time.monotonic() > until)
    mark(context, "saved")


def ignore(context: Context) -> None:
    """Has learned something, and does not end when it is asked to."""
    context.board[context.name]["ready"] = 1
    ignore_while_it_starts(context)


def ignore_while_it_starts(context: Context) -> None:
    """Does not end when it is asked to, as a learner that compiles."""
    mark(context, "ready")
    beat_until_stopped(context)
    mark(context, "asked")
    while True:
        signal.pause()


def lose_the_first_signal(context: Context) -> None:
    """As `obey`, but its environment has a handler of its own for a while."""
    heard = []
    signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    mark(context, "ready")
    wait_until(lambda: bool(heard))
    beat_until_stopped(context)
    mark(context, "saved")


def close_after(context: Context) -> None:
    """Ends as its file "end" says, and has something to close."""
    context.ends.callback(lambda: print("note: closed", flush=True))
    end_of = (context.run.folders.log / "end").read_text()
    globals()[end_of](context)


def describe(context: Context) -> None:
    """As `obey`; tells what it was started with."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    facts = {
        "nice": os.nice(0),
        "environ": {name: os.environ.get(name) for name in SHOWN_VARIABLES},
        "blocked": sorted(int(number) for number in blocked),
        "pid": os.getpid(),
        "seed": context.seed,
    }
    mark(context, "ready", facts)
    beat_until_stopped(context)
    mark(context, "saved")


def hang_once(context: Context) -> None:
    """Hangs at its first start, deaf to SIGTERM; then as `obey`."""
    if starts(context) == 1:
        context.board[context.name]["heartbeat"] = time.monotonic()
        mark(context, "hung")
        while True:
            signal.pause()
    obey(context)


def finish(context: Context) -> None:
    """Is done once the run is in its final phase."""
    launcher = context.board[LAUNCHER]
    mark(context, "ready")
    wait_until(lambda: launcher["phase"] == FINAL_EPISODES or context.stop())
    mark(context, "finished", not context.stop())


# A launcher that gets killed


def launch(run: Run, target: str) -> None:
    """Starts a child by a function of this module and waits for ever."""
    child = multiprocessing.get_context("spawn").Process(
        target=globals()[target],
        args=("support_children:ignore", run, "interactor0", 0),
    )
    child.start()
    signal.pause()


child_main = child_module.child_main


def child_main_without_the_kernel(*arguments: object) -> None:
    """As where the launcher died before the kernel was asked to end its child."""
    child_module.PR_SET_PDEATHSIG = -1  # no such request: refused
    child_module.child_main(*arguments)


def die_measuring(config: Config) -> None:
    """In place of `launch._measure`."""
    os._exit(1)


def hang_measuring(config: Config) -> None:
    """The same."""
    signal.pause()
