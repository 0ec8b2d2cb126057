"""A program's parameters as a tree of modules, by their names in the original: what optimisers and adapters work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

from sleepc.errors import UsageError
from sleepc.ir.graph import is_call
from sleepc.ir.levels import aten
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.train.parameters import graphs_with_keys, linear_keys, tied_keys

LINEAR = aten.linear.default
WEIGHT, BIAS = ".weight", ".bias"


class TreeModule(nn.Module):
    """A module of the tree. What is called within it (`call`) is called as its forward, for what stands around that."""

    def forward(self, call: Callable[..., Any], *inputs: Any) -> Any:
        """What `call` gives."""
        return call(*inputs)


@dataclass(frozen=True)
class Slot:
    """Where the tree holds the parameter of a key: in the module `holder`, or as the weight of its child `layer`."""

    key: str
    holder: nn.Module
    name: str
    layer: nn.Linear | None = None

    def value(self) -> Any:
        """What graphs are to read: the tensor, or the module that stands where a linear layer was (an adapter's)."""
        if self.layer is None:
            parameters, buffers = self.holder._parameters, self.holder._buffers
            return parameters[self.name] if self.name in parameters else buffers[self.name]
        module = self.holder._modules[self.name]
        plain = module is self.layer and not (module._forward_hooks or module._forward_pre_hooks)
        return module._parameters["weight"] if plain and module is not None else module

    def tensor(self) -> Tensor:
        """The parameter itself, whatever has been put around it."""
        found: Tensor = self.value() if self.layer is None else self.layer.weight
        return found


def apply_linear(x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
    """x [.., in] -> [.., out]: by a weight [out, in], or by a module in its place, which has the bias too."""
    if isinstance(weight, nn.Module):
        found: Tensor = weight(x)
        return found
    return linear(x, weight, bias)


def grow(root: nn.Module, program: ProgramGraphs) -> list[Slot]:
    """Give `root` copies of a program's parameters, weights of linear maps as nn.Linear and tables as buffers; tied
    ones are one. Raises UsageError for names that a module cannot have.
    """
    values = materialise(program, "cpu")
    trained = {key for graph, names in graphs_with_keys(program) for key in names.values()}
    first = {key: ties[0] for key, ties in tied_keys(program, values).items()}
    layers, slots = linear_layers(program), []
    made: dict[str, Tensor] = {}
    for key in sorted(values, key=lambda key: key not in layers):  # a layer is there before its bias
        if first[key] not in made:
            copied = values[key].detach().clone()
            is_trained = key in trained and copied.dtype.is_floating_point
            made[first[key]] = nn.Parameter(copied) if is_trained else copied
        slots.append(_hang(root, key, made[first[key]], layers))
    return slots


def linear_layers(program: ProgramGraphs) -> dict[str, bool]:
    """Keys of the weights that nothing but linear maps reads, all with the bias of the same name (true), or without."""
    biases: dict[str, set[str | None]] = {}
    other: set[str] = set()  # what is read as something else than a bias
    for graph, names in graphs_with_keys(program):
        by_node: dict[Any, str] = {node: names[port] for port, node in graph.ports("param").items()}
        for call in graph.calls():
            weight = by_node.get(call.args[1]) if is_call(call, LINEAR) else None
            bias = call.args[2] if weight is not None and len(call.args) > 2 else None
            if weight is not None:
                biases.setdefault(weight, set()).add(by_node.get(bias, "") if bias is not None else None)
            other |= {key for node, key in by_node.items() if node in call.all_input_nodes and node is not bias}
    chosen = [key for key in linear_keys(program).intersection(biases) if key.endswith(WEIGHT)]
    fitting = {key: key.removesuffix(WEIGHT) + BIAS for key in chosen if len(program.params[key].shape) == 2}
    return {
        key: biases[key] == {bias}
        for key, bias in fitting.items()
        if biases[key] == {None} or (biases[key] == {bias} and bias not in other)
    }


def _hang(root: nn.Module, key: str, value: Tensor, layers: dict[str, bool]) -> Slot:
    path, _, name = key.rpartition(".")
    if name == "weight" and key in layers:
        above, _, name = path.rpartition(".")
        holder = _module_at(root, above, key)
        if hasattr(holder, name):
            raise _taken(key)
        layer = nn.Linear(value.shape[1], value.shape[0], layers[key], device="meta")
        layer.weight = value
        holder.add_module(name, layer)
        return Slot(key, holder, name, layer)
    holder = _module_at(root, path, key)
    if hasattr(holder, name) and not (isinstance(holder, nn.Linear) and name == "bias"):
        raise _taken(key)
    if isinstance(value, nn.Parameter):
        holder.register_parameter(name, value)
    else:
        holder.register_buffer(name, value, persistent=False)
    return Slot(key, holder, name)


def _module_at(root: nn.Module, path: str, key: str) -> nn.Module:
    for name in filter(None, path.split(".")):
        if name not in root._modules:
            if hasattr(root, name):
                raise _taken(key)
            root.add_module(name, TreeModule())
        root = root.get_submodule(name)
    return root


def _taken(key: str) -> UsageError:
    fix = "Rename it in the original."
    return UsageError("a module has something else under the name of this parameter", where=key, fix=fix)
