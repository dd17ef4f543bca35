"""The package map: the repository's root is the package `steve` (see pyproject.toml).

Everything else about the distribution stands in pyproject.toml; only the map of a
package onto the folder that holds it cannot be written there together with its parts.
"""

from setuptools import setup
from setuptools.command.build_py import build_py

WINGS = (
    "acting",
    "analysis",
    "environments",
    "loggers",
    "running",
    "settings",
    "storage",
    "sweeps",
)


class BuildPy(build_py):
    """Leaves this file, which lies among the package's modules, out of it."""

    def find_package_modules(
        self, package: str, package_dir: str
    ) -> list[tuple[str, str, str]]:
        modules = super().find_package_modules(package, package_dir)
        return [found for found in modules if found[:2] != ("steve", "setup")]


setup(
    cmdclass={"build_py": BuildPy},
    packages=["steve", *(f"steve.{wing}" for wing in WINGS)],
    package_dir={"steve": "."},
    include_package_data=False,  # what package_data names; all else is left out
    package_data={
        "steve": ["py.typed", "config/**/*.json"],
        "steve.analysis": ["results.csv.gz"],
        "steve.environments": ["*.json"],
    },
)
