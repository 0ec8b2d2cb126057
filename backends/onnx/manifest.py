"""onnx.json: what the files are, what goes in and out, and what the host has to do. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

MANIFEST = "onnx.json"
FORMAT = 1


class Part(BaseModel):
    """No unknown keys: a manifest of a newer version is not misread."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Kept(Part):
    """A step leaves the state as it is."""

    kind: Literal["kept"] = "kept"


class Replaced(Part):
    """The state's new value is this output."""

    kind: Literal["replaced"] = "replaced"
    output: str


class Columns(Part):
    """Token t of row b goes into slot `slots`[b, t] of the state (-1: nowhere), from heads H*row to H*(row+1) of
    `output` [B, heads, T, ..], H being the state's heads: a ring is written in place.
    """

    kind: Literal["columns"] = "columns"
    output: str
    row: int
    slots: str


Change = Kept | Replaced | Columns


class Tensor(Part):
    """An input or output. Named dimensions: B rows, T tokens of the call, M tokens whose logits are wanted."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]


class State(Part):
    """A state tensor, zero at first; how a wake step and a sleep change it."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]
    wake: Change
    sleep: Change


class GraphFile(Part):
    """A graph and what goes in and out."""

    file: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class Manifest(Part):
    """The export as a whole."""

    format: int = FORMAT
    sleepc: str
    identity: str
    precision: str
    ops: str
    ep: str
    opsets: dict[str, int]
    vocab: int
    window: int
    passes: int
    weights: str
    weights_size: int
    wake: GraphFile
    sleep_replay: GraphFile
    sleep_recurrent: GraphFile | None
    states: list[State]
    rules: list[str]
    report: dict[str, Any]
