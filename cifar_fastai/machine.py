"""This machine: its name, its devices, the versions installed, and where caches go."""
import ctypes
import os
import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path

__all__ = ["cache_dir", "describe_device", "fast_bf16", "keep_freed_memory", "machine_name", "versions"]


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


def machine_name() -> str:
    "The processor's own name, as /proc/cpuinfo gives it"
    name = _cpu_info("model name") or platform.processor() or platform.machine()
    return name + (" (bf16 instructions)" if fast_bf16() else "")


def fast_bf16() -> str:
    """The instructions that make bf16 faster than fp32, as the system lists them; empty where there are none.
    `avx512_bf16` alone does so on AMD; Intel's without AMX takes a third longer than fp32 by it"""
    flags = set((_cpu_info("flags") or _cpu_info("Features")).split())
    fast = ["amx_bf16", "bf16"]                             # Intel's, ARM's
    if _cpu_info("vendor_id") == "AuthenticAMD": fast.append("avx512_bf16")
    return next((flag for flag in fast if flag in flags), "")


def keep_freed_memory() -> bool:
    """Let this process keep the memory of tensors that it frees, for the next step. The C library of Linux
    gives large blocks back at once, and the system then clears each page again: 1.4 million a step of 512
    pictures. False where there is another C library"""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None: return False
    no_mapping, never_trim = mallopt(-4, 0), mallopt(-1, -1)   # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
    return bool(no_mapping and never_trim)


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
