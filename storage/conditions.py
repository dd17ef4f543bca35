"""What decides a run's bits in addition to its configuration and seed.

A start in run.json says it, so that a resume and a repetition can be compared with what
was there before: versions, the program, the kind of processor, and how each learner
computes.
"""

import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("tensorflow", "gymnasium", "mujoco", "numpy", "safetensors", "portalocker")
COMPUTING = ("tensorflow", "gymnasium", "mujoco", "numpy")  # those that make numbers
CPUINFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
VARIABLES = (  # of the environment, by which libraries choose other kernels
    "TF_ENABLE_ONEDNN_OPTS",
    "ONEDNN_MAX_CPU_ISA",
    "XLA_FLAGS",
    "OPENBLAS_CORETYPE",
    "NPY_DISABLE_CPU_FEATURES",
)
INSTRUCTIONS = ("sse", "avx", "fma", "f16c", "amx")  # of vectors: how flags begin


def conditions() -> dict[str, Any]:
    """What a start says of versions and of the processor."""
    return {
        "processor": processor(),
        "processor_kind": processor_kind(),
        "variables": {name: os.environ.get(name, "") for name in VARIABLES},
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def are_conditions(start: object) -> bool:
    """Whether what is compared of a start has the right type."""
    if not isinstance(start, dict):
        return False
    keys = "processor_kind", "variables", "versions"
    objects = [start.get(key, {}) for key in keys]
    computing = start.get("computing", {})
    objects += [computing, *(computing.values() if isinstance(computing, dict) else ())]
    return all(isinstance(each, dict) for each in objects)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two starts differ in that can change bits, as `changes`."""
    return changes(dict(_decisive(before)), dict(_decisive(now)))


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has another value, as "X was A and is B" each; not what one side lacks."""
    return [
        f"{name} was {_shown(before[name])} and is {_shown(value)}"
        for name, value in now.items()
        if name in before and before[name] != value
    ]


def _decisive(start: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What of a start can change bits, by what a user calls it."""
    for key, label in (
        ("processor", "the processor"),
        ("libc", "the C library"),
        ("commit", "the program's commit"),
    ):
        if start.get(key):
            yield label, start[key]
    for key, value in start.get("processor_kind", {}).items():
        yield f"the processor's {key}", value
    yield from start.get("variables", {}).items()
    for package in COMPUTING:
        if version := start.get("versions", {}).get(package):
            yield package, version
    for name, values in start.get("computing", {}).items():
        for key, value in values.items():
            yield f"{name}'s {key}", value


def _shown(value: Any) -> str:
    return (value or "unset") if isinstance(value, str) else json.dumps(value)


def processor() -> str:
    """The processor's name: on another kind, results differ in their last digits."""
    name = _cpuinfo().get("model name")
    return name or platform.processor() or platform.machine()


def processor_kind() -> dict[str, str]:
    """What libraries choose their kernels by; of what is not known, nothing.

    Virtual machines give one name to several kinds.
    """
    lines = _cpuinfo()
    kind: dict[str, str] = {
        key: lines[key] for key in ("cpu family", "model") if key in lines
    }
    if sizes := [_first_line(each) for each in sorted(CACHES.glob("*/size"))]:
        kind["caches"] = " ".join(sizes)
    flags = lines.get("flags", "").split()
    if vectors := sorted(flag for flag in flags if flag.startswith(INSTRUCTIONS)):
        kind["instructions"] = " ".join(vectors)
    return kind


def _cpuinfo() -> dict[str, str]:
    """What the kernel says of the first processor; {} where it does not."""
    with suppress(OSError):
        first = CPUINFO.read_text().split("\n\n")[0]
        pairs = (line.partition(":") for line in first.splitlines())
        return {key.strip(): value.strip() for key, _, value in pairs}
    return {}


def _first_line(path: Path) -> str:
    with suppress(OSError):
        return path.read_text().partition("\n")[0]
    return "?"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
