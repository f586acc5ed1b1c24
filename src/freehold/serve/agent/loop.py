"""The loop of a run: the model answers, its calls are planned, asked about and run, and each line is kept.

It ends when the model answers without a call, when the budget is spent, or when the model repeats itself. What the
journal has is all that the loop knows: a run that was killed is resumed from its lines, after a call that was in
progress was taken back, so that each call happens once. Knows models, tools and journals; knows no terminal.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec import structs

from freehold.base.errors import ContextOverflow, FreeholdError, UsageError
from freehold.base.types import SamplingParams, ToolCall, Usage
from freehold.serve.agent.context import AgentContext, files_of, source_of
from freehold.serve.agent.journal import (
    SCHEMA,
    AgentJournal,
    EndReason,
    JournalCall,
    JournalLine,
    TreeStore,
    apply_changes,
    changes_between,
    differing,
    tree_at,
)
from freehold.serve.agent.permits import AgentPermits, AgentQuestion, AgentReply, DataTexts
from freehold.serve.chats.types import ToolResult
from freehold.serve.tools.own import OwnTools, PlannedCall

DEFAULT_BUDGET = "200k tokens, 30m"
MAX_STEPS = 200
REPEATS = 3  # the same call with the same result, so often, ends a run
UNREADABLE = 3  # answers in a row whose call cannot be read
_ANSWER = "That was not a call that can be read. Write one call in the form that you were given, or answer in words."
_CUT = "The answer was cut at its limit. Answer again in fewer words, or write a file in several parts."
_FENCED = "Code in an answer is not run. Call the tool python with it, or edit the file."
_ACT = (
    "No call has succeeded yet. If the task needs one, make it now; if it needs none, answer again in words."
)
_EMPTY = "The answer was empty. Continue with a call, or say what was done."
_AGAIN = "\n[The same call had the same result before. Do something else, or answer in words.]"
_RESTARTED = "[The interpreter was started anew when the run was resumed: its variables are gone.]\n"


# --- budgets ----------------------------------------------------------------------------------------

_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*(k|m|M)?\s*(tokens?|s|m|min|h|usd|USD|\$)|\$\s*(\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class AgentBudget:
    """What a run may use. Tokens: of prompts beside those that a cache had, and of answers."""

    tokens: int | None = None
    seconds: float | None = None
    dollars: float | None = None

    @classmethod
    def of(cls, text: str) -> AgentBudget:
        """Read `200k tokens`, `10m` or `2 USD`, or several with commas. Raises UsageError."""
        tokens = seconds = dollars = None
        for part in (each.strip() for each in text.split(",")):
            match = _AMOUNT.fullmatch(part)
            if match is None:
                raise UsageError(
                    f"{part[:40]!r} is not a budget", "for example 200k tokens, 10m or 2 USD, with commas"
                )
            amount, unit = float(match[1] or match[4]), (match[3] or "usd").lower()
            factor = {"k": 1e3, "m": 1e6, "M": 1e6}.get(match[2] or "", 1.0)
            if amount <= 0:
                raise UsageError(f"the budget {part!r} is empty")
            if unit.startswith("token"):
                tokens = int(amount * factor)
            elif match[2]:
                raise UsageError(f"{part[:40]!r} is not a budget", "k and m are for tokens: 200k tokens")
            elif unit in ("usd", "$"):
                dollars = amount
            else:
                seconds = amount * {"s": 1, "m": 60, "min": 60, "h": 3600}[unit]
        return cls(tokens, seconds, dollars)

    def __str__(self) -> str:
        parts = [f"{self.tokens:,} tokens" if self.tokens is not None else ""]
        parts += [f"{self.seconds:g} s" if self.seconds is not None else ""]
        parts += [f"{self.dollars:g} USD" if self.dollars is not None else ""]
        return ", ".join(part for part in parts if part)


@dataclass(slots=True)
class AgentSpent:
    """What a run used so far."""

    tokens: int = 0
    seconds: float = 0.0
    dollars: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def add(self, line: JournalLine) -> None:
        """Take in an answer."""
        self.tokens += line.prompt_tokens - line.cached_tokens + line.completion_tokens
        self.prompt_tokens += line.prompt_tokens
        self.cached_tokens += line.cached_tokens
        self.completion_tokens += line.completion_tokens
        self.dollars += line.dollars

    def beyond(self, budget: AgentBudget) -> str:
        """Return which part of a budget is spent; "" while none is."""
        if budget.tokens is not None and self.tokens >= budget.tokens:
            return f"{self.tokens:,} of {budget.tokens:,} tokens"
        if budget.seconds is not None and self.seconds >= budget.seconds:
            return f"{self.seconds:.0f} of {budget.seconds:g} s"
        if budget.dollars is not None and self.dollars >= budget.dollars:
            return f"{self.dollars:.2f} of {budget.dollars:g} USD"
        return ""


# --- the loop ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AgentEnd:
    """How a run ended. `text`: the model's last words, or what stopped it."""

    reason: EndReason
    text: str
    steps: int
    spent: AgentSpent


@dataclass(slots=True)
class AgentOptions:
    """How a run's model is asked. `price`: dollars of an answer, where a price is known."""

    window: int
    sampling: SamplingParams | None = None
    think: bool | None = None
    price: Callable[[Usage], float] | None = None
    heard: Callable[[str], None] = field(default=lambda _: None)  # gets the answer's text as it comes
    acting: Callable[[PlannedCall], None] = field(
        default=lambda _: None
    )  # gets each call right before it runs
    noted: Callable[[JournalLine], None] = field(default=lambda _: None)  # gets each line


def begin(
    journal: AgentJournal,
    folder: Path,
    task: str,
    *,
    model: str,
    tools: Sequence[str],
    budget: str,
    allow: Sequence[str],
) -> None:
    """Write the first line: the task, and the folder's tree before it. Raises UsageError, StoreError."""
    tree = TreeStore(folder, journal.blobs).scan()
    journal.add(
        JournalLine(
            kind="begin",
            schema=SCHEMA,
            task=task,
            folder=str(folder),
            model=model,
            tools=tuple(tools),
            budget=budget,
            allow=tuple(allow),
            mark=secrets.token_hex(3),
            tree=tree,
        )
    )


class AgentLoop:
    """One run. `model`: an LLM or an HttpModel; `journal` has its first line, and more where it is resumed."""

    def __init__(
        self,
        model: Any,
        tools: OwnTools,
        journal: AgentJournal,
        budget: AgentBudget,
        options: AgentOptions,
        ask: Callable[[AgentQuestion], AgentReply],
    ) -> None:
        self._model, self._tools, self._journal = model, tools, journal
        self._budget, self._options = budget, options
        first = journal.lines[0]
        self._trees = TreeStore(Path(first.folder), journal.blobs)
        self._tree = tree_at(journal.lines)
        self._context = AgentContext(journal.lines[:1], options.window)
        self._texts = DataTexts(first.task)
        self._texts.add("\n".join(files_of(first)), "the names of files")
        self._permits = AgentPermits(self._texts, first.allow, ask)
        self._spent = AgentSpent()
        self._began = time.monotonic()
        self._before_s = max(line.seconds for line in journal.lines)  # of work before the run was resumed
        self._calls: dict[str, JournalCall] = {}
        self._results: dict[tuple[str, str, str], int] = {}
        self._notice = ""  # goes before the next result
        for line in journal.lines[1:]:
            self._take(line)

    def run(self) -> AgentEnd:
        """Continue until the end. Raises what the model raises, after the end is in the journal."""
        try:
            if end := self._resume():
                return end
            while True:
                if end := self._checked():
                    return end
                try:
                    line = self._answer()
                except ContextOverflow:  # the estimate of what fits was too high
                    if (line := self._context.summary(self._tools.tools(), force=True)) is None:
                        raise
                    self._add(line)
                    continue
                calls = [self._calls[call.id] for call in line.calls]
                for call in calls:
                    self._act(call)
                if not calls and (end := self._ended_by(line)):
                    return end
        except KeyboardInterrupt:
            return self._end("stopped", "stopped by the user")
        except FreeholdError as e:
            self._end("failed", e.message)
            raise

    # --- one step -----------------------------------------------------------------------------------

    def _checked(self) -> AgentEnd | None:
        """Return the end where there is one before the next step, and sum up where the window is nearly full."""
        self._spent.seconds = self._seconds()
        if beyond := self._spent.beyond(self._budget):
            return self._end("budget", f"the budget is spent: {beyond}")
        if self._context.steps >= MAX_STEPS:
            return self._end("budget", f"the run has {MAX_STEPS} steps, the limit")
        if any(count >= REPEATS for count in self._results.values()):
            return self._end("stuck", "the model repeats a call whose result it has")
        if (line := self._context.summary(self._tools.tools())) is not None:
            self._add(line)
        return None

    def _answer(self) -> JournalLine:
        """Ask the model, and keep its answer before any of its calls runs."""
        tools = self._tools.tools()
        text, thinking, calls, usage, is_cut = "", "", list[ToolCall](), None, False
        options: dict[str, Any] = {"sampling": self._options.sampling, "think": self._options.think}
        if self._journal.lines[-1].content in (_ANSWER, _FENCED):
            options["tool_choice"] = "required"  # its grammar leaves no call that cannot be read
        most = min(self._context.sizes.answer, max(self._options.window - self._context.size(tools) - 8, 64))
        stream = self._model.stream(
            self._context.messages(), tools=tools, max_tokens=most, parallel_tool_calls=False, **options
        )
        try:
            for chunk in stream:
                text, thinking, usage = text + chunk.text, thinking + chunk.thinking, chunk.usage or usage
                for piece in chunk.tool_calls:
                    piece.join(calls)
                self._options.heard(chunk.text)
                is_cut = self._late() or chunk.finish_reason == "length"
                if self._late():
                    break
        finally:
            close = getattr(stream, "close", None)
            if close is not None:
                close()
        if not calls:
            text, calls = calls_in(text)
        number = self._context.steps
        kept = [JournalCall(f"c{number}-{i}", call.name, call.arguments) for i, call in enumerate(calls)]
        if usage is None:  # the stream was ended before its count; the prompt before this one is in the cache
            size = self._context.size(tools)
            usage = Usage(size, len(text) // 3, min(self._context.counted, size))
        return self._add(
            JournalLine(
                kind="answer",
                text=text,
                thinking=thinking,
                calls=tuple(kept),
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.cached_tokens,
                completion_tokens=usage.completion_tokens,
                cut=is_cut,
                dollars=self._options.price(usage) if self._options.price else 0.0,
            )
        )

    def _seconds(self) -> float:
        return self._before_s + time.monotonic() - self._began

    def _late(self) -> bool:
        return self._budget.seconds is not None and self._seconds() > self._budget.seconds

    def _act(self, call: JournalCall) -> None:
        """Plan a call, ask about it, run it, and keep what came of it."""
        planned = None
        try:
            planned = self._tools.plan(ToolCall(call.id, call.name, call.arguments))
            if (question := self._permits.question(planned)) is not None and (
                denial := self._asked_about(question)
            ):
                self._observe(call, ToolResult(content=denial, state="denied"))
                return
            self._options.acting(planned)
            result = planned.run()
        except FreeholdError as e:
            hint = f" ({e.hint})" if e.hint else ""
            result = ToolResult(content=f"The call failed: {e.message}{hint}", state="failed")
        self._observe(call, result, planned)

    def _asked_about(self, question: AgentQuestion) -> str:
        """Ask the user; return what the model gets where the answer is no, "" where the call may run."""
        reply = self._permits.answered(question)
        why = question.suspicion.sentence if question.suspicion else ""
        self._add(
            JournalLine(
                kind="question",
                call=question.planned.call.id,
                verdict=reply.verdict,
                pattern=question.pattern if reply.verdict == "pattern" else "",
                why=why,
            )
        )
        if reply.verdict != "deny":
            return ""
        return "The user denied this call." + (f" {reply.word}" if reply.word else "")

    def _observe(self, call: JournalCall, result: ToolResult, planned: PlannedCall | None = None) -> None:
        """Keep a result, and how the folder changed by its call."""
        changed = {}
        if planned is not None and planned.acts:
            tree = self._trees.scan()
            changed, self._tree = changes_between(self._tree, tree), tree
        content = self._notice + result.content
        self._notice = ""
        if self._results.get((call.name, call.arguments, result.content)):
            content += _AGAIN
        self._add(
            JournalLine(kind="result", call=call.id, state=result.state, content=content, changed=changed)
        )

    # --- lines --------------------------------------------------------------------------------------

    def _add(self, line: JournalLine) -> JournalLine:
        """Write a line, then take it in."""
        line = self._journal.add(structs.replace(line, seconds=round(self._seconds(), 3)))
        self._take(line)
        self._options.noted(line)
        return line

    def _take(self, line: JournalLine) -> None:
        """Take in a line, whether it is new or was read."""
        self._context.add(line)
        if line.kind == "answer":
            self._spent.add(line)
            self._calls |= {call.id: call for call in line.calls}
        elif line.kind == "result" and line.call in self._calls:
            call = self._calls[line.call]
            key = (call.name, call.arguments, line.content.removesuffix(_AGAIN))
            self._results[key] = self._results.get(key, 0) + 1
            self._texts.add(without_echo(line.content, call.arguments), source_of(call.name, call.arguments))
            if line.changed:
                self._results = {}  # the same call may have another result now
        elif line.kind == "resume":
            self._results = {}
        elif line.kind == "question" and line.call in self._calls:
            self._permits.allow(line.verdict, self._calls[line.call].name, line.pattern)

    def _resume(self) -> AgentEnd | None:
        """Take back a call that was in progress, note what changed meanwhile, and finish the last answer's calls.

        Return the end where the last answer was one.
        """
        lines = list(self._journal.lines)
        if len(lines) == 1:
            return None
        answers = [line for line in lines if line.kind == "answer"]
        done = {line.call for line in lines if line.kind == "result"}
        open_calls = [call for line in answers[-1:] for call in line.calls if call.id not in done]
        now = self._trees.scan()
        others = differing(self._tree, now)
        if open_calls and others:
            self._trees.restore(self._tree)
            now, others = self._trees.scan(), []
        changed = changes_between(self._tree, now)
        self._tree = now
        self._add(JournalLine(kind="resume", changed=changed, text=", ".join(others[:20])))
        if any(
            self._calls[line.call].name == "python" for line in lines if line.kind == "result" and line.call
        ):
            self._notice = _RESTARTED
        for call in open_calls:
            self._act(call)
        last = next((line for line in reversed(lines) if line.kind in ("answer", "result")), None)
        return self._ended_by(last) if last is not None and last.kind == "answer" and not last.calls else None

    def _ended_by(self, line: JournalLine) -> AgentEnd | None:
        """Return the end where an answer without calls is one; None where the model has to say it again."""
        if self._late():
            return None  # the budget ends it
        strange = line.cut or names_a_call(line.text, [tool.name for tool in self._tools.tools()])
        recent = [each for each in self._journal.lines if each.kind in ("answer", "result")][
            -2 * UNREADABLE :
        ]
        tries = sum(each.kind == "result" and not each.call for each in recent)
        results = [each for each in self._journal.lines if each.kind == "result"]
        idle = not any(each.state == "done" or each.content == _ACT for each in results)
        fenced = (
            "```python" in line.text
            and bool(self._tools.kind_of("python"))
            and not any(each.content == _FENCED for each in results)
        )
        if line.text.strip() and not strange and not idle and not fenced:
            return self._end("done", line.text.strip())
        if tries >= UNREADABLE - 1:
            return self._end("stuck", "the model writes calls that cannot be read, or nothing")
        notice = (
            _CUT if line.cut else _FENCED if fenced else _ANSWER if strange else _EMPTY if not idle else _ACT
        )
        self._add(JournalLine(kind="result", state="failed", content=notice))
        return None

    def _end(self, reason: EndReason, text: str) -> AgentEnd:
        self._spent.seconds = self._seconds()
        self._add(JournalLine(kind="end", reason=reason, text=text))
        return AgentEnd(reason, text, self._context.steps, self._spent)


def without_echo(content: str, arguments: str) -> str:
    """Return a result without the lines that the model's own call has, as a traceback shows them."""
    try:
        own = "\n".join(value for value in json.loads(arguments).values() if isinstance(value, str))
    except (ValueError, AttributeError):
        own = arguments
    lines = content.split("\n")
    return "\n".join(line for line in lines if not line.strip() or line.strip() not in own)


# --- calls that a small model writes as text --------------------------------------------------------

_NAME_KEYS, _ARGUMENT_KEYS = ("name", "function", "tool"), ("arguments", "parameters", "args", "input")
_FENCE = re.compile(r"```\w*\s*$|^\s*```|</?tool_call>|</?tools>", re.MULTILINE)
_MAX_READ, _MAX_NAME = 1 << 20, 64


def calls_in(text: str) -> tuple[str, list[ToolCall]]:
    """Return the text without the JSON objects in it that name a tool and arguments, and the first of these calls.

    A name that no tool has is a call too: the model gets the names that there are.
    """
    calls: list[ToolCall] = []
    rest, at, decoder = [], 0, json.JSONDecoder(strict=False)
    while len(text) <= _MAX_READ and (start := text.find("{", at)) >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            rest.append(text[at : start + 1])
            at = start + 1
            continue
        call = _call_of(value)
        rest.append(text[at:start] if call else text[at:end])
        at = end
        calls += [call] if call else []
    if not calls:
        return text, []
    rest.append(text[at:])
    return _FENCE.sub("", "".join(rest)).strip(), calls[:1]


def _call_of(value: Any) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    inner = value.get("function")
    if isinstance(inner, dict):
        value = inner
    name = next((value[key] for key in _NAME_KEYS if isinstance(value.get(key), str)), None)
    arguments = next((value[key] for key in _ARGUMENT_KEYS if key in value), None)
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    if name is None or not 0 < len(name) <= _MAX_NAME or not isinstance(arguments, dict):
        return None
    return ToolCall("", name, json.dumps(arguments, ensure_ascii=False))


def names_a_call(text: str, names: Sequence[str]) -> bool:
    """Return whether a text seems meant as a call: JSON that names a tool, or a tag of one."""
    named = "|".join(map(re.escape, names))
    return (
        bool(re.search(rf'"(?:name|function|tool)"\s*:\s*"(?:{named})"|<tool_call>|<function=', text))
        if named
        else False
    )


# --- replay and undo --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReplayedCall:
    """A call that was run again. `same`: its result and its changes are those of the journal, byte by byte."""

    call: JournalCall
    same: bool
    before: str
    now: str


def replayed(lines: Sequence[JournalLine], tools: OwnTools, trees: TreeStore) -> Iterator[ReplayedCall]:
    """Run the calls of a journal again, without a model and without questions, in a folder that has its first tree.

    Denied calls stay denied. Where the run was resumed, the interpreter is started anew, and what others changed
    meanwhile is changed as well.
    """
    calls = {call.id: call for line in lines for call in line.calls}
    tree = tree_at(list(lines[:1]))
    for line in lines:
        if line.kind == "resume":
            tools.restart()
            apply_changes(tree, line.changed)
            trees.restore(tree)
        if line.kind != "result" or line.call not in calls:
            continue
        call = calls[line.call]
        content = _replayed(call, line, tools)
        apply_changes(tree, line.changed)
        now = trees.scan()
        same = (
            not differing(tree, now) and line.content.removeprefix(_RESTARTED).removesuffix(_AGAIN) == content
        )
        yield ReplayedCall(call, same, line.content, content)
        tree = now


def _replayed(call: JournalCall, line: JournalLine, tools: OwnTools) -> str:
    if line.state == "denied":
        return line.content.removeprefix(_RESTARTED).removesuffix(_AGAIN)
    try:
        return tools.plan(ToolCall(call.id, call.name, call.arguments)).run().content
    except FreeholdError as e:
        hint = f" ({e.hint})" if e.hint else ""
        return f"The call failed: {e.message}{hint}"


def undone(path: Path, lines: list[JournalLine], *, force: bool = False) -> list[str]:
    """Make a run's folder what it was before its first step; return the paths that changed.

    Raises UsageError where files were changed since the run's last line, unless `force` is set; StoreError.
    """
    trees = TreeStore(Path(lines[0].folder), path / "blobs")
    if not trees.root.is_dir():
        raise UsageError(f"the folder {trees.root} is gone", "make it again, empty, and undo with --force")
    now = trees.scan()
    if not differing(tree_at(lines[:1]), now):
        return []
    others = differing(tree_at(lines), now)
    if others and not force:
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        raise UsageError(
            f"{len(others)} paths were changed since the run ended: {shown}",
            "--force undoes these changes as well",
        )
    return trees.restore(tree_at(lines[:1]))
