"""One of two processes that train a model whose blocks are sharded: torchrun starts it. Arguments: artifact, folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from sleepc.hf import SleepForCausalLM

ROWS = torch.arange(4 * 20).reshape(4, 20) * 7 % 61


def loaded(artifact: str) -> Any:
    """The model of the artifact, in float64, which trains."""
    model: Any = SleepForCausalLM.from_pretrained(artifact, dtype="float64", trust_remote_code=False)
    return model.train()


def sharded(artifact: str) -> Any:
    """The same in two halves."""
    model, mesh = loaded(artifact), init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.block_modules():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def step(model: Any, optimiser: Any, rows: torch.Tensor) -> float:
    """One step, and its loss."""
    optimiser.zero_grad()
    loss = model(rows, labels=rows).loss
    loss.backward()
    optimiser.step()
    return float(loss.detach())


def main(artifact: str, folder: str) -> None:
    """Compare gradients with those of one process; train, save, go on; go on from what was saved."""
    dist.init_process_group("gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    mine = ROWS.chunk(count)[rank]
    model = sharded(artifact)
    local = sum(each.to_local().numel() for each in model.parameters())
    model(mine, labels=mine).loss.backward()
    alone = loaded(artifact)
    alone(ROWS, labels=ROWS).loss.backward()
    wanted = {name: each.grad for name, each in alone.named_parameters() if each.grad is not None}
    found = {name: each.grad.full_tensor() for name, each in model.named_parameters() if each.grad is not None}
    worst = max(float((found[name] - value).abs().max()) for name, value in wanted.items())
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step(model, optimiser, mine)
    values, states = get_state_dict(model, optimiser)
    save({"model": values, "optimiser": states}, checkpoint_id=folder)
    losses = [step(model, optimiser, mine) for _ in range(2)]
    again = sharded(artifact)
    other = torch.optim.AdamW(again.parameters(), lr=1e-3)
    values, states = get_state_dict(again, other)
    load({"model": values, "optimiser": states}, checkpoint_id=folder)
    set_state_dict(again, other, model_state_dict=values, optim_state_dict=states)
    resumed = [step(again, other, mine) for _ in range(2)]
    whole = get_model_state_dict(again, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    again.save_pretrained(f"{folder}/trained", is_main_process=rank == 0, state_dict=whole)
    said = {"processes": count, "same": found.keys() == wanted.keys(), "largest": worst, "losses": losses}
    said |= {"resumed": resumed, "share": local / sum(each.numel() for each in alone.parameters())}
    if rank == 0:
        print(json.dumps(said), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], str(Path(sys.argv[2])))
