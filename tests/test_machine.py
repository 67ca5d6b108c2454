"""How this machine's memory is used. What is read off its processor: tests/training/test_precision.py."""
import subprocess
import sys

import pytest

FREED = """
import resource, sys, torch
from cifar_fastai.machine import keep_freed_memory
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
if sys.argv[1] == "keep": assert keep_freed_memory()
for _ in range(9): torch.ones(1 << 24)               # 64 MiB, freed at once
before = faults()
for _ in range(5): torch.ones(1 << 24)
print(faults() - before)
"""


@pytest.mark.no_rounding
@pytest.mark.skipif(sys.platform != "linux", reason="it is the C library of Linux that gives memory back")
def test_memory_that_was_freed_is_not_asked_of_the_system_again():
    kept, given_back = (int(subprocess.run([sys.executable, "-c", FREED, how], capture_output=True, text=True,
                                           check=True).stdout) for how in ("keep", "give back"))
    assert kept < 100 and given_back > 5 * kept
