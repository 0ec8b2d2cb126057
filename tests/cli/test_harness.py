"""lm-evaluation-harness asks the model what it asks any other: four kinds of tasks, offline, in batches of 1 and 4."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sleepc.api import load
from sleepc.causal_lm.harness import tokenizer_of
from tests.causal_lm.conftest import load_model, load_words
from tests.cli.conftest import Here
from tests.families import VOCAB

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install '.[harness]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of what the harness imports
]
COUNT = 5
KINDS: dict[str, dict[str, Any]] = {
    "choice": {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}"},
    "likely": {"output_type": "loglikelihood", "doc_to_target": " {{next}}"},
    "rolling": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}} {{text}}"},
    "write": {"output_type": "generate_until", "doc_to_target": "{{next}}"},
}
METRICS = {"choice": "acc", "likely": "perplexity", "rolling": "word_perplexity", "write": "exact_match"}


def documents() -> list[dict[str, Any]]:
    """Texts of 3 to 30 words, longer than a window or not; what follows; four choices."""
    rng, made = np.random.default_rng(5), []
    for length in (30, 3, 8, 17, 11)[:COUNT]:
        words = [f"w{i}" for i in rng.integers(1, VOCAB, length + 12)]
        choices = [" ".join(words[length + 3 * i : length + 3 * i + 2 + i % 2]) for i in range(4)]
        made.append({"text": " ".join(words[:length]), "next": choices[0], "choices": choices, "answer": 1})
    return made


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file for each kind of task, and its documents."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "documents.jsonl").write_text("".join(json.dumps(each) + "\n" for each in documents()))
    for name, kind in KINDS.items():
        task = {
            "task": f"own_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "documents.jsonl")}},
            "test_split": "test",
            "doc_to_text": "{{text}}",
            "metric_list": [{"metric": METRICS[name]}],
            **kind,
        }
        if name == "write":
            task["generation_kwargs"] = {"until": ["\n"], "max_gen_toks": 7, "do_sample": False}
        (folder / f"{name}.yaml").write_text(json.dumps(task))  # which is YAML too
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def log_probs(path: Path, ids: list[int]) -> Any:
    """Of every token after the first, by a Session."""
    logits = load(path).session().feed(ids, logits="all")[0].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    every = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return every[np.arange(len(ids) - 1), ids[1:]]


def test_the_command_gives_what_sessions_give_in_any_batch(artifact: Path, tasks: Path, here: Here) -> None:
    names = ",".join(f"own_{name}" for name in KINDS)
    found = []
    for batch in (1, 4):
        done = here("eval", artifact, "--harness", names, "--harness-folder", tasks, "--batch", batch, "--json")
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    one, four = (each["results"] for each in found)
    for name, metric in METRICS.items():
        key = f"{metric},none"
        assert one[f"own_{name}"][key] == pytest.approx(four[f"own_{name}"][key], rel=1e-5), name
    words = load_words(artifact)
    right, likely = [], []
    for each in documents():
        text = words(each["text"])["input_ids"]
        scores = [
            log_probs(artifact, [*text, *ids])[len(text) - 1 :].sum() for ids in words(each["choices"])["input_ids"]
        ]
        right.append(int(np.argmax(scores)) == each["answer"])
        likely.append(scores[0])
    assert one["own_choice"]["acc,none"] == pytest.approx(np.mean(right))
    assert one["own_likely"]["perplexity,none"] == pytest.approx(math.exp(-np.mean(likely)), rel=1e-4)
    assert found[0]["examples"]["own_write"]["effective"] == COUNT


@pytest.mark.parametrize("batch", [1, 4])
def test_lm_eval_takes_the_model_as_hf(artifact: Path, tasks: Path, batch: int) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    words = load_words(artifact)
    given = {"pretrained": load_model(artifact), "tokenizer": tokenizer_of(load(artifact)), "backend": "causal"}
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found: Any = simple_evaluate("hf", given, ["own_write"], batch_size=batch, task_manager=manager, bootstrap_iters=0)
    written = {sample["doc"]["text"]: sample["resps"][0][0] for sample in found["samples"]["own_write"]}
    for each in documents():
        session = load(artifact).session()
        session.feed(words(each["text"])["input_ids"])
        assert words(written[each["text"]])["input_ids"] == [int(step[0]) for step in session.generate(7)]


def test_unknown_tasks_and_options_are_named(artifact: Path, here: Here) -> None:
    for arguments, said in (
        (("--harness", "no_such_task"), "the harness has no task no_such_task"),
        (("--harness", "x", "--task", "copy"), "--harness does not take --task"),
        (("--batch", 2, "--task", "copy"), "copy does not take --batch"),
        ((), "no task is given"),
    ):
        done = here("eval", artifact, *arguments)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_tasks_that_cannot_be_asked_are_refused(artifact: Path, tasks: Path, tmp_path: Path, here: Here) -> None:
    """Whatever the harness raises for a file of others, for its data or for the network."""
    wrong: dict[str, tuple[dict[str, Any], str]] = {
        "data": ({"dataset_kwargs": {"data_files": {"test": str(tasks / "nothing.jsonl")}}}, "cannot load own_data"),
        "kind": ({"output_type": "dance"}, "invalid output_type 'dance'"),
        "field": ({"doc_to_text": "{{nothing}}"}, "'nothing' is undefined"),
    }
    for name, (change, why) in wrong.items():
        task = {**json.loads((tasks / "likely.yaml").read_text()), "task": f"own_{name}", **change}
        folder = tmp_path / "tasks" / name
        folder.mkdir(parents=True)
        (folder / "task.yaml").write_text(json.dumps(task))
        done = here("eval", artifact, "--harness", f"own_{name}", "--harness-folder", folder)
        assert (done.returncode, why in done.stderr) == (2, True), done.stderr
    done = here("eval", artifact, "--harness", " , ")
    assert (done.returncode, "no task is named" in done.stderr) == (2, True), done.stderr
    done = here("eval", artifact, "--harness", "own_likely", "--harness-folder", tmp_path / "elsewhere")
    assert (done.returncode, "elsewhere is no folder" in done.stderr) == (2, True), done.stderr
