"""Latency: what is measured is the model, not what the process did before."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ACTIVATIONS = 4
RUNS = 20
PAGES = ACTIVATIONS * 1024  # of 4 KiB each, written anew in every run where they are handed back

FAULTS = f"""
import resource
import torch
import infoprune

class Adds(torch.nn.Module):
    def forward(self, x):
        x = x + 1
        for _ in range({ACTIVATIONS - 1}):
            kept, x = x, x + 1
        return x

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

images = torch.zeros(1024, 1024)  # 4 MiB
infoprune.latency(Adds(), images, repeats=1)
before = faults()
infoprune.latency(Adds(), images, repeats={RUNS})
print(faults() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator decides this")
def test_measuring_keeps_the_memory_of_activations() -> None:
    """Else asking for the pages anew takes a third of the time, or does not, depending on what was freed before."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < PAGES  # for one run of the twenty at most
