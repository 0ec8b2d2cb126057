"""Level ATEN as text: what torch.export wrote is printed, and read back with the values that torch gave."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sleepc.capture.export import capture_module
from sleepc.errors import SleepcError
from sleepc.ir.diagnose import InvalidProgram
from sleepc.ir.text import parse_graph, print_graph

TEXT = """\
graph embed {
  %0: i64[B,T] = input "tokens"
  %1: f32[11,6] = param "words"
  %2: f32[B,T,6] = aten.embedding(%1, %0)
  %3: () = aten._assert_tensor_metadata(%2, dtype=f32, device=device("cpu"), layout=layout("strided"))
  %4: f32[B,T,3,2] = aten.reshape(%2, [%5, %6, 3, 2])
  %7: c64[B,T,3] = aten.view_as_complex(%4)
  %8: c64[B,T,3] = aten.mul_.Tensor(%7, 2.0)
  %9: f32[B,T,3,2] = aten.view_as_real(%8)
  %10: (f32[B,T,2,2], f32[B,T,1,2]) = aten.split.Tensor(%9, 2, 2)
  %11: f32[B,T,2,2] = getitem(%10, 0)
  return "logits"=%11
}
"""


def lines(text: str) -> str:
    """The text with sizes of its own, and numbers in order."""
    sizes = "  %s0: int = aten.sym_size.int(%0, 0)\n  %s1: int = aten.sym_size.int(%0, 1)\n"
    text = text.replace("  %2:", f"{sizes}  %2:").replace("%5,", "%s0,").replace("%6,", "%s1,")
    found: dict[str, str] = {}
    for word in text.replace(",", " ").replace("(", " ").replace(")", " ").replace("[", " ").replace(":", " ").split():
        name = word.rpartition("=")[2]
        if name.startswith("%"):
            found.setdefault(name, f"%{len(found)}")
    for old in sorted(found, key=len, reverse=True):
        text = text.replace(old, f"@{found[old][1:]}@")
    for new in found.values():
        text = text.replace(f"@{new[1:]}@", new)
    return text


def test_a_text_is_what_was_printed() -> None:
    text = lines(TEXT)
    graph = parse_graph(text, "ATEN")
    assert print_graph(graph, "ATEN") == text
    assert all("val" in node.meta for node in graph.fx.nodes if node.op != "output")


class Turns(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(11, 6), nn.Linear(6, 11)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens)
        z = torch.view_as_complex(x.reshape(*x.shape[:-1], 3, 2))
        x = torch.view_as_real(z * z).flatten(2).mul_(0.5)
        at = torch.arange(tokens.shape[1], device=tokens.device)
        y = (x + at[:, None])[:, None]
        logits: torch.Tensor = self.out(nn.functional.scaled_dot_product_attention(y, y, y, is_causal=True)[:, 0])
        return logits


def test_what_was_captured_is_read_back() -> None:
    text = print_graph(capture_module(Turns()).embed, "ATEN")
    assert "?" not in text
    again = parse_graph(text, "ATEN")
    assert print_graph(again, "ATEN") == text
    logits = again.results()["logits"].meta["val"]
    assert logits.shape[2] == 11
    assert [isinstance(size, torch.SymInt) for size in logits.shape] == [True, True, False]


def test_a_type_that_torch_does_not_give_is_refused() -> None:
    with pytest.raises(InvalidProgram, match="V12"):
        parse_graph(lines(TEXT).replace("c64[B,T,3] = aten.view_as", "c64[B,T,4] = aten.view_as"), "ATEN")


@pytest.mark.parametrize("level", ["CANONICAL", "STEP"])
def test_other_levels_know_no_devices_and_no_complex_numbers(level: str) -> None:
    with pytest.raises(SleepcError):
        parse_graph(lines(TEXT), level)
    with pytest.raises(SleepcError, match="unknown device"):
        parse_graph(lines(TEXT).replace('device("cpu")', 'device("elsewhere")'), "ATEN")
