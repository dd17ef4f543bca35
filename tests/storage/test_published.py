"""Published policies and world models under the number of their updates."""

import os

import pytest

from steve.storage.published import Published


@pytest.fixture
def policies(tmp_path):
    return Published(tmp_path / "published", "policy")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "policy.safetensors"
    path.write_bytes(b"first")
    return path


def visible(policies):
    return sorted(path.name for path in policies.path(0).parent.iterdir())


def test_before_the_first_one_there_are_none(policies):
    assert policies.numbers() == []
    policies.drop_before(100)
    assert not policies.path(0).exists()


def test_numbers_ascend_as_numbers(policies, file):
    for updates in (500, 0, 1000, 90):
        policies.add(updates, file)
    assert policies.numbers() == [0, 90, 500, 1000]
    assert policies.path(90).read_bytes() == b"first"
    assert len(visible(policies)) == 4


def test_what_is_published_stays_when_the_file_is_replaced(policies, file):
    policies.add(1, file)
    other = file.with_name("other")
    other.write_bytes(b"second")
    os.replace(other, file)
    policies.add(2, file)
    assert policies.path(1).read_bytes() == b"first"
    assert policies.path(2).read_bytes() == b"second"
    file.unlink()
    assert policies.path(2).read_bytes() == b"second"


def test_a_second_name_takes_no_further_space(policies, file):
    policies.add(1, file)
    assert policies.path(1).stat().st_ino == file.stat().st_ino


def test_publishing_a_number_again_replaces_it(policies, file):
    policies.add(1, file)
    policies.add(1, file)  # the same file: nothing to do, and no error
    other = file.with_name("other")
    other.write_bytes(b"again")
    policies.add(1, other)
    assert policies.path(1).read_bytes() == b"again"
    assert visible(policies) == ["policy-1.safetensors"]


def test_a_writer_that_was_killed_leaves_nothing_visible(policies, file, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            policies.add(1, file)
    assert policies.numbers() == []
    policies.add(1, file)
    assert visible(policies) == ["policy-1.safetensors"]


def test_other_files_are_not_counted(policies, file):
    policies.add(7, file)
    models = Published(policies.path(0).parent, "worldmodel")
    models.add(8, file)
    for name in ("policy-x.safetensors", "policy-7.txt", ".policy-9.safetensors.tmp"):
        policies.path(0).with_name(name).touch()
    assert policies.numbers() == [7]
    assert models.numbers() == [8]


@pytest.mark.parametrize(
    ("before", "left"),
    [(-1000, [0, 500, 1000]), (0, [0, 500, 1000]), (500, [500, 1000]), (1001, [])],
)
def test_drop_before_removes_those_of_fewer_updates(policies, file, before, left):
    models = Published(policies.path(0).parent, "worldmodel")
    models.add(0, file)
    for updates in (0, 500, 1000):
        policies.add(updates, file)
    policies.drop_before(before)
    assert policies.numbers() == left
    assert models.numbers() == [0]
    assert file.exists()
