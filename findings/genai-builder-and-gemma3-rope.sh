#!/usr/bin/env bash
# The model builder of onnxruntime-genai 0.18.0 cannot read a Gemma 3 configuration that transformers 5.24.0 wrote: rotary
# parameters stand there for each kind of layer ("full_attention", "sliding_attention"), and the builder looks for one
# "rope_type" above them.
# Seen 2026-11-29 with torch 2.13.0 (CPU), onnx 1.23.2 and onnx-ir 1.1.0:
#     rope_parameters in config.json: ['full_attention', 'sliding_attention']
#     the builder: KeyError: 'rope_type'
# Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet transformers==5.24.0 torch==2.13.0 onnxruntime-genai==0.18.0 onnx==1.23.2 onnx-ir==1.1.0
cat > make.py <<'PY'
import json
from pathlib import Path

from transformers import Gemma3ForCausalLM, Gemma3TextConfig

config = Gemma3TextConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    sliding_window=16,
    layer_types=["sliding_attention", "full_attention"],
)
Gemma3ForCausalLM(config).save_pretrained("model")
print("rope_parameters in config.json:", sorted(json.loads(Path("model/config.json").read_text())["rope_parameters"]))
PY
venv/bin/python make.py
if venv/bin/python -m onnxruntime_genai.models.builder -m model -o out -p fp32 -e cpu > said.txt 2>&1; then
    echo "it has changed: the builder takes the model" >&2
    exit 1
fi
echo "the builder: $(tail -n 1 said.txt)"
grep -q "KeyError: 'rope_type'" said.txt || { cat said.txt >&2; echo "it has changed" >&2; exit 1; }
