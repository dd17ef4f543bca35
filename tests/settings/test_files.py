"""Configuration files: those that cannot be used, and where inherited ones may lie."""

import errno
import json
import os

import pytest
from support_settings import minimal, updates

from steve.settings.loading import load
from steve.util import UserError


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON at line 1, column 2"),
        ('{\n "updates": {,}}', "not valid JSON at line 2, column 14"),
        ('{"updates": {"seed": 1,}}', "(is there a comma too many?)"),
        ("", "not valid JSON at line 1, column 1"),
        ("[]", "must hold a JSON object, not []"),
        ("3", "must hold a JSON object, not 3"),
        ('{"updates": {"total_hours": NaN}}', "NaN is not a finite number"),
        ('{"updates": {"total_hours": -Infinity}}', "-Infinity is not a finite number"),
        ('{"updates": {"total_hours": 1e999}}', "1e999 is not a finite number"),
        ('{"updates": {"seed": 1, "seed": 2}}', 'the key "seed" stands twice'),
        ('{"updates": {"seed": ' + "9" * 5000 + "}}", "has more than 1000 digits"),
        ('{"updates": {}, "update": {}}', "update is not a known key of a file"),
        ('{"env": {}}', "did you mean updates.env?"),
        ('{"updates": []}', "updates must be an object, not []"),
        (
            '{"inherits": "b.json"}',
            'inherits must be a list of file names, not "b.json"',
        ),
        ('{"inherits": [3]}', "inherits must be a list of file names, not [3]"),
        ('{"inherits": [""]}', "inherits must be a list of file names"),
        ('{"inherits": ["a\\u0000"]}', "inherits must be a list of file names"),
        ('{"inherits": ["\\ud800"]}', "inherits must be a list of file names"),
        (b'{"updates": {"output_root": "\xff"}}', "not UTF-8 at byte 29"),
        ("{" + " " * (1 << 20) + "}", "larger than 1048576 bytes"),
        (
            '{"updates":{"env":{"make_kwargs":' + '{"a":' * 400 + "1" + "}" * 403,
            "",
        ),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_unusable_file_is_refused_in_one_line(tree, content, words):
    tree.write(a=content)
    message = tree.refusal()
    assert message.startswith("a.json: ")
    assert words in message


def test_unusable_inherited_file_is_named(tree):
    tree.write(a=updates("b"), b="{")
    assert tree.refusal().startswith("b.json: not valid JSON")


def test_missing_files_are_named_with_their_heir(tree):
    places = f"looked for in {tree.root}"
    assert tree.refusal() == f"a.json: no such file, {places}"
    tree.write(a=updates("b"), b=updates("sub/c"))
    missing = "sub/c.json: no such file, inherited by b.json"
    assert tree.refusal() == f"{missing}, {places}"


def test_a_forgotten_ending_is_pointed_out(tree):
    tree.write(a={"inherits": ["b"]}, b=minimal())
    refusal = tree.refusal()
    assert refusal.startswith("b: no such file, inherited by a.json, ")
    assert refusal.endswith("; there is b.json")


def test_both_places_are_named_and_the_nearest_packaged_file(tree, monkeypatch):
    elsewhere = tree.root / "elsewhere"
    elsewhere.mkdir()
    (tree.root / "config").mkdir()
    (tree.root / "config" / "quickstart.json").write_text("{}")
    monkeypatch.chdir(elsewhere)
    with pytest.raises(UserError) as refused:
        load("config/quikstart.json", root=tree.root)
    assert str(refused.value) == (
        f"config/quikstart.json: no such file, looked for in {elsewhere} and among the "
        f"packaged ones in {tree.root}; did you mean config/quickstart.json?"
    )


def test_folders_and_pipes_are_no_files(tree):
    (tree.root / "a.json").mkdir()
    assert tree.refusal() == "a.json: not a file"
    (tree.root / "a.json").rmdir()
    os.mkfifo(tree.root / "a.json")
    assert tree.refusal() == "a.json: not a file"


def test_no_permission_is_said(tree, monkeypatch):
    tree.write(a=minimal())

    def refuse(*_):  # as the system does, but for root
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert tree.refusal() == "a.json: cannot be read (Permission denied)"


def test_unreadable_file_is_said(tree):
    (tree.root / "a.json").symlink_to("a.json")
    assert tree.refusal().startswith("a.json: cannot be read (")


def test_circular_inherits_prints_the_circle(tree):
    tree.write(a=updates("b"), b=updates("c"), c=updates("b"))
    assert tree.refusal().endswith(
        "circular inherits: a.json -> b.json -> c.json -> b.json"
    )
    tree.write(a=updates("a"))
    assert tree.refusal() == "a.json: circular inherits: a.json -> a.json"


def test_endless_fan_out_is_cut(tree):
    files = {f"f{n}": updates(f"f{n + 1}", f"f{n + 1}") for n in range(30)}
    tree.write(a=updates("f0"), f30=minimal(), **files)
    assert tree.refusal() == "a.json: inherits more than 200 files"


def test_inherited_file_outside_is_noted_once(tree):
    elsewhere = tree.root / "elsewhere"
    for folder in ("config", "home", "elsewhere"):
        (tree.root / folder).mkdir()
    tree.write(**{"config/x": minimal(), "home/y": updates(), "elsewhere/z": updates()})
    inherits = [
        "config/x.json",
        "home/y.json",
        "elsewhere/z.json",
        str(elsewhere / "z.json"),
    ]
    (tree.root / "home" / "a.json").write_text(json.dumps({"inherits": inherits[:2]}))
    assert load(tree.root / "home" / "a.json", root=tree.root).notes == []
    (tree.root / "home" / "a.json").write_text(
        json.dumps({"inherits": [inherits[0], inherits[2], inherits[2]]})
    )
    (note,) = load(tree.root / "home" / "a.json", root=tree.root).notes
    assert note.endswith(
        "inherits elsewhere/z.json, which lies outside config/ and the folder of a.json"
    )


def test_loading_writes_nothing(tree):
    tree.write(a=minimal(output_root="new"))
    before = sorted(tree.root.rglob("*"))
    tree.load()
    tree.refusal("seed=-1")
    assert sorted(tree.root.rglob("*")) == before


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("a\nb", r"must not hold the character '\n': 'a\nb'"),
        ("a\x1b[2J", r"must not hold the character '\x1b'"),
        ("a\u2028b", r"must not hold the character '\u2028'"),
        ("a" * 300, "must not hold a name of more than 255 bytes, as one of 300"),
        ("é" * 150, "must not hold a name of more than 255 bytes, as one of 300"),
        ("a/" * 2000, "must be at most 3000 bytes long"),
    ],
)
def test_a_folder_that_cannot_be_is_refused(tree, folder, words):
    tree.write(a=minimal(output_root=folder))
    assert tree.refusal().startswith(f"a.json: output_root {words}")
    with pytest.raises(UserError, match="the path of a configuration must "):
        load(f"{folder}/a.json")


@pytest.mark.parametrize("folder", ["a b", "ümläut", "日本語", "a'\"$`\\;&", "-x"])
def test_a_folder_that_can_be_is_taken(tree, folder):
    tree.write(a=minimal(output_root=folder))
    assert tree.load().config.output_root == folder


def test_the_working_folder_counts_where_the_output_goes_below_it(tree, monkeypatch):
    tree.write(a=minimal(output_root="output"))
    (tree.root / "a\nb").mkdir()
    monkeypatch.chdir(tree.root / "a\nb")
    with pytest.raises(UserError, match="the path of output_root must not hold"):
        load("../a.json", root=tree.root)
    load("../a.json", overrides=[f"output_root={tree.root}"], root=tree.root)
