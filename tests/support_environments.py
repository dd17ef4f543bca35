"""The environments under test: how they are made, and recordings of some of them."""

import sys

import gymnasium
import pytest
from support import PROJECT

from steve import envwrap
from steve.settings.schema import Environment
from steve.util import UserError

RECORDINGS = PROJECT / "tests" / "data" / "environments"
# Wheels of pybullet end with Python 3.11, those of labmaze (dm_control) with 3.12.
needs_pybullet = pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="pybullet has no wheel for this Python"
)
needs_dm_control = pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="labmaze has no wheel for this Python"
)
PAPER_SIZES = {
    "Hopper-v1": (11, 3),
    "Walker2d-v1": (17, 6),
    "HalfCheetah-v1": (17, 6),
    "Swimmer-v1": (8, 2),
    "Humanoid-v1": (376, 17),
    "BipedalWalkerHardcore-v2": (24, 4),
    "RoboschoolHumanoid-v1": (44, 17),
    "RoboschoolHumanoidFlagrun-v1": (44, 17),
}


def made(name: str, **keys) -> gymnasium.Env:
    return envwrap.make_env(Environment(name=name, **keys))


def error_of(name: str, **keys) -> str:
    """The one-line error that making the environment ends in."""
    with pytest.raises(UserError) as caught:
        made(name, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def leave_no_id(*names: str) -> None:
    """Removes ids that a test has registered."""
    for name in names:
        gymnasium.registry.pop(name, None)
