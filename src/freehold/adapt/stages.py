"""Stages: what a verb starts from, what its result descends from, and what each receipt says of unseen items.

A base is a model, or a model with an adapter whose receipt says how it was made. Receipts name their parents by digest,
so an adapter that was changed afterwards is noticed. Knows receipts, adapters and models; knows no verb's work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from freehold.adapt.licences import check_base
from freehold.adapt.run import NAME, file_digest, model_digest
from freehold.base.errors import StoreError, UsageError
from freehold.base.regular import read_bounded
from freehold.base.types import ServedModelOptions
from freehold.run.formats import LoraFile, open_lora
from freehold.run.store import ModelRef

if TYPE_CHECKING:
    from freehold.adapt.sampling import SamplingModel
    from freehold.adapt.settings import AdapterSettings
    from freehold.adapt.training.trainee import Trainee

SettingsType = TypeVar("SettingsType", bound="AdapterSettings")
GGUF = "adapter.gguf"
MOST_BYTES = 16 << 20  # of a receipt
WARNED = 3  # facts lost, from which a receipt warns
Receipt = Mapping[str, Any]

# --- a result's receipt ------------------------------------------------------------------------------


def receipt_path(result: Path) -> Path:
    """Return where the receipt of a result lies: in its folder, or beside its file."""
    return (result if result.is_dir() else result.parent) / NAME


def receipt_of(result: Path) -> dict[str, Any] | None:
    """Return the receipt of an adapter or a model at a path; None where there is none.

    Raises StoreError for a file that is not a receipt.
    """
    path = receipt_path(result)
    if not path.is_file():
        return None
    try:
        record = json.loads(read_bounded(path, MOST_BYTES))
        if not (
            isinstance(record, dict)
            and isinstance(record["verb"], str)
            and isinstance(record["inputs"], dict)
        ):
            raise ValueError("it has no verb and inputs")
        chain = record.get("chain", [])
        if not (isinstance(chain, list) and all(isinstance(each, dict) for each in chain)):
            raise ValueError("its chain must be a list of stages")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise StoreError(
            f"{path} is not a receipt: {str(e)[:80] or type(e).__name__}",
            "remove it: the result beside it is then one of unknown origin",
        ) from e
    return record


def base_digest(record: Receipt) -> str:
    """Return the digest of the model that a receipt's result was made from; empty where it states none."""
    inputs = record["inputs"]
    for one in (inputs.get("student"), inputs.get("base")):
        if isinstance(one, str):
            return one
        if isinstance(one, Mapping):
            return str(one.get("digest") or one.get("file") or one.get("sha256") or "")
    return ""


# --- what a receipt says of items that were not trained on, in one form for all verbs -----------------


@dataclass(frozen=True, slots=True)
class StageGate:
    """A stage's measurement. `before` and `after`: shares that pass; None where nothing was measured."""

    items: int
    before: float | None
    after: float | None
    p: float | None
    lost: int  # of the facts that the base knew
    divergence: float | None = None  # of a model file from its source, in nats per token

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "items": self.items,
            "before": self.before,
            "after": self.after,
            "p": self.p,
            "lost": self.lost,
            "divergence": self.divergence,
        }


def gate_of(record: Receipt) -> StageGate:
    """Return what a receipt measured on unseen items: of `finetune` those that its data does not hold."""
    lost = int((record.get("control") or {}).get("lost", 0))
    tested = record.get("before_after") or {}
    divergence = (
        (record.get("divergence") or {}).get("mean") if record["verb"] in ("quantize", "fuse") else None
    )
    if record["verb"] == "finetune" and tested:
        tested = tested.get("clean") or tested["all"]
        count = tested["items"]
        return StageGate(count, tested["before"] / count, tested["after"] / count, tested["p"], lost)
    if record["verb"] == "align" and tested:
        return StageGate(
            tested["pairs"], tested["likelier_before"], tested["likelier_after"], tested["p"], lost
        )
    if record["verb"] == "distil" and tested:
        return StageGate(tested["prompts"], tested["before"], tested["after"], tested["p"], lost)
    if record["verb"] == "reinforce" and tested:
        greedy = tested["greedy"]
        return StageGate(tested["prompts"], greedy["before"], greedy["after"], greedy["p"], lost)
    exam = record.get("exam") or {}
    if exam.get("marked"):
        return StageGate(exam["marked"], exam["before"], exam["after"], exam["p"], lost, divergence)
    return StageGate(0, None, None, None, lost, divergence)


def warnings_of(record: Receipt) -> list[str]:
    """Return what a receipt should warn of: facts that the base knew and the result does not."""
    control = record.get("control") or {}
    lost = int(control.get("lost", 0))
    if lost < WARNED:
        return []
    return [
        f"{lost} of the {control['before']} facts that the base knew are lost: "
        "replay more (--replay, --replay-weight), lower --lr, or train fewer steps"
    ]


# --- what a result descends from ----------------------------------------------------------------------


def entry_of(record: Receipt, path: Path, receipt_digest: str) -> dict[str, Any]:
    """Return what a descendant's chain says of a stage."""
    own = record.get("adapter") or {}
    parent = record["inputs"].get("parent") or {}
    return {
        "verb": record["verb"],
        "made_at": record.get("made_at", ""),
        "path": str(path.absolute()),
        "digest": own.get("digest") or (record.get("result") or {}).get("sha256", ""),
        "receipt": receipt_digest,
        "base": base_digest(record),
        "rank": own.get("rank"),
        "continued": bool(parent.get("continued")),
        "gate": gate_of(record).as_json(),
    }


def check_chain(chain: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Raise UsageError for a chain, a result's own entry last, in which a result descends from itself.

    An adapter that was continued and did not change has its parent's digest, right behind it.
    """
    seen: set[str] = set()
    before = ""
    for each in chain:
        digest = str(each.get("digest") or "")
        unchanged = digest == before and each.get("continued") is True
        if digest in seen and not unchanged:
            raise UsageError(
                f"{receipt_path(path)} names the result {digest[:12]} among its own parents",
                "its chain was edited: train it again, or remove the receipt",
            )
        before = digest
        if digest:
            seen.add(digest)


def descent(result: Path) -> list[dict[str, Any]]:
    """Return the stages of a result, the oldest first and itself last; none without a receipt.

    Each entry is one of a chain with `here`: whether its folder is still where it was. Raises StoreError for a damaged
    receipt, UsageError for a chain that contains its own result.
    """
    record = receipt_of(result)
    if record is None:
        return []
    own = entry_of(record, result if result.is_dir() else result.parent, file_digest(receipt_path(result)))
    chain = [*record.get("chain", ()), own]
    check_chain(chain, result)
    return [{**each, "here": receipt_path(Path(str(each.get("path", "")))).is_file()} for each in chain]


# --- what a stage starts from -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ParentAdapter:
    """The adapter that a stage starts from."""

    path: Path
    digest: str
    rank: int
    scale: float
    receipt: Receipt | None  # None: of another program
    receipt_digest: str

    @classmethod
    def of(cls, path: Path) -> ParentAdapter:
        """Read an adapter and its receipt. Raises UsageError where the two differ, and what reading raises."""
        file = open_lora(path)
        record = receipt_of(path)
        _check_unchanged(path, file, record)
        digest = file_digest(receipt_path(path)) if record else ""
        if record:
            check_chain([*record.get("chain", ()), entry_of(record, path, digest)], path)
        scales = {pair.scale for pair in file.modules.values()}
        rank = max(pair.rank for pair in file.modules.values())
        return cls(path, file.digest, rank, scales.pop() if len(scales) == 1 else 2.0, record, digest)

    @property
    def chain(self) -> list[dict[str, Any]]:
        """Return its ancestors and itself, the oldest first."""
        if self.receipt is None:
            entry = {"verb": "", "path": str(self.path.absolute()), "digest": self.digest, "rank": self.rank}
            return [entry]
        folder = self.path if self.path.is_dir() else self.path.parent
        own = entry_of(self.receipt, folder, self.receipt_digest)
        return [*self.receipt.get("chain", ()), own]

    @property
    def inputs(self) -> dict[str, Any]:
        """Return what a receipt's inputs say of it."""
        return {"adapter": self.digest, "receipt": self.receipt_digest}


def _check_unchanged(path: Path, file: LoraFile, record: Receipt | None) -> None:
    own = (record or {}).get("adapter")
    if not isinstance(own, Mapping):  # of another program, or of a receipt from before digests
        return
    stated = own.get("gguf") if file.gguf else own.get("digest")
    if stated and stated != file.digest:
        raise UsageError(
            f"{path} was changed after it was made: its digest is {file.digest[:12]}, "
            f"its receipt says {str(stated)[:12]}",
            "train it again, or remove its receipt.json to use it as an adapter of unknown origin",
        )


@dataclass(frozen=True, slots=True)
class StageBase:
    """What a stage starts from: a model, or a model with an adapter. `continued`: that adapter is trained itself."""

    model: ModelRef
    digest: str  # of the model
    parent: ParentAdapter | None = None
    continued: bool = False
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: ModelRef, adapter: Path | None = None, *, continued: bool = False) -> StageBase:
        """Check a base. Raises UsageError for one that does not fit together, and what reading the files raises."""
        check_base(model)
        if adapter is None:
            if continued:
                raise UsageError(
                    f"{model.name} has no adapter to continue", f"name one: {model.name}+ADAPTER"
                )
            return cls(model, model_digest(model))
        parent, digest = ParentAdapter.of(adapter), model_digest(model)
        return cls(model, digest, parent, continued, _fits(model, digest, parent))

    @property
    def name(self) -> str:
        """The model, and its adapter behind a plus."""
        if self.parent is None:
            return self.model.name
        path = self.parent.path
        return f"{self.model.name}+{path.parent.name if path.name == GGUF else path.name}"

    @property
    def inputs(self) -> dict[str, Any]:
        """Return what a run's inputs say of the parent; nothing without one."""
        return {"parent": {**self.parent.inputs, "continued": self.continued}} if self.parent else {}

    @property
    def chain(self) -> list[dict[str, Any]]:
        """Return the stages that lead to this base, the oldest first."""
        return self.parent.chain if self.parent else model_chain(self.model, self.digest)

    def fitted(self, settings: SettingsType) -> SettingsType:
        """Return settings with the rank and the scale of an adapter that is continued."""
        if not (self.parent and self.continued):
            return settings
        return replace(settings, rank=self.parent.rank, alpha=self.parent.scale * self.parent.rank)

    def trainee(self, settings: AdapterSettings, memory: int | None = None) -> Trainee:
        """Bind the base with new pairs, or with those of the adapter that is continued."""
        from freehold.adapt.training.trainee import Beneath

        beneath = Beneath(self.parent.path, self.continued) if self.parent else None
        return settings.trainee(self.model.path, memory, beneath)

    def opened(
        self, packs: Path | None = None, *, many: bool = False, **options: Unpack[ServedModelOptions]
    ) -> SamplingModel:
        """Load the engine; its answers are the base's where no other adapter is named."""
        from freehold.adapt.sampling import open_sampling

        beneath = self.parent.path if self.parent else None
        return open_sampling(self.model, packs, many=many, beneath=beneath, **options)


def model_chain(model: ModelRef, digest: str) -> list[dict[str, Any]]:
    """Return the stages of a model that `quantize` or `fuse` made, the oldest first; none of another's file.

    A file that was changed since it was made has another digest than its receipt: nothing is known of it then.
    """
    record = receipt_of(model.path) if model.source.startswith("file:") else None
    if record is None or (record.get("result") or {}).get("sha256") != digest:
        return []
    path = receipt_path(model.path)
    return [*record.get("chain", ()), entry_of(record, path.parent, file_digest(path))]


@dataclass(frozen=True, slots=True)
class StageBases:
    """What a file is made of: a model, and the adapters that become part of it."""

    model: ModelRef
    digest: str
    each: tuple[StageBase, ...]  # one for each adapter

    @classmethod
    def of(cls, model: ModelRef, adapters: Sequence[Path]) -> StageBases:
        """Check them. Raises what StageBase.of raises, UsageError for an adapter that is named twice."""
        if not adapters:
            check_base(model)
            return cls(model, model_digest(model), ())
        each = tuple(StageBase.of(model, adapter) for adapter in adapters)
        digests = [base.parent.digest for base in each if base.parent]
        for at, digest in enumerate(digests):
            earlier = [entry["digest"] for base in each[:at] for entry in base.chain]
            later = [entry["digest"] for base in each[at + 1 :] for entry in base.chain]
            if digest in (*earlier, *later):
                raise UsageError(
                    f"{adapters[at]} is named twice: itself, and in another adapter that was trained on top of it",
                    "name only the last adapter of a chain: it contains the others",
                )
        return cls(model, each[0].digest, each)

    @property
    def name(self) -> str:
        """The model and its adapters behind pluses."""
        return self.model.name + "".join(base.name.removeprefix(self.model.name) for base in self.each)

    @property
    def inputs(self) -> dict[str, Any]:
        """Return what a run's inputs say of the parents; nothing without adapters."""
        parents = [base.parent.inputs for base in self.each if base.parent]
        return {"parents": parents} if parents else {}

    @property
    def notes(self) -> list[str]:
        """What the user should know of how they fit together."""
        return [note for base in self.each for note in base.notes]

    @property
    def chain(self) -> list[dict[str, Any]]:
        """Return the stages that lead here, each once, the oldest first."""
        if not self.each:
            return model_chain(self.model, self.digest)
        entries = [entry for base in self.each for entry in base.chain]
        # A stage that changed nothing has its parent's digest and a receipt of its own.
        return list(
            {(str(entry["digest"]), str(entry.get("receipt", ""))): entry for entry in entries}.values()
        )


def _fits(model: ModelRef, digest: str, parent: ParentAdapter) -> tuple[str, ...]:
    """Compare a model with the one that an adapter was trained on. Raises UsageError where their tokens differ."""
    record = parent.receipt
    if record is None:
        return (f"{parent.path} has no receipt: nothing is known of how it was trained",)
    was = base_digest(record)
    if not was or was == digest:
        return ()
    stated = (record.get("adapter") or {}).get("vocabulary")
    if stated and stated != vocabulary_digest(model):
        raise UsageError(
            f"{parent.path} was trained on a model with other tokens than {model.name}",
            f"name the model that it was trained on: its digest is {was[:12]}",
        )
    return (f"{parent.path} was trained on another file than {model.name} ({was[:12]} and {digest[:12]})",)


def vocabulary_digest(model: ModelRef) -> str:
    """Return the digest of a model's tokens."""
    from freehold.adapt.evals.divergence import tokenizer_of

    return tokenizer_of(model.path).vocabulary_digest()


def saved_adapter(folder: Path, model: ModelRef) -> dict[str, Any]:
    """Return what a receipt says of the adapter in a folder: digests, rank, and the tokens of its model."""
    file = open_lora(folder)
    gguf = folder / GGUF
    return {
        "digest": file.digest,
        "gguf": open_lora(gguf).digest if gguf.is_file() else "",
        "rank": max(pair.rank for pair in file.modules.values()),
        "modules": len(file.modules),
        "vocabulary": vocabulary_digest(model),
    }
