"""Launches a run: opens its output, runs its processes."""

import errno
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..settings import extensions
from ..settings.interface import EnvSizes
from ..settings.loading import check_registered
from ..settings.request import Request
from ..settings.roles import VALUERL, WORLDMODEL, Kind, roles
from ..settings.schema import Config
from ..storage import opening
from ..storage.board import Board
from ..storage.disk import file_error_line, full_disk_line, is_full
from ..storage.folders import Folders, Run, asides
from ..storage.locks import held, unwritable
from ..storage.record import read_run, record_end, record_finish, was_killed
from ..util import (
    NO_SPACE,
    RunError,
    UserError,
    environment,
    importing_tensorflow,
    on_stop_signals,
    one_line,
    redirected,
)
from . import devices, leftovers
from .child import end_with_parent
from .devices import CPU, NO_GPU, VARIABLE
from .display import Display, closing_lines
from .supervisor import Child, Outcome, Supervisor

DETERMINISTIC_XLA = "--xla_gpu_deterministic_ops=true"
DISK_ERRORS = (*NO_SPACE, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EIO)
FREE_SOME = "free some and --resume"  # what to do where a disk is full
IMPORT_PATIENCE = 60.0  # seconds, in addition to step_timeout, to import the simulator
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)


MAINS = {
    Kind.VALUERL: "steve.valuerl_learner:main",
    Kind.WORLDMODEL: "steve.worldmodel_learner:main",
    Kind.INTERACTOR: "steve.acting.interactor:interact",
    Kind.EVALUATOR: "steve.acting.evaluator:evaluate",
    Kind.LOGGER: "steve.loggers.process:main",
}


@contextmanager
def opened(request: Request, note: Callable[[str], None]) -> Iterator[Run | None]:
    """The run that a request asks for, its folder held; see `storage.opening.opened`.

    Raises:
        UserError: a mistake; nothing has been written if it shows before the start.
    """
    config = request.loaded.config
    assignment = devices.assigned(request.device, config.has_model, os.environ)
    gpus: dict[str, str] = {}
    if request.device != CPU:
        gpus = {VALUERL: assignment.valuerl, WORLDMODEL: assignment.worldmodel}
    with opening.opened(request, measure_environment, gpus, note) as run:
        if run is not None and assignment.note:
            note(assignment.note)
        yield run


def run_processes(run: Run, display: Display, ends: ExitStack) -> Outcome:
    """Runs all processes of an opened run until its limit, a failure or a signal.

    What came out is shown; what went wrong is for the caller to print.

    Args:
        run: that one.
        display: shows how far it is.
        ends: until it is left, a signal asks this run to end; when its processes have
            ended, it does nothing more.

    Raises:
        UserError: the status board cannot be written; as RunError, the replay buffer
            was damaged meanwhile.
        OSError: the end cannot be recorded.
    """
    display.note(f"{run.config.algorithm} on {run.config.env.name}, {_limits(run)}")
    display.note(f"results go to {run.folders.root}")
    _end_leftovers(run)
    try:
        board = Board.create(run.folders.board, run.config)
    except OSError as error:
        raise unwritable(error, run.folders) from None
    supervisor = Supervisor(run, board, plan_children(run), display)
    progress = supervisor.progress
    ends.enter_context(on_stop_signals(supervisor.on_signal))
    try:
        outcome = supervisor.run()
        if outcome.finished:
            record_finish(
                run.folders, progress.frames, progress.hours, progress.random_score()
            )
    except Exception as error:
        _record_end(run, 1, one_line(error))
        raise
    lines = (outcome.error or "").splitlines()
    _record_end(run, outcome.code, lines[-1] if lines else None)
    if not outcome.error:
        for line in closing_lines(progress, outcome.finished):
            display.note(line)
    return outcome


def _limits(run: Run) -> str:
    """The limits of a run, in words."""
    frames, hours = run.config.total_frames, run.config.total_hours
    limits = [f"{frames:,} frames"] if frames is not None else []
    limits += [f"{hours:g} hours of learning"] if hours is not None else []
    if not limits:
        return "without a limit: until it is stopped"
    return f"to {' or '.join(limits)}"


def _record_end(run: Run, code: int, why: str | None) -> None:
    with suppress(OSError, UserError):  # what went wrong is told in another way
        record_end(run.folders, code, why)


def end_of(error: Exception) -> tuple[str, int]:
    """The line that says what ended a launch, and its exit code (SPEC section 12).

    Raises:
        Exception: the error itself, where it is a fault of this program.
    """
    if isinstance(error, UserError):
        return str(error), 1 if isinstance(error, RunError) else 2
    if not isinstance(error, OSError) or error.errno not in DISK_ERRORS:
        raise error
    if is_full(error):
        return f"{full_disk_line(error, Path.cwd())}; {FREE_SOME}", 1
    return file_error_line(error), 1


def _end_leftovers(run: Run) -> None:
    """Where an earlier launch was killed, ends what its processes had started.

    The folder of that launch may have been put aside since.
    """
    folders, config = run.folders, run.config
    asked = []
    earlier = read_run(folders)["starts"][:-1]
    if earlier and was_killed(earlier[-1]):
        asked += leftovers.end_all(folders.root)
    for root in asides(folders.root):
        aside = Folders.at(root, config.log_path, config.save_model_path, root.name)
        with suppress(UserError), held(aside):  # damaged, or in use by a launch
            starts = read_run(aside)["starts"]
            if starts and was_killed(starts[-1]):
                asked += leftovers.end_all(root)
    leftovers.finish(asked)


def _measure(config: Config) -> opening.Measured:
    from .. import envwrap  # here: the launcher itself needs no simulator

    registered = envwrap.registered()
    # Libraries such as TensorFlow print notes that obey no log level.
    with open(os.devnull, "w") as nowhere, redirected(nowhere.fileno()):
        extensions.import_modules(config.module)
    # Modules with a weighting or a world model, which interactors do not need.
    load_nets = "tensorflow" in sys.modules and envwrap.registered() == registered
    if config.env.module is not None:
        # Its errors are one line, without the usage of a script that reads argv.
        with open(os.devnull, "w") as nowhere, redirected(nowhere.fileno(), (2,)):
            extensions.import_module(config.env.module, "env.module")
    _check_extensions(config)
    spec = envwrap.measure(config.env, config.policy_config.explore_chance)
    _try_world_model(config, spec)
    expansion = config.policy_config.value_expansion
    return opening.Measured(
        spec,
        expansion.description if expansion else None,
        () if load_nets else tuple(config.module),
    )


def _check_extensions(config: Config) -> None:
    """Checks that what a configuration chooses has been registered by now.

    Raises:
        UserError: an unknown name or setting, a user's weighting that does not work,
            or a logger that cannot be had.
    """
    from ..loggers import check as check_loggers  # here: they know its children

    check_registered(config)
    _try_weighting(config)
    check_loggers(config)


def _try_weighting(config: Config) -> None:
    """Tries a weighting of a user's module.

    Raises:
        UserError: it fails, or gives something else than weights.
    """
    expansion = config.policy_config.value_expansion
    if expansion is None or isinstance(expansion.entry.target, str):
        return
    name, settings = expansion.choice
    most = expansion.rollout_len + 1
    counts = range(1 if expansion.tdk_trick else most, most + 1)
    with importing_tensorflow():
        fault = expansion.entry.trial_fault(settings, counts)
    if fault:
        key = "policy_config.value_expansion.weighting"
        raise UserError(f"{key}: {name} {fault}; correct the function")


def _try_world_model(config: Config, sizes: EnvSizes) -> None:
    """Tries a world model of a user's module.

    Raises:
        UserError: it fails, or does not give what `WorldModelProtocol` says.
    """
    model = config.world_model_config
    if model is None or isinstance(
        extensions.WORLD_MODELS.find(model.kind).target, str
    ):
        return
    with importing_tensorflow():
        from ..worldmodel_learner import trial_fault

    if fault := trial_fault(model, sizes.obs_dim, sizes.action_dim):
        raise UserError(f"model_config.kind: {model.kind} {fault}; correct the class")


def measure_environment(config: Config) -> opening.Measured:
    """Makes the environment once, in a process of its own, and reads its sizes.

    That process also imports the user's modules, and checks and describes what they
    register.

    Raises:
        UserError: it cannot be made, or does not fit the configuration; or processes
            cannot share memory.
    """
    env = config.env
    earlier = set(multiprocessing.active_children())
    try:
        pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=end_with_parent
        )
    except OSError as error:  # of its semaphores, which are files there
        raise UserError(
            f"/dev/shm: {error.strerror}; it must be there and writable, as the "
            "system's memory for what processes share"
        ) from None
    try:
        patience = env.step_timeout + IMPORT_PATIENCE
        with environment({VARIABLE: NO_GPU, "TF_CPP_MIN_LOG_LEVEL": "3"}):
            measured = pool.submit(_measure, config)  # starts the process
        return measured.result(patience)
    except BrokenProcessPool:
        raise UserError(
            f"making the environment {env.name} ended its process; make it once by "
            "itself to see why"
        ) from None
    except TimeoutError:
        raise UserError(
            f"making, resetting and stepping {env.name} took over {patience:g} s "
            f"(env.step_timeout and {IMPORT_PATIENCE:g} s for its imports): raise "
            "env.step_timeout, or correct the environment"
        ) from None
    finally:
        for worker in set(multiprocessing.active_children()) - earlier:
            worker.kill()
        # Waits for its thread, which would else race with the interpreter's end.
        pool.shutdown(cancel_futures=True)


def plan_children(run: Run) -> list[Child]:
    """All processes of a run, with the environment variables that they start with."""
    children = []
    for role in roles(run.config):
        if role.kind is Kind.LAUNCHER:
            continue
        variables = {VARIABLE: run.gpus.get(role.name, NO_GPU)}
        if role.is_learner:
            if run.config.deterministic and not run.cpu_learners:
                given = os.environ.get("XLA_FLAGS", "")
                variables["XLA_FLAGS"] = f"{given} {DETERMINISTIC_XLA}".strip()
            # Two learners may share one GPU: take memory as it is needed.
            variables |= {
                "TF_FORCE_GPU_ALLOW_GROWTH": "true",
                "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"),
            }
        else:
            variables |= ONE_THREAD
        children.append(Child(role.name, role.kind, MAINS[role.kind], variables))
    return children
