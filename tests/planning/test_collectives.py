"""Transfers between devices, in the forms in which compilers write them."""

import pytest

from rmr1_jax.planning.collectives import collectives
from rmr1_jax.planning.hlo import read_program


def one(line: str, parameter: str = "bf16[8,128]") -> str:
    return f"""\
ENTRY %main (a: {parameter}) -> bf16[8,128] {{
  %a = {parameter} parameter(0)
  ROOT %b = {line}
}}
"""


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("{{0,2},{1,3}}", (0, 2)),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("mesh['data'=2,'fsdp'=4,'tensor'=1] {'fsdp'}", (0, 1, 2, 3)),
        ("mesh['data'=2,'fsdp'=4] {'data'}", (0, 4)),
        ("mesh['data'=2,'fsdp'=4] {'data','fsdp'}", (0, 1, 2, 3, 4, 5, 6, 7)),
        ("mesh['fsdp'=8] {'fsdp':(2)4}", (0, 1, 2, 3)),
        ("mesh['fsdp'=8] {'fsdp':(1)2}", (0, 4)),
    ],
)
def test_groups_are_read_as_lists_iotas_and_meshes(groups: str, first: tuple[int, ...]) -> None:
    text = one(f"bf16[8,128] all-reduce(%a), replica_groups={groups}, to_apply=%add")
    (found,) = collectives(read_program(text))
    assert (found.group, found.group_size) == (first, len(first))


@pytest.mark.parametrize(
    ("line", "kind", "bytes_"),
    [
        ("((bf16[8,128]), bf16[2,128]) reduce-scatter-start(%a)", "reduce-scatter", 2048),
        ("((bf16[8,128]), bf16[8,128]) all-reduce-start(%a)", "all-reduce", 2048),
    ],
)
def test_a_start_that_calls_a_sum_is_a_collective(line: str, kind: str, bytes_: float) -> None:
    text = f"""\
%add (x: bf16[], y: bf16[]) -> bf16[] {{
  %x = bf16[] parameter(0)
  %y = bf16[] parameter(1)
  ROOT %z = bf16[] add(%x, %y)
}}

{one(f"{line}, replica_groups={{{{0,1,2,3}}}}, to_apply=%add")}"""
    (found,) = collectives(read_program(text))
    assert (found.kind, found.bytes) == (kind, bytes_)


@pytest.mark.parametrize(
    ("line", "parameter", "kind", "bytes_", "wire"),
    [
        ("bf16[8,128] all-gather(%a)", "bf16[2,128]", "all-gather", 2048, 1536),
        ("bf16[8,128] reduce-scatter(%a)", "bf16[32,128]", "reduce-scatter", 8192, 6144),
        ("bf16[8,128] all-reduce(%a)", "bf16[8,128]", "all-reduce", 2048, 3072),
        ("bf16[8,128] all-reduce(%a)", "f32[8,128]", "all-reduce", 2048, 3072),
        ("bf16[8,128] all-to-all(%a)", "bf16[8,128]", "all-to-all", 2048, 1536),
    ],
)
def test_bytes_are_those_of_the_whole_and_the_wire_carries_a_rings_share(
    line: str, parameter: str, kind: str, bytes_: float, wire: float
) -> None:
    text = one(f"{line}, replica_groups={{{{0,1,2,3}}}}", parameter)
    (found,) = collectives(read_program(text))
    assert (found.kind, found.bytes, found.wire_bytes) == (kind, bytes_, wire)


def test_an_asynchronous_gather_counts_at_its_start() -> None:
    (found,) = collectives(
        read_program("""\
ENTRY %main (a: bf16[2,128]) -> bf16[8,128] {
  %a = bf16[2,128]{1,0} parameter(0)
  %start = (bf16[2,128]{1,0}, bf16[8,128]{1,0}) all-gather-start(%a), replica_groups={{0,1,2,3}}, \
dimensions={0}
  ROOT %done = bf16[8,128]{1,0} all-gather-done(%start)
}
""")
    )
    assert (found.kind, found.bytes) == ("all-gather", 2048)


def test_a_permutation_sends_what_it_is_given() -> None:
    text = one("bf16[8,128] collective-permute(%a), source_target_pairs={{0,7},{1,0}}")
    (found,) = collectives(read_program(text))
    assert (found.wire_bytes, found.group) == (2048, (0, 7))
    assert found.crosses(4) and not found.crosses(8)


def test_a_group_of_one_sends_nothing() -> None:
    text = one("bf16[8,128] all-reduce(%a), replica_groups={{0},{1}}")
    assert collectives(read_program(text)) == []


FUSED = """\
%start (a: bf16[2,128]) -> (bf16[2,128], bf16[8,128]) {
  %a = bf16[2,128]{1,0} parameter(0)
  %gather = bf16[8,128]{1,0} all-gather(%a), channel_id=7, replica_groups=[1,4]<=[4], \
backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
  ROOT %c = (bf16[2,128]{1,0}, bf16[8,128]{1,0}) custom-call(%gather), \
custom_call_target="AsyncCollectiveStart"
}

%go_on (b: bf16[2,128], c.1: bf16[8,128]) -> bf16[8,128] {
  %b = bf16[2,128]{1,0} parameter(0)
  %c.1 = bf16[8,128]{1,0} parameter(1)
  ROOT %gather.1 = bf16[8,128]{1,0} all-gather(%b), channel_id=7, replica_groups=[1,4]<=[4], \
backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
}

%scatter (d: f32[16,128]) -> f32[4,128] {
  %d = f32[16,128]{1,0} parameter(0)
  %sum = f32[16,128]{1,0} all-reduce(%d), replica_groups=[1,4]<=[4], to_apply=%add
  %zero = s32[] constant(0)
  ROOT %part = f32[4,128]{1,0} dynamic-slice(%sum, %zero, %zero), dynamic_slice_sizes={4,128}
}

ENTRY %main (x: bf16[2,128], y: f32[16,128]) -> f32[4,128] {
  %x = bf16[2,128]{1,0} parameter(0)
  %y = f32[16,128]{1,0} parameter(1)
  %f = (bf16[2,128]{1,0}, bf16[8,128]{1,0}) fusion(%x), kind=kCustom, calls=%start
  %one = bf16[2,128]{1,0} get-tuple-element(%f), index=0
  %two = bf16[8,128]{1,0} get-tuple-element(%f), index=1
  %g = bf16[8,128]{1,0} fusion(%one, %two), kind=kCustom, calls=%go_on
  ROOT %h = f32[4,128]{1,0} fusion(%y), kind=kCustom, calls=%scatter
}
"""


def test_a_collective_cut_into_fused_pieces_counts_once() -> None:
    gather, scatter = collectives(read_program(FUSED))
    assert (gather.kind, gather.bytes) == ("all-gather", 2048)
    assert (scatter.kind, scatter.bytes) == ("reduce-scatter", 8192)


SENT = """\
ENTRY %main (a: bf16[8,128]) -> bf16[8,128] {{
  %a = bf16[8,128]{{1,0}} parameter(0)
  %token = token[] after-all()
  %send = (bf16[8,128]{{1,0}}, u32[]{{:S(2)}}, token[]) send(%a, %token), channel_id=2, \
is_host_transfer=true, frontend_attributes={{_xla_megascale_target={target},\
_xla_megascale_transfer_type="{kind}"}}
  %recv = (bf16[8,128]{{1,0}}, u32[]{{:S(2)}}, token[]) recv(%token), channel_id=1, \
is_host_transfer=true, frontend_attributes={{_xla_megascale_target={target},\
_xla_megascale_transfer_type="{kind}"}}
  %done = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %got = (bf16[8,128]{{1,0}}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true
  ROOT %b = bf16[8,128]{{1,0}} get-tuple-element(%got), index=0
}}
"""


@pytest.mark.parametrize(
    ("target", "sent_as", "kind", "group", "bytes_"),
    [
        ('"{1,2,3,4}x{0:3}"', "ALL_REDUCE", "all-reduce", (0, 4, 8, 12), 2048),
        ('"{1,2}x{0:7}"', "REDUCE_SCATTER", "reduce-scatter", (0, 8), 2048),
        ('"{1,2}x{0:3}"', "ALL_GATHER", "all-gather", (0, 4), 4096),
        ("{{100001,200001},{100000,200000}}", "ALL_TO_ALL", "all-to-all", (1, 3), 2048),
        ("{{100000->200001},{100001->200000}}", "ONE_TO_ONE", "collective-permute", (0, 3), 2048),
    ],
)
def test_what_the_host_sends_to_another_slice_is_a_collective(
    target: str, sent_as: str, kind: str, group: tuple[int, ...], bytes_: float
) -> None:
    (found,) = collectives(read_program(SENT.format(target=target, kind=sent_as)))
    assert (found.kind, found.group, found.bytes) == (kind, group, bytes_)


def test_what_is_sent_to_a_host_alone_is_none() -> None:
    text = SENT.format(target="", kind="").replace("megascale", "other")
    assert collectives(read_program(text)) == []
