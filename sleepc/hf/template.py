"""A model's chat template, rendered in jinja2's sandbox with what transformers gives templates, and without it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from sleepc.errors import UsageError

Template = Callable[[list[dict[str, str]]], str]
"""Messages (role, content) -> the text of the conversation, up to where the answer begins."""

# Whatever a template's own arithmetic, look-ups and calls can raise: it is a program from a stranger.
REFUSALS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)


@cache
def load_template(folder: Path) -> Template | None:
    """A model directory -> its chat template; None where it has none. Raises UsageError for files that are damaged."""
    config = _json(folder / "tokenizer_config.json")
    source = _source(folder, config)
    if source is None:
        return None
    tokens = _special_tokens(folder, config)
    try:
        template = _environment().from_string(source)
    except TemplateError as error:
        raise UsageError(
            f"the model's chat template is broken: {error}",
            where=str(folder),
            fix="Take the file from the original model; without a template, `sleepc run` goes on with a text.",
        ) from error

    def render(messages: list[dict[str, str]]) -> str:
        try:
            return template.render(
                messages=[dict(m) for m in messages], tools=None, documents=None, add_generation_prompt=True, **tokens
            )
        except REFUSALS as error:
            raise UsageError(
                f"the model's chat template refuses this conversation: {error}",
                fix="Some templates take no system text, or want the roles in another order.",
            ) from error

    return render


def _json(path: Path) -> dict[str, Any]:
    """A file's JSON object; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("it is no JSON object")
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"cannot read {path.name}: {error}", where=str(path), fix="Take it from the original model."
        ) from error
    return data


def _source(folder: Path, config: dict[str, Any]) -> str | None:
    """The template's text: of its own file, or of the configuration, the default one where that has several."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8", errors="replace")
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    return found if isinstance(found, str) and found else None


def _special_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and others as texts: templates read them as variables."""
    # A configuration with the decoder of its tokens is newer than the file of their names, and is all there is to read.
    names = {} if "added_tokens_decoder" in config else _json(folder / "special_tokens_map.json")
    extra = config.get("extra_special_tokens")
    stated = {**config, **(extra if isinstance(extra, dict) else {}), **names}
    texts = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in stated.items()
        if name.endswith("_token") or (isinstance(extra, dict) and name in extra)
    }
    return {name: token for name, token in texts.items() if isinstance(token, str)}


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now, "namespace": _Namespace}
    return environment


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as it is; jinja2's own filter escapes what HTML would misread."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


class _Generation(Extension):
    """{% generation %} .. {% endgeneration %}, which marks answers for training: its statements are carried out."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own attribute)

    def parse(self, parser: Parser) -> nodes.Node:
        """The block's statements, in a scope of their own."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class _Namespace(Namespace):
    """jinja2's namespace, in which nothing of Python's own can be hidden."""

    def __init__(*args: Any, **given: Any) -> None:  # `self` is in `args`, so that a template can use that name
        self, *rest = args
        attributes = dict(*rest, **given)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no names with an underscore before them, and there is {name!r}")
