"""A plan says when it cannot trust its reading of a compiled program, and then gives no time."""

from dataclasses import replace

import jax
import pytest

from rmr1_jax.config import SftConfig, SftDataConfig
from rmr1_jax.models.model_config import ModelConfig
from rmr1_jax.models.presets import known_config
from rmr1_jax.planning import analysis
from rmr1_jax.planning.analysis import analyse, check_reader
from rmr1_jax.planning.chips import CHIPS
from rmr1_jax.planning.compiled import Compiled, Planned, compile_ahead
from rmr1_jax.planning.recipe_programs import Lengths, programs_of
from rmr1_jax.training.sharding_plan import make_sharding_plan
from tests.topologies import devices_or_skip

# What a new compiler may call otherwise; in this order in the text of a program for a TPU.
FIELDS = ("dim_labels=", "calls=", "condition=", "body=", "cost_estimate", " fusion(", "bf16[")


@pytest.fixture(scope="module")
def update() -> Compiled:
    """The update of a small model, as the TPU compiler gives it."""
    devices = devices_or_skip("v5e:1x1")
    model: ModelConfig = replace(
        known_config("Qwen/Qwen2.5-0.5B-Instruct"), num_layers=2, vocab_size=2048
    )
    recipe = SftConfig(data=SftDataConfig(max_length=1024), batch_size=8)
    plan = make_sharding_plan(model, "", sequence_parallel=False, devices=devices)
    *_, planned = programs_of(recipe, model, plan, Lengths(600, 400), lora=None, dtype="bfloat16")
    return compile_ahead(planned)


def test_what_this_compiler_prints_is_read_without_a_doubt(update: Compiled) -> None:
    found = analyse(update, CHIPS["v5e"], 1)
    assert found.doubts == ()
    assert found.utilisation(update.planned, CHIPS["v5e"], 1) is not None


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_another_name_costs_the_time(update: Compiled, field: str) -> None:
    """Either nothing changes, or the program has no time; never another time."""
    assert field in update.text
    renamed = field.replace(field.strip(" =([")[0], "Z", 1)
    found = analyse(replace(update, text=update.text.replace(field, renamed)), CHIPS["v5e"], 1)
    assert found.doubts or found == analyse(update, CHIPS["v5e"], 1)
    if found.doubts:
        assert found.utilisation(update.planned, CHIPS["v5e"], 1) is None


def test_a_kernel_that_states_no_cost_is_named(update: Compiled) -> None:
    silent = update.text.replace('"cost_estimate"', '"estimate_of_cost"')
    (doubt,) = analyse(replace(update, text=silent), CHIPS["v5e"], 1).doubts[:1]
    assert doubt.startswith("nothing states the FLOPs of flash_")


def test_a_known_product_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    device = jax.devices()[0]
    check_reader.cache_clear()
    assert check_reader(device) == ""
    monkeypatch.setattr(analysis, "dot_flops", lambda program: 7.0)
    check_reader.cache_clear()
    assert check_reader(device).endswith("was counted as 7")
    check_reader.cache_clear()


@pytest.mark.parametrize(
    ("printed", "renamed"),
    [
        (" f32[8,8]", " wide[8,8]"),
        ("lhs_contracting_dims", "left_contracting_dims"),
        ("replica_groups", "groups"),
        ("{{0,1,2,3}}", "by_axis(x)"),
    ],
)
def test_what_is_printed_in_another_way_is_not_taken_for_nothing(
    printed: str, renamed: str
) -> None:
    """An element type of no bytes, a product of no FLOPs, a collective that would be left out."""
    text = """\
ENTRY %main (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %b = f32[8,8]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %c = f32[8,8]{1,0} all-reduce(%b), replica_groups={{0,1,2,3}}, to_apply=%add
}
"""
    compiled = Compiled(Planned("update", lambda: None, runs=1), 1.0, text=text)
    assert analyse(compiled, CHIPS["v5e"], 4).doubts == ()
    (doubt,) = analyse(
        replace(compiled, text=text.replace(printed, renamed)), CHIPS["v5e"], 4
    ).doubts
    assert "cannot be read" in doubt
