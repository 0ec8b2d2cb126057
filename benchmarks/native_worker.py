"""A native checkpoint in another runtime, in an environment without sleepc: greedy tokens, and milliseconds of each.

Arguments: the runtime, a folder or file, the number of tokens to write, the prompt's ids. One line of JSON. Of "words",
a GGUF file, and a file with a list of texts in JSON: the ids that llama.cpp reads each text as.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def mlx(path: Path) -> Callable[[list[int]], list[float]]:
    """mlx-lm, on the CPU: what follows the tokens that are given, after those that were."""
    import mlx.core as mx  # type: ignore[import-not-found]
    from mlx_lm.models.cache import make_prompt_cache  # type: ignore[import-not-found]
    from mlx_lm.utils import load_model  # type: ignore[import-not-found]

    mx.set_default_device(mx.cpu)
    model, _ = load_model(path)
    cache = make_prompt_cache(model)

    def feed(ids: list[int]) -> list[float]:
        logits = model(mx.array([ids]), cache=cache)[0, -1].astype(mx.float32)
        mx.eval(logits)
        return list(logits.tolist())

    return feed


def llama(path: Path) -> Callable[[list[int]], list[float]]:
    """llama.cpp, as it is by default, but on one thread."""
    import llama_cpp

    model: Any = llama_cpp.Llama(str(path), n_ctx=512, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False)

    def feed(ids: list[int]) -> list[float]:
        model.eval(ids)
        return list(model.scores[model.n_tokens - 1].tolist())

    return feed


RUNTIMES = {"mlx": mlx, "llama.cpp": llama}


def words(path: Path, texts: Path) -> list[list[int]]:
    """The ids of texts in llama.cpp, control tokens among them, with what it puts around a text."""
    import llama_cpp

    model: Any = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return [model.tokenize(text.encode(), add_bos=True, special=True) for text in json.loads(texts.read_text())]


def main() -> None:
    """Read the prompt at once, then write token by token."""
    if sys.argv[1] == "words":
        print(json.dumps(words(Path(sys.argv[2]), Path(sys.argv[3]))))
        return
    count, read = int(sys.argv[3]), [int(i) for i in sys.argv[4].split(",")]
    feed = RUNTIMES[sys.argv[1]](Path(sys.argv[2]))
    every, tokens, seconds = [], [], []
    for _ in range(count):
        started = time.process_time()
        every.append(feed(read))
        seconds.append(time.process_time() - started)
        tokens.append(max(range(len(every[-1])), key=every[-1].__getitem__))
        read = tokens[-1:]
    print(json.dumps({"tokens": tokens, "logits": every, "ms": [1e3 * each for each in seconds[1:]]}))


if __name__ == "__main__":
    main()
