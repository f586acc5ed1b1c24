"""`freehold agent TASK --folder DIR`: a model works in a folder until it is done or its budget is; and its journals.

Knows options, rows and questions in a terminal; serve/agent has the loop and what it keeps.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.base.terminal import Ticking, printable
from freehold.cli.helping import section
from freehold.cli.shared import json_option, offline_option, table, with_offline

if TYPE_CHECKING:
    from freehold.base.types import Usage
    from freehold.serve.agent.journal import JournalLine
    from freehold.serve.agent.loop import AgentBudget, AgentEnd
    from freehold.serve.agent.permits import AgentQuestion, AgentReply
    from freehold.serve.tools.own import OwnTools, PlannedCall

SCHEMA = 1
_WINDOW = 16_384  # tokens of a server's model whose context is not known
_ASK_S = 3600.0  # an open question waits so long
_ROW = 160  # characters of a row
_DIFF_ROWS = 60  # of a write that is not asked about
HEAD = ("RUN", "STATE", "STEPS", "TOKENS", "TASK")


class _AgentGroup(click.Group):
    """`agent TASK` starts a run; `agent undo` and its like are verbs of their own."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Leave TASK out where a verb follows."""
        params = super().get_params(ctx)
        return [p for p in params if p.name != "task"] if ctx.meta.get(__name__) else params

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read a verb's name only as the first word."""
        if args and args[0] in self.commands:
            ctx.meta[__name__] = True
            return super().parse_args(ctx, args)
        ctx.allow_interspersed_args = True
        rest = click.Command.parse_args(self, ctx, args)
        if rest and not ctx.resilient_parsing:
            raise UsageError(
                "the task is several words", 'put it into quotes: freehold agent "TASK" --folder DIR'
            )
        return rest

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[OPTIONS] [TASK]", "|", "COMMAND ..."]


@click.group("agent", cls=_AgentGroup, invoke_without_command=True)
@click.argument("task", required=False, default="")
@section("The run")
@click.option(
    "--folder", metavar="DIR", help="Folder to work in; the model cannot change files outside of it."
)
@click.option(
    "-m", "--model", default="", metavar="MODEL", help="The model; default: the one of freehold run."
)
@click.option(
    "--budget",
    default="",
    metavar="AMOUNTS",
    help="End after 200k tokens, 10m or 2 USD, or the first of several with commas; default: 200k tokens, 30m. "
    "Cached prompt tokens do not count.",
)
@section("Tools and questions")
@click.option(
    "--tool",
    "tools",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="Offer another tool beside files and python: shell, fetch=HOST,HOST or documents=NAME; repeatable.",
)
@click.option(
    "--allow",
    multiple=True,
    metavar="TOOL:TEXT",
    help="Run calls of this kind without a question, such as 'shell:pytest*' or 'remove_file:build/*'; repeatable.",
)
@section("The model")
@click.option(
    "--context", type=click.IntRange(1024), help="Context in tokens; default: the model's, if it fits."
)
@click.option("--temperature", type=click.FloatRange(0, 2), help="Randomness; default: the model's own.")
@click.option("--seed", type=click.IntRange(0), help="Seed of the sampler.")
@click.option("--local", is_flag=True, help="Load the model in this process, even if a server runs.")
@click.option(
    "--server",
    metavar="URL",
    help="Ask MODEL of an OpenAI-compatible server on this machine, such as a gateway with hosted models.",
)
@click.option("--key-env", metavar="NAME", help="With --server: the variable that holds its API key.")
@section("Output and network")
@json_option
@offline_option
@click.pass_context
def command(ctx: click.Context, task: str = "", **options: Any) -> None:
    """Let a model work on TASK in a folder: it reads, edits, runs Python, and stops when it is done.

    Each change is shown as a diff and can be undone: freehold agent undo last. Freehold asks before it removes a file
    or runs a command, unless --allow matches the call, and always before a call that follows an instruction in a file
    instead of TASK. Without a terminal, what would be asked is denied.
    """
    if ctx.invoked_subcommand is not None:
        return
    settings = with_offline(ctx.obj, options.pop("offline"))
    if not task.strip():
        raise UsageError("there is no task", 'for example freehold agent "Fix the failing test." --folder .')
    if not options["folder"]:
        raise UsageError("--folder is missing", "name the folder that the model may work in: --folder .")
    ctx.exit(_start(settings, task.strip(), options))


@command.command("resume", epilog="Example: freehold agent resume last --budget 10m")
@click.argument("run")
@click.option(
    "--budget", default="", metavar="AMOUNTS", help="Another budget, which counts from the run's beginning."
)
@click.option("-m", "--model", default="", metavar="MODEL", help="Another model.")
@click.option(
    "--context", type=click.IntRange(1024), help="Context in tokens; default: the model's, if it fits."
)
@click.option("--temperature", type=click.FloatRange(0, 2), help="Randomness; default: the model's own.")
@click.option("--seed", type=click.IntRange(0), help="Seed of the sampler.")
@click.option("--local", is_flag=True, help="Load the model in this process, even if a server runs.")
@click.option("--server", metavar="URL", help="Ask MODEL of an OpenAI-compatible server on this machine.")
@click.option("--key-env", metavar="NAME", help="With --server: the variable that holds its API key.")
@json_option
@offline_option
@click.pass_context
def resume(ctx: click.Context, run: str, **options: Any) -> None:
    """Continue a run that was stopped, killed, or at the end of its budget.

    A call that was in progress is taken back and run again, so that each call happens once.
    """
    from freehold.serve.agent.journal import AgentJournal

    settings = with_offline(ctx.obj, options.pop("offline"))
    journal = AgentJournal.open(settings.home, run)
    try:
        last = journal.lines[-1]
        if last.kind == "end" and last.reason == "done":
            raise UsageError(f"the run {journal.name} is done", "start another one with the next task")
        first = journal.lines[0]
        options["model"] = options["model"] or first.model
        budget = options["budget"] or first.budget
        ctx.exit(_work(settings, journal, first.tools, budget, options))
    finally:
        journal.close()


@command.command("replay", epilog="Example: freehold agent replay last")
@click.argument("run")
@click.option(
    "--into", metavar="DIR", help="An empty folder for the result; default: one that is removed at the end."
)
@json_option
@click.pass_context
def replay(ctx: click.Context, run: str, into: str | None, as_json: bool) -> None:
    """Run the calls of a run again, without the model, in a copy of its folder as it was, and compare the results."""
    from freehold.serve.agent.journal import TreeStore, differing, reading, tree_at
    from freehold.serve.agent.loop import replayed

    settings: Settings = ctx.obj
    with reading(settings.home, run) as (path, lines), _replay_folder(path, into) as folder:
        trees = TreeStore(folder, path / "blobs")
        trees.restore(tree_at(lines[:1]))
        tools = _own_tools(settings, lines[0].tools, path, folder, lines[0].folder)
        rows = []
        try:
            for row in replayed(lines, tools, trees):
                rows.append(row)
                if not as_json:
                    mark = "same" if row.same else "differs"
                    click.echo(printable(f"{mark:<8}{row.call.name} {_about(row.call)}"[:_ROW]))
        finally:
            tools.close()
        others = differing(tree_at(lines), trees.scan())
        same = not others and all(row.same for row in rows)
        if as_json:
            plain = [{"call": asdict_call(row.call), "same": row.same} for row in rows]
            click.echo(
                json.dumps(
                    {"schema": SCHEMA, "run": path.name, "same": same, "calls": plain, "paths": others}
                )
            )
        else:
            end = "same folder" if not others else f"{len(others)} paths differ: {', '.join(others[:5])}"
            click.echo(printable(f"{len(rows)} calls; {end}"), err=True)
    ctx.exit(0 if same else 1)


@command.command("undo", epilog="Example: freehold agent undo last")
@click.argument("run")
@click.option("--force", is_flag=True, help="Undo what others changed in the folder since, too.")
@json_option
@click.pass_obj
def undo(settings: Settings, run: str, force: bool, as_json: bool) -> None:
    """Make a run's folder what it was before the run: contents, modes, times, and removed files."""
    from freehold.serve.agent.journal import reading
    from freehold.serve.agent.loop import undone

    with reading(settings.home, run) as (path, lines):
        changed = undone(path, lines, force=force)
    if as_json:
        click.echo(
            json.dumps({"schema": SCHEMA, "run": path.name, "folder": lines[0].folder, "changed": changed})
        )
        return
    for name in changed:
        click.echo(printable(name))
    click.echo(printable(f"{len(changed)} paths of {lines[0].folder} are as before the run"), err=True)


@command.command("list", epilog="Example: freehold agent list")
@json_option
@click.pass_obj
def list_(settings: Settings, as_json: bool) -> None:
    """List the runs, oldest first."""
    from freehold.serve.agent.journal import read_lines, runs

    rows = []
    for name in runs(settings.home):
        lines, _ = read_lines(settings.home / "agent" / name / "journal.jsonl")
        rows.append(_facts(name, lines))
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "runs": rows}, ensure_ascii=False))
    elif rows:
        cells = [(r["run"], r["state"], str(r["steps"]), f"{r['tokens']:,}", r["task"][:60]) for r in rows]
        table(HEAD, cells, right=(2, 3))
    else:
        click.echo('no runs; freehold agent "TASK" --folder DIR starts one', err=True)


@command.command("show", epilog="Example: freehold agent show last")
@click.argument("run")
@json_option
@click.pass_obj
def show(settings: Settings, run: str, as_json: bool) -> None:
    """Show what a run did, step by step; with --json, the journal's lines."""
    from msgspec import structs, to_builtins

    from freehold.serve.agent.journal import read_lines, run_folder

    lines, _ = read_lines(run_folder(settings.home, run) / "journal.jsonl")
    rows = _Rows()
    for line in lines:
        if as_json:
            plain = to_builtins(structs.replace(line, tree={})) if line.kind == "begin" else to_builtins(line)
            click.echo(json.dumps(plain, ensure_ascii=False))
        else:
            for row in rows.of(line):
                click.echo(row)


@command.command("rm", epilog="Example: freehold agent rm 261203-055213")
@click.argument("names", metavar="RUN...", nargs=-1, required=True)
@json_option
@click.pass_obj
def rm(settings: Settings, names: tuple[str, ...], as_json: bool) -> None:
    """Remove runs with their journals: they can then be neither undone nor replayed."""
    from freehold.serve.agent.journal import reading

    removed = []
    for name in names:
        with reading(settings.home, name) as (path, _):
            shutil.rmtree(path)
        removed.append(path.name)
    click.echo(
        json.dumps({"schema": SCHEMA, "removed": removed}) if as_json else "\n".join(removed), err=not as_json
    )


# --- a run ------------------------------------------------------------------------------------------


def _start(settings: Settings, task: str, options: dict[str, Any]) -> int:
    from freehold.serve.agent.journal import AgentJournal
    from freehold.serve.agent.loop import DEFAULT_BUDGET, AgentBudget, begin
    from freehold.serve.tools.folder import ToolFolder
    from freehold.serve.tools.own import check_apart, checked_pattern

    folder = ToolFolder(Path(options["folder"]).expanduser())
    folder.close()
    check_apart(folder.path, settings.home)
    budget = options["budget"] or DEFAULT_BUDGET
    allow = [checked_pattern(each) for each in options["allow"]]
    tools = _words(options["tools"])
    if options["server"]:
        _check_near(options["server"])
    model = options["model"] or _default_model(settings)
    options["model"] = model
    _price(model, AgentBudget.of(budget))
    journal = AgentJournal.create(settings.home)
    try:
        _own_tools(settings, tools, journal.path, folder.path).close()
        with Ticking(f"keeping {folder.path} for undo"):
            begin(journal, folder.path, task, model=model, tools=tools, budget=budget, allow=allow)
    except BaseException:
        journal.discard()
        raise
    try:
        return _work(settings, journal, tools, budget, options)
    finally:
        journal.close()


def _words(names: Sequence[str]) -> list[str]:
    """Return the tools of a run: files and python where it can be confined, and what was named beside them."""
    from freehold.base.platforms import can_confine

    words = ["files", *(["python"] if can_confine() else []), *names]
    return list(dict.fromkeys(words))


def _default_model(settings: Settings) -> str:
    from freehold.cli.chat.starter import default_model

    return default_model(settings)


def _own_tools(
    settings: Settings, words: Sequence[str], path: Path, folder: Path, seen_at: str = ""
) -> OwnTools:
    """Return a run's tools. Raises UsageError for one that does not exist, or cannot be confined here."""
    from freehold.base import private
    from freehold.serve.tools.fetch import checked_hosts
    from freehold.serve.tools.own import OwnTools, own_tools

    named = own_tools([f"{word}={folder}" if word in ("files", "shell") else word for word in words])
    values = {each.kind: each.value for each in named}
    for kind in ("files", "shell"):
        if Path(values.get(kind, folder)) != folder:
            raise UsageError(
                f"--tool {kind}={values[kind]} names another folder", f"leave it out, or write {kind}"
            )
    collections = [each.value for each in named if each.kind == "documents"]
    tools = OwnTools(
        scratch=private.folder(path / "scratch", settings.home),
        folder=folder,
        python=folder if "python" in values else None,
        shell=folder if "shell" in values else None,
        seen_at=seen_at,
        hosts=checked_hosts(values["fetch"]) if "fetch" in values else (),
        collections=collections,
        search=_document_search(settings, collections),
        offline=settings.offline,
    )
    tools.check()
    return tools


def _document_search(settings: Settings, names: Sequence[str]) -> Callable[[str, str, int], str] | None:
    if not names:
        return None
    from freehold.cli.chat.tools import document_search

    return document_search(settings, names)


def _work(
    settings: Settings, journal: Any, tools: Sequence[str], budget: str, options: dict[str, Any]
) -> int:
    """Open the model, run the loop, and print its end."""
    from freehold.serve.agent.loop import AgentBudget, AgentLoop, AgentOptions

    limits = AgentBudget.of(budget)
    price = _price(options["model"], limits)
    first = journal.lines[0]
    rows, as_json = _Rows(), options["as_json"]

    def noted(line: JournalLine) -> None:
        for row in rows.of(line):
            _tell(row)

    own = _own_tools(settings, tools, journal.path, Path(first.folder))
    try:
        with _model(settings, options) as (model, window):
            sampling = _sampling(model, options)
            loop = AgentLoop(
                model,
                own,
                journal,
                limits,
                AgentOptions(window, sampling, price=price, acting=_show_change, noted=noted),
                asked_in_terminal,
            )
            _tell(f"run {journal.name}: {budget}; freehold agent undo {journal.name} undoes all of it")
            end = loop.run()
    finally:
        own.close()
    _print_end(journal, end, as_json=as_json)
    return {"done": 0, "stopped": 130}.get(end.reason, 1)


def _print_end(journal: Any, end: AgentEnd, *, as_json: bool) -> None:
    spent = end.spent
    changed = sorted({path for line in journal.lines if line.kind == "result" for path in line.changed})
    if as_json:
        plain = {
            "schema": SCHEMA,
            "run": journal.name,
            "reason": end.reason,
            "text": end.text,
            "steps": end.steps,
        }
        plain |= {"spent": asdict(spent), "changed": changed}
        click.echo(json.dumps(plain, ensure_ascii=False))
        return
    if end.reason == "done":
        click.echo(printable(end.text))
    else:
        _tell(f"not done: {end.text}; freehold agent resume {journal.name} continues it")
    share = 100 * spent.cached_tokens / spent.prompt_tokens if spent.prompt_tokens else 0
    _tell(
        f"{end.steps} steps, {spent.prompt_tokens:,} prompt tokens ({share:.0f} % cached), "
        f"{spent.completion_tokens:,} written, {spent.seconds:.0f} s; {len(changed)} paths changed"
    )


@contextmanager
def _model(settings: Settings, options: dict[str, Any]) -> Iterator[tuple[Any, int]]:
    """Open the run's model; give it with its window in tokens."""
    if options["server"]:
        from freehold.serve.remote import Api
        from freehold.serve.remote.openai import HttpModel

        _check_near(options["server"])
        key = os.environ.get(options["key_env"] or "", "")
        url = options["server"].rstrip("/").removesuffix("/v1")
        with HttpModel(Api(url, key=key), options["model"]) as model:
            yield model, options["context"] or _WINDOW
        return
    from freehold.cli.chat.opened import Opened, tell_notes
    from freehold.cli.chat.request import RunRequest
    from freehold.run.store import Store

    own = ("--context",) if options["context"] else ()
    request = RunRequest(context=options["context"], local=options["local"], own=own)
    with Opened(settings, Store(settings), request, options["model"]) as opened:
        if not opened.model.info.can_call:
            raise UsageError(
                f"{opened.model.name} cannot call tools: its template has no place for them",
                "use a model that can, such as qwen2.5-coder:1.5b",
            )
        tell_notes(opened.model)
        yield opened.model, opened.model.info.context


def _check_near(url: str) -> None:
    """Raise UsageError for a server on another machine: requests leave this one by a gateway's rules alone."""
    from freehold.serve.tools.mcp.configured import is_local

    try:
        parts = urlsplit(url)
        host, scheme = parts.hostname or "", parts.scheme
    except ValueError:
        host = scheme = ""
    if not is_local(host) or scheme not in ("http", "https"):
        raise UsageError(
            f"--server {url[:100]} is not on this machine",
            "hosted models are reached by a gateway here: freehold serve --gateway gateway.toml",
        )


def _sampling(model: Any, options: dict[str, Any]) -> Any:
    from freehold.base.types import SamplingParams

    base = SamplingParams() if options["server"] else model.info.default_sampling
    values = {name: options[name] for name in ("temperature", "seed") if options[name] is not None}
    if "seed" not in values:
        values["seed"] = secrets.randbelow(1 << 31)
    return replace(base, **values)


def _price(model: str, budget: AgentBudget) -> Callable[[Usage], float] | None:
    """Return what an answer of a hosted model costs. Raises UsageError for money without a known price."""
    if budget.dollars is None:
        return None
    from freehold.base.catalog import prices

    try:
        offer = prices.find(model)
    except UsageError as e:
        raise UsageError(
            f"no price of {model} is known: {e.message}", "give a budget of tokens or of time"
        ) from e

    def price(usage: Usage) -> float:
        request = prices.PricedRequest(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
        return float(offer.cost(request, datetime.now(UTC)))

    return price


@contextmanager
def _replay_folder(path: Path, into: str | None) -> Iterator[Path]:
    """Give an empty folder: the one that is named, or one that is removed at the end."""
    if into is None:
        folder = path / "replay"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    folder = Path(into).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty", "name a new folder")
    yield folder.resolve()


# --- rows and questions -----------------------------------------------------------------------------


def _tell(text: str) -> None:
    Ticking.make_way()
    print(text, file=sys.stderr, flush=True)


def _show_change(planned: PlannedCall) -> None:
    """Print the difference of a write before it is made."""
    from freehold.serve.tools.mcp.use import visible

    if planned.change is None:
        return
    lines = planned.detail.split("\n")
    more = [f"[{len(lines) - _DIFF_ROWS} more lines]"] if len(lines) > _DIFF_ROWS else []
    for line in [*lines[:_DIFF_ROWS], *more]:
        _tell(f"    {visible(line, lines=False)}")


class _Rows:
    """A journal's lines as rows for people: a call with its result is one."""

    def __init__(self) -> None:
        self._calls: dict[str, Any] = {}
        self._steps = 0

    def of(self, line: JournalLine) -> list[str]:
        """Return the rows of a line; strange characters of files and models are shown by number."""
        from freehold.serve.tools.mcp.use import visible

        rows: list[str] = []
        if line.kind == "begin":
            rows = [
                f"task: {line.task}",
                f"folder: {line.folder}; model: {line.model}; budget: {line.budget}",
            ]
        elif line.kind == "answer":
            self._steps += 1
            self._calls |= {call.id: call for call in line.calls}
            rows = (
                [f"  | {text}" for text in line.text.strip().split("\n")]
                if line.text.strip() and line.calls
                else []
            )
        elif line.kind == "question":
            rows = [f"  ? {line.verdict}" + (f" ({line.pattern})" if line.pattern else "")]
        elif line.kind == "result":
            rows = self._result(line)
        elif line.kind == "summary":
            rows = [f"{'':>3} [the oldest {line.upto} steps were summarised]"]
        elif line.kind == "resume":
            others = f"; changed meanwhile: {line.text}" if line.text else ""
            rows = [f"{'':>3} [resumed{others}]"]
        elif line.kind == "end":
            rows = [f"{'':>3} [{line.reason}]"]
        return [visible(row, lines=False) for row in rows]

    def _result(self, line: JournalLine) -> list[str]:
        call = self._calls.get(line.call)
        if call is None:
            return [f"{self._steps:>3} [{line.content}]"]
        first = line.content.strip().split("\n", 1)[0]
        state = "" if line.state == "done" else f"{line.state}: "
        return [f"{self._steps:>3} {call.name} {_about(call)[:80]}  {state}{first}"[:_ROW]]


def _about(call: Any) -> str:
    from freehold.serve.agent.context import source_of

    return source_of(call.name, call.arguments)


def asdict_call(call: Any) -> dict[str, str]:
    """Return a call as JSON for lists."""
    return {"id": call.id, "name": call.name, "arguments": call.arguments}


def asked_in_terminal(question: AgentQuestion) -> AgentReply:
    """Show a question as rows and return the answer; without a terminal it is no."""
    import select
    import termios

    from freehold.serve.agent.permits import AgentReply
    from freehold.serve.tools.mcp.use import visible

    for line in question_rows(question):
        _tell(visible(line, lines=False))
    if sys.stdin is None or not sys.stdin.isatty():
        way_out = f" (--allow '{question.pattern}' would allow it)" if question.pattern else ""
        _tell(visible(f"    there is no terminal to ask in: no{way_out}", lines=False))
        return AgentReply("deny", "There is no terminal to ask in.")
    termios.tcflush(sys.stdin, termios.TCIFLUSH)  # what was typed before the question does not answer it
    choices = "[N]o, [o]nce" + (
        f", this [r]un, all of [p]attern {question.pattern}" if question.pattern else ""
    )
    print(f"    {visible(choices, lines=False)}: ", end="", file=sys.stderr, flush=True)
    if not select.select([sys.stdin], [], [], _ASK_S)[0]:
        _tell("no answer: no")
        return AgentReply("deny", "No answer came.")
    return reply_of(sys.stdin.readline().strip(), bool(question.pattern))


def reply_of(text: str, is_free: bool) -> AgentReply:
    """Return the answer that a line is: o, r, p or their words; all else is no, with its words for the model."""
    from freehold.serve.agent.permits import AgentReply

    verdicts: dict[str, Any] = {"o": "once", "once": "once"}
    if is_free:
        verdicts |= {"r": "run", "run": "run", "p": "pattern", "pattern": "pattern"}
    if (verdict := verdicts.get(text.lower())) is not None:
        return AgentReply(verdict)
    return AgentReply("deny", "" if text.lower() in ("", "n", "no") else text)


def question_rows(question: AgentQuestion) -> Iterator[str]:
    """Yield the rows of a question: what would run, its difference, and the sentence that it repeats."""
    planned = question.planned
    yield f"  ? {planned.summary}"
    for line in planned.detail.split("\n") if planned.change or "\n" in planned.detail else ():
        yield f"    {line}"
    if question.suspicion is not None:
        yield "    This call repeats a sentence that your task does not have."
        yield f"    In {question.suspicion.source}: {question.suspicion.sentence}"


def _facts(name: str, lines: Sequence[JournalLine]) -> dict[str, Any]:
    from freehold.serve.agent.loop import AgentSpent

    spent = AgentSpent()
    for line in lines:
        if line.kind == "answer":
            spent.add(line)
    last = lines[-1]
    return {
        "run": name,
        "state": last.reason if last.kind == "end" else "open",
        "steps": sum(line.kind == "answer" for line in lines),
        "tokens": spent.tokens,
        "task": lines[0].task,
        "folder": lines[0].folder,
        "model": lines[0].model,
    }
