"""The distribution: what it holds, and the names under which it is imported."""

import runpy
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import PROJECT

import steve

NOT_PACKAGED = {"benchmarks", "build", "docs", "output", "results", "tests"}
LIBRARY = (
    "batch",
    "compute",
    "envwrap",
    "learner",
    "nn",
    "replay",
    "util",
    "valuerl",
    "valuerl_learner",
    "worldmodel",
    "worldmodel_learner",
)


def python(*arguments: str, cwd: Path = PROJECT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def declared() -> SimpleNamespace:
    """What setup.py hands to setuptools."""
    setuptools = pytest.importorskip("setuptools")
    handed = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **keys: handed.update(keys))
        runpy.run_path(str(PROJECT / "setup.py"))
    return SimpleNamespace(**handed)


@pytest.fixture(scope="module")
def builder(declared):
    """The command that collects the package's files, as setup.py configures it."""
    from setuptools import Distribution

    distribution = Distribution(
        {
            "packages": declared.packages,
            "package_dir": {"steve": str(PROJECT)},
            "package_data": declared.package_data,
            "cmdclass": declared.cmdclass,
        }
    )
    command = distribution.get_command_obj("build_py")
    command.ensure_finalized()
    command.manifest_files = {}
    distribution.script_name = "a frontend"  # only setuptools' own call leaves it out
    return command


# What the wheel holds


def test_every_folder_of_modules_is_a_package_of_the_wheel(declared):
    folders = {
        path.parent.relative_to(PROJECT)
        for path in PROJECT.glob("[!.]*/**/*.py")
        if path.relative_to(PROJECT).parts[0] not in NOT_PACKAGED
    }
    for folder in folders:
        assert (PROJECT / folder / "__init__.py").is_file()
    names = {".".join(("steve", *folder.parts)) for folder in folders}
    assert sorted(declared.packages) == sorted({"steve", *names})
    assert declared.package_dir == {"steve": "."}


def test_every_module_is_in_the_wheel_and_setup_is_not(declared, builder):
    packaged = {
        Path(file).relative_to(PROJECT)
        for name in declared.packages
        for _, _, file in builder.find_package_modules(
            name, builder.get_package_dir(name)
        )
    }
    folders = [name.split(".")[1:] for name in declared.packages]
    there = {
        path.relative_to(PROJECT)
        for folder in folders
        for path in PROJECT.joinpath(*folder).glob("*.py")
    }
    assert packaged == there - {Path("setup.py")}


def test_every_json_file_of_the_package_is_in_the_wheel(declared, builder):
    data = {
        Path(file).relative_to(PROJECT)
        for name in declared.packages
        for file in builder.find_data_files(name, builder.get_package_dir(name))
    }
    there = {
        path.relative_to(PROJECT)
        for folder in ("config", *(n.split(".")[1] for n in declared.packages[1:]))
        for path in (PROJECT / folder).rglob("*.json")
    }
    assert len(there) > 200
    # Else setuptools takes each folder of config/ for a package, and warns of it.
    assert declared.include_package_data is False
    assert data == there | {Path("py.typed"), Path("analysis/results.csv.gz")}


def test_the_marker_of_types_is_there():
    assert (PROJECT / "py.typed").is_file()


# What the installation says


def test_the_version_is_that_of_the_distribution():
    assert steve.__version__ == metadata.version("steve-rl")


def test_the_command_is_an_entry_of_the_distribution(capsys):
    scripts = metadata.distribution("steve-rl").entry_points.select(
        group="console_scripts"
    )
    assert {(script.name, script.value) for script in scripts} == {
        ("steve", "steve.__main__:main")
    }
    with pytest.raises(SystemExit) as ended:
        next(iter(scripts)).load()(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"steve {steve.__version__}\n"


@pytest.mark.parametrize("where", ["checkout", "elsewhere"])
def test_the_module_is_the_command(where, tmp_path):
    cwd = PROJECT if where == "checkout" else tmp_path
    called = python("-m", "steve", "--version", cwd=cwd)
    assert called.stdout == f"steve {steve.__version__}\n", called.stderr


# What is imported


def test_the_package_alone_imports_nothing_heavy():
    heavy = {"tensorflow", "gymnasium", "numpy", "pandas", "matplotlib", "scipy"}
    code = f"import sys, steve; print(sorted({heavy} & set(sys.modules)))"
    called = python("-c", code)
    assert called.stdout == "[]\n", called.stderr


def test_a_module_of_the_library_has_no_second_name():
    """In the checkout Python finds the file; it must not become a second copy."""
    code = (
        f"for name in {LIBRARY}:\n"
        "    try:\n"
        "        __import__(name)\n"
        "    except ImportError:\n"
        "        continue\n"
        "    print(name)\n"
    )
    called = python("-c", code)
    assert (called.returncode, called.stdout) == (0, ""), called.stderr


def test_libraries_that_look_for_our_names_work_in_the_checkout():
    """tqdm looks for an `envwrap`; moviepy imports tqdm."""
    called = python("-c", "import tqdm, moviepy, steve; steve.register_envs()")
    assert called.returncode == 0, called.stderr
