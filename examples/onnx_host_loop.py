"""The loop around an exported model, with numpy, onnxruntime and tokenizers alone: what a program in any language that
embeds ONNX Runtime has to do. The rules are also in onnx.json, in words.

    sleepc export ARTIFACT --to onnx
    python examples/onnx_host_loop.py ARTIFACT/onnx "What did we decide?" 64
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

DTYPES = {"f32": np.float32, "i64": np.int64, "bool": np.bool_}
State = dict[str, np.ndarray]


class Model:
    """An export: wake.onnx reads tokens, a sleep graph consolidates the window into the memories."""

    def __init__(self, folder: Path) -> None:
        self.about = json.loads((folder / "onnx.json").read_text(encoding="utf-8"))
        self.asleep = self.about["sleep_recurrent"] or self.about["sleep_replay"]
        self.sessions = {
            graph["file"]: ort.InferenceSession(folder / graph["file"], providers=["CPUExecutionProvider"])
            for graph in (self.about["wake"], self.asleep)
        }
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.ends = end_tokens(folder)

    def new_state(self) -> State:
        """The state of one text of which nothing has been read: zeros."""
        return {s["name"]: np.zeros([1, *s["dims"][1:]], DTYPES[s["dtype"]]) for s in self.about["states"]}

    def run(self, graph: dict[str, Any], state: State, **more: np.ndarray) -> dict[str, np.ndarray]:
        """One run of a graph: it takes what it has as inputs, and gives its outputs by name."""
        given = {**state, **more}
        names = [output["name"] for output in graph["outputs"]]
        inputs = {tensor["name"]: given[tensor["name"]] for tensor in graph["inputs"]}
        return dict(zip(names, self.sessions[graph["file"]].run(names, inputs), strict=True))

    def read(self, state: State, ids: list[int]) -> np.ndarray:
        """Read tokens, sleeping after every window; the logits [V] after the last one. `state` becomes what it is then.

        A run never leads over a sleep: `since` counts the tokens since the last one.
        """
        logits = np.zeros(self.about["vocab"], np.float32)
        while ids:
            room = self.about["window"] - int(state["since"][0])
            piece, ids = ids[:room], ids[room:]
            last = np.array([[len(piece) - 1]]) if not ids else np.zeros((1, 0), np.int64)  # whose logits are wanted
            tokens, lengths = np.array([piece]), np.array([len(piece)])
            found = self.run(self.about["wake"], state, tokens=tokens, lengths=lengths, logits_at=last)
            self.change(state, "wake", found)
            if state["since"][0] == self.about["window"]:
                passes = np.array(self.about["passes"])
                self.change(state, "sleep", self.run(self.asleep, state, passes=passes))
            if not ids:
                logits = found["logits"][0, 0]
        return logits

    def change(self, state: State, step: str, found: dict[str, np.ndarray]) -> None:
        """Make the new state out of a run's outputs, as onnx.json says for each of its tensors."""
        for spec in self.about["states"]:
            how, old = spec[step], state[spec["name"]]
            if how["kind"] == "replaced":  # the new value is an output
                state[spec["name"]] = found[how["output"]]
            elif how["kind"] == "columns":  # tokens have their own slots in the window: written in place
                heads = old.shape[1]
                new = found[how["output"]][:, heads * how["row"] : heads * (how["row"] + 1)]
                for token, slot in enumerate(found[how["slots"]][0]):
                    if slot >= 0:
                        old[0, :, slot] = new[0, :, token]


def end_tokens(folder: Path) -> set[int]:
    """The tokens that end a text, as the model's own files name them."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
        if found is not None:
            return set(found) if isinstance(found, list) else {found}
    return set()


def generate(model: Model, text: str, count: int) -> list[int]:
    """The most likely continuation of a text, `count` tokens at most."""
    state, answer = model.new_state(), []
    logits = model.read(state, model.tokenizer.encode(text).ids)
    for _ in range(count):
        token = int(logits.argmax())
        if token in model.ends:
            break
        answer.append(token)
        logits = model.read(state, [token])
    return answer


if __name__ == "__main__":
    opened = Model(Path(sys.argv[1]))
    print(opened.tokenizer.decode(generate(opened, sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 64)))
