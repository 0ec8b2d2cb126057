"""All rules by name; a new one collides with nothing."""

from __future__ import annotations

import pkgutil
import re
from collections import Counter
from importlib import import_module

from sleepc.errors import UsageError
from sleepc.ir.roles import BY_NAME
from sleepc.memory import rules
from sleepc.memory.parameters import OF_LAYERS
from sleepc.memory.rule import Gate, Rule
from sleepc.names import check_new

RULES: dict[str, Rule] = {}
PART = re.compile(r"[A-Za-z][A-Za-z0-9_]*")  # a state, a gate or a parameter
PORT = re.compile(r"[a-z]\d+")  # what blocks call the model's own parameters and inputs
# What a query is called, ports of blocks in addition to states, those with kept pairs, and states of other roles.
TAKEN = {"q", "h", "live", "real", "lengths", "record_slots", "positions", "tokens"}
TAKEN |= {"query_positions", "window_positions", "model_positions", "model_position", "moved", "window_pinned"}
TAKEN |= {*BY_NAME}
NEEDS = {  # W, b, A
    "sigmoid": (True, True, False),
    "softplus": (True, True, False),
    "decay": (True, True, True),
    "one": (False, False, False),
    "code": (True, False, False),
}


def register(rule: Rule) -> Rule:
    """Add a rule. Raises UsageError if a name of it is taken, or it contradicts itself."""
    check_new("rule", rule.name, RULES)
    where = f"rule {rule.name}"
    for name in rule.states:
        _check_free(name, TAKEN, "a state of the rule", where)
    for name in rule.gates:
        _check_free(name, {"k", "v", "q", *rule.states}, "a gate of the rule", where)
    for name, gate in rule.gates.items():
        _check_gate(name, gate, where)
    for name in rule.learned:
        if not PART.fullmatch(name):
            raise UsageError(f"{name!r} cannot name what is learned", where=where, fix="Letters, digits and _.")
    of_gates = (name for gate in rule.gates.values() for name in gate.parameters())
    taken = Counter([*OF_LAYERS, *of_gates, *rule.learned])
    for name, count in taken.items():
        if count > 1:
            raise UsageError(f"two parameters of its layer are named {name!r}", where=where, fix="Choose another name.")
    _check_whole(rule, where)
    RULES[rule.name] = rule
    return rule


def _check_whole(rule: Rule, where: str) -> None:
    if not rule.states or not rule.gates:
        raise UsageError("a rule has at least one state and one gate", where=where)
    if rule.affine and len(rule.states) > 1:
        raise UsageError("a pass can only be affine on one tensor", where=where, fix="Leave out affine=True.")
    if rule.by_window and any(gate.of_time for gate in rule.gates.values()):
        what = "a window that is written at once has no order, in which time could go by"
        raise UsageError(what, where=where, fix="Leave out decays, and gates with again=False.")


def _check_gate(name: str, gate: Gate, where: str) -> None:
    for parameter in gate.parameters():
        if not PART.fullmatch(parameter):
            text = f"{parameter!r} cannot name a parameter of gate {name}"
            raise UsageError(text, where=where, fix="Letters, digits and _.")
    if gate.activation not in NEEDS:
        text = f"gate {name} has the activation {gate.activation!r}"
        raise UsageError(text, where=where, fix=f"One of: {', '.join(NEEDS)}.")
    if tuple(map(bool, (gate.weight, gate.bias, gate.rate))) != NEEDS[gate.activation]:
        fits = "code a weight, sigmoid and softplus a bias too, decay a rate too"
        text = f"gate {name} needs parameters that fit its activation: {fits}"
        raise UsageError(text, where=where, fix="Name those, and no others.")


def _check_free(name: str, taken: set[str], what: str, where: str) -> None:
    if not PART.fullmatch(name) or PORT.fullmatch(name):
        raise UsageError(f"{name!r} cannot name {what}", where=where, fix="Letters, digits and _; not like x1.")
    if name in taken:
        raise UsageError(f"{what} is named {name!r}, which is taken", where=where, fix="Choose another name.")


def find(name: str) -> Rule:
    """The rule of that name; UsageError with the known names otherwise."""
    if name not in RULES:
        raise UsageError(f"no rule is named {name!r}", fix="Known rules: " + ", ".join(RULES))
    return RULES[name]


def named(*, corrects: bool | None = None, by_channel: bool | None = None) -> str:
    """The names of the rules with these properties, for messages."""
    fits = [r for r in RULES.values() if corrects in (None, r.corrects) and by_channel in (None, r.decays_by_channel)]
    return ", ".join(rule.name for rule in fits)


for _module in pkgutil.iter_modules(rules.__path__):
    register(import_module(f"{rules.__name__}.{_module.name}").RULE)
