"""The keyword arguments that an environment of the paper takes: those of rendering."""

from typing import Any

from ..util import UserError
from . import MAKERS

# By the modules of `MAKERS`; all else is as the paper had it.
RENDERING_KEYS = {
    "mujoco": {
        "render_mode",
        "width",
        "height",
        "camera_id",
        "camera_name",
        "default_camera_config",
        "max_geom",
        "visual_options",
    },
    "box2d": {"render_mode"},
    "roboschool": {"render_mode"},
}


def check_rendering_only(name: str, make_kwargs: dict[str, Any], where: str) -> None:
    """Refuses what an environment of the paper does not take.

    Args:
        where: what the user knows the arguments as, for the message.

    Raises:
        UserError: there is another keyword than those of rendering.
    """
    known = RENDERING_KEYS[MAKERS[name]]
    others = sorted(set(make_kwargs) - known)
    if others:
        raise UserError(
            f"{where} {', '.join(others)}: {name} is made as the paper had it and "
            f"takes {', '.join(sorted(known))} only; remove {', '.join(others)} or "
            "name a newer version of the environment"
        )
