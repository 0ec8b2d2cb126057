"""What there is to say of a state without its tensor: roles, and their names in ports and files. Imports no torch.

Roles decide; names are for people.
"""

from __future__ import annotations

from typing import Literal, get_args

from sleepc.errors import SleepcError

Update = Literal["overwrite", "ring", "accumulate", "read"]
Role = Literal["clock", "kv", "kept", "pin", "gap", "record", "loop", "memory", "fast", "start", "tail", "own", "count"]
AtSleep = Literal["counted", "evicted", "chosen", "emptied", "consolidated", "left"]

# What a sleep does to the states of each role.
AT_SLEEP: dict[Role, AtSleep] = {
    "clock": "counted",  # [B] counters of a row: position, since, slept, offset. The clock graph says what they become.
    "kv": "evicted",  # the window of an attention: k, v. Slots that do not stay are zeroed.
    "kept": "chosen",  # pairs that attention sees too: k, v, position, token, score; record.X is yet to be written
    "pin": "emptied",  # pinned bool [B,L]: which of the window's tokens the next sleep keeps before all others
    "gap": "evicted",  # i64 [B,W], by the window's length: the token in a slot that attention is not to see, -1
    "record": "emptied",  # what the window's tokens write into a memory, by the gate's name; k and v among them. Into a
    # weight of the model's own (role fast): z, its inputs, and x, what its targets are made of.
    "loop": "emptied",  # what passes that run blocks again start from: hidden, window_tokens
    "memory": "consolidated",  # a rule's tensors, by the rule's names; as they are if nothing was recorded
    "fast": "consolidated",  # what sleeps have added to weights of the model's own, for each row: down, up0
    "start": "left",  # a memory as it was when the window began, by the same names. Passes of a loop write it.
    "tail": "left",  # the last inputs of a causal convolution; those of the model's own are tail.0, tail.1
    "own": "left",  # what the model's own recurrences carry: own.0, own.1. Every token and passes of a loop write it.
    "count": "emptied",  # i64 [B]: passes_taken, by each row's last sleep; passes of a loop count it anew.
    # steps_skipped, by all of a row's sleeps, since a gradient was not finite, and spans_drawn by all its steps; these
    # go on from what there was.
}
PREFIX: dict[Role, str] = {
    "kept": "kept.",
    "gap": "gap.",
    "record": "record.",
    "fast": "fast.",
    "start": "start.",
    "own": "own.",
}
TAKEN, SKIPPED, DRAWN, PINNED = "passes_taken", "steps_skipped", "spans_drawn", "pinned"
NOTHING = -1e30  # the score of what is not to be kept; numbers near it are as low
PINNED_SCORE = 3.4028234663852886e38  # the score of a kept pair that is pinned: the greatest float32; others are less

# Names of states that are not a rule's tensors, for artifacts of format 1, which has no roles.
BY_NAME: dict[str, Role] = {
    **dict.fromkeys(("position", "since", "slept", "offset"), "clock"),
    **dict.fromkeys(("hidden", "window_tokens"), "loop"),
    **dict.fromkeys(("k", "v"), "kv"),
    "tail": "tail",
    **dict.fromkeys((TAKEN, SKIPPED, DRAWN), "count"),
    PINNED: "pin",
}


def name_of(role: Role, part: str) -> str:
    """The name of a state, without its block's number."""
    return PREFIX.get(role, "") + part


def role_of_name(name: str) -> tuple[Role, str]:
    """Role and part of a state of format 1. A name that no other role has is that of a rule's tensor."""
    for role, prefix in PREFIX.items():
        if name.startswith(prefix):
            return role, name.removeprefix(prefix)
    return BY_NAME.get(name, "memory"), name


def at_sleep(role: Role) -> AtSleep:
    """What a sleep does to states of that role. Raises SleepcError for one that is not listed."""
    if role not in AT_SLEEP:
        known = ", ".join(get_args(Role))
        raise SleepcError(f"nothing says what a sleep does to states of role {role!r}", fix=f"Known roles: {known}.")
    return AT_SLEEP[role]
