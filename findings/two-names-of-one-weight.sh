#!/usr/bin/env bash
# transformers 5.24.0 takes one of two tensors of a checkpoint that mean the same weight, and says nothing: GPT-2's files
# name weights with and without `transformer.`, and a file that has both, with different values, loads like a sound one.
# Seen 2026-11-28 with torch 2.13.0 (CPU), safetensors 0.8.0:
#     in the file: transformer.ln_f.weight = 1.0, ln_f.weight = 5.0
#     loaded: 5.0, and missing, unexpected and mismatched keys are all empty
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
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
config = GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=4, n_positions=24, bos_token_id=0, eos_token_id=0)
GPT2LMHeadModel(config).save_pretrained("model")
tensors = load_file("model/model.safetensors")
name = next(n for n in tensors if n.endswith("ln_f.weight"))
other = name.removeprefix("transformer.") if name.startswith("transformer.") else f"transformer.{name}"
tensors[other] = torch.full_like(tensors[name], 5.0)
save_file(tensors, "model/model.safetensors", metadata={"format": "pt"})
model, info = GPT2LMHeadModel.from_pretrained("model", output_loading_info=True)
print(f"in the file: {name} = {float(tensors[name][0])}, {other} = {float(tensors[other][0])}")
print(f"loaded: {float(model.transformer.ln_f.weight[0])}", {key: sorted(map(str, value)) for key, value in info.items()})
assert not any(info.values()), "it has changed"
PY
venv/bin/python show.py 2>/dev/null || { echo "it has changed" >&2; exit 1; }
