"""Episodes of a trained policy, and their video, in a process without TensorFlow.

MuJoCo's off-screen renderer and TensorFlow crash a process that holds both, and a
renderer that finds no display may abort its process. So `EpisodeRunner` runs the
episodes in a spawned child: whatever happens there reaches the caller as an exception.

Dimension letters: T steps of an episode, O observation, A action.
"""

import contextlib
import ctypes.util
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from checkpoint import Checkpoint
from devices import NO_GPU, VARIABLE
from policy import Policy
from schema import Environment
from util import UserError, one_line

if TYPE_CHECKING:
    import gymnasium

    from envwrap import EnvSpec

# What MuJoCo can draw with where there is no display: its name in MUJOCO_GL, the
# library, and the Debian package that the library comes with.
GL_VARIABLE = "MUJOCO_GL"
GL_BACKENDS = {"egl": ("EGL", "libegl1"), "osmesa": ("OSMesa", "libosmesa6")}
GL_PACKAGES = "libegl1 or libosmesa6, and libgl1-mesa-dri"
NO_GL = "disable"  # MuJoCo can then be imported, but draws nothing

FASTEST = 30.0  # pictures per second that a video needs at most
FASTEST_GIF = 15.0
DEFAULT_SPEED = (
    30.0  # steps per second, where an environment does not say how fast it is
)
LAST_PICTURE = 1.0  # seconds that the last picture of an episode stays
QUALITY = ("-crf", "18", "-movflags", "+faststart")
CAPTION_HEIGHT = 30
CAPTION_SIZE = 16
MARGIN = 8
NARROWEST = 320  # pixels: the caption must fit


class EpisodeError(Exception):
    """The environment or its process failed; one line."""


class Episode(NamedTuple):
    """What happened in one episode.

    Attributes:
        seed: that the environment was reset with.
        obs: [T, O].
        action: [T, A] in [-1, 1].
        reward: [T], as the environment gives it.
        next_obs: [T, O].
        terminated: whether the environment ended it; else it was cut.
    """

    seed: int
    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_obs: np.ndarray
    terminated: bool

    @property
    def length(self) -> int:
        """T."""
        return len(self.reward)

    @property
    def score(self) -> float:
        """The plain sum of rewards, added up in their order (SPEC section 9)."""
        return float(sum(self.reward.tolist()))


@dataclass(frozen=True)
class Video:
    """The video that is wanted.

    Attributes:
        path: ends in .mp4 or .gif.
        episodes: how many there will be, for the caption.
    """

    path: Path
    episodes: int


class EpisodeRunner:
    """A child process with the environment, ready to run episodes.

    Args:
        env_config: the section `env` of the configuration.
        video: None: no pictures are made.

    Attributes:
        sizes: of the environment.

    Raises:
        UserError: the environment cannot be made, or not be drawn.
        EpisodeError: its process ended, or it raised an exception.
    """

    def __init__(self, env_config: Environment, video: Video | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._name = env_config.name
        self._has_video = video is not None
        self._pipe, theirs = context.Pipe()
        # What libraries print there is shown only if the process dies of it.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._process = context.Process(
            target=_serve, args=(theirs, env_config, video), daemon=True
        )
        try:
            with redirected(self._output.fileno()):
                self._process.start()
            theirs.close()
            self.sizes: EnvSpec = self._receive("sizes")
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
        """Ends the child, at once."""
        if self._process.pid is not None:
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
            raise EpisodeError(self._epitaph()) from None
        if kind == "mistake":
            raise UserError(content)
        if kind == "failure":
            raise EpisodeError(content)
        assert kind == expected, kind
        return content

    def _epitaph(self) -> str:
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


@contextlib.contextmanager
def redirected(descriptor: int) -> Iterator[None]:
    """For a moment, stdout and stderr lead to another file, also those of libraries.

    A child process that starts meanwhile keeps it so.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = [os.dup(number) for number in (1, 2)]
    try:
        for number in (1, 2):
            os.dup2(descriptor, number)
        yield
    finally:
        for number, original in zip((1, 2), kept, strict=True):
            os.dup2(original, number)
            os.close(original)


# ---- The child ----------------------------------------------------------------------


def _serve(pipe: Connection, env_config: Environment, video: Video | None) -> None:
    """The child's main function: measures, waits for a policy, runs the episodes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    code = 0
    try:
        _serve_episodes(pipe, env_config, video)
    except UserError as error:
        pipe.send(("mistake", str(error)))
    except (EOFError, BrokenPipeError):  # the parent is gone
        code = 1
    except Exception as error:
        pipe.send(("failure", f"{env_config.name}: {_where(error)}"))
    # Not sys.exit: renderers without a display abort when they are taken down.
    os._exit(code)


def _serve_episodes(
    pipe: Connection, env_config: Environment, video: Video | None
) -> None:
    os.environ[VARIABLE] = NO_GPU  # as for interactors and evaluators
    os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "1"
    env, recorder = _open(env_config, video)
    from envwrap import sizes_of

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
        EpisodeError: an observation or a reward is not finite.
    """
    obs, _ = env.reset(seed=seed)
    steps, score, over = [], 0.0, False
    if look:
        look(env, 0, score, False)
    while not over:
        action = policy.greedy(obs[None])[0]
        next_obs, reward, terminated, truncated, _ = env.step(action)
        if not (np.isfinite(reward) and np.isfinite(next_obs).all()):
            raise EpisodeError(
                f"step {len(steps) + 1} of the episode with seed {seed} gave an "
                "observation or a reward that is not finite"
            )
        steps.append((obs, action, reward, next_obs))
        score += float(reward)
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
        terminated=bool(terminated),
    )


def _where(error: BaseException) -> str:
    """An exception on one line, with the place that raised it."""
    text = f"{type(error).__name__}: {one_line(error)}"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    return text + (place if frames and not isinstance(error, EpisodeError) else "")


# ---- Rendering ----------------------------------------------------------------------


def choose_gl(
    environ: MutableMapping[str, str],
    find: Callable[[str], str | None] = ctypes.util.find_library,
) -> str | None:
    """Sets MUJOCO_GL to what can draw without a display, before MuJoCo is imported.

    The user's own choice is kept where its library is there. With no library it
    becomes "disable": then MuJoCo can be imported and steps, but does not draw.

    Returns:
        None, or what is missing; it concerns those environments that MuJoCo draws.
    """
    chosen = environ.get(GL_VARIABLE, "").strip().lower()
    if chosen and chosen not in GL_BACKENDS:
        return None  # glfw, say: the user knows
    for backend in [chosen] if chosen else GL_BACKENDS:
        if find(GL_BACKENDS[backend][0]):
            environ[GL_VARIABLE] = backend
            return None
    if not chosen and environ.get("DISPLAY"):
        return None
    environ[GL_VARIABLE] = NO_GL
    if chosen:
        library, package = GL_BACKENDS[chosen]
        return (
            f"{GL_VARIABLE}={chosen} needs the library {library} (Debian: {package}, "
            "libgl1-mesa-dri)"
        )
    return f"no EGL or OSMesa library was found (Debian: {GL_PACKAGES})"


def _open(
    env_config: Environment, video: Video | None
) -> "tuple[gymnasium.Env, Recorder | None]":
    """Makes the environment and, for a video, draws it once.

    Raises:
        UserError: it cannot be made, or not be drawn.
    """
    missing = choose_gl(os.environ)
    make_env = importlib.import_module("envwrap").make_env
    if video is None:
        return make_env(env_config), None
    drawn = {**env_config.make_kwargs, "render_mode": "rgb_array"}
    try:
        env = make_env(env_config.model_copy(update={"make_kwargs": drawn}))
        env.reset(seed=0)
        picture = env.render()
    except Exception as error:
        if not isinstance(error, UserError) or _can_be_made(env_config):
            raise _undrawable(env_config, error, missing) from error
        raise
    if not (isinstance(picture, np.ndarray) and picture.shape[2:] in ((3,), (4,))):
        raise UserError(
            f"{env_config.name} gives no pictures (render_mode rgb_array); --video "
            "none leaves the video out"
        )
    return env, Recorder(video, env.metadata.get("render_fps"), picture)


def _can_be_made(env_config: Environment) -> bool:
    try:
        importlib.import_module("envwrap").make_env(env_config).close()
    except Exception:  # then this is what is wrong, not the drawing
        return False
    return True


def _undrawable(
    env_config: Environment, error: Exception, missing: str | None
) -> UserError:
    """What to say of an environment that can be made, but not be drawn."""
    text = one_line(error)
    if missing is None and ("GL" in text or "mesa" in text.lower()):
        backend = os.environ.get(GL_VARIABLE, "unset")
        missing = (
            f"with {GL_VARIABLE} {backend}: {text.rstrip('.')}; Debian: {GL_PACKAGES}"
        )
    return UserError(
        f"{env_config.name} cannot be drawn: {missing or text}; --video none leaves "
        "the video out"
    )


class Recorder:
    """Writes the video picture by picture, so that a long one needs no memory.

    Every k-th step is drawn, so that time passes as in the environment at no more
    than 30 pictures per second (gif: 15); the last step is always drawn.

    Args:
        video: what is wanted.
        steps_per_second: how fast the environment runs in its own time.
        picture: one, for the size of all.
    """

    def __init__(
        self, video: Video, steps_per_second: float | None, picture: np.ndarray
    ) -> None:
        from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter

        self._video = video
        self._is_gif = video.path.suffix == ".gif"
        speed = float(steps_per_second or DEFAULT_SPEED)
        self.stride = picture_stride(speed, FASTEST_GIF if self._is_gif else FASTEST)
        self.fps = speed / self.stride
        self._shape = picture.shape
        # A gif is made of a film: how long it gets is known only at the end.
        self._film = video.path.with_suffix(".mp4")
        height, width = captioned(picture[..., :3], "").shape[:2]
        self._writer = FFMPEG_VideoWriter(
            str(self._film), (width, height), self.fps, ffmpeg_params=list(QUALITY)
        )

    def watch(self, number: int) -> Callable[["gymnasium.Env", int, float, bool], None]:
        """What `run_episode` calls during the episode of this number, from 1."""

        def look(env: "gymnasium.Env", step: int, score: float, over: bool) -> None:
            if step % self.stride and not over:
                return
            picture = np.asarray(env.render())
            if picture.shape != self._shape:
                raise UserError(
                    f"the pictures change their size from {self._shape} to "
                    f"{picture.shape}; --video none leaves the video out"
                )
            text = (
                f"episode {number}/{self._video.episodes}      step {step}      "
                f"score {score:.1f}"
            )
            frame = captioned(picture[..., :3], text)
            repeats = max(1, round(LAST_PICTURE * self.fps)) if over else 1
            for _ in range(repeats):
                self._writer.write_frame(frame)

        return look

    def close(self) -> None:
        """Completes the file.

        Raises:
            EpisodeError: ffmpeg failed.
        """
        ffmpeg = self._writer.proc
        self._writer.close()
        if ffmpeg.returncode:
            raise EpisodeError(f"{self._film}: ffmpeg failed, is the disk full?")
        if self._is_gif:
            from moviepy import VideoFileClip

            with VideoFileClip(str(self._film)) as clip:
                clip.write_gif(str(self._video.path), fps=self.fps, logger=None)
            self._film.unlink()


def picture_stride(steps_per_second: float, fastest: float) -> int:
    """Every how many steps a picture is made, so that there are at most `fastest`."""
    return max(1, int(np.ceil(steps_per_second / fastest - 1e-9)))


def captioned(picture: np.ndarray, text: str) -> np.ndarray:
    """A picture under a line of text.

    Args:
        picture: [height, width, 3] uint8.
        text: what to write.

    Returns:
        [., ., 3] uint8 with even sides, as the usual video formats ask for.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = picture.shape[:2]
    canvas_width = max(width + width % 2, NARROWEST)
    canvas_height = height + height % 2 + CAPTION_HEIGHT
    canvas = Image.new("RGB", (canvas_width, canvas_height), "white")
    canvas.paste(
        Image.fromarray(np.ascontiguousarray(picture)),
        ((canvas_width - width) // 2, CAPTION_HEIGHT),
    )
    ImageDraw.Draw(canvas).text(
        (MARGIN, CAPTION_HEIGHT // 2),
        text,
        fill="black",
        font=ImageFont.load_default(CAPTION_SIZE),
        anchor="lm",
    )
    return np.asarray(canvas)
