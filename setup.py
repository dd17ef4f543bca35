"""The package map: the repository's root is the package `steve` (see pyproject.toml).

Everything else about the distribution stands in pyproject.toml; only the map of a
package onto the folder that holds it cannot be written there together with its parts.
"""

from setuptools import setup

WINGS = (
    "acting",
    "analysis",
    "environments",
    "running",
    "settings",
    "storage",
    "sweeps",
)

setup(
    packages=["steve", *(f"steve.{wing}" for wing in WINGS)],
    package_dir={"steve": "."},
    package_data={
        "steve": ["py.typed", "config/**/*.json"],
        "steve.environments": ["*.json"],
    },
)
