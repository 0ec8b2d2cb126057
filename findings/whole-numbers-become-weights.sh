#!/usr/bin/env bash
# transformers 5.24.0 casts whole numbers of the right shape to a float weight, and says nothing: an int8 tensor under a
# weight's name (what a quantised export without its scales leaves) loads, as -128.0 .. 127.0.
# Seen 2026-11-28 with torch 2.13.0 (CPU), safetensors 0.8.0:
#     in the file: torch.int8, loaded: torch.float32, 100.0
#     missing, unexpected and mismatched keys are all empty
# Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet transformers==5.24.0 torch==2.13.0 safetensors==0.8.0
cat > show.py <<'PY'
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 1}
LlamaForCausalLM(LlamaConfig(vocab_size=61, **sizes)).save_pretrained("model")
tensors = load_file("model/model.safetensors")
name = "model.layers.0.mlp.down_proj.weight"
tensors[name] = torch.full(tensors[name].shape, 100, dtype=torch.int8)
save_file(tensors, "model/model.safetensors", metadata={"format": "pt"})
model, info = LlamaForCausalLM.from_pretrained("model", output_loading_info=True)
weight = model.model.layers[0].mlp.down_proj.weight
print(f"in the file: {tensors[name].dtype}, loaded: {weight.dtype}, {float(weight[0, 0])}")
print({key: sorted(map(str, value)) for key, value in info.items()})
assert weight.dtype == torch.float32 and float(weight[0, 0]) == 100 and not any(info.values()), "it has changed"
PY
venv/bin/python show.py 2>/dev/null || { echo "it has changed" >&2; exit 1; }
