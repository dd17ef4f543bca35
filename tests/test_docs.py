"""README and docs/: sizes, links, anchors, and the commands that they name."""

import importlib.util
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import generated
import pytest
from support import PROJECT

import steve
from steve import envwrap, main
from steve.__main__ import COMMANDS, Command
from steve.settings.files import locate
from steve.settings.keys import all_paths, field_at
from steve.util import UserError

DOCS = PROJECT / "docs"
PAGES = (
    *sorted(DOCS.rglob("*.md")),
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    PROJECT / "results" / "README.md",
    PROJECT / "config" / "cpu" / "README.md",
    PROJECT / "config" / "fullsize" / "README.md",
)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
EXTERNAL = ("https://", "http://")
# Scripts of the root and the subcommands of `steve` that they are.
SCRIPTS = {
    f"{command.module.removeprefix('steve.')}.py": name
    for name, command in COMMANDS.items()
    if not command.first
}
PLACEHOLDER = re.compile(r"(?<![\w-])[A-Z][A-Z_]*(?![\w-])|\.\.\.")
IN_A_SPAN = re.compile(r"`((?:python|steve) [^`]+)`")


def named(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def test_the_readme_is_short():
    assert len((PROJECT / "README.md").read_bytes()) <= 10_000


def test_the_citation_names_this_version():
    text = (PROJECT / "CITATION.cff").read_text()
    fields = dict(re.findall(r"^([a-z-]+): (\S.*)$", text, re.MULTILINE))
    assert fields["version"] == steve.__version__
    assert {"title", "message", "date-released", "license", "type"} <= set(fields)


def test_extras_are_installed_by_a_command_that_works_outside_of_a_checkout():
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    known = set(extras["project"]["optional-dependencies"])
    named_ones = set()
    for path in (*PROJECT.glob("[!.]*/*.py"), *PROJECT.glob("*.py"), *PAGES):
        text = path.read_text()
        named_ones |= set(re.findall(r"steve-rl\[([a-z_]+)\]", text))
        in_a_checkout = set(re.findall(r"-e '?\.\[(\w+)\]", text))
        assert in_a_checkout <= {"docs", "test"}, named(path)
    assert named_ones <= known


# Links


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site form them."""
    text = page.read_text()
    for included in re.findall(r"```\{include\} (\S+)", text):
        text += (page.parent / included).read_text()
    for name, make in generated.PARTS.items():
        if f"<!-- generated: {name} -->" in text:
            text += "\n" + make()
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    lower = (heading.lower().replace(" ", "-") for heading in headings)
    return {re.sub(r"[^\w-]", "", heading) for heading in lower}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page):
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if target.startswith(EXTERNAL):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def test_every_page_is_in_the_table_of_contents():
    index = (DOCS / "index.md").read_text()
    lists = re.findall(r"```\{toctree\}(.*?)```", index, re.DOTALL)
    named_there = {line for text in lists for line in text.split("\n")}
    pages = {str(p.relative_to(DOCS).with_suffix("")) for p in DOCS.rglob("*.md")}
    assert pages - named_there == {"index"}


# Commands


def commands(text: str) -> list[str]:
    """The calls of python and steve, in code blocks without a language and in spans."""
    lines = []
    for block in FENCE.findall(text):
        language, *content = block.splitlines()[:-1]
        if language in ("```", "```bash"):
            lines += content
    calls = [call.strip() for line in lines for call in line.split("&&")]
    calls += [" ".join(span.split()) for span in IN_A_SPAN.findall(FENCE.sub("", text))]
    calls = [call.removeprefix(".venv/bin/") for call in calls]
    return [call for call in calls if call.startswith(("python ", "steve "))]


@cache
def options(subcommand: str, *words: str) -> set[str]:
    return set(re.findall(r"--[a-z][a-z-]*", generated.help_of(subcommand, *words)))


def fault(command: str) -> str | None:
    """What a command names that does not exist; None where all does."""
    program, first, *rest = shlex.split(command, comments=True)
    rest = rest[: rest.index("|")] if "|" in rest else rest
    if program == "python" and first in ("-m", "-c"):
        return None if first == "-c" else module_fault(rest[0])
    if program == "python" and first not in SCRIPTS:
        return script_fault(PROJECT / first, rest)
    name = SCRIPTS[first] if program == "python" else first
    if "|" in name:  # `steve train|describe`
        faults = [fault(f"steve {each}") for each in name.split("|")]
        return next(filter(None, faults), None)
    if name not in COMMANDS:
        return f"no subcommand {name}"
    words = tuple(rest[:1]) if rest[:1] in (["status"], ["cancel"], ["retry"]) else ()
    given = {re.sub(r"=.*", "", word.strip("[]")) for word in rest}
    unknown = {word for word in given if word.startswith("--")} - options(name, *words)
    if unknown:
        return f"no option {unknown}"
    return file_fault(rest) or key_fault(rest) or call_fault(COMMANDS[name], rest)


def module_fault(module: str) -> str | None:
    found = importlib.util.find_spec(module.split(".")[0])
    return None if found else f"no module {module}"


def script_fault(script: Path, words: list[str]) -> str | None:
    """The options of a program that takes long to import stand in its text."""
    if not script.is_file():
        return f"no file {script}"
    text = script.read_text()
    if "harness.parser(" in text:  # of all benchmarks
        text += (PROJECT / "benchmarks" / "harness.py").read_text() + '"--set"'
    unknown = [w for w in words if w.startswith("--") and f'"{w}"' not in text]
    return f"no option {unknown[0]}" if unknown else file_fault(words)


def file_fault(words: list[str]) -> str | None:
    """Of the configurations named; capitals and patterns stand for others."""
    for word in words:
        is_one = re.fullmatch(r"config/[a-z0-9_/]+(\.json)?", word)
        if is_one and not (PROJECT / word).exists():
            return f"no file {word}"
    return None


def key_fault(words: list[str]) -> str | None:
    """Of what stands behind --set and looks like a key of ours."""
    for word in words:
        key = re.match(r"([a-z_]+(?:\.[a-z_]+)+|seed|output_root)=", word)
        if key and field_at(tuple(key[1].split("."))) is None:
            return f"no key {key[1]}"
    return None


def call_fault(command: Command, words: list[str]) -> str | None:
    """What main.py says of a call that names no placeholder and a file of ours."""
    is_a_name = not words  # as in `steve describe`
    if command.module != "steve.main" or is_a_name:
        return None
    if any(map(PLACEHOLDER.search, words)):
        return None
    parsed = main.parse_arguments([*command.first, *words])
    if parsed.list is not None or not locate(parsed.config).is_file():
        return None
    try:
        assert main.request_of(parsed).loaded
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_names_what_exists(page):
    faults = [(c, found) for c in commands(page.read_text()) if (found := fault(c))]
    assert faults == []


def test_the_environment_of_the_readme_can_be_made(tmp_path, monkeypatch):
    text = (PROJECT / "README.md").read_text()
    (code,) = re.findall(r"```python\n([^`]*PointMass[^`]*)```", text)
    (tmp_path / "my_env.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    (command,) = (call for call in commands(text) if "my_env:PointMass" in call)
    parsed = main.parse_arguments(command.split()[2:])
    sizes = envwrap.measure(main.request_of(parsed).loaded.config.env)
    assert (sizes.obs_dim, sizes.action_dim) == (2, 1)


def test_a_wrong_command_is_noticed():
    right = "python main.py config/quickstart.json cpu --set seed=1 env.max_frames=3"
    assert fault(right) is None
    for wrong in (
        right.replace("main.py", "mian.py"),
        right.replace("--set", "--sets"),
        right.replace("quickstart", "quick"),
        right.replace("max_frames", "most_frames"),
        right.replace("seed=1", "seed=-1"),
        "steve trian x",
        "steve sweep status output --frames 3",
        "python tests/programs/crash_test.py --kill 2",
    ):
        assert fault(wrong) is not None, wrong


# What is made from the code


def test_the_reference_has_every_key_and_every_subcommand():
    text = generated.configuration()
    for path in all_paths():
        assert re.search(f"^##+ {re.escape('.'.join(path))}$", text, re.MULTILINE)
    shown = generated.command_line()
    for name in COMMANDS:
        assert f"usage: steve {name} " in shown


def test_the_reference_has_every_public_name():
    reference = (PROJECT / "docs" / "reference" / "python.md").read_text()
    there = set(re.findall(r"auto\w+:: (steve\.[\w.]+)", reference))
    public = {f"steve.{name}" for name in steve.__all__} - {"steve.__version__"}
    assert public | {"steve.loggers.Logger", "steve.loggers.Experiment"} <= there


def formulas(specification: str) -> list[str]:
    """The functions that formulas name: the last column of their tables."""
    rows = re.findall(r"^\|.*\$.*\| `([\w.]+)` \|$", specification, re.MULTILINE)
    return [name for name in rows if name]


def test_every_formula_has_its_function_and_the_reference_has_it_too():
    specification = (PROJECT / "docs" / "specification.md").read_text()
    reference = (PROJECT / "docs" / "reference" / "python.md").read_text()
    defined = {}
    for module in ("valuerl", "worldmodel"):
        names = documented(reference, module)
        defined |= dict.fromkeys(names, (PROJECT / f"{module}.py").read_text())
    found = formulas(specification)
    assert len(found) == 12
    for name in found:
        assert f"def {name.split('.')[-1]}(" in defined[name], name


def documented(reference: str, module: str) -> list[str]:
    """What the reference has of a module, by the name in it."""
    names = []
    listed = rf"auto(module|class):: steve\.{module}\.?(\w*)\n   :members: (.*)"
    for _, of, members in re.findall(listed, reference):
        names += [f"{of}.{name}".lstrip(".") for name in members.split(", ")]
    return names
