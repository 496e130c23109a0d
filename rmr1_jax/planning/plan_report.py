"""A plan as a table, and as plan.json."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from rmr1_jax.planning.chips import GPU_SHARE, GPU_SHARE_BY_ITSELF
from rmr1_jax.planning.estimate import error_of
from rmr1_jax.planning.plan import Line, Plan, placement_name

GIB = 2**30
COLUMNS = 120  # that the tables fit into


def tables(plan: Plan) -> list[Table]:
    """Memory, work and transfers of each program, a line each, in `COLUMNS` of text."""
    found = [_memory_table(plan), _work_table(plan)]
    if any(line.analysis and line.analysis.transfers for line in plan.lines):
        found.append(_transfers_table(plan))
    return found


def _memory_table(plan: Plan) -> Table:
    shown = _table(
        f"Memory of a device, GiB of {plan.chip.hbm / GIB:.2f}",
        ("compiled", "arguments", "temporaries", "results", "beside", "peak"),
    )
    for line in plan.lines:
        compiled, memory = line.compiled, line.compiled.memory
        parts = [""] * 4
        if memory:
            taken = (memory.arguments, memory.temporaries, memory.results, memory.resident)
            parts = [f"{part / GIB:.2f}" for part in taken]
        needed = memory.peak if memory else plan.chip.hbm + compiled.excess(plan.chip.hbm)
        over = "" if compiled.fits(plan.chip.hbm) else "[red]"
        shown.add_row(line.name, f"{compiled.seconds:.0f} s", *parts, f"{over}{needed / GIB:.2f}")
    return shown


def _work_table(plan: Plan) -> Table:
    shown = _table(
        "Work of a device in one run",
        ("runs a step", "seconds", "TFLOP", "x useful", "GB of HBM", "MFU", "tokens/s/chip"),
    )
    devices = plan.topology.chips * plan.devices_a_chip
    for line in plan.lines:
        if line.analysis is None:
            continue
        estimate, planned, rate = line.analysis.estimate, line.compiled.planned, _rate(plan, line)
        useful = planned.useful_flops / devices
        shown.add_row(
            line.name,
            f"{planned.runs:g}",
            _number(estimate.seconds),
            _number(estimate.flops / 1e12),
            f"{estimate.flops / useful:.2f}" if useful else "",
            _number((estimate.read + estimate.written) / 1e9),
            _mfu(plan, line),
            f"{rate:,.0f}" if rate else "",
        )
    return shown


def _transfers_table(plan: Plan) -> Table:
    found = {line.name: line.analysis.transfers for line in plan.lines if line.analysis}
    kinds = sorted({kind for transfers in found.values() for kind in transfers})
    several = plan.topology.chips > plan.topology.part
    outside = ["between slices" if plan.topology.is_tpu else "between hosts"] * several
    shown = _table("Sent by a device to others in one run, GB", (*kinds, *outside))
    for name, transfers in found.items():
        cells = [transfers[kind].bytes if kind in transfers else 0.0 for kind in kinds]
        if several:
            cells.append(sum(one.between_slices for one in transfers.values()))
        if any(cells):
            shown.add_row(name, *(_number(sent / 1e9) for sent in cells))
    return shown


def _table(title: str, columns: Sequence[str]) -> Table:
    shown = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="bold")
    shown.add_column("program", no_wrap=True)
    for name in columns:
        shown.add_column(name, justify="right", no_wrap=True)
    return shown


def _number(number: float) -> str:
    """With two places; nothing for nothing."""
    return f"{number:,.2f}" if number >= 0.01 else "<0.01" if number else ""


def sentences(plan: Plan, price: float) -> list[str]:
    """What the table does not say, a line each."""
    said = []
    for line in plan.lines:
        excess = line.compiled.excess(plan.chip.hbm)
        if excess:
            said.append(
                f"{line.name} does not fit: {excess / GIB:,.2f} GiB more than the "
                f"{plan.chip.hbm / GIB:.2f} that a device has"
            )
        decode = line.analysis.decode if line.analysis else None
        if line.analysis and decode:
            sent = {kind: one.in_decode_loop for kind, one in line.analysis.transfers.items()}
            inside = ", ".join(f"{kind} {b / 1e6:.2f} MB" for kind, b in sent.items() if b)
            said.append(
                f"a decode step: {1000 * decode.seconds:.1f} ms, {decode.seconds_over_roofline:.2f}"
                f" x the time and {decode.bytes_over_ideal:.2f} x the bytes of weights and live "
                f"keys and values read once; {decode.cache_copies} copies of a cache; "
                f"sent to other devices: {inside or 'nothing'}"
            )
    if plan.fits:
        cost = f", {plan.chip_hours * price:,.0f} at {price:g} a chip-hour" if price else ""
        said.append(
            f"a step takes {plan.step_seconds:,.1f} s, the {plan.steps:,} of the run "
            f"{plan.hours:,.2f} hours or {plan.chip_hours:,.0f} chip-hours{cost}"
        )
        by_itself = plan.chip.hbm / GPU_SHARE * GPU_SHARE_BY_ITSELF
        if plan.chip.is_gpu and peak(plan) > by_itself:
            said.append(
                f"JAX takes {by_itself / GIB:.2f} GiB of a GPU by itself: start the run with "
                f"XLA_PYTHON_CLIENT_MEM_FRACTION={GPU_SHARE}"
            )
    timed = [line.analysis.estimate for line in plan.lines if line.analysis]
    if timed:
        longest = max(timed, key=lambda one: one.seconds)
        said.append(f"times are estimates. {error_of(plan.chip)} {longest.method}")
    return said


def ranking(plans: list[Plan]) -> Table:
    """Several ways of dividing one recipe, the fastest first."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("options")
    for name in ("seconds a step", "GiB a device", "MFU of updates"):
        shown.add_column(name, justify="right")
    for plan in plans:
        update = next(line for line in plan.lines if line.name == "update")
        shown.add_row(
            placement_name(plan.recipe),
            f"{plan.step_seconds:,.1f}",
            f"{peak(plan) / GIB:.2f}",
            _mfu(plan, update),
        )
    return shown


def peak(plan: Plan) -> int:
    """Bytes that the largest program takes of a device."""
    return max(line.compiled.memory.peak for line in plan.lines if line.compiled.memory)


def to_json(plan: Plan, price: float = 0.0) -> dict[str, Any]:
    """Everything; times in seconds, sizes in bytes, all of a device unless named otherwise."""
    return {
        "topology": plan.topology.name,
        "chips": plan.topology.chips,
        "devices": plan.topology.chips * plan.devices_a_chip,
        "options": placement_name(plan.recipe),
        "hbm": plan.chip.hbm,
        "fits": plan.fits,
        "programs": {line.name: _program(plan, line) for line in plan.lines},
        "steps": plan.steps,
        "step_seconds": plan.step_seconds if plan.fits else None,
        "hours": plan.hours if plan.fits else None,
        "chip_hours": plan.chip_hours if plan.fits else None,
        "cost": plan.chip_hours * price if plan.fits and price else None,
        "error": error_of(plan.chip),
    }


def _program(plan: Plan, line: Line) -> dict[str, Any]:
    compiled, planned = line.compiled, line.compiled.planned
    memory = compiled.memory
    found: dict[str, Any] = {
        "compile_seconds": compiled.seconds,
        "fits": compiled.fits(plan.chip.hbm),
        "excess": compiled.excess(plan.chip.hbm),
        "memory": memory and {**vars(memory), "peak": memory.peak},
        "runs_a_step": planned.runs,
        "tokens": planned.tokens,
        "useful_flops": planned.useful_flops,
    }
    if line.analysis is None:
        return found
    estimate, decode = line.analysis.estimate, line.analysis.decode
    found |= {
        "flops": estimate.flops,
        "read": estimate.read,
        "written": estimate.written,
        "seconds": estimate.seconds,
        "seconds_without_overlap": estimate.seconds_without_overlap,
        "compiler_seconds": estimate.compiler_seconds,
        "roofline_seconds": estimate.roofline_seconds,
        "method": estimate.method,
        "unpriced": list(estimate.unpriced),
        "mfu": _utilisation(plan, line),
        "tokens_a_second_a_chip": _rate(plan, line),
        "collectives": {kind: vars(one) for kind, one in line.analysis.transfers.items()},
    }
    if decode:
        found["decode_step"] = {
            **vars(decode),
            "bytes_over_ideal": decode.bytes_over_ideal,
            "seconds_over_roofline": decode.seconds_over_roofline,
        }
    return found


def _mfu(plan: Plan, line: Line) -> str:
    utilisation = _utilisation(plan, line)
    return f"{utilisation:.0%}" if utilisation else ""


def _utilisation(plan: Plan, line: Line) -> float:
    if line.analysis is None:
        return 0.0
    devices = plan.topology.chips * plan.devices_a_chip
    return line.analysis.utilisation(line.compiled.planned, plan.chip, devices)


def _rate(plan: Plan, line: Line) -> float:
    if line.analysis is None or not line.compiled.planned.tokens:
        return 0.0
    seconds = line.analysis.estimate.seconds
    return line.compiled.planned.tokens / seconds / plan.topology.chips
