"""`sleepc.hf.SleepForCausalLM`: a converted program under the interface of transformers' causal language models."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from sleepc.api import Program, load
from sleepc.backends.table import DEFAULT, find_trainer
from sleepc.backends.training_steps import TrainingSteps
from sleepc.capturing import DTYPES
from sleepc.causal_lm.blocks import block_modules, call_through, is_called
from sleepc.causal_lm.cache import SleepCache
from sleepc.causal_lm.modules import LINEAR, apply_linear, grow
from sleepc.errors import UsageError
from sleepc.hf.json_file import read_object
from sleepc.passes.adapt.retype import Retype
from sleepc.passes.base import Stage
from sleepc.passes.runner import run_stages
from sleepc.runtime.batch import Packed, pack
from sleepc.runtime.session import warn_of_border
from sleepc.train.adapter import note_training, with_values

CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"  # by its version
PACKING = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens", "seq_idx")  # where texts end that stand in one row
NOT_TAKEN = ("inputs_embeds", "position_ids", "output_attentions", "output_hidden_states", *PACKING)
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


class SleepConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """What transformers' tools ask of a model's configuration. It is made of a program, and describes none."""

    model_type = "sleepc"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache", "past_key_values"]


class SleepForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """A program whose parameters are this module's: copies, by their names in the original. `program` is what it was
    made of, and stays as it is.

    Padding, left or right, writes nothing: rows give what they would alone.
    """

    config_class = SleepConfig
    _is_stateful = True  # what was read cannot be taken back: no assisted decoding

    def __init__(self, program: Program, *, dtype: torch.dtype | None = None, backend: str = DEFAULT) -> None:
        trainer = find_trainer(backend)
        program.check_bytes()
        graphs = program.graphs
        if dtype not in (None, graphs.dtype):
            graphs = run_stages(graphs, (Stage("retype", "STEP", (Retype(dtype),)),))
        super().__init__(_config(program, graphs.dtype))
        self.program, self.graphs, self.backend = program, graphs, trainer
        self.slots = grow(self, graphs)
        self._bound: list[Any] = []
        self.__dict__["_blocks"] = []  # modules that have their place in the tree
        self._steps: dict[bool, TrainingSteps] = {}
        folder = program.folder()
        if said := read_object(folder / "generation_config.json") if folder else {}:
            self.generation_config = GenerationConfig.from_dict(said)
        self.post_init()  # type: ignore[no-untyped-call]
        self.train(False)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # what others are loaded with is refused
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        dtype: str | torch.dtype | None = None,
        device_map: str | torch.device | None = None,
        backend: str = DEFAULT,
        trust_remote_code: bool = False,
        **others: Any,
    ) -> SleepForCausalLM:
        """The model of an artifact, on one device, in its own dtype or a wider one. Raises UsageError for a narrower
        one, for other options of transformers' loaders, and as `sleepc.load`.
        """
        if others or trust_remote_code:
            what = f"{', '.join(others) or 'trust_remote_code'} is nothing that an artifact is loaded with"
            raise UsageError(what, where="from_pretrained", fix="Leave it out: dtype, device_map and backend remain.")
        kind = None if dtype in (None, "auto") else DTYPES.get(str(dtype).removeprefix("torch."))
        if kind is None and dtype not in (None, "auto"):
            raise UsageError(f"unknown dtype {dtype!r}", where="dtype", fix=f"One of: {', '.join(DTYPES)}.")
        model = cls(load(Path(pretrained_model_name_or_path)), dtype=kind, backend=backend)
        return model if device_map is None else model.on_device(str(device_map))

    def block_modules(self) -> list[nn.Module]:
        """The blocks' modules, in order, which `torch.distributed.fsdp.fully_shard` takes one by one. Raises UsageError
        if blocks share one.
        """
        self._blocks = block_modules(self, self.graphs)
        self._steps.clear()
        return list(self._blocks)

    def on_device(self, device: str) -> SleepForCausalLM:
        """Itself, moved there. Raises UsageError for a device that is not there, or not the backend's."""
        self.backend.check_device(device)
        return self._apply(lambda tensor: tensor.to(device))

    def save_pretrained(  # type: ignore[override]  # what others are saved with is refused
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        *,
        standalone: bool = False,
        **others: Any,
    ) -> None:
        """Write an artifact with the parameters as they are now; an artifact that stands there is replaced. Raises
        UsageError for other options, and while an adapter is in the model.
        """
        if any(value for value in others.values()):
            what = f"{', '.join(others)} is nothing that an artifact is saved with"
            raise UsageError(what, where="save_pretrained", fix="Leave it out: standalone=True copies the weights.")
        wrapped = [slot.key for slot in self.slots if slot.layer is not None and not isinstance(slot.value(), Tensor)]
        if wrapped:
            fix = "Merge it first (merge_and_unload), or save the adapter alone (save_pretrained of peft's model)."
            raise UsageError("an adapter is no part of an artifact", where=wrapped[0], fix=fix)
        if not is_main_process:
            return
        changed = self._changed(state_dict or {})
        program = replace(self.program, report=dict(self.program.report))
        if changed:
            program.graphs = with_values(program.graphs, changed)
            program.report.pop("verify", None)  # it is of the values before
            note_training(program, changed, {"by": "transformers"})
        path = program.save(Path(save_directory), standalone=standalone, force=True)
        self.generation_config.save_pretrained(path)
        if changed:
            self.program = load(path)

    def _changed(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """Values by key, in the dtypes of the program's files, that are others than there."""
        params, changed = self.program.graphs.params, {}
        for slot in self.slots:
            value = given.get(slot.key, slot.tensor()).detach().to("cpu", params[slot.key].dtype)
            if not torch.equal(value, params[slot.key].materialise().cpu()):
                changed[slot.key] = value.clone()
        return changed

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: SleepCache | None = None,
        past_key_values: SleepCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """input_ids [B, T] -> logits [B, T, V], and the loss at `labels` [B, T] (-100: none). Where attention_mask
        [B, T], or [B, past + T], is 0 nothing is read. Differentiable in parameters and cache, through sleeps, where
        gradients are on. Raises UsageError for what the program cannot take or give (NOT_TAKEN); `generate` hands on
        other words of its own, which mean nothing here.
        """
        asked = [name for name in NOT_TAKEN if others.get(name) is not None and others[name] is not False]
        if asked or input_ids is None:
            what = f"{', '.join(asked)} is nothing that this model takes" if asked else "there are no input_ids"
            fix = "Give input_ids, a row for each text, and attention_mask where they are padded."
            raise UsageError(what, where="forward", fix=fix)
        steps = self._steps_now()
        held = self._held(cache if cache is not None else past_key_values, steps, len(input_ids))
        packed = self._packed(input_ids, attention_mask, held.columns)
        one = labels is None and isinstance(logits_to_keep, int) and logits_to_keep == 1
        with torch.autocast(self.device.type, enabled=False):  # graphs say which dtypes they compute in
            before = held.columns
            logits = held.read(steps, packed, every=not one)
        if self.graphs.upto is not None and before <= self.graphs.upto < held.columns:
            warn_of_border(self.graphs.upto)
        if not isinstance(logits_to_keep, int):
            logits = logits[:, logits_to_keep]
        elif logits_to_keep > 1:
            logits = logits[:, -logits_to_keep:]
        loss = None
        if labels is not None:
            counted = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.graphs.vocab, **counted)
        keeps = use_cache if use_cache is not None else not self.training
        found: dict[str, Any] = {"loss": loss, "logits": logits, CACHE: held if keeps else None}
        output = CausalLMOutputWithPast(**found)
        return output.to_tuple() if return_dict is False else output

    def _packed(self, ids: Tensor, mask: Tensor | None, past: int) -> Packed:
        """Tokens of this call, those that the mask leaves out put aside. Raises UsageError if shapes do not fit."""
        if ids.dim() != 2:
            what, fix = f"they are {list(ids.shape)}", "Give [B, T]: a row for each text."
            raise UsageError(what, where="input_ids", fix=fix)
        if mask is not None:
            rows, width = ids.shape
            if list(mask.shape) not in ([rows, width], [rows, past + width]):
                what = f"it is {list(mask.shape)}, and input_ids are {[rows, width]} after {past} places in the cache"
                fix = "Give [B, T], or [B, past + T]: 0 where there is padding."
                raise UsageError(what, where="attention_mask", fix=fix)
            mask = mask[:, mask.shape[1] - width :].bool()
        real = None if mask is None or bool(mask.all()) else mask.cpu().numpy()
        return pack(ids.cpu().numpy(), real, batch=len(ids), vocab=self.graphs.vocab)

    def _held(self, given: object, steps: TrainingSteps, rows: int) -> SleepCache:
        if given is None:
            return SleepCache(steps, rows)
        if not isinstance(given, SleepCache) or given.rows != rows:
            what = f"{given!r} is no cache of this model with {rows} rows"
            raise UsageError(what, where=CACHE, fix="Give what a call of it returned, or none.")
        return given

    def _steps_now(self) -> TrainingSteps:
        """Steps on the parameters as they are now, differentiable if a gradient may be asked for."""
        bound = [slot.value() for slot in self.slots]
        if len(bound) != len(self._bound) or any(a is not b for a, b in zip(bound, self._bound, strict=True)):
            self._bound = bound
            self._steps.clear()
        train = torch.is_grad_enabled() and any(each.requires_grad for each in self.parameters())
        if train not in self._steps:
            named = {slot.key: value for slot, value in zip(self.slots, bound, strict=True)}
            self._steps[train] = self.backend.steps_on(
                self.graphs, named, device=self.device, train=train, replaced={LINEAR: apply_linear}
            )
            if any(map(is_called, self._blocks)):
                call_through(self._steps[train], self._blocks, {slot.key: slot for slot in self.slots})
        return self._steps[train]

    # -- what transformers asks -------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """The program's."""
        return self.graphs.dtype

    def _apply(self, fn: Any, recurse: bool = True) -> SleepForCausalLM:
        """As PyTorch moves modules, but that every parameter keeps the dtype that the graphs say."""
        probe = fn(torch.empty(0, dtype=self.dtype, device=self.device))
        if probe.dtype != self.dtype:
            what = f"a program in {self.dtype} does not become one in {probe.dtype} by casting its weights"
            fix = "Load it with from_pretrained(…, dtype=…), if that is wider, or convert it in that dtype."
            raise UsageError(what, where="to", fix=fix)
        self._steps.clear()
        super()._apply(  # type: ignore[no-untyped-call]
            lambda t: fn(t) if t.dtype == self.dtype else t.to(probe.device), recurse
        )
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without the steps that its calls made: a copy makes its own, on its own parameters."""
        return {**self.__dict__, "_bound": [], "_steps": {}}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def init_weights(self) -> None:
        """They have values."""

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises UsageError: graphs have the vocabulary that was converted."""
        fix = "Resize the original, and convert that."
        raise UsageError("a program's vocabulary is fixed", where="resize_token_embeddings", fix=fix)


def _config(program: Program, dtype: torch.dtype) -> SleepConfig:
    """What is known of a program, and its special tokens, as the original's config.json has them."""
    folder, graphs = program.folder(), program.graphs
    said = read_object(folder / "config.json") if folder else {}
    inner = said.get("text_config")
    said |= inner if isinstance(inner, dict) else {}
    found: dict[str, Any] = {
        "vocab_size": graphs.vocab,
        "hidden_size": graphs.hidden,
        "num_hidden_layers": len(graphs.layout),
        "window": graphs.window,
        "sinks": program.recipe.sinks,
        "tie_word_embeddings": False,  # tied parameters are one
        "dtype": dtype,
        "architectures": [SleepForCausalLM.__name__],
        "name_or_path": str(program.path or ""),
    }
    return SleepConfig(**found, **{name: said[name] for name in IDS if name in said})


AutoConfig.register(SleepConfig.model_type, SleepConfig)
AutoModelForCausalLM.register(SleepConfig, SleepForCausalLM)
