"""Videos: how fast, with what caption, and what MuJoCo draws with."""

import numpy as np
import pytest

from steve.analysis import video


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
    ("environ", "libraries", "chosen", "missing"),
    [
        ({}, {"EGL", "OSMesa"}, "egl", None),
        ({}, {"OSMesa"}, "osmesa", None),
        ({"MUJOCO_GL": "osmesa"}, {"EGL", "OSMesa"}, "osmesa", None),
        ({"MUJOCO_GL": "glfw"}, set(), "glfw", None),
        ({"DISPLAY": ":0"}, set(), None, None),
        ({}, set(), "disable", "libegl1 or libosmesa6, and libgl1-mesa-dri"),
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
