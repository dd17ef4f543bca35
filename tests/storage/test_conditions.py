"""What decides a run's bits, and how two starts differ in it."""

import numpy as np
import pytest

from steve.storage import conditions as module
from steve.storage.conditions import (
    are_conditions,
    changes,
    conditions,
    differences,
    processor,
    processor_kind,
)

CPUINFO = """processor\t: 0
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC
flags\t\t: fpu sse2 lm avx2 fma avx512f

processor\t: 1
model name\t: another
"""
START = {
    "time": "then",
    "processor": "AMD EPYC",
    "processor_kind": {"model": "17", "caches": "32K 1024K"},
    "variables": {"XLA_FLAGS": "", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "libc": "glibc 2.36",
    "python": "3.11.7",
    "versions": {"tensorflow": "2.21.0", "numpy": "2.4.6", "portalocker": "4.4.2"},
    "commit": "abc",
    "computing": {"valuerl": {"device": "cpu", "xla": True, "threads": 2}},
}


def changed(**keys):
    return differences(START, {**START, **keys})


def test_two_starts_with_the_same_conditions_differ_in_nothing():
    assert changed() == []
    assert changed(time="now", python="3.12.1") == []
    assert changed(versions={**START["versions"], "portalocker": "5"}) == []


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"processor": "Xeon"}, "the processor was AMD EPYC and is Xeon"),
        (
            {"processor_kind": {"model": "18", "caches": "32K 1024K"}},
            "the processor's model was 17 and is 18",
        ),
        ({"variables": {"XLA_FLAGS": "--x"}}, "XLA_FLAGS was unset and is --x"),
        ({"libc": "glibc 2.40"}, "the C library was glibc 2.36 and is glibc 2.40"),
        ({"commit": "abd"}, "the program's commit was abc and is abd"),
        ({"versions": {"numpy": "3.0"}}, "numpy was 2.4.6 and is 3.0"),
        (
            {"computing": {"valuerl": {"device": "cpu", "xla": False}}},
            "valuerl's xla was true and is false",
        ),
        (
            {"computing": {"valuerl": {"threads": 4}, "worldmodel": {"threads": 4}}},
            "valuerl's threads was 2 and is 4",
        ),
    ],
)
def test_what_can_change_bits_is_named_with_both_values(keys, line):
    assert changed(**keys) == [line]


@pytest.mark.parametrize("key", START)
def test_what_a_start_does_not_say_is_passed_over(key):
    """One of version 1.0 says neither processor nor computing."""
    rest = {name: value for name, value in START.items() if name != key}
    assert differences(rest, START) == differences(START, rest) == []
    assert differences(START, {**START, "commit": None}) == []


def test_changes_are_in_the_order_of_what_is_there_now():
    found = changes({"a": 1, "b": "x", "c": 0}, {"c": 1, "a": 2, "d": 3})
    assert found == ["c was 0 and is 1", "a was 1 and is 2"]


def test_the_conditions_of_this_machine_are_complete():
    found = conditions()
    assert found["versions"]["numpy"] == np.__version__
    assert are_conditions(found)
    assert differences(found, conditions()) == []
    assert found["processor"] == processor() != ""


def test_the_kind_of_processor_tells_apart_what_has_the_same_name(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(module, "CACHES", tmp_path)
    assert processor_kind() == {}
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    for number, size in enumerate(("32K", "1024K")):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(f"{size}\n")
    assert processor() == "AMD EPYC"
    assert processor_kind() == {
        "cpu family": "25",
        "model": "17",
        "caches": "32K 1024K",
        "instructions": "avx2 avx512f fma sse2",
    }


@pytest.mark.parametrize(
    "start",
    [7, [], {"versions": []}, {"computing": 3}, {"computing": {"valuerl": 3}}],
)
def test_a_start_of_another_form_is_known_as_such(start):
    assert not are_conditions(start)
