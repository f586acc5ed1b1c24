"""What a run may do without a question, and when a call repeats an instruction that only a text of a file has.

Reading is never asked about. Changes in the folder run, because they can be undone; removing a file, and each command,
is asked about, unless a pattern or an answer allowed it. Before all that comes one test (`DataTexts.suspicion`): an act
is asked about, whatever was allowed, if a text that the run has read - a file, a page, an output, a name of a file -
has a sentence that reads as an instruction and names what the call is about, and the user's own words do not. The
question shows that sentence. The test looks at words and proves nothing; what it cannot see stays within the folder
and can be undone.

Knows planned calls and texts; knows no model, no journal and no terminal.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Protocol
from urllib.parse import unquote

from freehold.serve.tools.own import TOOLS, PlannedCall, matches, offered_pattern

AgentVerdict = Literal["deny", "once", "run", "pattern"]
MAX_TEXTS = 4000  # sentences with an instruction that are kept; the oldest go first
_MAX_SENTENCE = 600  # characters
_SHOWN = 300

# Words that ask for an act, as a sentence or a name of a file would. Not followed by ( and not part of a path: code has
# them as names.
_VERBS = re.findall(
    r"\S+",
    """
run execute exec call invoke launch start open delete remove erase unlink wipe clear empty truncate drop destroy purge
discard write overwrite append insert add put create make save store copy move rename replace edit change modify update
set reset fix patch send post upload submit email mail forward share publish leak exfiltrate transmit report fetch
download get visit browse request curl wget install uninstall ignore forget disregard bypass override disable enable
grant allow reveal print output echo include type enter use apply do perform proceed follow obey comply continue act
decode decrypt translate evaluate eval chmod chown kill stop shut reboot encrypt encode convert transfer pay
supposed obliged must should shall need needs required please kindly important urgent instruction instructions
instructed directive
command order task todo system assistant agent ai model you your
lösche löschen entferne überschreibe schreibe führe ausführen sende öffne ignoriere bitte musst
supprime supprimer efface écris exécute exécuter envoie ouvre ignore veuillez
borra elimina escribe ejecuta envía abre ignora debes
cancella elimina scrivi esegui invia apri ignora devi
apague exclua escreva envie abra
удали удалить напиши выполни отправь открой запусти
删除 运行 执行 写入 发送 打开 忽略 覆盖 請 请
削除 実行 書き 送信 開い 無視
""",
)
# What stands for all files, or for the file that has the sentence.
_ALL = re.compile(
    r"\b(?:all|every|each|any|whole|entire)\b[^.]{0,30}\b(?:files?|folders?|director(?:y|ies)|tree|project|repo\w*|documents?|"
    r"texts?|code)\b|\beverything\b"
)
_HERE = re.compile(r"\bth(?:is|e present|e current)\s+(?:file|document|page|script|text|note|config\w*)\b")
# What a sentence names: quoted or fenced text, addresses, paths and names with a dot, words in capitals, numbers.
_QUOTED = re.compile(
    r"`([^`\n]{2,300})`|\"([^\"\n]{2,300})\"|'([^'\n]{2,300})'|«([^»\n]{2,300})»|“([^”\n]{2,300})”"
)
_NAMED = re.compile(
    r"[a-z][a-z0-9+.-]*://[^\s<>\"'`)]+|[\w.+-]+@[\w-]+\.\w+|(?:[\w.~-]*/)+[\w.~-]*|[\w-]+(?:\.[\w-]+)+|\.\w[\w.-]*"
)
_AFTER_COLON = re.compile(r":\s+(\S.{2,200})$")
_ENCODED = re.compile(r"[A-Za-z0-9+/_-]{12,}={0,2}|(?:[0-9a-f]{2}){6,}|(?:%[0-9A-Fa-f]{2}){3,}\S*")
_LITERAL = 4  # characters: shorter ones are in too many texts
_COMMON = frozenset(
    re.findall(
        r"\w+",
        "true false none null main test tests data file files text name path value json csv python",
    )
)


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A sentence that a call repeats, and the text that has it."""

    sentence: str
    source: str


@dataclass(frozen=True, slots=True)
class _Sentence:
    """A sentence that reads as an instruction, with what it names; all of it plain (`plain`)."""

    shown: str
    source: str  # as people read it
    plain: str
    names: frozenset[str]
    quoted: tuple[str, ...]
    all_files: bool  # it is about a change of all files,
    here: bool  # or of the file that has it


class DataTexts:
    """The texts that a run has read, and the user's own words beside them."""

    def __init__(self, task: str) -> None:
        self._own = plain(task)
        self._own_names = _with_last(_names(self._own))
        self._sentences: dict[str, _Sentence] = {}

    def trust(self, text: str) -> None:
        """Add words of the user."""
        self._own += "\n" + plain(text)
        self._own_names = _with_last(_names(self._own))

    def add(self, text: str, source: str) -> None:
        """Add a text that is data."""
        pieces = [*_pieces(text)]
        for i, (piece, _) in enumerate(pieces):
            around = " ".join(each for each, _ in pieces[max(i - 1, 0) : i + 2])
            bare = plain(piece)
            if not (_INSTRUCTS.search(bare) or _CHANGES.search(bare) or _is_foreign(bare)):
                continue
            self._keep(piece, source, around)
        for hidden in _decoded(text):
            self._keep(hidden, f"{source}, decoded", hidden)

    def _keep(self, piece: str, source: str, around: str) -> None:
        sentence, near = plain(piece), plain(around)
        quoted = tuple(q for q in _quotes(near) if len(q) >= _LITERAL and q not in _COMMON)
        shown = " ".join(piece.split())[:_SHOWN]
        self._sentences[f"{source}\0{sentence}"] = _Sentence(
            shown,
            source,
            near,
            frozenset(_names(near)),
            quoted,
            bool(_ALL.search(sentence) and _CHANGES.search(sentence)),
            bool(_HERE.search(near) and _WRITES.search(near)),
        )
        while len(self._sentences) > MAX_TEXTS:
            del self._sentences[next(iter(self._sentences))]

    def suspicion(self, planned: PlannedCall) -> Suspicion | None:
        """Return a sentence that an acting call repeats and that the user's words do not have; None where none is."""
        if not planned.acts:
            return None
        target = plain(planned.target)
        text = plain("\n".join(planned.texts))
        for sentence in reversed(self._sentences.values()):
            if self._repeats(sentence, planned, target, text):
                return Suspicion(sentence.shown, sentence.source)
        return None

    def _repeats(self, sentence: _Sentence, planned: PlannedCall, target: str, text: str) -> bool:
        in_code = planned.kind in ("python", "shell")
        if planned.kind == "files" and self._names_target(sentence, target):
            return True
        if planned.kind == "shell" and self._has_command(sentence, target):
            return True
        if planned.kind == "fetch" and any(
            target.startswith(name) for name in sentence.names if "://" in name
        ):
            return target not in self._own
        for literal in sentence.quoted:
            if literal in self._own or literal not in text:
                continue
            # A text that has the whole sentence quotes it, as a report does; one that has its literal alone obeys it.
            if in_code or sentence.plain not in " ".join(text.split()):
                return True
        if in_code:
            fresh = _with_last(name for name in sentence.names if name not in self._own_names)
            return any(len(name) >= _LITERAL and name in text for name in fresh - self._own_names)
        return False

    def _has_command(self, sentence: _Sentence, command: str) -> bool:
        parts = (" ".join(part.split()) for part in re.split(r"[;&|\n]+", command))
        near = " ".join(sentence.plain.split())
        return any(
            len(part) >= _LITERAL
            and part not in self._own
            and re.search(rf"(?<!\w){re.escape(part)}(?!\w)", near)
            for part in parts
        )

    def _names_target(self, sentence: _Sentence, target: str) -> bool:
        if sentence.all_files or (sentence.here and sentence.source.partition(",")[0].endswith(target)):
            return True
        last = target.rpartition("/")[2]
        if target in self._own_names or last in self._own_names:
            return False
        if any(target == name or target.endswith(f"/{name}") for name in sentence.names):
            return True
        odd = _NAMED.fullmatch(last) is None and len(last) >= _LITERAL  # a name with spaces, or without a dot
        return odd and re.search(rf"(?<![\w/.-]){re.escape(last)}(?![\w/-])", sentence.plain) is not None


_CHANGES = re.compile(
    r"\b(?:delet|remov|eras|wip|empt|truncat|overwrit|replac|clear|destroy|purg|encrypt|renam|drop|discard|zero)\w*"
)
_WRITES = re.compile(
    _CHANGES.pattern.replace("(?:", "(?:append|add|writ|insert|put|edit|chang|modif|set|", 1)
)


def plain(text: str) -> str:
    """Return a text by which two are compared: one form of each letter, small, without what is not seen."""
    text = unicodedata.normalize("NFKC", text)
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Mn", "Cc") or c in "\n\t")
    return text.translate(_ALIKE).casefold()


# Letters of other alphabets that look like Latin ones.
_ALIKE = str.maketrans("аеорсухіјѕԁһԛԝαοιν", "aeopcyxijsdhqwaoiv")

_LATIN = sorted({plain(word) for word in _VERBS if word[0] < "\u3000"})
_OTHER = [word for word in _VERBS if word[0] >= "\u3000"]
_TOOLS = "|".join(TOOLS)
_INSTRUCTS = re.compile(
    rf"\b(?:tool_call|{_TOOLS})\b|"
    rf"(?<![\w./\\=-])(?:{'|'.join(map(re.escape, _LATIN))})(?![\w(=\\/]|\.\w|-\w)|{'|'.join(map(re.escape, _OTHER))}"
)
_PLACE = re.compile(r"^\S+:\d+: ", re.MULTILINE)  # before a line that a search shows
_SIGNS = re.compile(r"[=(){};\[\]]")  # of code
_ENGLISH = frozenset(
    re.findall(
        r"\w+",
        "the a an of is are was has have in on at to and or for with this that it by be not no from as if",
    )
)
# Lines of code and of tracebacks, whose words are names.
_CODE = re.compile(r"""\s*(?:File "|def |class |import |from \S+ import|return\b|@\w|>>> |E  |> )""")


def _pieces(text: str) -> Iterator[tuple[str, int]]:
    """Yield the sentences of a text, with their places; lines that one sentence continues on are joined."""
    bare = "\n".join(line for line in _PLACE.sub("", text).split("\n") if not _CODE.match(line))
    joined = re.sub(r"(?<=[a-z,;])\n(?=[a-z])", " ", bare)
    at = 0
    for piece in re.split(r"(?<=[.!?。！？])\s+|\n+|[<>|]|!--|--(?=>)", joined):
        for start in range(0, len(piece), _MAX_SENTENCE):
            if part := piece[start : start + _MAX_SENTENCE].strip():
                yield part, at
                at += 1


def _names(text: str) -> Iterator[str]:
    """Yield paths, names with a dot, addresses of a text."""
    for match in _NAMED.finditer(text):
        name = re.sub(r"^(?:\.{0,2}/)+", "", match[0]).strip(",;:!?)/").rstrip(".")
        if name:
            yield name


def _with_last(names: Iterable[str]) -> frozenset[str]:
    """Return names, and the last part of each path."""
    full = frozenset(names)
    return full | {name.rpartition("/")[2] for name in full if "://" not in name}


def _quotes(text: str) -> Iterator[str]:
    """Yield what a sentence quotes, or says after a colon."""
    for match in _QUOTED.finditer(text):
        yield next(group for group in match.groups() if group is not None).strip()
    for line in text.split("\n"):
        if match := _AFTER_COLON.search(line):
            yield match[1].strip().rstrip(".")


def _decoded(text: str) -> Iterator[str]:
    """Yield what is written in base64, hexadecimal, percent signs, rot13 or backwards, and is an instruction."""
    for match in _ENCODED.finditer(text[:200_000]):
        word = match[0]
        readings: list[str] = []
        with suppress(binascii.Error, ValueError):
            padded = word.replace("-", "+").replace("_", "/").rstrip("=")
            readings.append(base64.b64decode(padded + "=" * (-len(padded) % 4)).decode("utf-8", "strict"))
        with suppress(ValueError):
            readings.append(bytes.fromhex(word).decode("utf-8", "strict"))
        if "%" in word:
            readings.append(unquote(word))
        yield from (reading for reading in readings if _is_instruction(reading))
    for line in text.splitlines()[:5000]:
        for reading in (codecs.decode(line, "rot13"), line[::-1]):
            words = _WORDS.findall(plain(reading))
            if len(words) >= 3 and sum(word in _FREQUENT for word in words) >= 2 and _is_instruction(reading):
                yield reading[:_MAX_SENTENCE]


_WORDS = re.compile(r"[a-z]+")
_FREQUENT = frozenset(
    re.findall(
        r"\w+",
        "the a an and to of in with into from now then file files folder delete remove write run please all this that",
    )
)


def _is_foreign(text: str) -> bool:
    """Return whether a sentence is prose without a common English word: its verbs may be of any language."""
    if _SIGNS.search(text):
        return False
    words = re.findall(r"[^\W\d_]+", _NAMED.sub(" ", text))
    return len(words) >= (3 if text.isascii() else 1) and not _ENGLISH.intersection(words)


def _is_instruction(text: str) -> bool:
    return text.isprintable() and _INSTRUCTS.search(plain(text)) is not None


# --- questions and answers --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AgentQuestion:
    """A call that is asked about. `suspicion`: the sentence that it repeats, where that is why."""

    planned: PlannedCall
    pattern: str  # that the answer "pattern" would allow; "" where a suspicion allows none
    suspicion: Suspicion | None = None


@dataclass(frozen=True, slots=True)
class AgentReply:
    """The user's answer. `word`: to the model, with "deny"."""

    verdict: AgentVerdict
    word: str = ""


class AgentDesk(Protocol):
    """The user, as a run sees them."""

    def ask(self, question: AgentQuestion) -> AgentReply:
        """Show the question and wait for the answer. Without a terminal the answer is "deny"."""
        ...


class AgentPermits:
    """What is allowed in a run. `patterns`: in advance; `desk`: asked for the rest."""

    def __init__(
        self, texts: DataTexts, patterns: Sequence[str], ask: Callable[[AgentQuestion], AgentReply]
    ) -> None:
        self.texts, self._ask = texts, ask
        self._patterns = list(patterns)
        self._tools: set[str] = set()  # allowed for this run

    def allow(self, verdict: str, name: str, pattern: str) -> None:
        """Take in an answer of before, when a run is resumed."""
        if verdict == "run":
            self._tools.add(name)
        elif verdict == "pattern":
            self._patterns.append(pattern)

    def question(self, planned: PlannedCall) -> AgentQuestion | None:
        """Return what is to be asked before a call; None where it may run."""
        if suspicion := self.texts.suspicion(planned):
            return AgentQuestion(planned, "", suspicion)
        if not planned.asks or planned.call.name in self._tools:
            return None
        if any(matches(pattern, planned) for pattern in self._patterns):
            return None
        return AgentQuestion(planned, offered_pattern(planned))

    def answered(self, question: AgentQuestion) -> AgentReply:
        """Ask, and keep what the answer allows. A call that repeats a sentence is allowed once at most."""
        reply = self._ask(question)
        if question.suspicion is not None and reply.verdict in ("run", "pattern"):
            reply = AgentReply("once")
        self.allow(reply.verdict, question.planned.call.name, question.pattern)
        return reply
