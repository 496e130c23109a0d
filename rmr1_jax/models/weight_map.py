"""The tensors of a decoder: one table of our paths, the names in other formats, and shapes.

Hugging Face and GGUF checkpoints hold one two-dimensional tensor per layer. Ours are stacked over
layers and keep heads apart (`transformer.py`). The table says how they map, and `assemble` reads a
model by it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from rmr1_jax.errors import UserError
from rmr1_jax.models.model_config import ModelConfig

# Host memory for reading one tensor, on top of its destination.
READ_BYTES = 64 << 20
# A leaf up to this size per device is transferred whole, a larger one in groups of layers.
GROUP_BYTES = 64 << 20
# Tensors named in one message for each kind of problem.
LISTED = 10

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Tensor:
    """One row of the table.

    `axes` groups our dimensions (without L) into those of the foreign tensor. If `transposed`, the
    foreign tensor has the groups in reverse order, as `[out, in]` weights do.
    """

    path: str
    huggingface: str
    gguf: str
    axes: tuple[str, ...]
    transposed: bool = False
    only_if: Callable[[ModelConfig], bool] = lambda config: True

    @property
    def stacked(self) -> bool:
        """Whether there is one per layer."""
        return self.path.startswith("layers/")

    def shape(self, config: ModelConfig) -> tuple[int, ...]:
        """Our shape, [L, ...] for stacked tensors."""
        sizes = dimensions(config)
        return tuple(sizes[letter] for letter in ("L" if self.stacked else "") + "".join(self.axes))

    def foreign_shape(self, config: ModelConfig) -> tuple[int, ...]:
        """The shape of one layer's tensor in a Hugging Face checkpoint or a GGUF file."""
        sizes = dimensions(config)
        shape = tuple(math.prod(sizes[letter] for letter in group) for group in self.axes)
        return shape[::-1] if self.transposed else shape

    def layers(self, config: ModelConfig) -> range:
        """The layers that have this tensor: all, or only 0 if it is not stacked."""
        return range(config.num_layers if self.stacked else 1)


def _kernel(path: str, huggingface: str, gguf: str, *axes: str) -> Tensor:
    return Tensor(
        f"layers/{path}/kernel",
        f"model.layers.{{layer}}.{huggingface}.weight",
        f"blk.{{layer}}.{gguf}.weight",
        axes,
        transposed=True,
    )


def _bias(path: str, huggingface: str, gguf: str, axes: str, switch: str) -> Tensor:
    return Tensor(
        f"layers/{path}/bias",
        f"model.layers.{{layer}}.{huggingface}.bias",
        f"blk.{{layer}}.{gguf}.bias",
        (axes,),
        only_if=lambda config: bool(getattr(config, switch)),
    )


def _scale(path: str, huggingface: str, gguf: str, axes: str) -> Tensor:
    return Tensor(
        f"layers/{path}/scale",
        f"model.layers.{{layer}}.{huggingface}.weight",
        f"blk.{{layer}}.{gguf}.weight",
        (axes,),
        only_if=lambda config: axes == "D" or config.qk_norm,
    )


TENSORS = (
    Tensor("embed/embedding", "model.embed_tokens.weight", "token_embd.weight", ("V", "D")),
    _scale("attention_norm", "input_layernorm", "attn_norm", "D"),
    _kernel("attention/query", "self_attn.q_proj", "attn_q", "D", "NH"),
    _bias("attention/query", "self_attn.q_proj", "attn_q", "NH", "qkv_bias"),
    _kernel("attention/key", "self_attn.k_proj", "attn_k", "D", "KH"),
    _bias("attention/key", "self_attn.k_proj", "attn_k", "KH", "qkv_bias"),
    _kernel("attention/value", "self_attn.v_proj", "attn_v", "D", "KH"),
    _bias("attention/value", "self_attn.v_proj", "attn_v", "KH", "qkv_bias"),
    _scale("attention/query_norm", "self_attn.q_norm", "attn_q_norm", "H"),
    _scale("attention/key_norm", "self_attn.k_norm", "attn_k_norm", "H"),
    _kernel("attention/output", "self_attn.o_proj", "attn_output", "NH", "D"),
    _bias("attention/output", "self_attn.o_proj", "attn_output", "D", "output_bias"),
    _scale("mlp_norm", "post_attention_layernorm", "ffn_norm", "D"),
    _kernel("mlp/gate", "mlp.gate_proj", "ffn_gate", "D", "F"),
    _bias("mlp/gate", "mlp.gate_proj", "ffn_gate", "F", "mlp_bias"),
    _kernel("mlp/up", "mlp.up_proj", "ffn_up", "D", "F"),
    _bias("mlp/up", "mlp.up_proj", "ffn_up", "F", "mlp_bias"),
    _kernel("mlp/down", "mlp.down_proj", "ffn_down", "F", "D"),
    _bias("mlp/down", "mlp.down_proj", "ffn_down", "D", "mlp_bias"),
    Tensor("final_norm/scale", "model.norm.weight", "output_norm.weight", ("D",)),
    Tensor(
        "lm_head/kernel",
        "lm_head.weight",
        "output.weight",
        ("D", "V"),
        transposed=True,
        only_if=lambda config: not config.tie_embeddings,
    ),
)


def dimensions(config: ModelConfig) -> dict[str, int]:
    """The size of every dimension letter."""
    return {
        "L": config.num_layers,
        "D": config.hidden_size,
        "F": config.intermediate_size,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "H": config.head_dim,
        "V": config.vocab_size,
    }


def tensors_of(config: ModelConfig) -> list[Tensor]:
    """The rows of the table for a model with this config."""
    return [tensor for tensor in TENSORS if tensor.only_if(config)]


def count_parameters(config: ModelConfig) -> int:
    """The number of parameters. Tied embeddings count once."""
    return sum(math.prod(tensor.shape(config)) for tensor in tensors_of(config))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested dict as ("layers/mlp/up/kernel", leaf)."""
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{path}/")
        else:
            yield path, value


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The opposite of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def foreign_shapes(
    config: ModelConfig, names: Literal["huggingface", "gguf"]
) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a Hugging Face or GGUF checkpoint of this model."""
    return {
        getattr(tensor, names).format(layer=layer): tensor.foreign_shape(config)
        for tensor in tensors_of(config)
        for layer in tensor.layers(config)
    }


def check_shapes(
    what: str, expected: Shapes, found: Shapes, *, unsupported: Sequence[str] = ()
) -> None:
    """Raise one `UserError` that lists all missing, extra, misshapen and unsupported tensors.

    `what` opens the message. `unsupported` are tensors that the caller cannot read, with the dtype.
    Long lists are cut and counted.
    """
    problems = {
        "missing": [name for name in expected if name not in found],
        "extra": [name for name in found if name not in expected],
        "misshapen": [
            f"{name} {list(found[name])} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ],
        "of an unsupported dtype": list(unsupported),
    }
    parts = []
    for kind, names in problems.items():
        if names:
            more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            parts.append(f"{len(names)} {kind}: {', '.join(names[:LISTED])}{more}")
    if parts:
        raise UserError(
            f"{what}: {'; '.join(parts)}. Download the checkpoint again, or fix its config."
        )


class Source(Protocol):
    """A checkpoint in another format, whose tensors were checked against its config."""

    config: ModelConfig

    @property
    def dtype(self) -> np.dtype:
        """The dtype to load by default."""
        ...

    def read(self, tensor: Tensor, layer: int, window: tuple[slice, ...]) -> np.ndarray:
        """A window of one layer's tensor in its foreign shape."""
        ...


def assemble(
    source: Source,
    dtype: np.dtype,
    shardings: Mapping[str, Any] | None = None,
    on_read: Callable[[int], None] = lambda size: None,
) -> dict[str, Any]:
    """The parameters of a model, read straight onto the devices that will hold them.

    It reads one leaf at a time, only the parts for devices of this process, in groups of layers.
    The host therefore never holds more than one foreign tensor or `GROUP_BYTES`, whichever is
    larger, plus `READ_BYTES`. `shardings` is a matching tree (default: all on one device).
    `on_read` is called with the number of parameters in each finished leaf.
    """
    placed = dict(flatten(shardings)) if shardings is not None else {}
    leaves = {}
    for tensor in tensors_of(source.config):
        sharding = placed[tensor.path] if shardings is not None else default_sharding()
        leaf = leaves[tensor.path] = _leaf(source, tensor, dtype, sharding)
        on_read(leaf.size)
    return nest(leaves)


def default_sharding() -> Sharding:
    """Everything on the default device of JAX."""
    return SingleDeviceSharding(next(iter(jnp.zeros(()).devices())))


def _leaf(source: Source, tensor: Tensor, dtype: np.dtype, sharding: Sharding) -> jax.Array:
    shape = tensor.shape(source.config)
    holders: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(
            part.indices(size)[:2] for part, size in zip(index or (), shape, strict=True)
        )
        holders.setdefault(bounds, []).append(device)
    pieces = []
    for bounds, devices in holders.items():
        pieces += _piece(source, tensor, dtype, bounds, devices)
    return jax.make_array_from_single_device_arrays(shape, sharding, pieces)


def _piece(
    source: Source,
    tensor: Tensor,
    dtype: np.dtype,
    bounds: tuple[tuple[int, int], ...],
    devices: list[jax.Device],
) -> list[jax.Array]:
    """The part of a leaf within `bounds`, on each of the devices."""
    shape = tuple(stop - start for start, stop in bounds)
    (first, last), within = (bounds[0], bounds[1:]) if tensor.stacked else ((0, 1), bounds)
    layer_shape = shape[1:] if tensor.stacked else shape
    per_group = layers_at_once(layer_shape, dtype)

    def read_layers(start: int, stop: int) -> np.ndarray:
        group = np.empty((stop - start, *layer_shape), dtype)
        for layer in range(start, stop):
            _read_layer(source, tensor, layer, within, group[layer - start])
        return group

    if last - first <= per_group:
        whole = read_layers(first, last).reshape(shape)
        return [jax.block_until_ready(jax.device_put(whole, device)) for device in devices]
    pieces = [jnp.zeros(shape, dtype, device=device) for device in devices]
    for start in range(first, last, per_group):
        group = read_layers(start, min(start + per_group, last))
        # Unfinished transfers keep their source in memory, so wait for each.
        pieces = [
            jax.block_until_ready(put_layers(piece, jax.device_put(group, device), start - first))
            for piece, device in zip(pieces, devices, strict=True)
        ]
    return pieces


def layers_at_once(layer_shape: Sequence[int], dtype: np.dtype) -> int:
    """How many layers of a leaf are transferred together."""
    return max(1, GROUP_BYTES // max(1, math.prod(layer_shape) * dtype.itemsize))


@jax.jit(donate_argnums=0)
def put_layers(piece: jax.Array, group: jax.Array, start: int) -> jax.Array:
    """Write some layers into a leaf, starting at layer `start`."""
    return jax.lax.dynamic_update_slice_in_dim(piece, group, start, axis=0)


def _read_layer(
    source: Source,
    tensor: Tensor,
    layer: int,
    bounds: tuple[tuple[int, int], ...],
    destination: np.ndarray,
) -> None:
    """Fill `destination`, one layer of our shape within `bounds`, from the foreign tensor."""
    head_dim = source.config.head_dim
    windows, each = [], iter(bounds)
    for group in tensor.axes:
        start, stop = next(each)
        if len(group) == 2:  # heads and the dimension of a head, which are one foreign dimension
            if next(each) != (0, head_dim):
                raise ValueError(f"{tensor.path}: the dimension of a head cannot be sharded")
            start, stop = start * head_dim, stop * head_dim
        windows.append(slice(start, stop))
    flat = destination.reshape([window.stop - window.start for window in windows])
    rows, *columns = reversed(windows) if tensor.transposed else windows
    width = math.prod(window.stop - window.start for window in columns)
    # Four bytes per element, and whole heads, since some sources reorder rows within a head.
    count = max(1, READ_BYTES // (4 * width * head_dim)) * head_dim
    for start in range(rows.start, rows.stop, count):
        stop = min(start + count, rows.stop)
        block = source.read(tensor, layer, (slice(start, stop), *columns))
        here = slice(start - rows.start, stop - rows.start)
        if tensor.transposed:
            _copy_transposed(block, flat[:, here])
        else:
            flat[here] = block


def _copy_transposed(block: np.ndarray, destination: np.ndarray) -> None:
    # A few rows at a time stay in the cache, which is five times as fast as one strided copy.
    for row in range(0, len(block), 16):
        destination[:, row : row + 16] = block[row : row + 16].T
