#!/usr/bin/env bash
# Classes of transformers 5.24.0 build normaliser and pre-tokenizer of a tokenizer anew, and do not say that tokenizer.json
# has others: GPT2Tokenizer (which SmolLM2's files name) does not split numbers into digits, LlamaTokenizer (Llama 2 and its
# kin) puts no space after a control token.
# Seen 2026-11-29:
#     tokenizer.json: ['2', '0', '2', '6']
#     GPT2Tokenizer:  ['2026']
# Fails where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet transformers==5.24.0
cat > show.py <<'PY'
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

words = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["20", "26", "2026"]
merges = [("2", "0"), ("2", "6"), ("20", "26")]
made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence(split), decoders.ByteLevel()
Path("model").mkdir()
made.save("model/tokenizer.json")
Path("model/tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
said = made.encode("2026").tokens
theirs = AutoTokenizer.from_pretrained("model").tokenize("2026")
print(f"tokenizer.json: {said}\nGPT2Tokenizer:  {theirs}")
assert said != theirs, "it has changed"
PY
venv/bin/python show.py 2>/dev/null || { echo "it has changed" >&2; exit 1; }
