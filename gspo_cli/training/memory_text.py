"""A memory plan as text."""

from __future__ import annotations

from gspo_cli.training.memory_plan import MemoryPlan

UNITS = ((2**30, "GiB", ".2f"), (2**20, "MiB", ".0f"))


def memory_text(found: MemoryPlan) -> str:
    """The plan as text: the largest phase with its parts, then the other."""
    others = [phase for phase in ("update", "rollout") if phase != found.peak][:1]
    text = "; ".join(_phase_text(found, phase) for phase in (found.peak, *others))
    each = f", each of {found.processes} processes" if found.processes > 1 else ""
    offloaded = ", ".join(f"{part} {size_text(size)}" for part, size in found.host.items())
    if offloaded:
        text += f"; in the CPU's memory {offloaded}"
    if found.vllm_memory is not None:
        text += f"; vLLM besides, {found.vllm_memory:.0%} of the device's memory"
    return f"peak {text}{each}; with every answer at its limit"


def _phase_text(found: MemoryPlan, phase: str) -> str:
    parts = [(part, size) for part, size in found.phases[phase].items() if size >= 2**20]
    listed = ", ".join(f"{part} {size_text(size)}" for part, size in parts)
    return f"{phase} {size_text(found.total(phase))}" + (f" ({listed})" if listed else "")


def size_text(size: int) -> str:
    """Bytes in a unit that suits them."""
    scale, unit, form = next((u for u in UNITS if size >= u[0]), UNITS[-1])
    return f"{size / scale:{form}} {unit}"
