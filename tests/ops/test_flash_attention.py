"""The TPU kernels give the numbers of masked attention, walk live pairs only, and compile."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rmr1_jax.ops.attention import attention
from rmr1_jax.ops.flash_attention import Split, block_pairs, flash_attention, on_chip_memory
from rmr1_jax.ops.flash_kernels import FIRST, LAST, PARTIAL, WHOLE, Ids
from rmr1_jax.ops.packed_attention import KEPT, padding_apart
from tests.topologies import devices_or_skip

BLOCK = 128
interpreted = functools.partial(flash_attention, block=BLOCK, interpret=True)


def random_inputs(
    B: int, T: int, N: int, K: int, H: int, dtype: Any = jnp.float32
) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(T + N)
    draw = lambda heads: jnp.asarray(rng.normal(0, 1, (B, T, heads, H)), dtype)  # noqa: E731
    return draw(N), draw(K), draw(K)


def random_ids(seed: int, B: int, T: int) -> tuple[jax.Array, jax.Array]:
    """Rows of prompts with responses: segments of some 90 tokens, responses of 30, then padding."""
    rng = np.random.default_rng(seed)
    segments, response_ids = np.ones((B, T), np.int32), np.zeros((B, T), np.int32)
    for row in range(B):
        response = 0
        for t in range(1, T):
            starts = rng.random() < 1 / 90
            segments[row, t] = segments[row, t - 1] + starts
            response += not starts and rng.random() < 1 / 30
            in_prompt = starts or (
                response_ids[row, t - 1] == 0 and response == response_ids[row].max()
            )
            response_ids[row, t] = 0 if in_prompt else response
    real = np.arange(T) < rng.integers(T // 2, T, (B, 1))
    return jnp.asarray(segments * real), jnp.asarray(response_ids * real)


def visible(segments: Any, response_ids: Any, T: int) -> jax.Array:
    """[rows, queries, keys]."""
    seen = np.tril(np.ones((1, T, T), bool))
    if segments is not None:
        segments = np.asarray(segments)
        seen = seen & (segments[:, :, None] == segments[:, None, :])
    if response_ids is not None:
        response_ids = np.asarray(response_ids)
        of_queries, of_keys = response_ids[:, :, None], response_ids[:, None, :]
        seen = seen & ((of_keys == 0) | (of_keys == of_queries))
    return jnp.asarray(seen)


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(attend: Any, inputs: Any, real: jax.Array) -> Any:
    """Outputs of real tokens, and gradients of a sum that weighs each number differently."""

    def loss(inputs: Any) -> tuple[jax.Array, jax.Array]:
        out = attend(*inputs) * real[..., None, None]
        weights = jnp.cos(jnp.arange(out.size)).reshape(out.shape)
        return jnp.sum(weights * out, dtype=jnp.float32), out

    gradients, out = jax.grad(loss, has_aux=True)(inputs)
    return out, *gradients


def reference(segments: Any, response_ids: Any, query: Any, key: Any, value: Any) -> jax.Array:
    mask = visible(segments, response_ids, query.shape[1])
    return attention(query, key.transpose(0, 2, 3, 1), value.swapaxes(1, 2), mask)


def compare(inputs: Any, segments: Any, response_ids: Any, **options: Any) -> None:
    real = jnp.ones(inputs[0].shape[:2]) if segments is None else segments > 0
    ours = functools.partial(
        interpreted, segment_ids=segments, response_ids=response_ids, **options
    )
    expected = functools.partial(reference, segments, response_ids)
    for a, b in zip(
        with_gradients(ours, inputs, real), with_gradients(expected, inputs, real), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "T", "N", "K", "H"),
    [
        ("one segment", 5, 2, 2, 64),
        ("packed", 300, 4, 2, 64),
        ("with_responses", 300, 3, 1, 128),
    ],
)
def test_outputs_and_gradients_are_those_of_masked_attention(
    form: str, T: int, N: int, K: int, H: int
) -> None:
    segments, response_ids = random_ids(T, 2, T)
    compare(
        random_inputs(2, T, N, K, H),
        None if form == "one segment" else segments,
        response_ids if form == "with_responses" else None,
    )


def test_keys_in_stripes_give_the_same_gradients() -> None:
    """On a chip with little memory: gradients of some keys at a time."""
    ids = random_ids(0, 1, 512)
    compare(random_inputs(1, 512, 2, 1, 64), *ids, vmem=1 << 20)
    gradient = jax.grad(lambda *inputs: interpreted(*inputs, vmem=1 << 20).sum())
    program = str(jax.make_jaxpr(gradient)(*random_inputs(1, 512, 2, 1, 64)))
    # Rows, heads, stripes: forwards and backwards.
    assert re.findall(r"grid=\((\d+), (\d+), (\d+)", program) == [("1", "1", "1"), ("1", "1", "4")]


def test_bfloat16_sums_in_fp32() -> None:
    segments, response_ids = random_ids(3, 1, 384)
    inputs = random_inputs(1, 384, 2, 1, 64)
    narrow = tuple(x.astype(jnp.bfloat16) for x in inputs)
    ours = functools.partial(interpreted, segment_ids=segments, response_ids=response_ids)
    exact = functools.partial(reference, segments, response_ids)
    real = segments > 0
    for a, b in zip(
        with_gradients(ours, narrow, real), with_gradients(exact, inputs, real), strict=True
    ):
        assert a.dtype == jnp.bfloat16
        assert np.abs(a.astype(np.float32) - b).mean() < 0.008 * np.abs(b).mean()


def test_sharp_scores_overflow_nothing() -> None:
    query, key, value = random_inputs(1, 256, 2, 1, 64)
    ours = interpreted(1e3 * query, key, value)
    expected = reference(None, None, 1e3 * query, key, value)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("with_responses", [False, True])
@pytest.mark.parametrize("stripes", [1, 2])
def test_the_list_of_pairs_is_what_is_seen(with_responses: bool, stripes: int) -> None:
    B, T, block = 3, 512, 32
    segments, response_ids = random_ids(9, B, T)
    if with_responses:
        segments = padding_apart(segments, response_ids)
    ids = Ids(segments, response_ids if with_responses else None)
    seen = np.asarray(visible(*ids, T)).reshape(B, T // block, block, T // block, block)
    some, all_ = seen.any((2, 4)), seen.all((2, 4))
    listed = jax.jit(block_pairs, static_argnums=(1, 2))(ids, block, stripes)
    pairs = jax.tree.map(np.asarray, listed)

    for row in range(B):
        met = []
        for z in range(stripes):
            count = (pairs.bits[row, z] > 0).sum()
            of_row = [x[row, z, :count].tolist() for x in pairs[:3]]
            assert count <= pairs.length and not pairs.bits[row, z, count:].any()
            for i, j, bits in zip(*of_row, strict=True):
                met.append((i, j))
                assert j // (T // block // stripes) == z
                assert bool(bits & PARTIAL) != bool(bits & WHOLE)
                # Not all that are seen whole are known to be: a block may hold prompt and response.
                assert all_[row, i, j] if bits & WHOLE else with_responses or not all_[row, i, j]
            queries, bits = np.array(of_row[0]), np.array(of_row[2])
            assert (np.diff(queries) >= 0).all()
            turns = np.flatnonzero(np.diff(queries)) + 1
            assert np.flatnonzero(bits & FIRST).tolist() == [0, *turns]
            assert np.flatnonzero(bits & LAST).tolist() == [*(turns - 1), count - 1]
        assert sorted(met) == sorted(set(met)) == [tuple(x) for x in np.argwhere(some[row])]


@pytest.mark.devices8
def test_devices_attend_for_their_own_rows_and_heads() -> None:
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
    split = Split(mesh, ("data", "fsdp"), ("tensor",))
    segments, response_ids = random_ids(1, 4, 256)
    inputs = random_inputs(4, 256, 4, 2, 64)
    place = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))  # noqa: E731
    rows = ("data", "fsdp")
    placed = tuple(place(x, rows, None, "tensor") for x in inputs)
    compare(placed, place(segments, rows), place(response_ids, rows), split=split)


@pytest.mark.devices8
@pytest.mark.parametrize(("kept", "calls"), [((), 2), ((KEPT,), 1)])
def test_a_policy_may_keep_what_the_backward_pass_needs(kept: tuple[str, ...], calls: int) -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), ("rows",))
    attend = functools.partial(interpreted, split=Split(mesh, ("rows",), ()))
    policy = jax.checkpoint_policies.save_only_these_names(*kept)

    def loss(inputs: Any) -> jax.Array:
        layer = jax.checkpoint(lambda inputs: attend(*inputs), policy=policy)
        return jnp.sin(layer(inputs)).sum()

    inputs = random_inputs(2, 128, 2, 1, 64)
    program = str(jax.make_jaxpr(jax.grad(loss))(inputs))
    assert program.count("name=flash_forward") == calls
    assert program.count("name=flash_backward") == 1


TOPOLOGIES = ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"]


@pytest.mark.parametrize(
    ("topology", "with_responses"),
    [
        ("v4:2x2x1", True),  # with the least memory
        pytest.param("v5e:2x2", False, marks=pytest.mark.nightly),
        *(pytest.param(name, True, marks=pytest.mark.nightly) for name in TOPOLOGIES[1:]),
    ],
)
def test_kernels_compile_for_every_chip(topology: str, with_responses: bool) -> None:
    compiled_for(topology, 2, T=1024, N=4, K=2, H=64, with_responses=with_responses)


@pytest.mark.nightly
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2"])
def test_kernels_compile_at_the_length_of_rm_r1(topology: str) -> None:
    """With the sizes of Qwen2.5-7B. No [T, T] is stored, not even one block row of all heads."""
    compiled = compiled_for(topology, 1, T=12_288, N=28, K=4, H=128, with_responses=True)
    memory: Any = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 1 << 30


def compiled_for(topology: str, heads: int, *, with_responses: bool, **sizes: int) -> Any:
    """Forwards and backwards, split over rows and heads, for chips that are not here."""
    devices = np.array(devices_or_skip(topology))
    T, N, K, H = sizes.values()
    rows = len(devices) // heads
    mesh = Mesh(devices.reshape(rows, heads), ("rows", "heads"))
    split = Split(mesh, ("rows",), ("heads",))
    attend = functools.partial(
        flash_attention, split=split, vmem=on_chip_memory(devices.flat[0].device_kind)
    )

    def of(dtype: Any, *axes: int) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec("rows", *((None, "heads") if len(axes) > 1 else ()))
        return jax.ShapeDtypeStruct((rows, *axes), dtype, sharding=NamedSharding(mesh, spec))

    inputs = tuple(of(jnp.bfloat16, T, n, H) for n in (N, K, K))
    ids = of(jnp.int32, T), of(jnp.int32, T) if with_responses else None
    loss = lambda inputs, *ids: attend(*inputs, *ids).astype(jnp.float32).sum()  # noqa: E731
    return jax.jit(jax.value_and_grad(loss)).lower(inputs, *ids).compile()
