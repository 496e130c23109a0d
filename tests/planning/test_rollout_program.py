"""What a decode step of Qwen2.5-7B reads on v6e-8, from the compiled rollout program."""

from dataclasses import replace

import pytest

from rmr1_jax.config import GrpoConfig, RolloutConfig
from rmr1_jax.models.presets import known_config
from rmr1_jax.planning.analysis import analyse
from rmr1_jax.planning.chips import CHIPS
from rmr1_jax.planning.compiled import compile_ahead
from rmr1_jax.planning.recipe_programs import Lengths, programs_of
from rmr1_jax.training.sharding_plan import make_sharding_plan
from tests.topologies import devices_or_skip


@pytest.mark.slow
def test_a_decode_step_reads_weights_and_live_columns_once() -> None:
    """Two layers of it: they cost what each of the 28 costs."""
    devices = devices_or_skip("v6e-8")
    model = replace(known_config("Qwen/Qwen2.5-7B-Instruct"), num_layers=2)
    recipe = GrpoConfig(mesh="fsdp=2,tensor=4", rollout=RolloutConfig(max_num_seqs=128))
    sharding = make_sharding_plan(model, recipe.mesh, sequence_parallel=False, devices=devices)
    programs = programs_of(recipe, model, sharding, Lengths(1300, 700), lora=None, dtype="bfloat16")
    (rollout,) = (program for program in programs if program.name == "rollout")
    found = analyse(compile_ahead(rollout), CHIPS["v6e"], len(devices))
    assert found.decode is not None and rollout.decode is not None
    assert found.decode.bytes_over_ideal < 1.15
    assert found.decode.cache_copies == 0
    gathered = found.transfers["all-gather"].in_decode_loop
    assert gathered < rollout.decode.cache_bytes / 2  # no cache, and no layer's weights
