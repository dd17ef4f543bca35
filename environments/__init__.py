"""The paper's environments: their names, and how to make one.

After `steve.register_envs()` they are gymnasium ids: "steve/Hopper-v1" and so on.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gymnasium

# The modules that make them; no simulator is imported before an environment is made.
MAKERS = {
    "Hopper-v1": "mujoco",
    "Walker2d-v1": "mujoco",
    "HalfCheetah-v1": "mujoco",
    "Swimmer-v1": "mujoco",
    "Humanoid-v1": "mujoco",
    "BipedalWalkerHardcore-v2": "box2d",
    "RoboschoolHumanoid-v1": "roboschool",
    "RoboschoolHumanoidFlagrun-v1": "roboschool",
}
MAX_EPISODE_STEPS = 1000  # in the paper's experiments (SPEC section 7)


def register_envs() -> None:
    """Registers the paper's environments with gymnasium as "steve/Hopper-v1" and so on.

    Calling it again changes nothing. Their episodes are cut after 1000 steps. For
    programs that only take an id, `import steve.envs` does the same; gymnasium imports
    that module by itself in `gymnasium.make("steve.envs:steve/Hopper-v1")`.
    """
    from gymnasium.envs.registration import register, registry

    for name in MAKERS:
        if (env_id := f"steve/{name}") not in registry:
            register(
                id=env_id,
                entry_point="steve.environments:make",
                kwargs={"name": name},
                max_episode_steps=MAX_EPISODE_STEPS,
            )


def make(name: str, **make_kwargs: Any) -> "gymnasium.Env":
    """One of `MAKERS`, without time limit; the entry point of the registered ids.

    Args:
        name: without "steve/".
        make_kwargs: `render_mode`; for MuJoCo also gymnasium's other keywords of
            rendering.

    Raises:
        UserError: another keyword, or a package is missing.
    """
    from .rendering import check_rendering_only

    check_rendering_only(name, make_kwargs, "keyword argument")
    if MAKERS[name] == "mujoco":
        from .mujoco import make_mujoco

        return make_mujoco(name, make_kwargs=make_kwargs)
    if MAKERS[name] == "box2d":
        from .box2d import make_hardcore

        return make_hardcore(make_kwargs)
    from .roboschool import make_roboschool

    return make_roboschool(name, make_kwargs)
