"""A native checkpoint in mlx-lm, in an environment without sleepc: greedy tokens, and milliseconds of each.

Arguments: a folder, the number of tokens to write, the prompt's ids. One line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Read the prompt at once, then write token by token."""
    import mlx.core as mx  # type: ignore[import-not-found]
    from mlx_lm.models.cache import make_prompt_cache  # type: ignore[import-not-found]
    from mlx_lm.utils import load_model  # type: ignore[import-not-found]

    folder, count, ids = Path(sys.argv[1]), int(sys.argv[2]), [int(i) for i in sys.argv[3].split(",")]
    mx.set_default_device(mx.cpu)
    model, _ = load_model(folder)
    cache = make_prompt_cache(model)
    every, tokens, seconds = [], [], []
    read = ids
    for _ in range(count):
        started = time.process_time()
        logits = model(mx.array([read]), cache=cache)[0, -1].astype(mx.float32)
        mx.eval(logits)
        seconds.append(time.process_time() - started)
        every.append(logits.tolist())
        tokens.append(int(mx.argmax(logits)))
        read = tokens[-1:]
    print(json.dumps({"tokens": tokens, "logits": every, "ms": [1e3 * each for each in seconds[1:]]}))


if __name__ == "__main__":
    main()
