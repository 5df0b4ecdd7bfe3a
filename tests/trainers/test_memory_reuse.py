"""Freed memory stays with the process: seen in the page faults of steps that allocate alike."""

import subprocess
import sys

import pytest

from e2e_tts.trainers.memory_reuse import keep_freed_memory

STEPS = """
import resource, sys, torch
from e2e_tts.trainers.memory_reuse import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.set_num_threads(1)

def step():
    # As a backward pass does: everything is alive at once, then all of it is freed.
    activations = [torch.zeros(10_000_000) for _ in range(4)]
    return sum(float(a[0]) for a in activations)

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    run = subprocess.run([sys.executable, "-c", STEPS, mode], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="about glibc's allocator")
def test_steps_take_their_memory_from_the_step_before():
    run = subprocess.run(
        [sys.executable, "-c", "from e2e_tts.trainers.memory_reuse import keep_freed_memory as k; print(k())"],
        capture_output=True,
        text=True,
        check=True,
    )
    if run.stdout.strip() != "True":
        pytest.skip("another C library")
    assert page_faults("keep") < 0.05 * page_faults("as it is")


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False
