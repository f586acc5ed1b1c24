"""Constraints on an answer: a format, tool calls, a budget of thinking tokens.

Knows dialects and grammars, and what a job asks; knows no step.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace

from freehold.base.errors import UsageError
from freehold.base.serving import Job
from freehold.base.types import Format, Tool
from freehold.run.engine.constrain.constraint import Constraint, Trigger
from freehold.run.engine.constrain.grammar import Grammar, Grammars
from freehold.run.local.prompt import Prompt
from freehold.run.tokenizer import Tokenizer
from freehold.run.tokenizer.dialects import Dialect
from freehold.run.tokenizer.dialects.grammar import CallForm, closed, lark, lark_of_bare, pattern_of_bare


class ConstraintBuilder:
    """Makes constraints for one model."""

    def __init__(self, tokenizer: Tokenizer, name: str) -> None:
        self._tokenizer, self._name = tokenizer, name
        self._grammars = Grammars(tokenizer)

    def constraint(self, job: Job, prompt: Prompt) -> tuple[Constraint | None, tuple[str, ...]]:
        """Return the constraint of a job's answers, and warnings about what cannot be enforced. Raises UsageError."""
        grammar, triggers, left = self._text(job, prompt)
        tags = None if job.think is False else prompt.tags
        budget = job.think_tokens
        if budget is not None and tags is None:
            budget, left = None, (*left, f"think_tokens was left out: {self._name} does not think here")
        if grammar is None and not triggers and budget is None:
            return None, left
        return Constraint(grammar, self._tokenizer, tags, prompt.inside, triggers, budget), left

    def _text(self, job: Job, prompt: Prompt) -> tuple[Grammar | None, tuple[Trigger, ...], tuple[str, ...]]:
        """Return the grammar of the whole text, or of what follows a trigger, and warnings about the rest."""
        try:
            return (*self._led(job, prompt), ())
        except UsageError as e:
            named = self._named(e, job, prompt)
            if job.format is None and job.tool_choice != "required":
                return None, (), (f"calls are not constrained by the tools' schemas: {named.message}",)
            raise named from e

    def _named(self, error: UsageError, job: Job, prompt: Prompt) -> UsageError:
        """Return the error with the name of the tool that raises one alone; else the format's error."""
        for tool in prompt.tools:
            if job.tool_name in ("", tool.name):
                try:
                    self._led(replace(job, format=None), replace(prompt, tools=(tool,)))
                except UsageError as e:
                    return UsageError(f"the parameters of tool {tool.name!r}: {_what(e)}", e.hint, "tools")
        if job.format is not None or not prompt.tools:
            return error
        return UsageError(f"the parameters of all tools together: {_what(error)}", error.hint, "tools")

    def _led(self, job: Job, prompt: Prompt) -> tuple[Grammar | None, tuple[Trigger, ...]]:
        if prompt.dialect is None or not prompt.tools:
            formats = [_closed(job.format)] if job.format is not None else []
        elif job.tool_choice == "required":
            formats = [self._calls(job, prompt, prompt.dialect.form)]
        elif job.format is not None:  # calls or the text, as the model chooses
            bare = prompt.dialect.bare
            forms = [prompt.dialect.form, *([bare] if bare else [])]
            formats = [*(self._calls(job, prompt, form) for form in forms), _closed(job.format)]
        else:
            return None, tuple(self._triggers(job, prompt.tools, prompt.dialect))
        return self._grammars.grammar(*formats, at_start=prompt.at_start) if formats else None, ()

    def _calls(self, job: Job, prompt: Prompt, form: CallForm) -> Format:
        """Return the format of an answer that is calls and nothing else."""
        tools = [tool for tool in prompt.tools if job.tool_name in ("", tool.name)]
        many = job.parallel_tool_calls and not job.tool_name  # a named tool is called once
        return Format("lark", lark(form, tools, self._spell, many=many))

    def _triggers(self, job: Job, tools: tuple[Tool, ...], dialect: Dialect) -> Iterator[Trigger]:
        """Yield what begins a call: the family's mark, and a bare object where the family may write one."""
        form, mark = dialect.form, _mark(dialect)
        if mark:
            many = bool(form.before) and job.parallel_tool_calls  # else each call has a mark of its own
            behind = lark(form, tools, self._spell, many=many, opened=mark)
            yield self._trigger(re.escape(mark), behind)
        if any(opening.mark == "{" for opening in dialect.openings):
            yield self._trigger(pattern_of_bare(tools), lark_of_bare(tools))

    def _trigger(self, pattern: str, behind: str) -> Trigger:
        return Trigger(re.compile(pattern.encode()), self._grammars.grammar(Format("lark", behind)))

    def _spell(self, text: str) -> str:
        """Spell a text for a grammar: a control token by its id, since its characters are not written."""
        known = sorted(filter(None, self._tokenizer.control_tokens), key=len, reverse=True)
        used = [token for token in known if token in text]
        pieces = re.split("(" + "|".join(map(re.escape, used)) + ")", text) if used else [text]
        ids = {token: self._tokenizer.added_id(token) for token in used}
        spelled = (f"<[{ids[p]}]>" if p in ids else json.dumps(p, ensure_ascii=False) for p in pieces if p)
        return " ".join(spelled)


def _what(error: UsageError) -> str:
    """Return what is wrong, without the position in a grammar that the caller did not write."""
    return re.sub(r"^format: (at \d+\(\d+\): )?", "", error.message)


def _closed(format: Format) -> Format:
    """Allow no properties but those that a schema names, where it does not mention others."""
    return replace(format, source=closed(format.source)) if format.kind == "json_schema" else format


def _mark(dialect: Dialect) -> str:
    """Return the opening that a dialect's form begins with, if it is one that opens anywhere."""
    begin = dialect.form.before + dialect.form.head
    marks = [opening.mark for opening in dialect.openings if not opening.at_line]
    return next((mark for mark in marks if begin.startswith(mark)), "")
