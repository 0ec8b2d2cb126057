"""What a host has to do, in sentences that a programmer of any language can follow."""

from __future__ import annotations

from sleepc.backends.onnx.manifest import Columns, ExportManifest


def instructions_of(manifest: ExportManifest) -> list[str]:
    """What the host's loop does, numbered, for this export."""
    sentences = [*_state(manifest), *_wake(manifest), *_after(manifest), *_sleep(manifest)]
    return [f"{i}. {sentence}" for i, sentence in enumerate(sentences, 1)]


def _state(manifest: ExportManifest) -> list[str]:
    return [
        "Choose B, the number of texts (rows) that are read side by side. For each entry of `states` make an array of "
        'its dtype and dims, with B in the place of "B", filled with zeros: the state of rows that have read nothing.',
    ]


def _wake(manifest: ExportManifest) -> list[str]:
    return [
        f"To read, run {manifest.wake.file} with the states that it has as inputs, by name, and with `tokens` [B, T] "
        "(each row's tokens from the left on, then zeros), `lengths` [B] (how many they are; a row of length 0 stays "
        "as it is) and `logits_at` [B, M] (the places, from 0, of the tokens whose logits are wanted; M may be 0). "
        "T and M may differ from call to call; all are int64.",
        f"No call may lead over a sleep: lengths[b] is at most {manifest.window} - since[b], where `since` is the "
        "state of that name. Cut longer texts there.",
        f"`logits` [B, M, {manifest.vocab}] belong to the tokens asked for. Where a row has no token at a place, they "
        "mean nothing.",
    ]


def _after(manifest: ExportManifest) -> list[str]:
    found = [
        "Every output of a run needs memory of its own: bind none to memory that an input or another output of it has "
        "(one OrtValue for a state that goes in and comes out gives a wrong state, and no error). Two places "
        "for each state that is replaced, taken in turns, are enough.",
        "After each run make the new states, by `wake` of each entry of `states`. kept: nothing changes. replaced: the "
        "new value is the output of that name.",
    ]
    if any(isinstance(state.wake, Columns) for state in manifest.states):
        found.append(
            "columns: with H = dims[1] of the state, r its `row`, c the output `output` and s the output `slots`, set "
            "state[b, :, s[b, t]] = c[b, H*r : H*(r+1), t] for every b and t where s[b, t] >= 0. This may be done in "
            "place, once the run has ended."
        )
    return found


def _sleep(manifest: ExportManifest) -> list[str]:
    file = (manifest.sleep_recurrent or manifest.sleep_replay).file
    found = [
        f"When since[b] has reached {manifest.window}, row b sleeps before it reads on. A host may let it sleep "
        "earlier, when since[b] is above 0.",
        f"To let rows sleep, run {file} with the states that it has as inputs, of these rows only, and with `passes` "
        f"(int64, no dimensions) = {manifest.passes}. By `sleep` of each entry of `states`, put what is replaced back "
        "into these rows; what is kept stays.",
    ]
    if manifest.sleep_recurrent is not None:
        found.append(
            f"`passes` of {file} is 2 or more. {manifest.sleep_replay.file} is what a sleep does before blocks run "
            "again, and no whole sleep."
        )
    return found
