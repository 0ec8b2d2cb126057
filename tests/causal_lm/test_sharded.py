"""Blocks of `SleepForCausalLM` under FSDP2, in two processes on CPUs (gloo)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sleepc
from sleepc.causal_lm.blocks import call_through
from sleepc.causal_lm.model import SleepForCausalLM
from sleepc.errors import UsageError
from tests.causal_lm.conftest import converted
from tests.families import family

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_two_processes_with_half_of_the_state_each_do_what_one_does(artifact: Path, tmp_path: Path) -> None:
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    command = [*launch, str(Path(__file__).with_name("sharded.py")), str(artifact), str(tmp_path / "checkpoint")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["processes"] == 2
    assert said["same"]
    assert said["largest"] < 1e-6
    assert said["share"] < 0.55
    assert said["resumed"] == said["losses"]
    assert said["losses"][1] < said["losses"][0]
    trained = sleepc.load(tmp_path / "checkpoint" / "trained")
    before = sleepc.load(artifact).graphs.params["model.layers.0.mlp.up_proj.weight"].materialise()
    assert not torch.equal(trained.graphs.params["model.layers.0.mlp.up_proj.weight"].materialise(), before)


def test_blocks_are_modules_of_their_own() -> None:
    model = SleepForCausalLM(converted("plain"))
    names = {module: name for name, module in model.named_modules()}
    assert [names[block] for block in model.block_modules()] == ["model.layers.0", "model.layers.1", "model.layers.2"]


def test_a_block_is_computed_within_its_module_and_gives_the_same() -> None:
    model, ids = SleepForCausalLM(converted("plain")), torch.arange(20)[None]
    wanted, seen = model(ids).logits, []
    for i, block in enumerate(model.block_modules()):
        block.register_forward_pre_hook(lambda *_, i=i: seen.append(i))
    assert torch.equal(model(ids).logits, wanted)
    assert seen[:3] == [0, 1, 2]
    assert set(seen) == {0, 1, 2}
    assert len(seen) == 3 * 3 + 3 * 2  # windows of 8, 8 and 4, and two sleeps


def test_sleeps_that_run_blocks_again_are_refused() -> None:
    graphs, _ = family("llama", torch.float64).convert(consolidation="recurrent", passes=2)

    class Steps:
        program = graphs

    with pytest.raises(UsageError, match="run blocks again"):
        call_through(Steps(), [], {})
