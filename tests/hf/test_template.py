"""Chat templates give what transformers makes of them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sleepc.errors import SleepcWarning, UsageError
from sleepc.hf.template import load_template, template_fault, template_sources
from tests.cli.models import run_here, save_model

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


def both(folder: Path, messages: list[dict[str, Any]], name: str | None = None, **arguments: Any) -> tuple[str, str]:
    """The text by our own path and by transformers'."""
    from transformers import AutoTokenizer

    template = load_template(folder, name, arguments)
    assert template is not None
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    options = {"add_generation_prompt": True, "tokenize": False, "chat_template": name, **arguments}
    return template(messages), str(theirs.apply_chat_template(messages, **options))


def with_template(folder: Path, source: str) -> Path:
    (folder / "chat_template.jinja").write_text(source)
    return folder


def rendered(folder: Path, messages: list[dict[str, Any]], **arguments: Any) -> str:
    template = load_template(folder, None, arguments)
    assert template is not None
    return template(messages)


@pytest.mark.parametrize("source", [CHATML, LINES], ids=["chatml", "lines"])
@pytest.mark.parametrize("place", ["file", "config", "named"])
@pytest.mark.parametrize("messages", [TALK, TALK[1:2]], ids=["talk", "one"])
def test_as_transformers(model: Path, tmp_path: Path, source: str, place: str, messages: list[dict[str, Any]]) -> None:
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


# ------------------------------------------------------------------------------------------------- where it stands


@pytest.mark.parametrize(
    "content", [CHATML, {"default": CHATML, "rag": "no"}, [{"name": "default", "template": CHATML}]]
)
def test_the_older_file_is_read_last(tmp_path: Path, content: Any) -> None:
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": content}))
    assert rendered(tmp_path, TALK[1:2]).endswith("w1 é 世\n<|im_end|>\n<|im_start|>assistant\n")
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages[0].content }}"}')
    assert rendered(tmp_path, TALK[1:2]) == TALK[1]["content"]
    with_template(tmp_path, "<{{ messages[0].content }}>")
    assert rendered(tmp_path, TALK[1:2]) == f"<{TALK[1]['content']}>"


def test_templates_by_name(model: Path, tmp_path: Path) -> None:
    for file in model.iterdir():
        (tmp_path / file.name).symlink_to(file)
    named = [{"name": name, "template": f"{name} {CHATML}"} for name in ("default", "rag", "tool_use")]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**CONFIG, "chat_template": named}))
    for name in (None, "rag", "tool_use"):
        ours, theirs = both(tmp_path, TALK, name)
        assert ours == theirs
    with pytest.raises(UsageError, match="no chat template 'code'") as caught:
        load_template(tmp_path, "code")
    assert "default, rag, tool_use" in caught.value.fix
    (tmp_path / "chat_templates").mkdir()
    (tmp_path / "chat_templates" / "short.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(UsageError, match="none the default"):
        load_template(tmp_path)
    with_template(tmp_path, CHATML)
    assert sorted(template_sources(tmp_path)) == ["default", "short"]
    assert both(tmp_path, TALK)[0] == both(tmp_path, TALK)[1]
    short = load_template(tmp_path, "short")
    assert short is not None
    assert short(TALK[1:2]) == TALK[1]["content"]


@pytest.mark.parametrize("value", [3, ["x"], [{"name": "default"}], {"default": 1}, [{"template": "x"}]])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.json"])
def test_templates_that_are_no_texts(value: Any, file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(json.dumps({"chat_template": value}))
    with pytest.raises(UsageError, match="cannot read the chat template"):
        load_template(tmp_path)


# ------------------------------------------------------------------------------------------------------ variables

THINKING = (
    "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if enable_thinking %}<think>{% endif %}{{ effort | default('low') }} {{ date.year }} {{ tools | length }}"
)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"enable_thinking": False},
        {"enable_thinking": True, "effort": "high", "date": {"year": 2026}},
        {"tools": [{"name": "look", "parameters": {}}]},
    ],
)
def test_variables_are_given_as_transformers_gives_them(model: Path, tmp_path: Path, arguments: dict[str, Any]) -> None:
    for file in model.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    with_template(tmp_path, THINKING.replace("tools |", "(tools or []) |"))
    ours, theirs = both(tmp_path, TALK[1:2], **{"date": {"year": 1999}, **arguments})
    assert ours == theirs


@pytest.mark.parametrize("name", ["enabled_thinking", "messages", "add_generation_prompt", "loop", "m"])
def test_a_variable_that_the_template_does_not_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        load_template(with_template(tmp_path, THINKING), None, {name: 1})
    assert "date, effort, enable_thinking, tools" in caught.value.fix


# -------------------------------------------------------------------------------------------------- nothing is lost

PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content if part.type == 'text' %}{{ part.text | trim }}"
    "{% endfor %}{% endfor %}"
)
EITHER = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}PARTS{% endif %}"
    "{% endfor %}"
)


@pytest.mark.parametrize("source", [PARTS, "{{ bos_token }}" + PARTS.replace("part.text | trim", "part['text']")])
def test_templates_that_want_parts_get_parts(source: str, tmp_path: Path) -> None:
    text = rendered(with_template(tmp_path, source), TALK)
    for message in TALK:
        assert message["content"].strip() in text
    assert "PARTS" not in rendered(with_template(tmp_path, EITHER), TALK)


@pytest.mark.parametrize(
    ("source", "lost"),
    [
        ("{% for m in messages if m.role == 'human' %}{{ m.content }}{% endfor %}", "user"),
        ("{{ messages[0].content }}", "user"),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", "system"),
        ("{{ messages[-1].text }}", "user"),
        ("nothing", "user"),
    ],
)
def test_a_turn_that_would_vanish_is_refused(source: str, lost: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"drops the {lost}'s text") as caught:
        rendered(with_template(tmp_path, source), TALK)
    assert caught.value.fix


@pytest.mark.parametrize("source", ["{{ messages[-1].content | upper }}", "{{ messages[-1].content | tojson }}"])
def test_what_a_template_changes_is_not_lost(source: str, tmp_path: Path) -> None:
    assert "W3" in rendered(with_template(tmp_path, source), TALK[1:]).upper()


def test_templates_that_keep_the_last_message_alone(tmp_path: Path) -> None:
    assert rendered(with_template(tmp_path, "{{ messages[-1].content }}"), TALK[1:]) == "{{ w3 }}"


# ------------------------------------------------------------------------------------------- all that a message has

TOOLS = (
    "{% for m in messages %}<{{ m.role }}{% if m.name is defined %} {{ m.name }}{% endif %}>"
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.id }}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
    "{{ m.tool_call_id }}{% endfor %}"
)
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"where": ["é", 1, None, True]}}}
CALLING: list[dict[str, Any]] = [
    {"role": "user", "content": "hi", "name": "ann"},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "thinking": "hm"},
    {"role": "tool", "content": "w1", "tool_call_id": "c1"},
    {"role": "assistant", "content": "", "tool_calls": (CALL,)},
    {"role": "assistant", "tool_calls": [CALL]},
]


def test_names_and_calls_of_tools_as_transformers_gives_them(model: Path, tmp_path: Path) -> None:
    for file in model.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    ours, theirs = both(with_template(tmp_path, TOOLS), CALLING)
    assert ours == theirs
    assert '<user ann>hi<assistant>(hm)c1look{"where": ["é", 1, null, true]}<tool>w1c1' in ours


def test_contents_that_are_parts(tmp_path: Path) -> None:
    parts: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    ]
    assert rendered(with_template(tmp_path, PARTS), parts) == "<user>ab"
    with pytest.raises(UsageError, match="as a single text, and there are 2 parts"):
        rendered(with_template(tmp_path, CHATML), parts)
    parts[0]["content"].pop()
    assert "user\na<|im_end|>" in rendered(with_template(tmp_path, CHATML), parts)


def test_names_that_the_template_does_not_read_are_said(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "hi", "name": "ann", "weight": None}]
    with pytest.warns(SleepcWarning, match="does not read it: name$"):
        assert rendered(with_template(tmp_path, CHATML), said) == rendered(
            tmp_path, [{"role": "user", "content": "hi"}]
        )


def test_what_a_tool_says_does_not_vanish(tmp_path: Path) -> None:
    without = "{% for m in messages if m.role != 'tool' %}{{ m.content }}{% endfor %}"
    with pytest.raises(UsageError, match="drops the tool's text"):
        rendered(with_template(tmp_path, without), [*TALK, {"role": "tool", "content": "w1"}])


NO_MESSAGES: dict[str, tuple[Any, str]] = {
    "none": ([], "there are no messages"),
    "nothing": (None, "messages are a list, and not None"),
    "a text": ("hi", "messages are a list, and not 'hi'"),
    "one message": ({"role": "user", "content": "hi"}, "messages are a list"),
    "texts": (["hi"], "message 1 is a mapping of role and content, and not 'hi'"),
    "a hole": ([TALK[1], None], "message 2 is a mapping"),
    "no role": ([{"content": "hi"}], "message 1 has no role"),
    "a role that is a number": ([{"role": 3, "content": "hi"}], "message 1 has no role"),
    "a role that spells a control token": ([{"role": "</s>", "content": "hi"}], "message 1 has no role"),
    "no content": ([{"role": "user"}], "message 1 has no content"),
    "a content of nothing": ([{"role": "user", "content": None, "tool_calls": []}], "message 1 has no content"),
    "bytes": ([{"role": "user", "content": b"hi"}], "message 1, content is of type bytes"),
    "a number": ([{"role": "user", "content": 3}], "the content of message 1 is neither a text nor"),
    "a picture": ([{"role": "user", "content": [{"type": "image"}]}], "the content of message 1 is neither"),
    "half a character": (
        [{"role": "user", "content": "a\ud800"}],
        r"message 1, content has half a character \(U\+D800\)",
    ),
    "half a name": ([{"role": "user", "content": "a", "\udfff": 1}], r"a name in message 1 has half a character"),
    "a name that is a number": ([{"role": "user", "content": "a", 1: 1}], "a name in message 1 is a str"),
    "an object": (
        [{"role": "user", "content": "a", "tool_calls": [object()]}],
        "message 1, tool_calls is of type object",
    ),
}


@pytest.mark.parametrize("name", NO_MESSAGES)
def test_what_are_no_messages(name: str, tmp_path: Path) -> None:
    messages, words = NO_MESSAGES[name]
    with pytest.raises(UsageError, match=words) as caught:
        rendered(with_template(tmp_path, CHATML), messages)
    assert caught.value.fix


@pytest.mark.parametrize(
    "source",
    ["{{ cycler() }}", "{{ [].pop() }}", "{{ 1 / 0 }}", "{{ no() }}", "{{ raise_exception('x') }}", "{{ '%d' % 'x' }}"],
)
def test_templates_that_raise(source: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="refuses this conversation"):
        rendered(with_template(tmp_path, source), TALK)


UNKNOWN = {"filter": "{{ messages[0].content | shout }}", "function": "{{ render(messages) }}"}
BROKEN = {
    "an unclosed block": "{% for m in messages %}{{ m.content }}",
    "an unknown block": "{% speak %}{{ messages[0].content }}",
    "an unknown filter": UNKNOWN["filter"],
    "an unknown test": "{% if messages is crowded %}{% endif %}{{ messages[0].content }}",
    "an unknown function": UNKNOWN["function"],
    "a method that there is not": "{{ messages[0].content.shouted() }}",
    "no content": "{{ bos_token }}",
    "a damaged file": {"chat_template": 5},
}
SOUND = {
    "none": None,
    "no system text": "{{ raise_exception('') if messages[0].role == 'system' else messages[-1].content }}",
    "several, of which one takes no question": {
        "chat_template": [
            {"name": "default", "template": CHATML},
            {"name": "tool_use", "template": "{{ raise_exception('no tools') }}"},
        ]
    },
    "several, none the default": {"chat_template": [{"name": "a", "template": CHATML}]},
    "parts": "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}",
}


@pytest.mark.parametrize("name", [*BROKEN, *SOUND])
def test_what_cannot_be_asked_through_is_known_beforehand(name: str, tmp_path: Path) -> None:
    source = (BROKEN | SOUND)[name]
    if isinstance(source, str):
        (tmp_path / "chat_template.jinja").write_text(source)
    else:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(source or {}))
    fault = template_fault(tmp_path)
    assert (fault is not None) == (name in BROKEN), fault
    assert fault is None or ("\n" not in fault and "chat template" in fault)


@pytest.mark.filterwarnings("always::sleepc.errors.SleepcWarning")
def test_a_broken_one_is_said_and_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = shutil.copytree(model, tmp_path / "model"), tmp_path / "out"
    (folder / "chat_template.jinja").write_text(UNKNOWN["filter"])
    convert = ("convert", folder, "-o", out, "--window", 8, "--no-verify")
    for command in (convert, ("inspect", folder)):
        code, _, told = run_here(capsys, *command)
        assert (code, told.count("warning: the model's chat template is broken: No filter named 'shout'.")) == (0, 1)
    monkeypatch.setattr("sys.stdin", io.StringIO("w1\n"))
    for name, *words in (("run", "w1"), ("chat",)):
        code, said, told = run_here(capsys, name, out, *words)
        assert (code, said) == (2, "")
        assert "chat template is broken: No filter named 'shout'" in told
    assert run_here(capsys, "run", out, "w1", "--no-chat", "--max-tokens", 1)[0] == 0
    (out / "chat_template.jinja").write_text(UNKNOWN["function"])
    code, said, told = run_here(capsys, "chat", out)
    assert (code, said, "'render' is undefined" in told) == (2, "", True)
