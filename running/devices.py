"""Which GPUs there are, found without importing TensorFlow, and who gets which."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pynvml

from ..util import UserError

VARIABLE = "CUDA_VISIBLE_DEVICES"
NO_GPU = "-1"
CPU = "cpu"  # in the place of a GPU_ID


@dataclass(frozen=True)
class Gpu:
    """One device.

    Attributes:
        token: what selects it in CUDA_VISIBLE_DEVICES: a UUID, or an index as given.
        name: for people.
    """

    token: str
    name: str


@dataclass(frozen=True)
class GpuAssignment:
    """The CUDA_VISIBLE_DEVICES of each learner, and a line where it needs one."""

    valuerl: str
    worldmodel: str
    note: str | None = None


def installed_gpus() -> list[Gpu]:
    """All GPUs that the driver knows, in the order of nvidia-smi; none: [].

    One that the driver refuses (to this user, or because it is lost) is left out, and
    a line on stderr says so. CUDA does not count it either.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []  # no driver, hence no GPU
    found, refused = [], []
    try:
        for number in range(pynvml.nvmlDeviceGetCount()):
            try:
                found.append(_described(number))
            except pynvml.NVMLError as error:
                refused.append(f"{number} ({error})")
    except pynvml.NVMLError as error:
        refused.append(f"all ({error})")
    finally:
        pynvml.nvmlShutdown()
    if refused:
        line = f"GPUs that the driver refuses are left out: {', '.join(refused)}"
        print(line, file=sys.stderr)
    return found


def _described(number: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(number)
    return Gpu(pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle))


def visible_gpus(
    environ: Mapping[str, str], installed: Callable[[], list[Gpu]] = installed_gpus
) -> list[Gpu]:
    """The GPUs that this process may use, in the order in which GPU_ID counts them.

    CUDA_VISIBLE_DEVICES is read as CUDA reads it: indices or UUIDs (their beginning is
    enough), in the given order; the first entry that names no device ends the list.
    """
    gpus = installed()
    if VARIABLE not in environ:
        return gpus
    visible: list[Gpu] = []
    for entry in (part.strip() for part in environ[VARIABLE].split(",")):
        gpu = _find(entry, gpus)
        if gpu is None or gpu in visible:
            break
        visible.append(gpu)
    return visible


def _find(entry: str, gpus: list[Gpu]) -> Gpu | None:
    if entry.isdecimal():
        index = int(entry)
        # The entry itself stays the token: CUDA_DEVICE_ORDER decides what it means.
        return Gpu(entry, gpus[index].name) if index < len(gpus) else None
    if entry.startswith("MIG-"):
        return Gpu(entry, "MIG slice") if gpus else None
    matches = [gpu for gpu in gpus if entry and gpu.token.startswith(entry)]
    return matches[0] if len(matches) == 1 else None


def assigned(gpu_id: str, has_model: bool, environ: Mapping[str, str]) -> GpuAssignment:
    """`assign` among the visible GPUs; with "cpu" no driver is asked."""
    gpus = [] if gpu_id == CPU else visible_gpus(environ)
    return assign(gpu_id, gpus, has_model)


def assign(gpu_id: str, gpus: list[Gpu], has_model: bool) -> GpuAssignment:
    """GPU_ID to the value learner, the next to the world-model learner (SPEC 2).

    With no next one both share GPU_ID. Everything else sees no GPU.

    Args:
        gpu_id: "cpu" or a whole number, as on the command line.
        gpus: what `visible_gpus` found.
        has_model: whether there is a world-model learner.

    Raises:
        UserError: no such GPU; the message lists what there is.
    """
    if gpu_id == CPU:
        return GpuAssignment(NO_GPU, NO_GPU)
    if not gpu_id.isdecimal():
        raise UserError(f'GPU_ID must be a whole number or "cpu", not "{gpu_id}"')
    index = int(gpu_id)
    if index >= len(gpus):
        found = ", ".join(f"{i} ({gpu.name})" for i, gpu in enumerate(gpus))
        raise UserError(
            f"GPU {index} does not exist; "
            + (f"there are: {found}" if gpus else "no GPU was found")
            + ' ("cpu" uses none)'
        )
    if not has_model:
        return GpuAssignment(gpus[index].token, NO_GPU)
    if index + 1 < len(gpus):
        return GpuAssignment(gpus[index].token, gpus[index + 1].token)
    return GpuAssignment(
        gpus[index].token,
        gpus[index].token,
        f"there is no GPU {index + 1}: both learners share GPU {index}",
    )
