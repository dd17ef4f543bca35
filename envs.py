"""Importing this module registers the paper's environments with gymnasium.

    gymnasium.make("steve.envs:steve/Hopper-v1")

The one import with an effect: gymnasium knows no other way for an id to bring its own
registration, and libraries that take a package's name for it expect the same. From a
program of one's own, `steve.register_envs()` says it more plainly.
"""

from .environments import register_envs

register_envs()
