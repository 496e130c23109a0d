"""A plan as a table, and as plan.json."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from rmr1_jax.planning.analysis import METHOD
from rmr1_jax.planning.chips import GIB, GPU_SHARE, GPU_SHARE_BY_ITSELF
from rmr1_jax.planning.plan import Line, Plan, division

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
    for line in plan.lines:
        if line.analysis is None:
            continue
        bounds, planned = line.analysis.bounds, line.compiled.planned
        useful = planned.useful_flops / plan.devices
        shown.add_row(
            line.name,
            f"{planned.runs:g}",
            interval(_seconds(plan, line)),
            _number(bounds.flops / 1e12),
            f"{bounds.flops / useful:.2f}" if useful else "",
            _number((bounds.read + bounds.written) / 1e9),
            interval(_utilisation(plan, line), "{:.0%}"),
            interval(_rate(plan, line), "{:,.0f}"),
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


def interval(bounds: tuple[float, float] | None, form: str = "{:,.2f}") -> str:
    """`1.20 to 3.40`, or one number where they look alike; nothing where there is none."""
    if not bounds:
        return ""
    low, high = (form.format(bound) for bound in bounds)
    return low if low == high else f"{low} to {high}"


def sentences(plan: Plan, price: float) -> list[str]:
    """What the tables do not say, a line each."""
    said = []
    for line in plan.lines:
        excess = line.compiled.excess(plan.chip.hbm)
        if excess:
            said.append(
                f"{line.name} does not fit: {excess / GIB:,.2f} GiB more than the "
                f"{plan.chip.hbm / GIB:.2f} that a device has"
            )
        decode = line.analysis.decode if line.analysis else None
        if line.analysis and decode and not plan.doubts:
            sent = {kind: one.in_decode_loop for kind, one in line.analysis.transfers.items()}
            inside = ", ".join(f"{kind} {b / 1e6:.2f} MB" for kind, b in sent.items() if b)
            said.append(
                f"a decode step: {interval((1000 * decode.fastest, 1000 * decode.slowest))} ms, "
                f"{decode.bytes_over_ideal:.2f} x the bytes of weights and live keys and values "
                f"read once; {decode.cache_copies} copies of a cache; sent to other devices: "
                f"{inside or 'nothing'}"
            )
    if plan.doubts:
        said.append(
            "no times, since the compiled programs may be misread: " + "; ".join(plan.doubts)
        )
        return said
    if plan.fits and plan.chip_hours:
        paid = plan.chip_hours[0] * price, plan.chip_hours[1] * price
        cost = f", {interval(paid, '{:,.0f}')} at {price:g} per chip-hour" if price else ""
        said.append(
            f"a step takes {interval(plan.step_seconds, '{:,.1f}')} s, all {plan.steps:,} steps "
            f"{interval(plan.hours)} hours or {interval(plan.chip_hours, '{:,.0f}')} "
            f"chip-hours{cost}"
        )
        by_itself = plan.chip.hbm / GPU_SHARE * GPU_SHARE_BY_ITSELF
        if plan.chip.is_gpu and peak(plan) > by_itself:
            said.append(
                f"JAX takes {by_itself / GIB:.2f} GiB of a GPU by itself: start the run with "
                f"XLA_PYTHON_CLIENT_MEM_FRACTION={GPU_SHARE}"
            )
    said.append(METHOD)
    return said


def ranking(plans: list[Plan]) -> Table:
    """Several ways of dividing one recipe, the fastest at worst first."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("options")
    for name in ("seconds a step", "GiB a device", "MFU of updates"):
        shown.add_column(name, justify="right")
    for plan in plans:
        update = next(line for line in plan.lines if line.name == "update")
        shown.add_row(
            division(plan.recipe),
            interval(plan.step_seconds, "{:,.1f}"),
            f"{peak(plan) / GIB:.2f}",
            interval(_utilisation(plan, update), "{:.0%}"),
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
        "options": division(plan.recipe),
        "hbm": plan.chip.hbm,
        "fits": plan.fits,
        "programs": {line.name: _program(plan, line) for line in plan.lines},
        "steps": plan.steps,
        "step_seconds": plan.step_seconds if plan.fits else None,
        "hours": plan.hours if plan.fits else None,
        "chip_hours": plan.chip_hours if plan.fits else None,
        "cost": [h * price for h in plan.chip_hours or ()] if plan.fits and price else None,
        "doubts": plan.doubts,
        "method": METHOD,
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
    bounds, decode = line.analysis.bounds, line.analysis.decode
    found |= {
        "flops": bounds.flops,
        "read": bounds.read,
        "written": bounds.written,
        "sent": bounds.sent,
        "seconds": _seconds(plan, line),
        "compute_seconds": bounds.compute,
        "memory_seconds": bounds.memory,
        "communication_seconds": bounds.communication,
        "mfu": _utilisation(plan, line),
        "tokens_a_second_a_chip": _rate(plan, line),
        "collectives": {kind: vars(one) for kind, one in line.analysis.transfers.items()},
        "doubts": line.analysis.doubts,
    }
    if decode:
        found["decode_step"] = {**vars(decode), "bytes_over_ideal": decode.bytes_over_ideal}
    return found


def _seconds(plan: Plan, line: Line) -> tuple[float, float] | None:
    """Of one run, at best and at worst."""
    if line.analysis is None or plan.doubts:
        return None
    return line.analysis.bounds.fastest, line.analysis.bounds.slowest


def _utilisation(plan: Plan, line: Line) -> tuple[float, float] | None:
    if line.analysis is None or plan.doubts:
        return None
    return line.analysis.utilisation(line.compiled.planned, plan.chip, plan.devices)


def _rate(plan: Plan, line: Line) -> tuple[float, float] | None:
    """Tokens per second and chip, at worst and at best."""
    seconds, tokens = _seconds(plan, line), line.compiled.planned.tokens
    if not seconds or not tokens:
        return None
    share = tokens / plan.topology.chips
    return share / seconds[1], share / seconds[0]
