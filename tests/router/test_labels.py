"""Labels only add, the places left are those that all of them allow, and what cannot be read has the label."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import pytest

from freehold.base.errors import PolicyRefused, UsageError
from freehold.base.serving import EmbedJob, Job, Origin
from freehold.base.types import Message
from freehold.route.providers.contract import HOUSE, Provider, SetLabel
from freehold.route.router.gateway import Gateway, GatewayRoute, KeyPolicy, Label
from freehold.route.router.labels import Labeller

PROVIDERS = {
    "openai": Provider("openai", "openai", "https://a"),
    "mistral": Provider("mistral", "mistral", "https://b"),
    "box": Provider("box", "openai-compatible", "http://c", owned=True),
}
LABELS = {
    "private": Label("private"),
    "eu": Label("eu", frozenset({"box", "mistral"})),
    "french": Label("french", frozenset({"mistral"})),
}
JOB = Job((Message("user", "hello"),))


class Oracle:
    """A classifier with fixed answers that keeps what it was asked."""

    def __init__(self, answer: bool) -> None:
        self.answer, self.asked = answer, []

    async def says(self, label: Label, texts: Sequence[str]) -> bool:
        self.asked.append((label.name, list(texts)))
        return self.answer


def gateway(labels: dict[str, Label] = LABELS, keys: dict[str, KeyPolicy] | None = None) -> Gateway:
    return Gateway(providers=PROVIDERS, labels=labels, keys=keys or {})


NOBODY = Origin()


def clear(work, origin=NOBODY, route=None, *, over=None, asks=None):
    return asyncio.run(Labeller(over or gateway(), asks).clear(work, origin, route))


def test_a_request_without_labels_may_be_anywhere():
    assert clear(JOB).places == {HOUSE, "openai", "mistral", "box"}


def test_stay_owned_leaves_this_machine_and_owned_providers():
    assert clear(JOB, Origin(labels=("private",))).places == {HOUSE, "box"}


def test_stay_with_names_leaves_these_and_this_machine():
    assert clear(JOB, Origin(labels=("eu",))).places == {HOUSE, "box", "mistral"}


@pytest.mark.parametrize("names", [n for k in range(4) for n in itertools.permutations(LABELS, k)])
def test_several_labels_leave_what_all_of_them_allow(names: tuple[str, ...]):
    cleared = clear(JOB, Origin(labels=names))
    apart = [clear(JOB, Origin(labels=(name,))).places for name in names]
    assert cleared.places == set(gateway().all_places).intersection(*apart)
    assert HOUSE in cleared.places


def test_key_header_and_route_add_their_labels_and_are_named():
    over = gateway(keys={"alice": KeyPolicy("alice", labels=("private",))})
    route = GatewayRoute("chat", (), labels=("french",))
    cleared = clear(JOB, Origin(key="alice", labels=("eu",)), route, over=over)
    assert cleared.labels == (
        SetLabel("eu", "header"),
        SetLabel("private", "key alice"),
        SetLabel("french", "route chat"),
    )
    assert cleared.places == {HOUSE}


def test_a_header_cannot_take_a_keys_label_away():
    over = gateway(keys={"alice": KeyPolicy("alice", labels=("private",))})
    for labels in ((), ("eu",), ("private",)):
        assert "openai" not in clear(JOB, Origin(key="alice", labels=labels), over=over).places


def test_an_unknown_label_is_refused_with_the_labels_that_exist():
    with pytest.raises(UsageError) as e:
        clear(JOB, Origin(labels=("privat",)))
    assert "'privat'" in e.value.message and "did you mean private?" in e.value.hint
    assert "eu, french, private" in e.value.hint


def test_a_label_is_refused_where_there_are_none():
    with pytest.raises(UsageError, match="no label 'private'"):
        clear(JOB, Origin(labels=("private",)), over=gateway({}))


def test_a_cleared_request_names_its_labels_when_it_is_refused_a_place():
    cleared = clear(JOB, Origin(labels=("private", "eu")))
    with pytest.raises(PolicyRefused, match="eu, private may not go to openai"):
        cleared.check("openai")


ASKING = {"private": Label("private", classifier="small"), "eu": LABELS["eu"]}


@pytest.mark.parametrize(
    "answer, places", [(True, {HOUSE, "box"}), (False, {HOUSE, "openai", "mistral", "box"})]
)
def test_a_classifier_sets_its_label(answer: bool, places: set[str]):
    asks = Oracle(answer)
    assert clear(JOB, over=gateway(ASKING), asks=asks).places == places
    assert asks.asked == [("private", ["hello"])]


def test_a_classifier_is_not_asked_where_its_label_is_set_already():
    asks = Oracle(False)
    assert clear(JOB, Origin(labels=("private",)), over=gateway(ASKING), asks=asks).places == {HOUSE, "box"}
    assert asks.asked == []


def test_a_classifier_that_is_not_there_sets_its_label():
    assert clear(JOB, over=gateway(ASKING)).labels == (SetLabel("private", "classifier small"),)


@pytest.mark.parametrize("work", [Job(prompt=(1, 2, 3)), EmbedJob(("a", (1, 2)))])
@pytest.mark.parametrize("label", [Label("private", classifier="small"), Label("private", detect=("pii",))])
def test_token_ids_have_every_label_that_reads(work: Job | EmbedJob, label: Label):
    asks = Oracle(False)
    cleared = clear(work, over=gateway({"private": label}), asks=asks)
    assert cleared.label_names == ("private",) and cleared.places == {HOUSE, "box"}
