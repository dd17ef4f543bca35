"""Videos: how fast, with what caption, and what MuJoCo draws with."""

import signal

import numpy as np
import pytest
from moviepy.video.io import ffmpeg_writer

from steve.analysis import video
from steve.util import UserError


@pytest.mark.parametrize(
    ("speed", "fastest", "stride"),
    [(30, 30, 1), (31, 30, 2), (125, 30, 5), (25, 30, 1), (60, 15, 4), (5, 30, 1)],
)
def test_pictures_are_never_faster_than_asked(speed, fastest, stride):
    assert video.picture_stride(speed, fastest) == stride


def test_a_caption_leaves_the_picture_whole_and_makes_the_sides_even():
    picture = np.full((31, 401, 3), 77, np.uint8)
    frame = video.captioned(picture, "score 1")
    height, width = frame.shape[:2]
    assert height % 2 == width % 2 == 0
    np.testing.assert_array_equal(frame[30:61, :401], picture)
    assert (frame[:30] < 128).any()  # the text
    assert (video.captioned(picture, "")[:30] == 255).all()


@pytest.mark.parametrize(
    "picture",
    [
        np.full((2, 3, 3), 0.4, np.float32),
        np.full((2, 3, 4), 102, np.uint8),
        np.full((2, 3), 102, np.uint8),
        np.full((2, 3, 1), 0.4),
    ],
)
def test_floats_and_grey_are_drawn(picture):
    drawn = video.as_rgb(picture, "Drawn-v0")
    assert (drawn.dtype, drawn.shape) == (np.uint8, (2, 3, 3))
    assert (drawn == 102).all()


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((2, 3, 3), np.int64),
        np.full((2, 3, 3), 255.0),
        np.full((2, 3, 3), np.nan),
        np.zeros((2, 3, 2), np.uint8),
        np.zeros(3, np.uint8),
    ],
)
def test_other_pictures_are_one_line_with_what_they_are(picture):
    with pytest.raises(UserError, match=r"Drawn-v0 gives .* must be uint8") as error:
        video.as_rgb(picture, "Drawn-v0")
    assert str(list(picture.shape)) in str(error.value)
    assert "--video none" in str(error.value)


@pytest.mark.parametrize(
    ("picture", "said"), [(None, "gives no pictures ("), ([[0]], ", but list (")]
)
def test_what_is_no_array_is_no_picture(picture, said):
    with pytest.raises(UserError, match="--video none") as error:
        video.as_rgb(picture, "Drawn-v0")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("shape", "ground"),
    [
        ((20, 40, 3), np.s_[:0]),  # twice as large: nothing is left free
        ((10, 10, 3), np.s_[:, :5]),  # half as wide: the sides are free
        ((5, 40, 3), np.s_[:4]),  # a quarter as high: top and bottom
    ],
)
def test_a_picture_of_another_size_is_scaled_in_its_proportions(shape, ground):
    fitted = video.fitted(np.full(shape, 90, np.uint8), (10, 20, 3))
    assert (fitted.dtype, fitted.shape) == (np.uint8, (10, 20, 3))
    assert (fitted[ground] == 255).all()
    assert (fitted[4:6, 9:11] == 90).all()


class Still:
    """An environment that is drawn only."""

    def render(self):
        return np.zeros((400, 400, 3), np.uint8)


@pytest.fixture
def make_recorder(tmp_path, monkeypatch):
    """A recorder with a program in the place of ffmpeg."""

    def make(program=None):
        if program is not None:
            monkeypatch.setattr(f"{ffmpeg_writer.__name__}.FFMPEG_BINARY", str(program))
        wanted = video.Video(tmp_path / "episodes.mp4", 1)
        return video.Recorder(wanted, "Still-v0", 30.0, Still().render())

    return make


def test_an_ffmpeg_that_does_not_start_is_a_mistake(make_recorder):
    with pytest.raises(UserError, match=r"/nowhere/ffmpeg.* IMAGEIO_FFMPEG_EXE .*none"):
        make_recorder("/nowhere/ffmpeg")


@pytest.mark.parametrize(
    ("program", "said"),
    [("exit 0", "failed; correct"), ("echo no room >&2; exit 1", "failed: no room")],
)
@pytest.mark.parametrize("steps", [0, 1])
def test_what_ffmpeg_says_when_it_fails_is_told(
    make_recorder, program, said, steps, tmp_path
):
    ffmpeg = tmp_path / "ffmpeg"
    ffmpeg.write_text(f"#!/bin/sh\n{program}\n")
    ffmpeg.chmod(0o755)
    recorder = make_recorder(ffmpeg)

    def record():
        for step in range(steps):  # a picture is more than a pipe holds
            recorder.watch(1)(Still(), step, 0.0, True)
        recorder.close()

    with pytest.raises(video.EpisodeError, match=said):
        record()


def test_a_video_that_is_dropped_leaves_no_process(make_recorder):
    recorder = make_recorder()
    process = recorder._writer.proc
    recorder.drop()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("environ", "libraries", "chosen", "missing"),
    [
        ({}, {"EGL", "OSMesa"}, "egl", None),
        ({}, {"OSMesa"}, "osmesa", None),
        ({"MUJOCO_GL": "osmesa"}, {"EGL", "OSMesa"}, "osmesa", None),
        ({"MUJOCO_GL": "glfw", "DISPLAY": ":0"}, set(), "glfw", None),
        ({"MUJOCO_GL": "glfw"}, set(), "glfw", "MUJOCO_GL=glfw needs a display"),
        ({"DISPLAY": ":0"}, set(), None, None),
        ({}, set(), "disable", "libegl1 or libosmesa6, and libgl1-mesa-dri"),
        ({"PYOPENGL_PLATFORM": "osmesa"}, {"EGL", "OSMesa"}, "osmesa", None),
        ({"PYOPENGL_PLATFORM": "osmesa"}, {"EGL"}, "disable", "PYOPENGL_PLATFORM=osm"),
        ({"PYOPENGL_PLATFORM": "glx"}, {"EGL"}, "disable", "PYOPENGL_PLATFORM=glx"),
        ({"PYOPENGL_PLATFORM": "glx", "DISPLAY": ":0"}, {"EGL"}, None, None),
        (
            {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "osmesa"},
            {"EGL", "OSMesa"},
            "disable",
            "MUJOCO_GL=egl and PYOPENGL_PLATFORM=osmesa contradict",
        ),
        ({"MUJOCO_GL": "bogus"}, {"EGL"}, "disable", "MUJOCO_GL=bogus is none of"),
        ({"MUJOCO_GL": "egl"}, {"OSMesa"}, "disable", "libegl1, libgl1-mesa-dri"),
        ({"MUJOCO_GL": "osmesa"}, {"EGL"}, "disable", "libosmesa6, libgl1-mesa-dri"),
    ],
)
def test_what_mujoco_draws_with(environ, libraries, chosen, missing):
    found = {name: f"lib{name}.so" for name in libraries}
    said = video.choose_gl(environ, found.get)
    assert environ.get("MUJOCO_GL") == chosen
    assert (said is None) == (missing is None)
    assert missing is None or missing in said
