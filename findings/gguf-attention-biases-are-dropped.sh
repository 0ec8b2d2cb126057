#!/usr/bin/env bash
# transformers 5.24.0 reads a llama GGUF that has attention biases without them, and says nothing: of 16 tensors 12 are
# loaded, and the model has no biases at all.
# Seen 2026-11-28 with gguf 0.19.0, torch 2.13.0 (CPU):
#     tensors in the file: 16, biases among them: 4
#     attention_bias: False, parameters with a bias: 0, words about it: 0
# Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet transformers==5.24.0 gguf==0.19.0 torch==2.13.0 accelerate==1.15.0
cat > show.py <<'PY'
import logging
import warnings

import gguf
import numpy as np
from transformers import AutoModelForCausalLM

writer = gguf.GGUFWriter("tiny.gguf", "llama")
writer.add_context_length(64)
writer.add_embedding_length(32)
writer.add_block_count(1)
writer.add_feed_forward_length(48)
writer.add_head_count(4)
writer.add_head_count_kv(2)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_dimension_count(8)
writer.add_vocab_size(61)
rng = np.random.default_rng(0)
shapes = {
    "token_embd.weight": (61, 32),
    "output_norm.weight": (32,),
    "output.weight": (61, 32),
    "blk.0.attn_norm.weight": (32,),
    "blk.0.ffn_norm.weight": (32,),
    "blk.0.attn_q.weight": (32, 32),
    "blk.0.attn_k.weight": (16, 32),
    "blk.0.attn_v.weight": (16, 32),
    "blk.0.attn_output.weight": (32, 32),
    "blk.0.attn_q.bias": (32,),
    "blk.0.attn_k.bias": (16,),
    "blk.0.attn_v.bias": (16,),
    "blk.0.attn_output.bias": (32,),
    "blk.0.ffn_gate.weight": (48, 32),
    "blk.0.ffn_up.weight": (48, 32),
    "blk.0.ffn_down.weight": (32, 48),
}
for name, shape in shapes.items():
    writer.add_tensor(name, rng.normal(size=shape).astype(np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

said: list[str] = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger("transformers").addHandler(handler)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model = AutoModelForCausalLM.from_pretrained(".", gguf_file="tiny.gguf")
told = [text for text in [*said, *(str(w.message) for w in caught)] if "bias" in text]
biases = [name for name, _ in model.named_parameters() if name.endswith("bias")]
print(f"tensors in the file: {len(shapes)}, biases among them: {sum(name.endswith('bias') for name in shapes)}")
print(f"attention_bias: {model.config.attention_bias}, parameters with a bias: {len(biases)}, words about it: {len(told)}")
assert not model.config.attention_bias and not biases and not told, "it has changed"
PY
venv/bin/python show.py 2>/dev/null || { echo "it has changed" >&2; exit 1; }
