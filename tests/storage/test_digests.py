"""log/digests.csv: lines as they were written, and files that are none of ours."""

import re

import pytest
from support_storage import one_line

from steve.storage.digests import (
    NONE,
    Digest,
    append_digest,
    read_digests,
    trim_digests,
)
from steve.util import UserError

LINES = [
    Digest(1, 0, 100, "a1", "b1", NONE, NONE),
    Digest(2, 500, 225, "a2", "b2", "c2", "d2"),
    Digest(3, 1000, 350, "a3", "b3", "c3", "d3"),
]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "digests.csv"
    for line in LINES:
        append_digest(path, line)
    return path


def test_lines_come_back_as_they_were_written(path):
    assert read_digests(path) == LINES


def test_the_first_line_names_the_columns(path):
    first, second, *_ = path.read_text().splitlines()
    assert first == "epoch,updates,frames,state,policy,model,rows"
    assert second == "1,0,100,a1,b1,-,-"


def test_where_there_is_no_file_there_are_no_lines(tmp_path):
    assert read_digests(tmp_path / "digests.csv") == []


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_was_not_written_to_its_end_does_not_count(path, cut):
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    assert read_digests(path) == LINES[:2]
    append_digest(path, LINES[2])
    assert read_digests(path)[:2] == LINES[:2]
    assert read_digests(path)[-1] == LINES[2]


def test_lines_after_the_state_that_is_resumed_are_cut(path):
    trim_digests(path, 500)
    assert read_digests(path) == LINES[:2]
    append_digest(path, LINES[2])
    assert read_digests(path) == LINES


@pytest.mark.parametrize("damage", [b"x,0,100,a,b,c,d", b"1", b"", b"\xff,\0"])
def test_a_damaged_line_is_passed_over(path, damage):
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], damage, *lines[2:]]))
    assert read_digests(path) == LINES[1:]
    trim_digests(path, 500)
    assert read_digests(path) == LINES[1:2]


@pytest.mark.parametrize(
    "content",
    [
        b"epochs,score\n1,2\n",
        b"\xff\xfe\n\x00\xff\n",
    ],
)
def test_a_file_that_is_none_of_ours_is_named_in_one_line(path, content):
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(path))) as caught:
        read_digests(path)
    one_line(caught)


def test_a_folder_in_its_place_is_an_error_of_one_line(tmp_path):
    with pytest.raises(UserError, match="is no list of digests") as caught:
        read_digests(tmp_path)
    one_line(caught)


def test_a_line_is_on_the_disk_before_the_policy_may_go(tmp_path, monkeypatch):
    path, on_disk = tmp_path / "digests.csv", []
    monkeypatch.setattr("os.fdatasync", lambda _: on_disk.append(path.read_bytes()))
    append_digest(path, Digest(1, 0, 100, "a", "b", "-", "c"))
    assert on_disk == [path.read_bytes()]
    assert on_disk[0].endswith(b"1,0,100,a,b,-,c\n")
