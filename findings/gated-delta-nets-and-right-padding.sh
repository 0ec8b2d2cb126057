#!/usr/bin/env bash
# transformers 5.24.0: a batch padded on the right, with its attention mask, gives the right logits at every real
# token, of attention models and of hybrids with gated delta rule layers (here qwen3_5_text) alike. Decoding goes on
# rightly after it in attention models only, since the mask hides the pads' keys. The hybrid's cache holds the state
# and the convolution's tail *after* the pads: the padded input is zero there, but the decay still acts (it has a bias
# of its own), and the tail is the pads' zeros. The next token's logits are wrong, without a warning.
# Seen 2026-11-30, random weights, six tokens and eight pads against the six tokens alone, largest difference over
# largest logit:
#     llama: prefill 0.0000, next token 0.0000
#     qwen3_5_text: prefill 0.0000, next token 0.1438
# Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0 transformers==5.24.0
cat > pads.py <<'PY'
import sys

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3_5TextConfig

sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 16}
linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}


@torch.no_grad()
def differences(config):
    """How far the last real token's logits and the next token's are from those without pads, of the largest."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids, following = torch.randint(1, 64, (1, 6)), torch.randint(1, 64, (1, 1))
    place = torch.tensor([[6]])
    found = []
    for pads in (0, 8):
        mask = torch.cat([torch.ones(1, 6), torch.zeros(1, pads)], 1).long()
        padded = torch.cat([ids, torch.zeros(1, pads, dtype=torch.long)], 1)
        read = model(input_ids=padded, attention_mask=mask, use_cache=True)
        name = "cache" if "cache" in read else "past_key_values"
        longer = torch.cat([mask, torch.ones(1, 1, dtype=torch.long)], 1)
        then = model(input_ids=following, attention_mask=longer, position_ids=place, use_cache=True, **{name: read[name]})
        found.append((read.logits[:, 5], then.logits[:, -1]))
    return [float((a - b).abs().max() / a.abs().max()) for a, b in zip(*found)]


failed = False
for config, wrong in ((LlamaConfig(**sizes), False), (Qwen3_5TextConfig(**sizes, **linear), True)):
    prefill, following = differences(config)
    print(f"{config.model_type}: prefill {prefill:.4f}, next token {following:.4f}")
    failed |= prefill > 1e-5 or (following > 1e-3) != wrong
sys.exit(failed)
PY
venv/bin/python pads.py 2>/dev/null || { echo "it has changed" >&2; exit 1; }
