"""A resume where a part of the run's output was removed, or is damaged and spare."""

import numpy as np
import pytest
from support_storage import learned, one_line, open_now, save_policy, save_state

from steve.storage import checkpoint
from steve.storage.digests import Digest, append_digest
from steve.storage.scores import CSV_HEADER
from steve.util import UserError

ROWS = b"0.1,1,10,1.5\n"


def content_of(folders):
    files = (path for path in folders.root.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files}


def missing(folders, config):
    """The names that are said to be missing."""
    before = content_of(folders)
    with pytest.raises(UserError) as caught:
        open_now(folders, config)
    assert content_of(folders) == before
    names, _, rest = one_line(caught).partition(": missing, so that this run cannot be")
    assert "--overwrite renames what is left" in rest
    return names.split(" and ")


LATER = ("policy", "scores", "digests")


@pytest.mark.parametrize("later", LATER)
def test_a_learners_state_that_is_gone_is_an_error(folders, config, later):
    learned(folders, config)
    if later == "policy":
        save_policy(folders, 1000)
    elif later == "scores":
        folders.scores.write_bytes(CSV_HEADER + ROWS)
    else:
        append_digest(folders.digests, Digest(1, 0, 100, "a", "b", "-", "c"))
    states = [folders.state(name) for name in ("valuerl", "worldmodel")]
    states[1].rename(checkpoint.previous_path(states[1]))  # can still be used
    (note,) = open_now(folders, config)
    assert "worldmodel.previous.safetensors is used instead" in note
    checkpoint.previous_path(states[1]).unlink()
    assert missing(folders, config) == [str(states[1])]
    states[0].unlink()
    folders.hyperparameters.write_bytes(b"{}")  # nothing is written before that
    assert missing(folders, config) == list(map(str, states))


def test_where_a_state_is_gone_a_numbered_one_is_offered(folders, config):
    learned(folders, config)
    for name in ("valuerl", "worldmodel"):
        save_state(folders, name, 500, 2, 350)
    save_policy(folders, 1000)
    folders.state("valuerl").unlink()
    with pytest.raises(UserError, match=r"removed, --resume-from 500, or start again"):
        open_now(folders, config)


def test_a_renamed_folder_without_its_states_is_refused_too(folders, config):
    learned(folders, config)
    (folders.log / "earlier.greedy.csv").write_bytes(CSV_HEADER + ROWS)
    folders.state("valuerl").unlink()
    with pytest.raises(UserError, match="cannot be resumed"):
        open_now(folders, config)


def test_a_replay_that_is_gone_is_an_error_once_there_is_a_state(folders, config):
    open_now(folders, config)
    (data,) = folders.replay.glob("replay.*")
    data.unlink()
    assert open_now(folders, config) == []  # nothing was learned from it
    save_state(folders, "worldmodel", 0, 0, 350, numbered=False)  # it pretrains
    assert open_now(folders, config) == []
    data.unlink()
    assert missing(folders, config) == [str(data)]


def test_published_files_that_are_damaged_are_put_aside_and_said(config, folders):
    open_now(folders, config)
    for published, name in ((folders.policies, "policy"), (folders.models, "x")):
        for updates in (100, 200):
            file = folders.checkpoints / f"{name}.safetensors"
            checkpoint.publish(file, {"w": np.ones(3, np.float32)}, {"epoch": 1})
            published.add(updates, file)
    for learner in ("valuerl", "worldmodel"):
        save_state(folders, learner, 200, 1, 1, numbered=False)
    assert open_now(folders, config) == []
    damaged = [folders.policies.path(200), folders.models.path(100)]
    for path in damaged:  # the first one is policy.safetensors, too
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    notes = open_now(folders, config)
    assert [note.rpartition("; it is now ")[2] for note in notes] == [
        "policy.safetensors.damaged",
        "policy-200.safetensors.damaged",
        "worldmodel-100.safetensors.damaged",
    ]
    assert folders.policies.numbers() == [100]
    assert folders.models.numbers() == [200]
    assert open_now(folders, config) == []
