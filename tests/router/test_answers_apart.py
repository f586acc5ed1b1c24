"""A kept answer is given to the same key with the same labels over the same route, and to nothing else."""

from __future__ import annotations

from freehold.base.serving import Job
from freehold.base.types import Message
from freehold.route.providers.contract import HOUSE, Cleared, SetLabel
from freehold.route.router.answers import answer_key


def key(
    *labels: str, tenant: str = "alice", route: str = "chat", digest: str = "d", text: str = "hi"
) -> bytes:
    job = Job((Message("user", text),))
    places = frozenset({HOUSE})
    return answer_key(
        Cleared(job, places, tuple(SetLabel(n, "header") for n in labels)), tenant, route, digest
    )


def test_a_private_answer_is_not_found_by_a_request_without_the_label():
    assert len({key(), key("private"), key("eu"), key("private", "eu")}) == 4


def test_what_set_a_label_and_their_order_make_no_difference():
    assert key("private", "eu") == key("eu", "private") == key("eu", "private", "eu")


def test_keys_routes_files_and_texts_are_kept_apart():
    kept = {key(), key(tenant="bob"), key(route="other"), key(digest="e"), key(text="ho")}
    assert len(kept) == 5
