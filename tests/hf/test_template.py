"""Chat templates give what transformers makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sleepc.hf.template import load_template
from tests.cli.models import save_model

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LINES = """\
{{- bos_token }}
{%- set ns = namespace(count=0, system='') %}
{%- macro turn(m) %}<{{ m.role }}>{{ m.content | trim }}{%- endmacro %}
  {% for m in messages if m.role != 'other' %}
    {% if m.role == 'system' %}
      {% set ns.system = m.content %}
      {% continue %}
    {% endif %}
    {% set ns.count = ns.count + 1 %}
{{ turn(m) }}{{ eos_token }}
    {% generation %}{{ m['content'] | tojson }}{% endgeneration %}
  {% endfor %}
{{ ns.system | upper }} {{ ns.count }} {{ strftime_now('%Y') }} {{ tools is none }} {{ missing_token is defined }}
{{ messages | tojson(indent=2) }} {{ dict(a=1) | tojson }} {{ image_token }} {{ pad_token }} {{ unk_token }}
{% if add_generation_prompt %}<assistant>{% endif %}
"""
TALK = [
    {"role": "system", "content": ' be <b>brief</b> & "kind" '},
    {"role": "user", "content": "w1 é 世\n"},
    {"role": "assistant", "content": "w2"},
    {"role": "user", "content": "{{ w3 }}"},
]
CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "w1",
    "eos_token": {"__type": "AddedToken", "content": "w2", "lstrip": False, "normalized": False},
    "pad_token": None,
    "extra_special_tokens": {"image_token": "w4"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def both(folder: Path, messages: list[dict[str, str]]) -> tuple[str, str]:
    """The text by our own path and by transformers'."""
    from transformers import AutoTokenizer

    template = load_template(folder)
    assert template is not None
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return template(messages), str(theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


@pytest.mark.parametrize("source", [CHATML, LINES], ids=["chatml", "lines"])
@pytest.mark.parametrize("place", ["file", "config", "named"])
@pytest.mark.parametrize("messages", [TALK, TALK[1:2]], ids=["talk", "one"])
def test_as_transformers(model: Path, tmp_path: Path, source: str, place: str, messages: list[dict[str, str]]) -> None:
    for file in model.iterdir():
        (tmp_path / file.name).symlink_to(file)
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": source}]
    places: dict[str, dict[str, Any]] = {
        "config": {"chat_template": source},
        "named": {"chat_template": named},
        "file": {},
    }
    stated = places[place]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**CONFIG, **stated}))
    (tmp_path / "special_tokens_map.json").write_text('{"unk_token": {"content": "w0", "lstrip": false}}')
    if place == "file":
        (tmp_path / "chat_template.jinja").write_text(source)
    ours, theirs = both(tmp_path, messages)
    assert ours == theirs


def test_no_template(model: Path) -> None:
    assert load_template(model) is None
