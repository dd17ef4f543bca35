"""Videos of episodes: the recorder, captions, and the choice of an OpenGL platform."""

import ctypes.util
import importlib
import os
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..settings.schema import Environment
from ..util import UserError, error_text, one_line

if TYPE_CHECKING:
    import gymnasium

# What MuJoCo can draw with where there is no display: its name in MUJOCO_GL, the
# library, and the Debian package that the library comes with.
GL_VARIABLE = "MUJOCO_GL"
GL_BACKENDS = {"egl": ("EGL", "libegl1"), "osmesa": ("OSMesa", "libosmesa6")}
GL_PACKAGES = "libegl1 or libosmesa6, and libgl1-mesa-dri"
NO_GL = "disable"  # MuJoCo can then be imported, but draws nothing
GL_NAMES = (*GL_BACKENDS, "glfw", NO_GL)
PLATFORM_VARIABLE = "PYOPENGL_PLATFORM"

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
FFMPEG_HINT = (
    "correct or unset IMAGEIO_FFMPEG_EXE and FFMPEG_BINARY, or pip install "
    "imageio-ffmpeg; --video none leaves the video out"
)


class EpisodeError(Exception):
    """The environment or its process failed; one line."""


@dataclass(frozen=True)
class Video:
    """The video that is wanted.

    Attributes:
        path: ends in .mp4 or .gif.
        episodes: how many there will be, for the caption.
    """

    path: Path
    episodes: int


# ---- Rendering ----------------------------------------------------------------------


def choose_gl(
    environ: MutableMapping[str, str],
    find: Callable[[str], str | None] = ctypes.util.find_library,
) -> str | None:
    """Sets MUJOCO_GL to what can draw without a display, before MuJoCo is imported.

    The user's own choice, or that of PYOPENGL_PLATFORM, is kept where its library is
    there. With no library, or an unknown name, it becomes "disable": then MuJoCo can be
    imported and steps, but does not draw.

    Returns:
        None, or what is missing; it concerns those environments that MuJoCo draws.
    """
    choice, missing = _gl_choice(environ, find)
    if choice is not None:
        environ[GL_VARIABLE] = choice
    return missing


def _gl_choice(
    environ: Mapping[str, str], find: Callable[[str], str | None]
) -> tuple[str | None, str | None]:
    """What MUJOCO_GL has to be, None: as it is; and what is missing."""
    chosen = environ.get(GL_VARIABLE, "").strip().lower()
    platform = environ.get(PLATFORM_VARIABLE, "").strip().lower()
    has_display = bool(environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY"))
    if chosen and chosen not in GL_NAMES:
        return NO_GL, (
            f"{GL_VARIABLE}={chosen} is none of {', '.join(GL_NAMES)}: "
            "correct it or leave it unset"
        )
    if chosen and chosen not in GL_BACKENDS:
        if chosen == NO_GL or has_display:
            return None, None
        return None, f"{GL_VARIABLE}={chosen} needs a display: leave it unset"
    # MuJoCo refuses another backend than PyOpenGL's.
    if chosen and platform and platform != chosen:
        return NO_GL, (
            f"{GL_VARIABLE}={chosen} and {PLATFORM_VARIABLE}={platform} contradict "
            "each other: leave one of them unset"
        )
    if platform and platform not in GL_BACKENDS:
        if has_display:
            return None, None
        return NO_GL, (
            f"{PLATFORM_VARIABLE}={platform} is none of {', '.join(GL_BACKENDS)}: "
            "correct it or leave it unset"
        )
    wanted = chosen or platform
    for backend in [wanted] if wanted else GL_BACKENDS:
        if find(GL_BACKENDS[backend][0]):
            return backend, None
    if wanted:
        library, package = GL_BACKENDS[wanted]
        return NO_GL, (
            f"{GL_VARIABLE if chosen else PLATFORM_VARIABLE}={wanted} needs the "
            f"library {library} (Debian: {package}, libgl1-mesa-dri)"
        )
    if has_display:
        return None, None
    return NO_GL, f"no EGL or OSMesa library was found (Debian: {GL_PACKAGES})"


def _open(
    env_config: Environment, video: Video | None, ends: ExitStack
) -> "tuple[gymnasium.Env, Recorder | None]":
    """Makes the environment and, for a video, draws it once; `ends` will close it.

    Raises:
        UserError: it cannot be made, or not be drawn.
    """
    missing = choose_gl(os.environ)
    envwrap = importlib.import_module("steve.envwrap")

    def make_env(env_config: Environment) -> "gymnasium.Env":
        env = envwrap.make_env(env_config)
        ends.callback(envwrap.close_env, env)
        return env

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
    rgb = as_rgb(picture, env_config.name)
    recorder = Recorder(video, env_config.name, env.metadata.get("render_fps"), rgb)
    ends.callback(recorder.drop)
    return env, recorder


def as_rgb(picture: object, name: str) -> np.ndarray:
    """What an environment drew, as [height, width, 3] uint8.

    Args:
        picture: [height, width], or with 1, 3 or 4 channels; uint8, or floats in
            [0, 1]. A fourth channel is left out.
        name: of the environment.

    Raises:
        UserError: it is none of these.
    """
    if not isinstance(picture, np.ndarray) or not picture.size:
        given = "" if picture is None else f", but {type(picture).__name__}"
        raise UserError(
            f"{name} gives no pictures{given} (render_mode rgb_array); --video none "
            "leaves the video out"
        )
    whole = picture[..., None] if picture.ndim == 2 else picture
    is_float = np.issubdtype(whole.dtype, np.floating)
    if (
        whole.shape[2:] not in ((1,), (3,), (4,))
        or not (is_float or whole.dtype == np.uint8)
        or (is_float and not (whole.min() >= 0 and whole.max() <= 1))
    ):
        raise UserError(
            f"{name} gives pictures of {picture.dtype} {list(picture.shape)}; they "
            "must be uint8 [height, width, 3 or 4], or floats in [0, 1]; --video none "
            "leaves the video out"
        )
    if is_float:
        whole = np.rint(255 * whole).astype(np.uint8)
    return np.broadcast_to(whole[..., :3], (*whole.shape[:2], 3))


def _can_be_made(env_config: Environment) -> bool:
    try:
        envwrap = importlib.import_module("steve.envwrap")
        envwrap.close_env(envwrap.make_env(env_config))
    except Exception:  # then this is what is wrong, not the drawing
        return False
    return True


def _undrawable(
    env_config: Environment, error: Exception, missing: str | None
) -> UserError:
    """What to say of an environment that can be made, but not be drawn."""
    text = one_line(error)
    if isinstance(error, UserError) and error.__cause__:  # what its class says
        text = f"made with render_mode rgb_array: {error_text(error.__cause__)}"
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
        name: of the environment.
        steps_per_second: how fast the environment runs in its own time.
        picture: one; others are scaled to its size.

    Raises:
        UserError: ffmpeg cannot be started.
    """

    def __init__(
        self,
        video: Video,
        name: str,
        steps_per_second: float | None,
        picture: np.ndarray,
    ) -> None:
        self._video = video
        self._name = name
        self._is_gif = video.path.suffix == ".gif"
        speed = float(steps_per_second or DEFAULT_SPEED)
        self.stride = picture_stride(speed, FASTEST_GIF if self._is_gif else FASTEST)
        self.fps = speed / self.stride
        self._shape = picture.shape
        # A gif is made of a film: how long it gets is known only at the end.
        self._film = video.path.with_suffix(".mp4")
        height, width = captioned(picture, "").shape[:2]
        try:
            from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter

            self._writer = FFMPEG_VideoWriter(
                str(self._film), (width, height), self.fps, ffmpeg_params=list(QUALITY)
            )
        except (OSError, RuntimeError) as error:  # moviepy looks for it on import
            raise UserError(
                f"videos need ffmpeg, which does not start: {one_line(error)}; "
                f"{FFMPEG_HINT}"
            ) from error

    def watch(self, number: int) -> Callable[["gymnasium.Env", int, float, bool], None]:
        """What `run_episode` calls during the episode of this number, from 1."""

        def look(env: "gymnasium.Env", step: int, score: float, over: bool) -> None:
            if step % self.stride and not over:
                return
            picture = fitted(as_rgb(env.render(), self._name), self._shape)
            text = (
                f"episode {number}/{self._video.episodes}      step {step}      "
                f"score {score:.1f}"
            )
            frame = captioned(picture, text)
            repeats = max(1, round(LAST_PICTURE * self.fps)) if over else 1
            try:
                for _ in range(repeats):
                    self._writer.proc.stdin.write(frame.tobytes())
            except BrokenPipeError:
                self._complete_film()
                raise

        return look

    def _complete_film(self) -> None:
        """Waits for ffmpeg to end.

        Raises:
            EpisodeError: it failed.
        """
        ffmpeg = self._writer.proc
        said = ffmpeg.communicate()[1].decode(errors="replace").split("\n")
        self._writer.close()
        if ffmpeg.returncode or not self._film.exists():
            last = next((line.strip() for line in reversed(said) if line.strip()), "")
            raise EpisodeError(
                f"ffmpeg ({ffmpeg.args[0]}) failed"
                + (f": {last}" if last else f"; {FFMPEG_HINT}")
            )

    def close(self) -> None:
        """Completes the file.

        Raises:
            EpisodeError: ffmpeg failed.
        """
        self._complete_film()
        if self._is_gif:
            from moviepy import VideoFileClip

            with VideoFileClip(str(self._film)) as clip:
                clip.write_gif(str(self._video.path), fps=self.fps, logger=None)
            self._film.unlink()

    def drop(self) -> None:
        """Ends ffmpeg where the file was not completed."""
        if self._writer.proc:
            self._writer.proc.kill()
            self._writer.close()


def picture_stride(steps_per_second: float, fastest: float) -> int:
    """Every how many steps a picture is made, so that there are at most `fastest`."""
    return max(1, int(np.ceil(steps_per_second / fastest - 1e-9)))


def fitted(picture: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A picture scaled to [height, width, 3] on a white ground, in its proportions."""
    from PIL import Image, ImageOps

    if picture.shape == shape:
        return picture
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(ImageOps.pad(image, (shape[1], shape[0]), color="white"))


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
