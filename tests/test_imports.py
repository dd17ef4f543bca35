"""Who may import whom, read from the code (CONTRIBUTING.md, Where things live)."""

import ast
import sys

import pytest
from support import PROJECT

WINGS = {
    "acting",
    "analysis",
    "environments",
    "loggers",
    "running",
    "settings",
    "storage",
    "sweeps",
}
COMMANDS = {
    "main",
    "visualizer",
    "export",
    "plot",
    "status",
    "sweep",
    "toy_demo",
    "verify",
    "__main__",
}
PAPER = {"valuerl", "worldmodel", "nn"}
LEARNERS = {"learner", "valuerl_learner", "worldmodel_learner", "compute"}
GROUND = {"util", "batch", "settings"}
REPLAY = {"replay", "replay_file"}

# What the modules of a place may import at their top: whole places, or single modules.
# A place may import itself. `Lazy` holds what functions may import in addition.
ALLOWED = {
    "util": set(),
    "command_line": {"util"},
    "batch": set(),
    "nn": set(),
    "toy_chain": set(),
    "settings": {"util"},
    "environments": {"util"},
    "envs": {"environments"},
    "replay_file": {"util", "batch"},
    "replay": {"replay_file", "util", "batch"},
    "envwrap": {"environments", "settings", "util"},
    "storage": {*REPLAY, *GROUND},
    "worldmodel": {"nn", "settings", "batch"},
    "valuerl": {"nn", "worldmodel", "settings", "batch"},
    "compute": {"replay", *GROUND},
    "running": {"storage", "replay", *GROUND},
    "loggers": {"running.child", "storage", *GROUND},
    "learner": {
        "compute",
        "storage",
        "replay",
        "running.child",
        "running.pace",
        *GROUND,
    },
    "valuerl_learner": {"learner", "running", "storage", "compute"}
    | REPLAY
    | PAPER
    | GROUND,
    "worldmodel_learner": {"learner", "running", "storage", "compute"} | PAPER | GROUND,
    "acting": {
        "envwrap",
        "storage",
        *REPLAY,
        "running.child",
        "running.pace",
        *GROUND,
    },
    "sweeps": {
        "command_line",
        "running.devices",
        "running.child",
        "running.pace",
        "storage",
        "replay",
        *GROUND,
    },
    "analysis": {
        "acting.policy",
        "acting.deployed",
        "storage",
        "envwrap",
        *REPLAY,
        "running.devices",
        *GROUND,
    },
    "__init__": set(),
}
LAZY = {
    # In a child process that measures an environment, and in that of `steve.train`.
    "running": {"envwrap", "loggers", "command_line", "worldmodel_learner"},
    "analysis": PAPER | {"learner"},
    "__init__": {"running", "analysis", "settings", "util"},
}
WITH_TENSORFLOW = PAPER | LEARNERS


def modules():
    for path in sorted(PROJECT.glob("*.py")):
        if path.stem != "setup":
            yield path.stem, path
    for wing in sorted(WINGS):
        for path in sorted((PROJECT / wing).glob("*.py")):
            yield f"{wing}.{path.stem}", path


MODULES = dict(modules())


def place(module):
    return module.partition(".")[0]


def imports(name, path):
    """(module of ours or top-level name of another's, line, whether at the top)."""
    tree = ast.parse(path.read_text())
    checked_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in checked_only:
            continue
        for target in targets(node, name):
            yield target, node.lineno, id(node) not in lazy


def targets(node, name):
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level:
        wing = [place(name)] if "." in name and node.level == 1 else []
        base = ".".join([*wing, *([node.module] if node.module else [])])
        inner = [f"{base}.{alias.name}".strip(".") for alias in node.names]
        names = [f"steve.{n if n in MODULES else base}" for n in inner]
    elif isinstance(node, ast.ImportFrom):
        inner = [f"{node.module}.{alias.name}" for alias in node.names]
        names = [
            n if n.removeprefix("steve.") in MODULES else node.module for n in inner
        ]
    else:
        return
    for each in names:
        ours = each.removeprefix("steve.") if each.startswith("steve") else None
        yield (ours or "__init__", True) if ours is not None else (place(each), False)


def test_every_place_has_a_rule_and_every_rule_a_place():
    places = {place(name) for name in MODULES}
    assert places == set(ALLOWED) | COMMANDS


@pytest.mark.parametrize("name", sorted(set(MODULES)))
def test_a_module_imports_only_what_its_place_may(name):
    here = place(name)
    if here in COMMANDS:
        return
    for (target, ours), line, at_top in imports(name, MODULES[name]):
        if not ours:
            if target == "tensorflow" and at_top:
                assert here in WITH_TENSORFLOW, f"{name}:{line} imports tensorflow"
            continue
        allowed = ALLOWED[here] | (set() if at_top else LAZY.get(here, set()))
        is_allowed = (
            place(target) in (here, *allowed)
            or target in allowed
            or (target == "__init__" and here == "__main__")
        )
        assert is_allowed, f"{name}:{line} imports {target}"
        assert place(target) not in COMMANDS, f"{name}:{line} imports a command"


def test_modules_of_the_package_import_each_other_relatively():
    """A stray `import valuerl` must fail and never load a second copy."""
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                tops = {place(alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                tops = {place(node.module)}
            else:
                continue
            bare = tops & ({n for n in MODULES if "." not in n} | WINGS)
            assert not bare - set(sys.stdlib_module_names), f"{name} imports {bare}"
            if name not in COMMANDS:
                assert "steve" not in tops, f"{name} imports steve by its name"


def test_no_file_is_mapped_for_writing():
    """On a full disk a store to such a map can kill the process."""
    read_only = {"access=mmap.ACCESS_READ", "prot=mmap.PROT_READ", "mode='r'"}
    found = set()
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            arguments = {ast.unparse(keyword) for keyword in node.keywords}
            maps = ast.unparse(node.func) in ("mmap.mmap", "np.memmap")
            if maps and not arguments & read_only:
                found.add(name)
    assert found == {"storage.board"}  # memory without a file


def test_no_import_goes_round_in_a_circle():
    edges = {
        name: {
            target
            for (target, ours), _, at_top in imports(name, path)
            if ours and at_top and target != name
        }
        for name, path in MODULES.items()
    }
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for target in sorted(edges.get(name, ())):
            visit(target)
        path.pop()
        done.add(name)

    for name in edges:
        visit(name)
