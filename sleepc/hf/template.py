"""A model's chat template: found in its files, rendered as transformers renders it, and without it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta

from sleepc.errors import SleepcWarning, UsageError
from sleepc.hf.given import CONTENT, REASONING, ROLE, Message, checked_messages, is_word
from sleepc.hf.json_file import read_object
from sleepc.hf.present import is_there
from sleepc.hf.sandbox import REFUSALS, environment
from sleepc.hf.special_tokens import CONFIG, named_tokens

FILE, FOLDER, OLD_FILE = "chat_template.jinja", "chat_templates", "chat_template.json"
DEFAULT, KEY = "default", "chat_template"
OURS = ("messages", "add_generation_prompt")  # variables that are not arguments
AS_TEXT = "`sleepc run --no-chat` continues a text without it."
QUESTION: list[Message] = [{ROLE: "user", CONTENT: "question"}]  # what every template can be tried with


def template_sources(folder: Path) -> dict[str, str]:
    """Name -> text of a model's templates: files of their own, else the tokenizer's configuration, else the older file.

    Raises UsageError for files that are damaged.
    """
    own = {DEFAULT: folder / FILE} if is_there(folder / FILE) else {}
    own |= {path.stem: path for path in sorted((folder / FOLDER).glob("*.jinja")) if is_there(path)}
    if own:
        return {name: path.read_text(encoding="utf-8", errors="replace") for name, path in own.items()}
    for name in (CONFIG, OLD_FILE):
        found = read_object(folder / name).get(KEY)
        if found:
            return dict(_named(found, folder / name))
    return {}


def _named(found: object, where: Path) -> Iterator[tuple[str, str]]:
    """One text, a mapping of names to texts, or a list of names with their texts."""
    entries = found if isinstance(found, (list, dict)) else {DEFAULT: found}
    pairs = entries.items() if isinstance(entries, dict) else [_pair(entry) for entry in entries]
    for name, text in pairs:
        if not isinstance(name, str) or not isinstance(text, str):
            raise UsageError(
                f"cannot read the chat template: {type(text).__name__} where a text should be",
                where=str(where),
                fix="Take the file from the original model.",
            )
        yield name, text


def _pair(entry: object) -> tuple[object, object]:
    return (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, entry)


def load_template(
    folder: Path,
    name: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    typed: Callable[[str], str] = str,
) -> Template | None:
    """A model directory -> its chat template of that name, with values for its variables; None if it has none.

    `typed` is applied to whatever people say. Raises UsageError for files that are damaged, and for a name or a
    variable that it does not have.
    """
    sources = template_sources(folder)
    if not sources and name is None and not arguments:
        return None
    source = sources[_chosen(sources, name, folder)]
    config = read_object(folder / CONFIG)
    template, tree = _compiled(source, folder)
    given = dict(arguments or {})
    _check_arguments(given, meta.find_undeclared_variables(tree))
    variables = {"tools": None, "documents": None, **named_tokens(folder, config), **_deep(typed, given)}
    return Template(template, variables, typed)


def template_fault(folder: Path) -> str | None:
    """What is wrong with a model's chat templates; None if they can be read, and the default one takes a question."""
    try:
        sources = template_sources(folder)
        for source in sources.values():
            _compiled(source, folder)
        template = load_template(folder) if DEFAULT in sources else None
        if template is not None:
            template(QUESTION)
    except UsageError as error:
        return error.what
    return None


def _compiled(source: str, folder: Path) -> tuple[jinja2.Template, jinja2.nodes.Template]:
    try:
        return environment().from_string(source), environment().parse(source)
    except REFUSALS as error:
        raise UsageError(
            f"the model's chat template is broken: {error}",
            where=str(folder),
            fix=f"Take the file from the original model. {AS_TEXT}",
        ) from error


def _chosen(sources: dict[str, str], name: str | None, folder: Path) -> str:
    if (name or DEFAULT) in sources:
        return name or DEFAULT
    if not sources:
        raise UsageError("this model has no chat template", where=str(folder), fix="Give it a text: --no-chat.")
    what = f"there is no chat template {name!r}" if name else "the model has several chat templates, none the default"
    raise UsageError(what, where="--template", fix=f"Its templates: {', '.join(sorted(sources))}.")


def _check_arguments(given: dict[str, Any], known: set[str]) -> None:
    for name in given:
        if name in OURS or name not in known:
            own = ", ".join(sorted(known.difference(OURS))) or "none"
            raise UsageError(
                f"the model's chat template has no variable {name!r}",
                where="--template-arg",
                fix=f"Variables that it reads: {own}.",
            )


def _deep(typed: Callable[[str], str], value: Any) -> Any:
    """All texts of a value of JSON, as people typed them; what templates compare with words of theirs stays a word."""
    if isinstance(value, str):
        return typed(value)
    if isinstance(value, list):
        return [_deep(typed, each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {key for key, each in value.items() if key in (ROLE, "type") and isinstance(each, str) and is_word(each)}
    return {
        key if is_word(key) else typed(key): each if key in kept else _deep(typed, each) for key, each in value.items()
    }


class Template:
    """Messages (role, content, and whatever else a template reads) -> the text of the conversation, up to where the
    answer begins.
    """

    def __init__(self, template: jinja2.Template, variables: dict[str, Any], typed: Callable[[str], str]) -> None:
        self._template, self._variables, self._typed = template, variables, typed
        self._parts: dict[tuple[tuple[str, ...], ...], bool] = {}  # by what is said: are contents lists of parts?

    def __call__(self, messages: Sequence[Message], answering: bool = True) -> str:
        """With `answering` the text ends where the answer begins, without it after the last message.

        Raises UsageError for anything but messages, if the template refuses the conversation, or would leave out what
        somebody says. Warns of names in messages that it does not read.
        """
        typed: list[dict[str, Any]] = _deep(self._typed, checked_messages(messages))
        form = tuple((message[ROLE], *sorted(message)) for message in typed)
        if form not in self._parts:
            self._parts[form] = self._in_parts(typed, answering)
        text = self._render(typed, self._parts[form], answering)
        self._warn_of_unread(typed, text, self._parts[form], answering)
        return text

    def closing(self) -> str:
        """What stands after an answer; "" if the template does not tell."""
        answer = "theAnswer"
        talk = [{ROLE: "user", CONTENT: "question"}, {ROLE: "assistant", CONTENT: answer}]
        for in_parts in (False, True):
            try:
                text = self._render(talk, in_parts, False)
            except UsageError:  # it takes no conversation that ends with an answer, or contents in the other form
                continue
            if answer in text:
                return text.partition(answer)[2]
        return ""

    def _in_parts(self, messages: list[dict[str, Any]], answering: bool) -> bool:
        """Does the template want a content as a list of parts? Tried with words that it cannot know: what is not found
        in its text has been left out.
        """
        roles = [message[ROLE] for message in messages]
        words = {i: f"word{i}of{len(roles)}said" for i, m in enumerate(messages) if m.get(CONTENT) is not None}
        said = [{**m, CONTENT: words[i]} if i in words else m for i, m in enumerate(messages)]
        wanted = [i for i, role in enumerate(roles) if role == "user"][-1:]
        wanted += [i for i, role in enumerate(roles) if role not in ("user", "assistant")]
        refusal, lost = None, ""
        for in_parts in (False, True):
            try:
                text = self._render(said, in_parts, answering).casefold()
            except UsageError as error:
                refusal = refusal or (None if lost else error)
                continue
            missing = [roles[i] for i in wanted if i in words and words[i].casefold() not in text]
            if not missing:
                return in_parts
            lost = lost or missing[0]
        raise refusal or UsageError(
            f"the model's chat template drops the {lost}'s text",
            fix="Leave --system out." if lost == "system" else "Give another --template, or --no-chat.",
        )

    def _warn_of_unread(self, messages: list[dict[str, Any]], text: str, in_parts: bool, answering: bool) -> None:
        """Say which names the template leaves out: its text is the same without them."""
        names = {name for message in messages for name in message if message[name] is not None}
        for name in sorted(names.difference((ROLE, CONTENT, *REASONING))):
            rest = [{key: value for key, value in message.items() if key != name} for message in messages]
            try:
                unread = self._render(rest, in_parts, answering) == text
            except UsageError:  # it needs it
                continue
            if unread:
                warnings.warn(
                    f"left out, because the model's chat template does not read it: {name}", SleepcWarning, stacklevel=4
                )

    def _render(self, messages: list[dict[str, Any]], in_parts: bool, answering: bool) -> str:
        said = [{**m, CONTENT: _in_form(m[CONTENT], in_parts)} if CONTENT in m else m for m in messages]
        try:
            return self._template.render(messages=said, **self._variables | {"add_generation_prompt": answering})
        except REFUSALS as error:
            raise UsageError(
                f"the model's chat template refuses this conversation: {error}",
                fix=f"Some templates take no system text, or want the roles in another order. {AS_TEXT}",
            ) from error


def _in_form(content: str | list[dict[str, Any]] | None, in_parts: bool) -> Any:
    """A content as parts, or as one text. Raises UsageError for several parts if there is one text."""
    if content is None or isinstance(content, str):
        return [{"type": "text", "text": content}] if in_parts and content is not None else content
    if not in_parts and len(content) > 1:
        raise UsageError(
            f"the model's chat template takes a content as a single text, and there are {len(content)} parts",
            fix="Join the parts.",
        )
    return content if in_parts else "".join(part["text"] for part in content)
