"""Logical axes become mesh axes: split for training, whole copies of the weights for decoding."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from rmr1_jax.config.mesh_config import MeshShape
from rmr1_jax.distributed.mesh import make_mesh
from rmr1_jax.distributed.sharding_rules import (
    DECODING_RULES,
    TRAINING_RULES,
    axis_sizes,
    even_rules,
    partition_spec,
    shardings,
)

QUERY = ("layers", "embed", "heads", "head_dim")


def test_training_splits_parameters_over_fsdp_and_tensor() -> None:
    assert partition_spec(QUERY, TRAINING_RULES) == P(None, "fsdp", "tensor", None)
    assert partition_spec(("vocab", "embed"), TRAINING_RULES) == P("tensor", "fsdp")


def test_decoding_splits_parameters_over_tensor_alone() -> None:
    assert partition_spec(QUERY, DECODING_RULES) == P(None, None, "tensor", None)
    assert partition_spec(("embed",), DECODING_RULES) == P(None)


@pytest.mark.parametrize("rules", [TRAINING_RULES, DECODING_RULES])
def test_batch_is_split_over_data_and_fsdp(rules: dict[str, tuple[str, ...]]) -> None:
    assert partition_spec(("batch", "sequence", None), rules) == P(("data", "fsdp"), None, None)


def test_unknown_axis_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no rule for the logical axis 'experts'"):
        partition_spec(("layers", "experts"), TRAINING_RULES)


@pytest.mark.devices8
def test_every_leaf_gets_its_sharding() -> None:
    mesh = make_mesh(MeshShape(data=1, fsdp=4, tensor=2))
    tree = shardings(
        {"down": {"kernel": ("layers", "mlp", "embed")}, "norm": ("embed",)}, mesh, TRAINING_RULES
    )
    weights = {"down": {"kernel": jnp.zeros((3, 6, 8))}, "norm": jnp.zeros(8)}
    placed = jax.device_put(weights, tree)
    assert placed["down"]["kernel"].sharding.shard_shape((3, 6, 8)) == (3, 3, 2)
    assert placed["norm"].sharding.shard_shape((8,)) == (2,)


@pytest.mark.devices8
def test_tuples_of_leaves_are_branches() -> None:
    class Nothing(NamedTuple):
        """A branch without leaves, as optimizers have."""

    mesh = make_mesh(MeshShape(fsdp=8))
    tree = shardings((("batch", None), Nothing(), (), [("embed",)]), mesh, TRAINING_RULES)
    assert [leaf.spec for leaf in jax.tree.leaves(tree)] == [
        P(("data", "fsdp"), None),
        P(),
        P("fsdp"),
    ]


def test_sizes_are_read_from_names_and_shapes() -> None:
    axes = {"kernel": ("embed", "mlp"), "scale": ("embed",), "step": ()}
    arrays = {"kernel": jnp.zeros((4, 6)), "scale": jnp.zeros(4), "step": jnp.zeros(())}
    assert axis_sizes(axes, arrays) == {"embed": 4, "mlp": 6}


def test_arrays_that_disagree_about_an_axis_are_refused() -> None:
    axes = {"a": ("embed",), "b": ("embed",)}
    with pytest.raises(ValueError, match="'embed' is 4 in one array and 5 in another"):
        axis_sizes(axes, {"a": jnp.zeros(4), "b": jnp.zeros(5)})


@pytest.mark.parametrize(("vocab", "split"), [(151_936, ("tensor",)), (151_665, ())])
def test_vocabulary_is_kept_whole_only_where_it_does_not_divide(
    vocab: int, split: tuple[str, ...]
) -> None:
    mesh = MeshShape(fsdp=2, tensor=4)
    rules = even_rules(TRAINING_RULES, {"vocab": vocab, "mlp": 7}, mesh.sizes)
    assert rules["vocab"] == split
    assert {**rules, "vocab": ("tensor",)} == TRAINING_RULES
