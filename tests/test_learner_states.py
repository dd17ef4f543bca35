"""A learner's states: restored, damaged, refused, and the numbered backups."""

import numpy as np
import pytest
import tensorflow as tf
from support import append_frames
from support_learner import (
    BEFORE,
    FakeLearner,
    Killed,
    assert_same,
    assert_unequal,
    build,
    column,
    damage,
    drive,
    kill_at,
    numbered,
    open_fake,
    state_of,
    train,
    values_of,
)

from steve import learner as learner_module
from steve.settings.roles import VALUERL
from steve.storage import checkpoint
from steve.storage.checkpoint import CheckpointError
from steve.storage.record import read_run, reasons_of, record_start
from steve.util import RunError, file_stamp

pytestmark = pytest.mark.usefixtures("nobody_sleeps")

# How it computes


@pytest.mark.parametrize("learned", [0, 4])
def test_a_resume_that_computes_otherwise_is_no_longer_the_same_run(
    tmp_path, monkeypatch, capsys, learned
):
    pace = {"frames_per_update": 1.0}
    run, board, replay = open_fake(tmp_path, 20, policy_config=pace)
    for launch, threads in enumerate((2, 2, 3)):
        now = {"device": "cpu", "xla": False, "intra_op_threads": threads}
        monkeypatch.setattr(learner_module, "computing", lambda xla, now=now: now)
        record_start(run, resumed=launch > 0)
        assert reasons_of(read_run(run.folders)) == []
        train(build(run, board), learned)
        computing = read_run(run.folders)["starts"][-1]["computing"]
        assert computing == {VALUERL: now}
    reasons = reasons_of(read_run(run.folders))
    if learned:
        assert reasons == [
            f"from frame {replay.frames} on this run cannot be repeated to the bit: "
            "valuerl: intra_op_threads was 2 and is 3, from update 4 on"
        ]
    else:
        assert reasons == []
    assert capsys.readouterr().out.count("intra_op_threads") == bool(learned)


# States


def test_a_restore_gives_back_tensors_optimiser_and_counters(tmp_path, clock):
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board)

    def over():
        clock.now += 10
        return learner.updates == 4

    drive(learner, over)
    other = build(run, board, seed=7)
    assert_unequal(values_of(other.variables()), values_of(learner.variables()))
    other.restore()
    assert_same(values_of(other.variables()), values_of(learner.variables()))
    assert other.optimizer.named_variables()["m0"].numpy() != 0
    assert other.optimizer.named_variables()["steps"].numpy() == 4
    assert (other.updates, other.epoch) == (4, 2)
    assert other.seconds == pytest.approx(50)
    train(other, 6)
    assert other.events == [("begin", 2, 6), ("publish", 3, 6)]


def test_a_state_of_other_nets_is_not_taken_up(tmp_path):
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board)
    train(learner, 3)
    state = state_of(learner)
    more = {**state.tensors, "adam/m9": np.zeros(1, np.float32)}
    path = run.folders.state(VALUERL)
    checkpoint.publish(path, more, state.metadata)
    with pytest.raises(CheckpointError, match="1 unknown \\(adam/m9\\)"):
        build(run, board).restore()


def test_without_a_state_nothing_is_restored(tmp_path):
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board, seed=7)
    learner.restore()
    assert (learner.updates, learner.epoch) == (0, 0)
    assert learner.weight.numpy() == 7


def test_it_goes_on_from_the_previous_state_when_the_newest_is_damaged(
    tmp_path, capsys
):
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board)
    train(learner, 7)  # states of 6 and 7 updates
    damage(learner.folders.state(VALUERL))
    other = build(run, board)
    other.restore()
    assert (other.updates, other.epoch) == (6, 3)
    assert other.number.numpy() == 6
    assert "valuerl.previous.safetensors is used instead" in capsys.readouterr().out


def test_with_both_states_damaged_it_does_not_start_again(tmp_path):
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board)
    train(learner, 7)
    path = learner.folders.state(VALUERL)
    damage(path)
    damage(checkpoint.previous_path(path))
    with pytest.raises(CheckpointError, match=r"valuerl\.previous\.safetensors"):
        build(run, board).restore()


def test_a_state_of_other_sizes_is_refused(tmp_path):
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board)
    learner.weight = tf.Variable([1.0, 2.0])
    learner.save_state()
    with pytest.raises(CheckpointError, match=r"weight \[2\] instead of \[1\]"):
        build(run, board).restore()


@pytest.mark.parametrize(
    "torn", ["", "0.1", "0.1,2,6,5,1.0,6.", "0.1,1,3,5,1.0,3,0", "\0\0\0"]
)
def test_log_lines_after_the_restored_state_and_torn_ones_are_cut(tmp_path, torn):
    run, board, _ = open_fake(tmp_path, policy_config={"log_every_n": 1})
    learner = build(run, board)
    kill_at(learner, 5)
    assert column(learner, "updates") == [1, 2, 3, 4, 5]
    path = learner.folders.learner_log(VALUERL)
    before = path.read_text().splitlines(keepends=True)
    path.write_text("".join(before) + torn)
    other = build(run, board)
    other.restore()
    assert other.updates == 3
    assert path.read_text() == "".join(before[:4])  # with the header
    train(other, 6)
    assert column(other, "updates") == [1, 2, 3, 4, 5, 6]


def test_a_log_without_anything_to_cut_stays_as_it_is(tmp_path):
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board)
    train(learner, 6)
    stamp = file_stamp(learner.folders.learner_log(VALUERL))
    build(run, board).restore()
    assert file_stamp(learner.folders.learner_log(VALUERL)) == stamp


@pytest.mark.parametrize(
    ("log_every_n", "updates"),
    [
        (1, 100),  # the log line of the same update shows it
        (2, 100),  # the next log line does
        (50, 100),  # the state at the end of the epoch
        (50, 5),  # a stop before either
    ],
)
def test_a_metric_that_is_not_finite_ends_the_run_and_spares_the_last_state(
    tmp_path, log_every_n, updates
):
    run, board, _ = open_fake(tmp_path, policy_config={"log_every_n": log_every_n})
    learner = build(run, board)
    learner.bad_metric_at.assign(5.0)
    with pytest.raises(RunError) as raised:
        train(learner, updates)
    path = learner.folders.state(VALUERL)
    assert "valuerl: number is nan" in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert state_of(learner).metadata["updates"] == 3
    assert checkpoint.load(checkpoint.previous_path(path)).metadata["updates"] == 0
    assert max(column(learner, "updates"), default=0) <= 5


def test_a_run_that_diverges_before_its_first_state_names_none(tmp_path):
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board)
    learner.bad_metric_at.assign(1.0)
    learner.learn(1)
    with pytest.raises(RunError, match=r"the run stops\. It has saved no state"):
        learner.log()


def test_a_weight_that_is_not_finite_ends_the_run_and_spares_the_last_state(tmp_path):
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board)
    learner.bad_weight_at.assign(5.0)
    with pytest.raises(RunError, match="weight") as raised:
        train(learner, 100)
    assert str(learner.folders.state(VALUERL)) in str(raised.value)
    assert state_of(learner).metadata["updates"] == 3


# Numbered backups


def test_every_backup_every_n_updates_a_numbered_state_stays(tmp_path):
    run, board, _ = open_fake(tmp_path, policy_config={"backup_every_n": 4})
    train(build(run, board), 9)
    assert numbered(run) == [4, 8]
    state = checkpoint.load(run.folders.numbered_state(VALUERL, 4))
    assert (state.metadata["updates"], state.tensors["number"]) == (4, 4)
    assert state.metadata["frames"] == BEFORE + 1
    train(build(run, board), 13)
    assert numbered(run) == [4, 8, 12]


def test_a_state_is_published_when_its_transitions_are_on_the_disk(
    tmp_path, monkeypatch
):
    """Else a power failure could leave a state that knows more than the replay."""
    run, board, _ = open_fake(tmp_path)
    learner = build(run, board)
    order, publish = [], checkpoint.publish

    def note_publish(path, *arguments, **options):
        order.append(path.name)
        return publish(path, *arguments, **options)

    monkeypatch.setattr(learner.replay, "sync", lambda: order.append("sync"))
    monkeypatch.setattr(checkpoint, "publish", note_publish)
    train(learner, 7)
    assert learner.epoch == 3
    state = run.folders.state(VALUERL).name
    assert order == ["sync", state] * (len(order) // 2)
    assert order.count("sync") >= learner.epoch


def test_a_backup_that_a_kill_prevented_is_made_on_restore(tmp_path, monkeypatch):
    run, board, replay = open_fake(tmp_path, policy_config={"backup_every_n": 3})
    learner = build(run, board)

    def die():
        raise Killed

    monkeypatch.setattr(learner, "backup", die)
    with pytest.raises(Killed):
        train(learner, 100)
    assert numbered(run) == []
    build(run, board).restore()
    assert numbered(run) == [3]
    path = run.folders.numbered_state(VALUERL, 3)
    state = checkpoint.load(path)
    assert_same(state.tensors, state_of(learner).tensors)

    append_frames(replay, 5)
    build(run, board).restore()
    assert checkpoint.load(path).metadata == state.metadata  # its frames, not today's


def test_the_board_has_an_epoch_once_it_is_published(tmp_path):
    """Who sees an epoch on the board may load its policy."""
    run, board, _ = open_fake(tmp_path)
    seen = []

    class WatchedLearner(FakeLearner):
        def publish(self):
            super().publish()
            seen.append((self.epoch, int(board[VALUERL]["epoch"])))

    train(build(run, board, WatchedLearner), 7)
    assert seen == [(1, 0), (2, 1), (3, 2)]
    assert board[VALUERL]["epoch"] == 3
    board[VALUERL]["epoch"] = 0
    build(run, board).restore()
    assert board[VALUERL]["epoch"] == 3
