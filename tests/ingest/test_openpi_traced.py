"""What leaves a compiled JAX program, on a machine with one core."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from attnstore.ingest.policies.openpi import traced
assert traced.start_jax()[0].platform == "cpu"
assert "NPROC" not in os.environ
import jax, jax.numpy as jnp, numpy as np

def looped(x, times, each):
    return jax.lax.fori_loop(0, times, lambda _, x: each(jnp.tanh(x @ x)), x)

def shown(x):
    weights = jax.nn.softmax(x)
    traced._send(lambda *values: print([float(value.sum()) for value in values]), weights, x > 2)
    return weights

# Its input is not there yet: JAX hands the program to a thread of its own.
came = jax.jit(lambda x: looped(x, 20, lambda x: x))(jnp.ones((1501, 1501)))
np.asarray(jax.jit(lambda x: looped(x, 3, shown))(came))
jax.effects_barrier()
"""


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="cores are given to a process on Linux"
)
def test_large_values_leave_the_program_on_one_core() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], text=True, capture_output=True, timeout=300, check=False,
        env={**{k: v for k, v in os.environ.items() if k != "NPROC"}, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [eval(line) for line in done.stdout.splitlines()]
    assert [line[1] for line in lines] == [0, 0, 0]
    assert [round(line[0]) for line in lines] == [1501, 1501, 1501]
