"""Devices: which GPUs a launch sees, and which learner gets which."""

import pynvml
import pytest

from steve.running.devices import (
    NO_GPU,
    VARIABLE,
    Gpu,
    GpuAssignment,
    assign,
    assigned,
    installed_gpus,
)
from steve.running.devices import visible_gpus as visible
from steve.util import UserError

UUIDS = [
    "GPU-1a2b3c4d-0000-0000-0000-000000000000",
    "GPU-1a2b9999-0000-0000-0000-000000000001",
    "GPU-2c000000-0000-0000-0000-000000000002",
    "GPU-3d000000-0000-0000-0000-000000000003",
]


def gpus(count):
    return [Gpu(UUIDS[i], f"Model {i}") for i in range(count)]


def visible_tokens(value, count=4):
    """What CUDA_VISIBLE_DEVICES=value leaves of `count` GPUs."""
    return [gpu.token for gpu in visible({VARIABLE: value}, lambda: gpus(count))]


def error_of(gpu_id, found, has_model=True):
    """The one-line error that the assignment ends in."""
    with pytest.raises(UserError) as caught:
        assign(gpu_id, found, has_model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Who gets which


@pytest.mark.parametrize("has_model", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_cpu_uses_no_gpu(count, has_model):
    assert assign("cpu", gpus(count), has_model) == GpuAssignment(NO_GPU, NO_GPU, None)


@pytest.mark.parametrize(("count", "index"), [(2, 0), (4, 0), (4, 1), (4, 2)])
def test_the_value_learner_gets_gpu_id_and_the_world_model_the_next(count, index):
    assignment = assign(str(index), gpus(count), has_model=True)
    assert assignment == GpuAssignment(UUIDS[index], UUIDS[index + 1], None)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_last_gpu_is_shared_with_a_note_of_one_line(count):
    last = count - 1
    assignment = assign(str(last), gpus(count), has_model=True)
    assert assignment.valuerl == assignment.worldmodel == UUIDS[last]
    assert assignment.note == (
        f"there is no GPU {count}: both learners share GPU {last}"
    )


@pytest.mark.parametrize(("count", "index"), [(1, 0), (2, 0), (2, 1), (4, 2)])
def test_without_a_model_gpu_id_alone_is_used(count, index):
    assignment = assign(str(index), gpus(count), has_model=False)
    assert assignment == GpuAssignment(UUIDS[index], NO_GPU, None)


@pytest.mark.parametrize("has_model", [True, False])
@pytest.mark.parametrize(("count", "index"), [(1, 1), (2, 2), (2, 7), (4, 4)])
def test_a_gpu_that_does_not_exist_is_an_error_that_lists_what_does(
    count, index, has_model
):
    message = error_of(str(index), gpus(count), has_model)
    assert f"GPU {index} does not exist" in message
    for i in range(count):
        assert f"{i} (Model {i})" in message


def test_where_there_is_no_gpu_the_error_says_so_and_names_cpu():
    message = error_of("0", [])
    assert "no GPU was found" in message
    assert '"cpu"' in message


@pytest.mark.parametrize("gpu_id", ["-1", "1.0", "", " ", "gpu", "CPU", "0x1", "+1"])
def test_gpu_id_is_a_whole_number_or_cpu(gpu_id):
    message = error_of(gpu_id, gpus(2))
    assert f'"{gpu_id}"' in message
    assert "whole number" in message
    assert '"cpu"' in message


# Which are visible


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_without_the_variable_all_gpus_are_visible_by_uuid(count):
    assert visible({"PATH": "/bin"}, lambda: gpus(count)) == gpus(count)


@pytest.mark.parametrize("value", ["", " ", "-1", "none", "-1,0", ",0"])
def test_a_value_that_names_no_device_hides_all(value):
    assert visible_tokens(value) == []


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        ("2,3", ["2", "3"]),
        ("3,2", ["3", "2"]),
        (" 3 , 2 ", ["3", "2"]),
        ("0", ["0"]),
        ("0,1,2,3", ["0", "1", "2", "3"]),
    ],
)
def test_indices_stay_as_given_and_in_the_given_order(value, tokens):
    assert visible_tokens(value) == tokens


def test_gpu_id_counts_the_visible_devices():
    found = visible({VARIABLE: "3,2"}, lambda: gpus(4))
    assert [gpu.name for gpu in found] == ["Model 3", "Model 2"]
    assert assign("0", found, has_model=True) == GpuAssignment("3", "2", None)
    assert assign("1", found, has_model=True).valuerl == "2"
    assert "0 (Model 3), 1 (Model 2)" in error_of("2", found)


@pytest.mark.parametrize(
    ("value", "indices"),
    [
        (UUIDS[2], [2]),
        (f"{UUIDS[3]},{UUIDS[0]}", [3, 0]),
        ("GPU-2c", [2]),
        ("GPU-3,GPU-1a2b9,GPU-1a2b3", [3, 1, 0]),
    ],
)
def test_a_device_is_named_by_its_uuid_or_the_beginning_of_it(value, indices):
    assert visible_tokens(value) == [UUIDS[i] for i in indices]


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        ("0,-1,1", ["0"]),
        ("1,4,0", ["1"]),
        ("1,,0", ["1"]),
        ("0,gpu,1", ["0"]),
        ("2,GPU-ffff,1", ["2"]),
        ("2,GPU-1a2b,1", ["2"]),  # the beginning of two UUIDs
        ("GPU-1a2b,1", []),
        ("2,2,1", ["2"]),  # a device that is there already
        ("2c000000", []),  # a UUID starts with GPU-
    ],
)
def test_the_first_entry_that_names_no_device_ends_the_list(value, tokens):
    assert visible_tokens(value) == tokens


def test_mig_slices_are_taken_as_they_stand():
    first, second = "MIG-8f3c0000-1111", f"MIG-{UUIDS[0]}/1/0"
    assert visible_tokens(f"{first},{second}", count=1) == [first, second]
    found = visible({VARIABLE: f"{first},{second}"}, lambda: gpus(1))
    assert assign("0", found, has_model=True) == GpuAssignment(first, second, None)
    assert visible_tokens(first, count=0) == []


@pytest.mark.parametrize("value", ["0", UUIDS[0], "GPU-", "0,1"])
def test_nothing_is_visible_where_nothing_is_installed(value):
    assert visible_tokens(value, count=0) == []


# What the driver knows


def test_without_a_driver_there_is_no_gpu(monkeypatch):
    def fail():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert installed_gpus() == []
    assert visible({}) == []


def test_the_drivers_gpus_come_in_its_order_and_it_is_released(monkeypatch):
    calls = []
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: calls.append("init"))
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 3)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda i: i)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda i: UUIDS[i])
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda i: f"Model {i}")
    assert installed_gpus() == gpus(3)
    assert calls == ["init", "shutdown"]


@pytest.fixture
def driver(monkeypatch):
    """A driver with four GPUs, which refuses so many of them, or all."""

    def make(*refused, count=4):
        def ask(i):
            if i in refused:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
            return i

        def get_count():
            if count is None:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)
            return count

        monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
        monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", get_count)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", ask)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda i: UUIDS[i])
        monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda i: f"Model {i}")

    return make


def test_gpus_that_the_driver_refuses_are_passed_over_with_one_line(driver, capsys):
    driver(0, 3)
    assert installed_gpus() == [gpus(4)[1], gpus(4)[2]]
    said = capsys.readouterr().err
    assert said == (
        "GPUs that the driver refuses are left out: 0 (GPU is lost), 3 (GPU is lost)\n"
    )
    driver(count=None)
    assert installed_gpus() == []
    assert capsys.readouterr().err.count("\n") == 1


def test_gpu_id_counts_the_gpus_that_are_left(driver):
    driver(0, 3)
    assert assigned("1", False, {}).valuerl == UUIDS[2]
    assert (
        assigned("1", False, {VARIABLE: f"{UUIDS[2]},{UUIDS[1]}"}).valuerl == (UUIDS[1])
    )


def test_with_cpu_no_driver_is_asked(monkeypatch):
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: pytest.fail("it was asked"))
    assert assigned("cpu", True, {}) == GpuAssignment(NO_GPU, NO_GPU)
