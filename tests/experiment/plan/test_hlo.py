"""Programs as text: sizes of arrays, modules, loops, and what a TPU copies between its memories."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxkd.experiment.plan.hlo import Collective, Program, array_sizes, module_of

# Lines as libtpu prints them, shortened.
TPU = """
HloModule jit_step, is_scheduled=true

%fused_computation.1 (param_0.5: f32[64,128], param_1.7: s32[]) -> f32[8,128] {
  %param_0.5 = f32[64,128]{1,0:T(8,128)} parameter(0)
  %param_1.7 = s32[]{:T(128)} parameter(1)
  ROOT %dynamic-slice.1 = f32[8,128]{1,0:T(8,128)} dynamic-slice(%param_0.5, %param_1.7), dynamic_slice_sizes={8,128}
}

ENTRY %main.9 (a: f32[64,128], b: f32[8,128], i: s32[]) -> f32[8,128] {
  %a = f32[64,128]{1,0:T(8,128)} parameter(0)
  %b = f32[8,128]{1,0:T(8,128)} parameter(1)
  %i = s32[]{:T(128)S(6)} parameter(2)
  %copy-start = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%b), backend_config={}
  %copy-done = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %slice-start = ((f32[64,128]{1,0:T(8,128)}), f32[16,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:16], [0:128]}
  %slice-done = f32[16,128]{1,0:T(8,128)S(1)} slice-done(%slice-start)
  %fusion.1 = f32[8,128]{1,0:T(8,128)} fusion(%a, %i), kind=kLoop, calls=%fused_computation.1, metadata={op_name="jit(step)/jvp(Net)/Net.forward/blocks_3/attn/slice" stack_frame_id=3}
  %fusion.2 = f32[8,128]{1,0:T(8,128)S(1)} fusion(%copy-done, %slice-done, %fusion.1), kind=kOutput, calls=%other, metadata={op_name="jit(step)/transpose(jvp(Net))/Net.forward/blocks_11/mlp/fc1/dot_general"}
  %all-reduce.1 = (f32[8,128]{1,0:T(8,128)S(1)}, f32[]{:T(128)}) all-reduce(%fusion.2, %i), replica_groups={{0,1}}, to_apply=%add, metadata={op_name="jit(step)/reduce_sum"}
  %send.1 = (f32[8,128]{1,0:T(8,128)}, u32[], token[]) send(%fusion.1), channel_id=7, is_host_transfer=true
  ROOT %get-tuple-element.1 = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%all-reduce.1), index=0
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("f32[8,197]{1,0}", [8 * 197 * 4]),
        ("bf16[3,5]{1,0:T(8,128)(2,1)}", [8 * 128 * 2]),  # the tiles of a TPU are filled up
        ("bf16[3,5]{0,1:T(8,128)(2,1)}", [128 * 8 * 2]),
        ("bf16[2,200,197]{2,1,0:T(8,128)(2,1)}", [2 * 200 * 256 * 2]),
        ("(f32[], /*index=1*/s8[4]{0}, pred[3]{0})", [4, 4, 3]),
        ("f32[]{:T(128)}", [512]),
        ("token[]", [0]),
    ],
)
def test_sizes_of_arrays(text, sizes):
    assert [array.size for array in array_sizes(text)] == sizes


def test_an_array_in_memory_on_the_chip_is_known():
    assert [a.on_chip for a in array_sizes("(f32[8]{0:T(256)S(1)}, f32[8]{0:T(256)}, f32[8]{0}, u32[]{:S(2)})")] == [
        *(True, False, False, True)
    ]


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("jit(step)/jvp(Cait)/Cait.forward/blocks_3/attn/qkv/dot_general", "Cait/blocks_*/attn/qkv"),
        ("jit(step)/transpose(jvp(Cait))/Cait.forward/blocks_23/mlp/fc1/add", "Cait/blocks_*/mlp/fc1, backward"),
        ("jit(step)/jvp(ViT)/blocks_0/norm1/jit(normalise)/mul;jit(step)/add", "ViT/blocks_*/norm1"),
        ("jit(step)/transpose(jvp(ViT))/while/body/closed_call/dot", "ViT, backward"),
        (
            "jit(step)/merged(transpose(jvp(ViT))/blocks_0/attn/dot:transpose(jvp(ViT))/dot)",
            "ViT/blocks_*/attn, backward",
        ),
        ("jit(step)/add", "step: add"),
        ("jit(step)/transpose(jvp(jit(_where)))/select_n", "step: select_n, backward"),
        ("", ""),
    ],
)
def test_modules_of_operations(source, module):
    assert module_of(source) == module


def test_a_program_of_a_tpu():
    program, tile = Program(TPU), 8 * 128 * 4
    assert program.collectives() == [
        Collective("all-reduce", tile + 512, 1, "step: reduce_sum", 2),
        Collective("send", tile, 1, ""),
    ]
    moved = {row.module: row.size for row in program.traffic()}
    # What is sliced in a fusion is not read whole; what is already on the chip does not count.
    assert moved["Net/blocks_*/attn"] == 2 * tile
    # The copy and the two tiles of the slice are read for it, and the result of the other fusion.
    assert moved["Net/blocks_*/mlp/fc1, backward"] == tile + 2 * tile + tile
    assert moved["step: reduce_sum"] == 512


@pytest.mark.parametrize(
    ("groups", "chips"),
    [
        ("{{0,1},{2,3}}", 2),
        ("{{0},{1}}", 1),
        ("{}", 0),  # all
        ("[2,8]<=[16]", 8),
        ("[4,4]<=[4,4]T(1,0)", 4),
        ("mesh['axis_0'=16] {'axis_0'}", 16),
        ("mesh['axis_0'=4,'axis_1'=2,'axis_2'=8] {'axis_1','axis_2'}", 16),
        ("mesh['axis_0'=4,'axis_1'=4], device_ids=([4,4]T(1,0)) {'axis_0'}", 4),
        ("mesh['a'=4,'b'=8] {'a','b':(2)4}", 16),
    ],
)
def test_chips_that_take_part_in_a_collective(groups, chips):
    assert Program(TPU.replace("{{0,1}}", groups)).collectives()[0].group == chips


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
    def step(weights, x):
        def turn(carry, _):
            with jax.named_scope("turn_1"):
                return jnp.tanh(carry @ weights), None

        return jax.lax.scan(turn, x, None, length=7)[0]

    shapes = (jax.ShapeDtypeStruct((64, 64), jnp.float32), jax.ShapeDtypeStruct((32, 64), jnp.float32))
    compiled = jax.jit(step).lower(*shapes).compile()
    program = Program(compiled.as_text())
    once, every = (sum(row.size for row in program.traffic(loops=loops)) for loops in (False, True))
    assert once == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.1)
    inside = {row.module: row for row in program.traffic()}["turn_*"]
    assert inside.size >= 7 * 4 * (64 * 64 + 32 * 64) and inside.count % 7 == 0
    assert every > 5 * once


def test_a_loop_that_writes_its_results_into_one_array_moves_each_once():
    def moved(turns):
        def turn(carry, _):
            carry = jnp.tanh(carry) + 1
            return carry, 2 * carry

        shape = jax.ShapeDtypeStruct((64, 256), jnp.float32)
        compiled = jax.jit(lambda x: jax.lax.scan(turn, x, None, length=turns)[1]).lower(shape).compile()
        return sum(row.size for row in Program(compiled.as_text()).traffic())

    assert moved(64) < 10 * moved(8)


TPU_LOOP = """
%below.1 (state.1: (s32[], f32[8,128])) -> pred[] {
  %constant.7 = s32[]{:T(128)} constant(12)
  %state.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %counter.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%counter.1, %constant.7), direction=LT
}

%turn.1 (state.2: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %state.2 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %counter.2 = s32[]{:T(128)} get-tuple-element(%state.2), index=0
  %carry.2 = f32[8,128]{1,0:T(8,128)} get-tuple-element(%state.2), index=1
  %tanh.2 = f32[8,128]{1,0:T(8,128)} tanh(%carry.2)
  ROOT %tuple.2 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%counter.2, %tanh.2)
}

ENTRY %main.1 (start.1: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %start.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  ROOT %while.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%start.1), condition=%below.1, body=%turn.1
}
"""


def test_the_condition_of_a_tpus_loop_says_how_often_it_runs():
    assert sum(row.size for row in Program(TPU_LOOP).traffic()) == 12 * 2 * 8 * 128 * 4


SPREAD = """
HloModule jit_step

%all-reduce-scatter.1 (input_0: f32[16,128]) -> f32[2,128] {
  %input_0 = f32[16,128]{1,0:T(8,128)} parameter(0)
  %all-reduce.2 = f32[16,128]{1,0:T(8,128)} all-reduce(%input_0), channel_id=9, to_apply=%add
  ROOT %slice.3 = f32[2,128]{1,0:T(8,128)} slice(%all-reduce.2), slice={[0:2], [0:128]}
}

%begin (param_0.4: f32[8,128]) -> f32[64,128] {
  %param_0.4 = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %all-gather.5 = f32[64,128]{1,0:T(8,128)} all-gather(%param_0.4), channel_id=8, dimensions={0}
}

%end (param_0.6: f32[8,128]) -> f32[64,128] {
  %param_0.6 = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %all-gather.7 = f32[64,128]{1,0:T(8,128)} all-gather(%param_0.6), channel_id=8, dimensions={0}
}

ENTRY %main (a: f32[8,128], b: f32[16,128]) -> (f32[64,128], f32[2,128]) {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %b = f32[16,128]{1,0:T(8,128)} parameter(1)
  %fusion.8 = f32[64,128]{1,0:T(8,128)} fusion(%a), kind=kCustom, calls=%begin
  %fusion.9 = f32[64,128]{1,0:T(8,128)} fusion(%a), kind=kCustom, calls=%end
  %fusion.10 = f32[2,128]{1,0:T(8,128)} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %tuple.11 = (f32[64,128]{1,0:T(8,128)}, f32[2,128]{1,0:T(8,128)}) tuple(%fusion.9, %fusion.10)
}
"""


def test_a_collective_that_is_spread_over_fusions_counts_once():
    tile = 8 * 128 * 4
    assert Program(SPREAD).collectives() == [
        Collective("all-gather", 8 * tile, 1, ""),
        Collective("reduce-scatter", 2 * tile, 1, ""),
    ]
