"""This machine: its name, its devices, the versions installed, and where caches go."""
import os
import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path

__all__ = ["BF16_FLAGS", "cache_dir", "cpu_flags", "describe_device", "machine_name", "versions"]


def cache_dir() -> Path | None:
    """`$XDG_CACHE_HOME/cifar_fastai`, else `~/.cache/cifar_fastai`; None where there is no home folder.
    A relative variable is ignored, as the XDG specification asks: it would be a folder in each place"""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base): base = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "cifar_fastai" if os.path.isabs(base) else None


def versions() -> dict[str, str]:
    "Versions of what decides the bytes of a run, without importing any of it"
    found = {"python": platform.python_version()}
    for name in ("cifar_fastai", "fastai", "torch", "numpy", "albumentations"):
        with suppress(metadata.PackageNotFoundError): found[name] = metadata.version(name)
    return found


CPU_INFO = Path("/proc/cpuinfo")
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}   # the last one is ARM's


def machine_name() -> str:
    "The processor's own name, as /proc/cpuinfo gives it"
    name = _cpu_info("model name") or platform.processor() or platform.machine()
    return name + (" (bf16 instructions)" if cpu_flags() & BF16_FLAGS else "")


def cpu_flags() -> set[str]:
    "The instructions that the processor says it has, on Linux; empty where it does not say"
    return set((_cpu_info("flags") or _cpu_info("Features")).split())


def _cpu_info(field: str) -> str:
    "The first value of a field of /proc/cpuinfo, or nothing"
    lines = CPU_INFO.read_text(errors="replace").splitlines() if CPU_INFO.exists() else []
    values = [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field]
    return values[0] if values else ""


def describe_device(device) -> str:
    "A torch device as people call it: with the GPU's name, or the processor's and its threads"
    import torch  # not above: data and recipes are read without it
    if device.type == "cuda": return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type != "cpu": return str(device)
    return f"{device} ({machine_name()}, {torch.get_num_threads()} threads)"
