"""Faults planted in a converted program, each of a kind that was made or nearly made: `verify` has to find every one.

A mutation changes a clone of a program at level STEP and returns it, or None if the program has no place for it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import fx

from sleepc.ir.graph import Graph, Port, is_call
from sleepc.ir.infer import infer_types
from sleepc.ir.program import SOFT, ProgramGraphs
from sleepc.ir.roles import name_of
from sleepc.ir.states import find_state, with_role
from sleepc.ir.weights import HeldTensor
from sleepc.masks import Mask
from sleepc.memory.parameters import PREFIX
from sleepc.passes.consolidation.learning import learn_anew
from sleepc.passes.consolidation.soft_tokens import GAIN, LOW_B, PLACE, TOKEN
from sleepc.passes.lib.emit import Emit, aten

ours = torch.ops.sleepc
Mutation = Callable[[ProgramGraphs], ProgramGraphs | None]
MUTATIONS: dict[str, Mutation] = {}


def mutation(name: str) -> Callable[[Callable[[ProgramGraphs], int]], Callable[[ProgramGraphs], int]]:
    """Register a function that plants a fault in a program in place and returns in how many places."""

    def register(plant: Callable[[ProgramGraphs], int]) -> Callable[[ProgramGraphs], int]:
        def mutate(program: ProgramGraphs) -> ProgramGraphs | None:
            copy = program.clone()
            if not plant(copy):
                return None
            for graph in copy.graphs():
                graph.drop_dead()
                infer_types(graph)
            return copy

        MUTATIONS[name] = mutate
        return plant

    return register


def _calls(graph: Graph | None, target: Any) -> list[fx.Node]:
    return [n for n in graph.calls() if is_call(n, target)] if graph is not None else []


def _masks(graph: Graph) -> list[fx.Node]:
    """Who sees whom, as bools or as what is added to scores."""
    return [*_calls(graph, ours.window_mask.default), *_calls(graph, ours.window_bias.default)]


def _wakes(program: ProgramGraphs, target: Any) -> list[tuple[Graph, fx.Node]]:
    return [(c.wake, n) for c in program.classes.values() for n in _calls(c.wake, target)]


def _sleeps(program: ProgramGraphs, target: Any) -> list[tuple[Graph, fx.Node]]:
    return [(c.sleep, n) for c in program.classes.values() if c.sleep for n in _calls(c.sleep, target)]


def _set(nodes: list[fx.Node], **options: Any) -> int:
    """Change keyword arguments; a value may be a function of the old one."""
    count = 0
    for node in nodes:
        new = {k: v(node.kwargs[k]) if callable(v) else v for k, v in options.items()}
        count += any(node.kwargs[k] != v for k, v in new.items())
        node.kwargs = {**node.kwargs, **new}
    return count


def _shift_held(program: ProgramGraphs, by: int) -> int:
    masks = _masks(program.embed)
    for node in masks:
        e = Emit(program.embed, "fault", node)
        node.args = (node.args[0], e.add(node.args[1], by))
    return len(masks)


@mutation("window one too far")
def window_plus_one(program: ProgramGraphs) -> int:
    """The mask takes the ring to have moved on by one token."""
    return _shift_held(program, 1)


@mutation("window one too short")
def window_minus_one(program: ProgramGraphs) -> int:
    """The mask takes the newest token in the ring not to be there."""
    return _shift_held(program, -1)


def _one_more(program: ProgramGraphs, kind: str) -> int:
    """The layers' own masks of a kind get a number that is one larger."""

    def more(sees: str) -> str:
        return str(Mask(tuple((name, n + (name == kind)) for name, n in Mask.parse(sees).parts)))

    nodes = [n for n in _masks(program.embed) if kind in dict(Mask.parse(str(n.kwargs["sees"])).parts)]
    return _set(nodes, sees=more)


@mutation("own window one too far")
def own_window_plus_one(program: ProgramGraphs) -> int:
    """A layer with a window of its own sees one token more."""
    return _one_more(program, "window")


@mutation("heads grouped in the wrong order")
def gqa_order(program: ProgramGraphs) -> int:
    """Query heads take turns over KV heads instead of sharing one with their neighbours."""
    count = 0
    for graph, node in _wakes(program, ours.window_attention.default):
        q, k = node.args[0], node.args[1]
        assert isinstance(q, fx.Node)
        assert isinstance(k, fx.Node)
        heads, kv = q.meta["type"].dims[1], k.meta["type"].dims[1]
        if 1 < kv < heads:
            order = torch.arange(heads).view(kv, -1).mT.flatten().tolist()
            before, after = Emit(graph, "fault", node), Emit(graph, "fault", node.next)
            node.args = (_take_heads(before, q, order), *node.args[1:])
            readers = list(node.users)
            back = _take_heads(after, node, torch.tensor(order).argsort().tolist())
            for reader in readers:
                reader.replace_input_with(node, back)
            count += 1
    return count


def _take_heads(e: Emit, x: fx.Node, order: list[int]) -> fx.Node:
    return e.call(aten.cat.default, [e.call(aten.slice.Tensor, x, 1, i, i + 1) for i in order], 1)


@mutation("softcap dropped")
def no_softcap(program: ProgramGraphs) -> int:
    """Scores have no soft cap."""
    return _set([n for _, n in _wakes(program, ours.window_attention.default)], softcap=0.0)


@mutation("sinks dropped")
def no_sinks(program: ProgramGraphs) -> int:
    """The first tokens are in the ring's turn as all others, as far as the mask knows."""
    nodes = [n for n in _masks(program.embed) if n.kwargs["sinks"]]
    for node in nodes:
        options: dict[str, Any] = dict(node.kwargs)
        node.kwargs = {**options, "window": options["window"] + options["sinks"], "sinks": 0}
    return len(nodes)


@mutation("scale wrong")
def wrong_scale(program: ProgramGraphs) -> int:
    """Scores a tenth too large."""
    return _set([n for _, n in _wakes(program, ours.window_attention.default)], scale=lambda s: 1.1 * s)


@mutation("bias dropped")
def no_bias(program: ProgramGraphs) -> int:
    """The first projection with a bias loses it."""
    for _, node in _wakes(program, aten.linear.default):
        bias = node.args[2] if len(node.args) > 2 else None
        if isinstance(bias, fx.Node) and not bias.meta["port"].name.startswith(PREFIX):
            node.args = (*node.args[:2], None)
            return 1
    return 0


@mutation("positions swapped")
def swapped_positions(program: ProgramGraphs) -> int:
    """Cosines and sines exchanged; with learned positions, off by one."""
    results = program.embed.results()
    tables = [n for n in results if n.startswith("x") and len(results[n].meta["type"].dims) == 3]
    if len(tables) == 2:
        a, b = tables
        results[a], results[b] = results[b], results[a]
        program.embed.set_returns(results)
        return 1
    embeddings = [n for n in _calls(program.embed, aten.embedding.default) if n.args[1].op == "call_function"]  # type: ignore[union-attr]
    for node in embeddings:
        e = Emit(program.embed, "fault", node)
        node.args = (node.args[0], e.call(aten.clamp.default, e.sub(node.args[1], 1), 0))
    return len(embeddings)


@mutation("padding decays the memory")
def decayed_padding(program: ProgramGraphs) -> int:
    """g is not 0 at padding, if memories are written online."""
    return sum(_drop_mask(graph, node.args[3]) for graph, node in _wakes(program, ours.delta_rule.default))


@mutation("padding is written into the memory")
def written_padding(program: ProgramGraphs) -> int:
    """Neither k nor beta is 0 at padding, if memories are written online."""
    count = 0
    for graph, node in _wakes(program, ours.delta_rule.default):
        for i in (1, 4):
            count += _drop_mask(graph, node.args[i])
    return count


def _drop_mask(graph: Graph, value: Any) -> int:
    """Undo the product with the mask of real tokens on the way to `value`."""
    product = value.args[0] if is_call(value, aten.transpose.int) else value
    assert is_call(product, aten.mul.Tensor), product
    product.replace_all_uses_with(product.args[0])
    graph.fx.erase_node(product)
    return 1


@mutation("padding is recorded")
def recorded_padding(program: ProgramGraphs) -> int:
    """Padding gets a place in the window's record, in the place of the first token."""
    results = program.embed.results()
    slots = results["record_slots"]
    users = [
        n for c in program.classes.values() for n in [c.wake.ports().get("record_slots")] if n is not None and n.users
    ]
    if not users:
        return 0
    slots.args = (*slots.args[:2], 0)
    return 1


@mutation("read of the memory scaled")
def scaled_read(program: ProgramGraphs) -> int:
    """What a memory answers is divided by 8."""
    nodes = _wakes(program, ours.delta_rule_read.default) + _wakes(program, ours.delta_rule.default)
    return _set([n for _, n in nodes], scale=lambda s: s / 8)


@mutation("wrong ring slot")
def wrong_slot(program: ProgramGraphs) -> int:
    """Tokens are written as if there were one sink more."""
    nodes = _calls(program.embed, ours.window_slots.default)
    return _set(nodes, window=lambda w: w - 1, sinks=lambda s: s + 1)


@mutation("values of the record from the wrong slots")
def wrong_record(program: ProgramGraphs) -> int:
    """A sleep reads the window's values one token off."""
    nodes = _sleeps(program, aten.gather.default)
    for graph, node in nodes:
        e = Emit(graph, "fault", node)
        index = node.args[2]
        assert isinstance(index, fx.Node)
        node.args = (*node.args[:2], e.call(aten.clamp.default, e.sub(index, 1), 0))
    return len(nodes)


@mutation("one weight zeroed")
def zeroed_weight(program: ProgramGraphs) -> int:
    """A matrix of the middle block is zero."""
    middle = program.layout[len(program.layout) // 2]
    key = next(k for p, k in middle.params.items() if not p.startswith(PREFIX) and len(program.params[k].shape) == 2)
    program.params[key] = HeldTensor(torch.zeros_like(program.params[key].materialise()))
    return 1


@mutation("stale record")
def stale_record(program: ProgramGraphs) -> int:
    """A sleep leaves the record as it is: a shorter window after it finds old tokens behind its own."""
    count = 0
    for cls in program.classes.values():
        if cls.sleep is None:
            continue
        ports = cls.sleep.ports()
        names = [s.name for s in with_role(cls.states, "record") if s.name in cls.sleep.returns]
        if names:
            e = Emit(cls.sleep, "fault")
            cls.sleep.set_returns({**cls.sleep.results(), **{n: e.call(aten.clone.default, ports[n]) for n in names}})
            count += 1
    return count


@mutation("decay in every pass")
def decay_every_pass(program: ProgramGraphs) -> int:
    """Replay applies g in all its passes."""
    count = 0
    for graph, node in _sleeps(program, ours.replay.default):
        passes, written = node.kwargs["passes"], node.kwargs["written"]
        assert isinstance(passes, int)
        if passes - bool(written) < 2:
            continue
        state: Any = list(node.args[4])  # type: ignore[arg-type]
        e = Emit(graph, "fault", node)
        for _ in range(passes - bool(written)):
            once = {**node.kwargs, "passes": 1, "written": False}
            new = e.ours("replay", *node.args[:4], state, *node.args[5:], **once)
            state = [e.item(new, i) for i in range(len(state))]
        for user in [user for user in node.users if user.target is operator.getitem]:
            user.replace_all_uses_with(state[user.args[1]])
        count += 1
    return count


@mutation("keys not normalised")
def raw_keys(program: ProgramGraphs) -> int:
    """The L2 norm of keys and queries is left out."""
    nodes = _wakes(program, ours.l2norm.default)
    for graph, node in nodes:
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        graph.fx.erase_node(node)
    return len(nodes)


@mutation("memory mixed in before the first sleep")
def always_live(program: ProgramGraphs) -> int:
    """m is not 0 until a row has slept."""
    ports = [(c.wake, c.wake.ports().get("live")) for c in program.classes.values()]
    count = 0
    for graph, port in ports:
        if port is not None and port.users:
            user = next(iter(port.users))
            e = Emit(graph, "fault", user)
            user.replace_input_with(port, e.call(aten.ones_like.default, port))
            count += 1
    return count


@mutation("positions go on after hard eviction")
def no_restart(program: ProgramGraphs) -> int:
    """A sleep that empties the window leaves the position where it was."""
    assert program.clock is not None
    results = program.clock.results()
    e = Emit(program.clock, "fault")
    results["position"] = e.call(aten.clone.default, program.clock.ports()["position"])
    program.clock.set_returns(results)
    return 1


@mutation("evicted tokens stay")
def no_eviction(program: ProgramGraphs) -> int:
    """A sleep zeroes no slot."""
    count = 0
    for cls in program.classes.values():
        windows = with_role(cls.states, "kv")
        if cls.sleep is not None and windows:
            results, ports = cls.sleep.results(), cls.sleep.ports()
            e = Emit(cls.sleep, "fault")
            results |= {s.name: e.call(aten.clone.default, ports[s.name]) for s in windows}
            cls.sleep.set_returns(results)
            count += 1
    return count


@mutation("rows sleep together")
def one_clock(program: ProgramGraphs) -> int:
    """The position of every row is that of the first."""
    results = program.embed.results()
    e = Emit(program.embed, "fault")
    first = e.call(aten.slice.Tensor, results["position"], 0, 0, 1)
    results["position"] = e.add(e.call(aten.zeros_like.default, results["position"]), first)
    program.embed.set_returns(results)
    return 1


@mutation("one recurrent pass too many")
def pass_too_many(program: ProgramGraphs) -> int:
    """A sleep runs its loop once more than it should."""
    if program.loop is None:
        return 0
    program.loop.passes += 1
    return 1


@mutation("recurrent passes end too early")
def settled_too_early(program: ProgramGraphs) -> int:
    """A row stops at twice the change of its memories at which it should."""
    if program.loop is None or not program.loop.settle:
        return 0
    program.loop.settle *= 2
    return 1


@mutation("one step of gradient descent too many")
def step_too_many(program: ProgramGraphs) -> int:
    """A sleep takes one step more than it should."""
    if program.learn is None:
        return 0
    program.learn.steps += 1
    return 1


@mutation("gradient descent uphill")
def uphill(program: ProgramGraphs) -> int:
    """What a window made surprising becomes more so."""
    if program.learn is None:
        return 0
    program.learn.lr *= -1
    learn_anew(program)
    return 1


@mutation("a gradient of another norm")
def other_clip(program: ProgramGraphs) -> int:
    """It is cut to a quarter of what it should be."""
    if program.learn is None:
        return 0
    program.learn.clip /= 4
    learn_anew(program)
    return 1


@mutation("tokens learned in place of those after them")
def same_token(program: ProgramGraphs) -> int:
    """What a token is to be followed by is the token itself."""
    nodes = _calls(program.learn.step, aten.slice.Tensor) if program.learn else []
    found = [n for n in nodes if n.args[1:3] == (1, 1) and n.meta["type"].dtype == torch.int64]
    for node in found:
        node.args = (node.args[0], 1, 0, program.window - 1)
    return len(found)


def _soft_results(program: ProgramGraphs, names: Callable[[str], bool], change: Callable[[Emit, fx.Node], Any]) -> int:
    """Change what the graph that makes soft tokens gives by these names; how many there are."""
    if program.encode is None:
        return 0
    step = program.encode.step
    e, results = Emit(step, "fault"), step.results()
    found = [name for name in results if names(name)]
    step.set_returns({**results, **{name: change(e, results[name]) for name in found}})
    return len(found)


@mutation("an encoder without its LoRA matrices")
def no_encoder(program: ProgramGraphs) -> int:
    """Soft tokens are what the model itself makes of the window."""
    ports = program.encode.step.ports("param") if program.encode else {}
    sums = [total for key, b in ports.items() if key.endswith(LOW_B) for product in b.users for total in product.users]
    for total in sums:
        total.replace_all_uses_with(total.args[0])  # type: ignore[arg-type]
    return len(sums)


@mutation("soft tokens without what was encoded")
def no_gain(program: ProgramGraphs) -> int:
    """They are words of the window."""
    gain = program.encode.step.ports("param").get(GAIN) if program.encode else None
    products = list(gain.users) if gain is not None else []
    for product in products:
        product.args = (product.args[0], 0.0)
    return len(products)


@mutation("soft tokens that begin as the tokens before")
def begun_before(program: ProgramGraphs) -> int:
    """Each begins as the token before the last one of its part of the window."""
    nodes = _calls(program.encode.step, aten.floor_divide.Scalar) if program.encode else []
    for node in nodes:
        for user in list(node.users):
            user.args = (node, 2)
    return len(nodes)


@mutation("soft tokens one position further on")
def soft_further(program: ProgramGraphs) -> int:
    """They stand where the next token stood."""
    return _soft_results(program, lambda name: name == PLACE, lambda e, x: e.add(x, 1))


@mutation("rows share soft tokens")
def shared_soft_tokens(program: ProgramGraphs) -> int:
    """What the first row's window became is in all slots."""

    def of_first(e: Emit, x: fx.Node) -> fx.Node:
        return e.add(e.call(aten.zeros_like.default, x), e.call(aten.slice.Tensor, x, 0, 0, 1))

    return _soft_results(program, lambda name: name.endswith(f"{SOFT}v"), of_first)


@mutation("the oldest soft tokens stay")
def oldest_soft_tokens(program: ProgramGraphs) -> int:
    """A window's are not kept once slots are full."""
    count = 0
    for cls in program.classes.values():
        token = cls.sleep.ports("input").get(TOKEN) if cls.sleep else None
        if cls.sleep is None or token is None:
            continue
        for score in [user for user in token.users if is_call(user, aten.to.dtype)]:
            e = Emit(cls.sleep, "fault", score.next)
            negative = e.neg(score)
            score.replace_all_uses_with(negative, delete_user_cb=partial(operator.is_not, negative))
            count += 1
    return count


@mutation("recurrent passes at the positions of the next window")
def positions_of_next_window(program: ProgramGraphs) -> int:
    """What blocks read while asleep is made for the tokens to come."""
    nodes = _calls(program.loop.given, aten.sub.Tensor) if program.loop else []
    for node in nodes[:1]:
        node.replace_all_uses_with(node.all_input_nodes[0])
    return len(nodes[:1])


@mutation("hidden states of the window one token off")
def hidden_off_by_one(program: ProgramGraphs) -> int:
    """The loop starts from the states of the tokens before."""
    count = 0
    for cls in program.classes.values():
        results, hidden = cls.wake.results(), find_state(cls.states, "loop", "hidden")
        if hidden is not None:
            e = Emit(cls.wake, "fault")
            cls.wake.set_returns({**results, hidden.name: e.call(aten.roll.default, results[hidden.name], [1], [2])})
            count += 1
    return count


@mutation("blocks after the loop start from the window's end")
def after_from_the_end(program: ProgramGraphs) -> int:
    """Their memories do not go back to what they held before the window."""
    count = 0
    for cls in program.classes.values():
        for start in with_role(cls.states, "start") if cls.again else ():
            assert cls.again is not None
            node = cls.again.ports("state")[start.name]
            node.meta["port"] = Port("state", name_of("memory", start.part))
            count += 1
    return count


@mutation("recurrent passes go on with the convolution's tail")
def tail_while_asleep(program: ProgramGraphs) -> int:
    """A sleep pass sees what stands before its window, or after it, in the convolution."""
    count = 0
    for cls in program.classes.values():
        tails = {spec.name for spec in with_role(cls.states, "tail")}
        for node in _calls(cls.again, aten.zeros_like.default):
            source = node.all_input_nodes[0]
            if source.op == "placeholder" and source.meta["port"].name in tails:
                node.replace_all_uses_with(source)
                count += 1
    return count


@mutation("sinks seen twice while asleep")
def sinks_twice(program: ProgramGraphs) -> int:
    """A sleep pass over the first window sees its sinks as its own tokens and as kept ones."""
    if program.loop is None:
        return 0
    graph = program.loop.given
    masks = _masks(graph)
    for node in masks:
        node.args = (node.args[0], graph.ports()["position"])
    return len(masks)


@mutation("chunks one token too long")
def chunk_plus_one(program: ProgramGraphs) -> int:
    """A layer that sees its own chunk of positions sees a longer one."""
    return _one_more(program, "chunk")


@mutation("slopes of other heads")
def slopes_reversed(program: ProgramGraphs) -> int:
    """What distance takes off the scores is that of another head."""
    nodes = _calls(program.embed, ours.window_bias.default)
    return _set(nodes, slopes=lambda slopes: list(reversed(slopes)))
