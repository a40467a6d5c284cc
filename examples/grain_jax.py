"""JAX on one process, fed by Grain: stops after any step and goes on exactly. Imports no torch.

python examples/grain_jax.py SEQDB WINDOWS.db [--steps 20] [--checkpoint grain_jax.npz]
"""

import json
import os
from argparse import ArgumentParser

import grain
import jax
import jax.numpy as jnp
import numpy as np

from sharded_eden import ArrayDataset, ArrayStream
from sharded_eden.train.grain import StreamSource

HIDDEN = 32


def first_parameters() -> dict[str, jax.Array]:
    """Return a small model: the next base from the last two."""
    one, two, out = jax.random.split(jax.random.key(0), 3)
    return {
        "one": jax.random.normal(one, (256, HIDDEN)) * 0.1,
        "two": jax.random.normal(two, (256, HIDDEN)) * 0.1,
        "out": jax.random.normal(out, (HIDDEN, 256)) * 0.1,
    }


def loss_of(parameters: dict[str, jax.Array], batch: dict[str, jax.Array]) -> jax.Array:
    """Return the mean loss over the loss mask."""
    tokens = batch["tokens"]
    before = jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
    hidden = jnp.tanh(parameters["one"][tokens] + parameters["two"][before])
    logits = jax.nn.log_softmax(hidden @ parameters["out"])
    losses = -jnp.take_along_axis(logits, batch["labels"][..., None], axis=-1)[..., 0]
    return (losses * batch["loss_mask"]).sum() / jnp.maximum(batch["loss_mask"].sum(), 1)


@jax.jit
def step_of(parameters: dict[str, jax.Array], batch: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array]:
    """Return the parameters after one step, and the loss."""
    loss, gradients = jax.value_and_grad(loss_of)(parameters, batch)
    return jax.tree.map(lambda value, gradient: value - 0.5 * gradient, parameters, gradients), loss


def train(sequences: str, windows: str, steps: int, checkpoint: str) -> None:
    """Train to a number of steps, those before the checkpoint included."""
    parameters, first = first_parameters(), 0
    # <docs>
    source = StreamSource(ArrayStream(ArrayDataset.open(sequences, windows, rc_aug=True)), batch_size=8)
    if os.path.exists(checkpoint):
        with np.load(checkpoint) as saved:
            first = source.first_item(json.loads(str(saved["data"])))
            parameters = {name: jnp.asarray(saved[name]) for name in parameters}
    # The stream is shuffled already, and has no end: no shuffle, no repeat.
    batches = iter(grain.MapDataset.source(source)[first:].to_iter_dataset(grain.ReadOptions(num_threads=2)))
    for step in range(first + 1, steps + 1):
        parameters, loss = step_of(parameters, jax.tree.map(jnp.asarray, next(batches)))
        with open(f"{checkpoint}.new", "wb") as file:
            np.savez(file, data=json.dumps(source.state(step)), **parameters)
        os.replace(f"{checkpoint}.new", checkpoint)
        print(f"step {step}   loss {float(loss):.4f}")
    # </docs>


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sequences", metavar="SEQDB", help="the folder of sequence databases")
    parser.add_argument("windows", metavar="WINDOWS.db", help="the window database of the training split")
    parser.add_argument("--steps", type=int, default=20, help="steps, earlier runs included")
    parser.add_argument("--checkpoint", default="grain_jax.npz", help="a file to save to, and to go on from")
    train(**vars(parser.parse_args()))
