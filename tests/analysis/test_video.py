"""Videos: how fast, with what caption, and what MuJoCo draws with."""

import numpy as np
import pytest

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
    drawn = video.as_rgb(picture)
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
    with pytest.raises(UserError, match="they must be uint8") as error:
        video.as_rgb(picture)
    assert str(list(picture.shape)) in str(error.value)
    assert "--video none" in str(error.value)


@pytest.mark.parametrize(
    ("environ", "libraries", "chosen", "missing"),
    [
        ({}, {"EGL", "OSMesa"}, "egl", None),
        ({}, {"OSMesa"}, "osmesa", None),
        ({"MUJOCO_GL": "osmesa"}, {"EGL", "OSMesa"}, "osmesa", None),
        ({"MUJOCO_GL": "glfw"}, set(), "glfw", None),
        ({"DISPLAY": ":0"}, set(), None, None),
        ({}, set(), "disable", "libegl1 or libosmesa6, and libgl1-mesa-dri"),
        ({"PYOPENGL_PLATFORM": "osmesa"}, {"EGL", "OSMesa"}, "osmesa", None),
        ({"PYOPENGL_PLATFORM": "osmesa"}, {"EGL"}, "disable", "PYOPENGL_PLATFORM=osm"),
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
