"""Episodes of a trained policy, and their video, in a process without TensorFlow.

MuJoCo's off-screen renderer and TensorFlow crash a process that holds both, and a
renderer that finds no display may abort its process. So `EpisodeRunner` runs the
episodes in a spawned child: whatever happens there reaches the caller as an exception.

Dimension letters: T steps of an episode, O observation, A action.
"""

import contextlib
import multiprocessing
import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from ..acting.policy import Policy
from ..replay_file import is_finite
from ..running.devices import NO_GPU, VARIABLE
from ..settings.extensions import import_modules
from ..settings.schema import Config, Environment
from ..settings.seeds import seed_globals
from ..storage.checkpoint import Checkpoint
from ..util import UserError, one_line, redirected
from .video import EpisodeError, Video, _open

END_PATIENCE = 8.0  # seconds that the child gets to close the environment

if TYPE_CHECKING:
    import gymnasium

    from ..envwrap import EnvSizes


class Episode(NamedTuple):
    """What happened in one episode.

    Attributes:
        seed: that the environment was reset with.
        obs: [T, O].
        action: [T, A] in [-1, 1].
        reward: [T], as the environment gives it.
        next_obs: [T, O].
        terminated: whether the environment ended it; else it was cut.
        broken: whether its next step was not finite: that step is not in it.
    """

    seed: int
    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_obs: np.ndarray
    terminated: bool
    broken: bool = False

    @property
    def length(self) -> int:
        """T."""
        return len(self.reward)

    @property
    def score(self) -> float:
        """The plain sum of rewards, added up in their order (SPEC section 9)."""
        total = 0.0
        for reward in self.reward.tolist():  # `sum` rounds otherwise from 3.12 on
            total += reward
        return total


class EpisodeRunner:
    """A child process with the environment, ready to run episodes.

    Args:
        config: the run's configuration.
        video: None: no pictures are made.

    Attributes:
        sizes: of the environment.

    Raises:
        UserError: the environment cannot be made, or not be drawn.
        EpisodeError: its process ended, or it raised an exception.
    """

    def __init__(self, config: Config, video: Video | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._name = config.env.name
        self._has_video = video is not None
        self._has_ended = False  # the child, but for the closing of the environment
        self._pipe, theirs = context.Pipe()
        # What libraries print there is shown only if the process dies of it.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._process = context.Process(target=_serve, args=(theirs, config, video))
        try:
            with redirected(self._output.fileno()):
                self._process.start()
            theirs.close()
            self.sizes: EnvSizes = self._receive("sizes")
        except BaseException:
            self.close()
            raise

    def run(self, policy: Checkpoint, seeds: Sequence[int]) -> Iterator[Episode]:
        """Runs one greedy episode for each seed; the video is complete at the end.

        Args:
            policy: as the value learner publishes it.
            seeds: that the environment is reset with.
        """
        # A checkpoint's arrays are read-only views; the child needs the policy alone.
        tensors = {n: t for n, t in policy.tensors.items() if n.startswith("policy/")}
        self._send((Checkpoint(tensors, policy.metadata), list(seeds)))
        for _ in seeds:
            yield self._receive("episode")
        self._receive("done")

    def close(self) -> None:
        """Ends the child, which first closes the environment."""
        if self._process.pid is not None:
            if not self._has_ended:
                self._process.terminate()
            self._process.join(END_PATIENCE)
            self._process.kill()
            self._process.join()
        self._pipe.close()
        self._output.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, message: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # what it died of comes next
            self._pipe.send(message)

    def _receive(self, expected: str) -> Any:
        try:
            kind, content = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise EpisodeError(self._how_it_ended()) from None
        self._has_ended = kind in ("mistake", "failure", "done")
        if kind == "mistake":
            raise UserError(content)
        if kind == "failure":
            raise EpisodeError(content)
        assert kind == expected, kind
        return content

    def _how_it_ended(self) -> str:
        code = self._process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return (
            f"the process of the environment {self._name} ended ({how})"
            + (f": {last}" if last else "")
            + ("; --video none leaves the pictures out" if self._has_video else "")
        )


# ---- The child ----------------------------------------------------------------------


def _serve(pipe: Connection, config: Config, video: Video | None) -> None:
    """The child's main function: measures, waits for a policy, runs the episodes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = 0
    ends = contextlib.ExitStack()
    try:
        import_modules(config.module)
        seed_globals(config.seed)
        _serve_episodes(pipe, config.env, video, ends)
    except UserError as error:
        pipe.send(("mistake", str(error)))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):  # nobody wants more
        code = 1
    except Exception as error:
        pipe.send(("failure", f"{config.env.name}: {_where(error)}"))
    # Last: a renderer without a display may abort when it is taken down.
    ends.close()
    # Not sys.exit: it takes other renderers down, and waits for threads of libraries.
    os._exit(code)


def _serve_episodes(
    pipe: Connection,
    env_config: Environment,
    video: Video | None,
    ends: contextlib.ExitStack,
) -> None:
    os.environ[VARIABLE] = NO_GPU  # as for interactors and evaluators
    os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "1"
    env, recorder = _open(env_config, video, ends)
    from ..envwrap import sizes_of

    sizes = sizes_of(env)
    pipe.send(("sizes", sizes))
    checkpoint, seeds = pipe.recv()
    policy = Policy(checkpoint, sizes.obs_dim, sizes.action_dim)
    for number, seed in enumerate(seeds, start=1):
        look = recorder.watch(number) if recorder else None
        pipe.send(("episode", run_episode(env, policy, seed, look)))
    if recorder:
        recorder.close()
    pipe.send(("done", None))


def run_episode(
    env: "gymnasium.Env",
    policy: Policy,
    seed: int,
    look: Callable[["gymnasium.Env", int, float, bool], None] | None = None,
) -> Episode:
    """One episode with the greedy policy.

    Args:
        env: from `make_env`.
        policy: whose action is taken.
        seed: that the environment is reset with.
        look: called after the reset and after each step with the environment, the
            steps and score so far, and whether the episode is over.

    Raises:
        EpisodeError: the first observation or step is not finite. A later such step
            ends the episode, as in training, and is left out.
    """
    seed_globals(seed)
    obs, _ = env.reset(seed=seed)
    steps: list[tuple[np.ndarray, np.ndarray, float, np.ndarray]] = []
    score, over, broken = 0.0, False, False
    if not is_finite(obs):
        raise EpisodeError(
            f"the first observation of the episode with seed {seed} is not finite"
        )
    if look:
        look(env, 0, score, False)
    while not over:
        action = policy.greedy(obs[None])[0]
        next_obs, given, terminated, truncated, _ = env.step(action)
        reward = float(given)
        if not (is_finite(reward) and is_finite(next_obs)):
            if not steps:
                raise EpisodeError(
                    f"step 1 of the episode with seed {seed} gave an observation or a "
                    "reward that is not finite"
                )
            broken = True
            break
        steps.append((obs, action, reward, next_obs))
        score += reward
        over = terminated or truncated
        obs = next_obs
        if look:
            look(env, len(steps), score, over)
    all_obs, actions, rewards, all_next_obs = zip(*steps, strict=True)
    return Episode(
        seed=seed,
        obs=np.asarray(all_obs, np.float32),
        action=np.asarray(actions, np.float32),
        reward=np.asarray(rewards, np.float64),
        next_obs=np.asarray(all_next_obs, np.float32),
        terminated=bool(terminated) and not broken,
        broken=broken,
    )


def _where(error: BaseException) -> str:
    """An exception on one line, with the place that raised it."""
    if isinstance(error, EpisodeError):
        return str(error)
    text = f"{type(error).__name__}: {one_line(error)}"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    return text + (place if frames else "")
