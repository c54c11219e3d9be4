# SPDX-License-Identifier: GPL-2.0-or-later
"""JAX: a jitted perceptron's loss, its gradient and an update by scan, over parameters of some hundred MiB.

    with_jax.py OUT.npz

Knows nothing of GreenBoost, but does not take three quarters of the VRAM at its start, as it would.
"""

import os
import sys

os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
os.environ["XLA_FLAGS"] = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"

import jax
import jax.numpy as jnp
import numpy as np

COUNT, SIZE = 16, 2048
keys = jax.random.split(jax.random.PRNGKey(0), COUNT)
parameters = [jax.random.normal(key, (SIZE, SIZE)) / SIZE**0.5 for key in keys]
x = jax.random.normal(jax.random.PRNGKey(1), (256, SIZE))


def loss(parameters, x):
    for weight in parameters:
        x = jnp.tanh(x @ weight)
    return (x**2).mean()


@jax.jit
def step(parameters, x):
    value, gradient = jax.value_and_grad(loss)(parameters, x)
    return [p - 0.1 * g for p, g in zip(parameters, gradient, strict=True)], value


@jax.jit
def power(matrix, x):
    return jax.lax.scan(lambda v, _: (v @ matrix, v.sum()), x, None, length=8)


losses = []
for _ in range(4):
    parameters, value = step(parameters, x)
    losses.append(float(value))
last, sums = power(parameters[0], x)
np.savez(sys.argv[1], np.array(losses), np.asarray(last), np.asarray(sums), *map(np.asarray, parameters))
