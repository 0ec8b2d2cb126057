"""A program whose layers are all as they were: the original's class, with the weights that training changed."""

from __future__ import annotations

from pathlib import Path

import torch

from sleepc.errors import UsageError
from sleepc.hf.load import load_module
from sleepc.hf.resolve import check_folder
from sleepc.ir.program import ProgramGraphs

SHARD = "1GB"


@torch.no_grad()
def write_own(program: ProgramGraphs, source: Path, folder: Path) -> None:
    """Save the original with the program's weights in `folder`, as transformers saves it.

    Raises UsageError for a parameter that the original has under no such name, SleepcError if it is not there.
    """
    module = load_module(check_folder(str(source), source))
    named = dict(module.named_parameters(remove_duplicate=False))
    buffers = dict(module.named_buffers(remove_duplicate=False))
    for key, param in program.params.items():
        if key in buffers:
            continue
        if key not in named:
            what = f"{key} is no parameter of {type(module).__name__}: transformers makes it of others"
            raise UsageError(what, where="--to hf", fix="Other targets write it: --to onnx.")
        value = param.materialise()
        if not torch.equal(value.to(named[key].dtype), named[key]):
            named[key].data = value.to(named[key].dtype).clone()
    module.save_pretrained(folder, max_shard_size=SHARD)  # type: ignore[operator]
