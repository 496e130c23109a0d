"""How much of a training step is padding, by the number of rows that devices compute at a time.

    python -m benchmarks.padding

Lengths are drawn like those of RM-R1's traces: prompts of about 1,500 tokens, traces of about 700,
both with long tails, cut at 12,288, as many as the released set has.
"""

import numpy as np
from jaxtyping import Int

from rmr1_jax.data.packing import choose_rows, plan

SEQUENCES, BATCH_SIZE, MAX_LENGTH = 8_753, 128, 12_288
ROW_MULTIPLES = (1, 8, 16, 64)


def draw_lengths(
    sequences: int = SEQUENCES, *, seed: int = 0, prompt_spread: float = 0.6
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Tokens of each sequence, and those of its trace; spreads are of the logarithm."""
    rng = np.random.default_rng(seed)

    def log_normal(mean: float, spread: float) -> Int[np.ndarray, " N"]:
        drawn = rng.lognormal(np.log(mean) - spread**2 / 2, spread, sequences)
        return drawn.astype(np.int32)

    prompts = np.clip(log_normal(1500, prompt_spread), 150, MAX_LENGTH - 64)
    lengths = np.minimum(prompts + np.maximum(log_normal(700, 0.5), 32), MAX_LENGTH)
    return lengths, lengths - prompts


def padding_of_batches(lengths: Int[np.ndarray, " N"], rows: int) -> float:
    """Of one sequence a row, `rows` at a time, each padded to the longest of them."""
    order = np.random.default_rng(0).permutation(lengths)
    batches = order[: len(order) // rows * rows].reshape(-1, rows)
    return float(1 - batches.sum() / (batches.max(axis=1).sum() * rows))


def main() -> None:
    for name, spread in (("long tails", 0.6), ("very long tails", 1.0)):
        lengths, losses = draw_lengths(prompt_spread=spread)
        print(
            f"{name}: {len(lengths)} sequences, mean {lengths.mean():.0f} tokens, longest "
            f"{lengths.max()}; padded to {MAX_LENGTH}: {1 - lengths.mean() / MAX_LENGTH:.1%}"
        )
        print("rows at a time   packed   padded to longest   row length   sequences a step")
        for multiple in ROW_MULTIPLES:
            shape = choose_rows(lengths, BATCH_SIZE, multiple, 1, MAX_LENGTH)
            packed = plan(lengths, losses, shape, epochs=1, seed=0)
            longest = padding_of_batches(lengths, multiple)
            print(
                f"{multiple:14}   {packed.padding:6.2%}   {longest:17.1%}   "
                f"{shape.pack_length:10}   {packed.mean_sequences:16.1f}"
            )


if __name__ == "__main__":
    main()
