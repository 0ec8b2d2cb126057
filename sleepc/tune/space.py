"""What may be chosen of how a program runs: the forms and settings that backends and targets declare, as data.

No choice here changes what is computed. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Annotated, Any

from pydantic import Field

from sleepc.backends.contract import Backend, Target
from sleepc.backends.tunable import TRIED, Setting, Tunable
from sleepc.errors import SleepcError, UsageError
from sleepc.sealed_json import Strict

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Text = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f]*$")]
Value = Annotated[bool | int | Text, Field(union_mode="smart")]
Settings = Annotated[dict[Word, Value], Field(max_length=32)]


class Candidate(Strict):
    """A way to run a program: by which backend or target, how the target's files are written (`options`), and the
    `settings` that differ from the defaults.
    """

    runner: Word
    options: Settings = Field(default_factory=dict)
    settings: Settings = Field(default_factory=dict)

    def words(self) -> str:
        """For people: runner, options, settings."""
        return " ".join([self.runner, *(f"{k}={_spelled(v)}" for k, v in {**self.options, **self.settings}.items())])

    def within(self, given: Mapping[str, Setting]) -> bool:
        """Has it these settings, as far as it has settings of their names?"""
        return all(self.settings.get(name, value) == value for name, value in given.items())


@dataclass(frozen=True)
class RunForm:
    """What has code or files of its own, with the settings that may be chosen of how it runs."""

    runner: str
    options: Mapping[str, Setting]
    tunables: tuple[Tunable, ...]

    def candidate(self, settings: Mapping[str, Setting] | None = None) -> Candidate:
        """It with settings; those that are the default are left out."""
        defaults = {each.name: each.values[0] for each in self.tunables}
        chosen = {k: v for k, v in (settings or {}).items() if v != defaults[k]}
        return Candidate(runner=self.runner, options=dict(self.options), settings=chosen)

    def changes(self, candidate: Candidate) -> Iterator[Candidate]:
        """All candidates of this form that differ from one in a single setting."""
        for each in self.tunables:
            now = candidate.settings.get(each.name, each.values[0])
            yield from (
                self.candidate({**candidate.settings, each.name: value}) for value in each.values if value != now
            )


@dataclass(frozen=True)
class Space:
    """All forms that there are on a device; and those that are not, with the reasons."""

    forms: tuple[RunForm, ...]
    left_out: tuple[tuple[Candidate, str], ...]

    def form_of(self, candidate: Candidate) -> RunForm | None:
        """The form of a candidate; None if it is of none of these."""
        same = (f for f in self.forms if (f.runner, dict(f.options)) == (candidate.runner, candidate.options))
        return next(same, None)

    def __contains__(self, candidate: Candidate) -> bool:
        form = self.form_of(candidate)
        if form is None:
            return False
        known = {each.name: each.values for each in form.tunables}
        return all(name in known and value in known[name] for name, value in candidate.settings.items())


def space_of(
    runners: Sequence[Backend | Target], device: str, fixed: Mapping[str, Mapping[str, Setting]] | None = None
) -> Space:
    """The forms of all `runners` on a device. `fixed` has options of targets that are not chosen here, by the target's
    name: the precision, for one.
    """
    forms, left_out = [], []
    for runner in runners:
        for options in _options(runner, (fixed or {}).get(runner.name, {})):
            form = RunForm(runner.name, options, ())
            reason = _missing(runner, options, device)
            if reason is None:
                forms.append(replace(form, tunables=runner.tunables(device)))
            else:
                left_out.append((form.candidate(), reason))
    return Space(tuple(forms), tuple(left_out))


def _options(runner: Backend | Target, fixed: Mapping[str, Setting]) -> Iterator[dict[str, Setting]]:
    """Every combination of what is tried of a target's options, the default first; of a backend {}."""
    if isinstance(runner, Backend):
        yield {}
        return
    found = {each.name: each.metadata.get(TRIED) or (each.default,) for each in fields(runner.options)}
    names = list(found)
    for values in product(*(((fixed[n],) if n in fixed else found[n]) for n in names)):
        yield dict(zip(names, values, strict=True))


def not_tuned(runner: Backend | Target, device: str) -> str | None:
    """Why nothing of a backend or target is tuned on a device; None if it is."""
    reason = runner.missing() if isinstance(runner, Backend) else runner.missing_runtime()
    if reason is not None:
        return reason
    if isinstance(runner, Target) and runner.native:
        return "its files hold native code, which runs only where you name it"
    if not runner.tunables(device):  # writing files may take much longer than measuring them
        return f"it declares nothing that may be set of how it runs on {device}"
    return None


def _missing(runner: Backend | Target, options: Mapping[str, Any], device: str) -> str | None:
    """Why it cannot run here, or is not tuned; None if it can, and is."""
    try:
        if isinstance(runner, Backend) and runner.missing() is None:
            runner.check_device(device)
        reason = not_tuned(runner, device)
        if reason is None and isinstance(runner, Target):
            runner.check(runner.options(**options))
        return reason
    except SleepcError as error:
        return error.what
    except TypeError as error:  # an option of another version
        raise UsageError(f"the target {runner.name} does not have these options: {error}", where="options") from error


def _spelled(value: Setting) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
