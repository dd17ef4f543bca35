"""The keyword arguments that an environment of the paper takes: those of rendering."""

from typing import Any

from ..util import UserError

# What make_kwargs may say about an environment of the paper: how it is drawn.
RENDERING_KEYS = {
    "render_mode",
    "width",
    "height",
    "camera_id",
    "camera_name",
    "default_camera_config",
    "max_geom",
    "visual_options",
}


def check_rendering_only(name: str, make_kwargs: dict[str, Any]) -> None:
    others = sorted(set(make_kwargs) - RENDERING_KEYS)
    if others:
        raise UserError(
            f"env.make_kwargs {', '.join(others)}: {name} is made as the paper had it; "
            "remove them or name a newer version of the environment"
        )
