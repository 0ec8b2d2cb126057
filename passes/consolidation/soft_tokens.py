"""The names of what soft tokens are made with, and of what is made."""

from __future__ import annotations

from sleepc.ir.program import SOFT, ProgramGraphs

EMBEDDINGS, GAIN = f"{SOFT}embeddings", f"{SOFT}gain"  # parameters [k,d] and [d]
LOW_A, LOW_B = ".low_a", ".low_b"  # of a block, behind "soft.query" and "soft.value": the encoder's LoRA matrices
PLACE, TOKEN = f"{SOFT}place", f"{SOFT}token"  # [B,k]: positions as the model counts, and numbers in the stream; -1


def soft_keys(program: ProgramGraphs) -> set[str]:
    """Keys of the parameters that the encoder has of its own."""
    ports = program.encode.step.ports("param") if program.encode else {}
    return {key for key in ports if key.startswith(SOFT) or f".{SOFT}" in key}
