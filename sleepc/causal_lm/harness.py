"""lm-evaluation-harness on a program: its tasks, asked of `SleepForCausalLM` as of any model of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sleepc.api import Program
from sleepc.backends.table import DEFAULT
from sleepc.causal_lm.model import SleepForCausalLM
from sleepc.errors import UsageError

MISSING = "lm-evaluation-harness is not installed"
INSTALL = "pip install 'sleepc[harness]'"
NEVER = "<end that no model writes>"  # the harness wants a token that ends texts, also of tokenizers that have none


@dataclass(frozen=True)
class Asking:
    """Tasks by name, of the harness or of a folder of one's own with their files, and how they are asked: `batch`
    requests at a time, `limit` examples of each task. Task files may name functions in Python files beside them, which
    run.
    """

    tasks: Sequence[str]
    folder: Path | None = None
    batch: int = 1
    limit: int | None = None
    seed: int = 0
    device: str = "cpu"
    backend: str = DEFAULT


def evaluate_tasks(program: Program, asking: Asking) -> dict[str, Any]:
    """What the harness found, as plain data: figures by task and metric, examples asked and versions by task. Raises
    UsageError for tasks that it has not, or cannot load or ask, for a model without a tokenizer, and if it is not
    installed.
    """
    if find_spec("lm_eval") is None:
        raise UsageError(MISSING, where="--harness", fix=f"{INSTALL} brings it.")
    from jinja2 import TemplateError
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    if not asking.tasks:
        raise UsageError("no task is named", where="--harness", fix="Name tasks, with commas between them.")
    if asking.folder is not None and not asking.folder.is_dir():
        raise UsageError(f"{asking.folder} is no folder", where="--harness-folder", fix="Name one with tasks' files.")
    tasks = TaskManager(include_path=str(asking.folder) if asking.folder else None)
    unknown = [name for name in asking.tasks if not tasks.match_tasks([name])]
    if unknown:
        fix = "`lm-eval ls tasks` lists those it has; --harness-folder names a folder with files of your own."
        raise UsageError(f"the harness has no task {', '.join(unknown)}", where="--harness", fix=fix)
    tasks.load = partial(_load, tasks.load)
    words = tokenizer_of(program)
    model = SleepForCausalLM(program, backend=asking.backend)
    known = (words.bos_token_id, words.eos_token_id, words.pad_token_id)
    first = next(i for i in known if i is not None and i < program.graphs.vocab)
    asked = HFLM(
        model.on_device(asking.device), "causal", tokenizer=words, batch_size=asking.batch, prefix_token_id=first
    )
    seeds = {f"{kind}_seed": asking.seed for kind in ("random", "numpy_random", "torch_random", "fewshot_random")}
    try:
        found = simple_evaluate(
            asked, tasks=list(asking.tasks), limit=asking.limit, task_manager=tasks, bootstrap_iters=0, **seeds
        )
    except TemplateError as error:
        what = f"a task's file asks for what its documents do not have: {error}"
        raise UsageError(what, where="--harness", fix="Correct doc_to_text and the like.") from error
    chosen = {"results": found["results"], "examples": found["n-samples"], "versions": found["versions"]}
    plain: dict[str, Any] = json.loads(json.dumps(chosen, default=str))
    return plain | {"longest": asked.max_length}


def _load(load: Callable[[list[str]], Any], names: list[str]) -> Any:
    """What the harness loads. Raises UsageError for whatever it raises: it reads files of others, and fetches data."""
    try:
        return load(names)
    except Exception as error:
        what = f"the harness cannot load {', '.join(names)}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        fix = "Check the task's file and its data; tasks of the harness fetch theirs from the hub, the first time."
        raise UsageError(what, where="--harness", fix=fix) from error


def tokenizer_of(program: Program) -> Any:
    """A program's tokenizer as transformers has it, with tokens for padding and for a text's end. Raises UsageError
    if it has none.
    """
    from transformers import AutoTokenizer

    folder = program.tokenizer().folder
    words = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if words.pad_token is None:
        words.pad_token = words.eos_token or words.convert_ids_to_tokens(0)
    if words.eos_token is None:
        words.add_special_tokens({"eos_token": NEVER})
    return words
