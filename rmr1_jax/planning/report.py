"""A plan as a table, and as plan.json."""

from typing import Any

from rich.table import Table

from rmr1_jax.planning.chips import GPU_SHARE, GPU_SHARE_BY_ITSELF
from rmr1_jax.planning.estimate import error_of
from rmr1_jax.planning.plan import Line, Plan, placement_name

GIB = 2**30


def table(plan: Plan) -> Table:
    """What each program takes, a line each."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("program")
    for name in ("compiled", "GiB a device", "runs", "seconds", "MFU", "tokens/s/chip"):
        shown.add_column(name, justify="right")
    for line in plan.lines:
        shown.add_row(*_cells(plan, line))
    return shown


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
            inside = sum(one.in_decode_loop for one in line.analysis.transfers.values())
            said.append(
                f"a decode step: {1000 * decode.seconds:.1f} ms, {decode.seconds_over_roofline:.2f}"
                f" x the time and {decode.bytes_over_ideal:.2f} x the bytes of weights and live "
                f"keys and values read once; {decode.cache_copies} copies of a cache, "
                f"{inside / 1e6:.2f} MB sent to other devices"
            )
    if plan.fits:
        cost = f", {plan.chip_hours * price:,.0f} at {price:g} a chip-hour" if price else ""
        said.append(
            f"a step takes {plan.step_seconds:,.1f} s, the {plan.steps:,} of the run "
            f"{plan.hours:,.2f} hours or {plan.chip_hours:,.0f} chip-hours{cost}"
        )
        said.append(f"estimates, from the compiled programs. {error_of(plan.chip)}")
        by_itself = plan.chip.hbm / GPU_SHARE * GPU_SHARE_BY_ITSELF
        if plan.chip.is_gpu and peak(plan) > by_itself:
            said.append(
                f"JAX takes {by_itself / GIB:.2f} GiB of a GPU by itself: start the run with "
                f"XLA_PYTHON_CLIENT_MEM_FRACTION={GPU_SHARE}"
            )
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


def _cells(plan: Plan, line: Line) -> tuple[str, ...]:
    compiled = line.compiled
    needed = compiled.memory.peak if compiled.memory else plan.chip.hbm
    needed = max(needed, plan.chip.hbm + compiled.excess(plan.chip.hbm) if compiled.too_big else 0)
    over = "" if compiled.fits(plan.chip.hbm) else "[red]"
    seconds = f"{line.analysis.estimate.seconds:,.2f}" if line.analysis else ""
    rate = _rate(plan, line)
    return (
        line.name,
        f"{compiled.seconds:.0f} s",
        f"{over}{needed / GIB:.2f} of {plan.chip.hbm / GIB:.2f}",
        f"{compiled.planned.runs:g}",
        seconds,
        _mfu(plan, line),
        f"{rate:,.0f}" if rate else "",
    )


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
