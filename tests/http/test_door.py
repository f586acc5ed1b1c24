"""What a key opens: scopes, rates, budgets, the admin's kind, TLS; and hints for who is far from the keyboard."""

from __future__ import annotations

import ssl
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

import freehold.serve.http
from freehold.base import catalog
from freehold.base.errors import CapacityExceeded, ContextOverflow, ModelNotFound, UsageError
from freehold.run.formats.lora import unknown_adapter
from freehold.serve.http.core.accounts import Accounts
from freehold.serve.http.core.keys import Key, Ring, hashed
from freehold.serve.http.core.problems import Refused, hint_for, problem
from freehold.serve.http.core.sockets import checked
from tests.http.fakes import Script, failing
from tests.http.test_chat import CHAT
from tests.http.test_streams import eventually

URL = "/v1/chat/completions"


def key(name: str, **more: object) -> Key:
    return Key(name=name, sha256=hashed(secret(name).encode()), **more)  # type: ignore[arg-type]


def secret(name: str) -> str:
    return f"{name}-0123456789abcdef"


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret(name)}"}


# Scopes.


def test_a_key_s_scope_is_all_that_exists_for_it(serving):
    server = serving(keys=Ring([key("ann", models=("fake:*",)), key("all")]))
    listed = [m["id"] for m in server.client.get("/v1/models", headers=bearer("ann")).json()["data"]]
    assert listed == ["fake:1b"]
    assert len(server.client.get("/v1/models", headers=bearer("all")).json()["data"]) == 2
    assert server.client.post(URL, json=CHAT, headers=bearer("ann")).status_code == 200
    for path in (URL, "/tokenize"):
        body = {**CHAT, "model": "org/fake:2b"}
        foreign = server.client.post(path, json=body, headers=bearer("ann"))
        unknown = server.client.post(path, json={**CHAT, "model": "org/fake:3b"}, headers=bearer("ann"))
        assert foreign.status_code == unknown.status_code == 404
        assert foreign.json()["error"]["code"] == "model_not_found"
        assert foreign.text.replace("org/fake:2b", "") == unknown.text.replace("org/fake:3b", "")
        assert "nearest here: fake:1b" in foreign.text
    assert server.client.get("/v1/models/org/fake:2b", headers=bearer("ann")).status_code == 404


def test_what_tells_of_every_model_is_not_for_a_key_with_a_scope(serving):
    server = serving(keys=Ring([key("ann", models=("fake:*",)), key("all"), key("root", kind="admin")]))
    for name, status in (("ann", 403), ("all", 200), ("root", 200)):
        assert server.client.get("/metrics", headers=bearer(name)).status_code == status


# The admin's kind.


def test_admin_routes_take_an_admin_s_key_and_no_client_s(serving):
    server = serving(keys=Ring([key("ann"), key("root", kind="admin")]))
    load = {"model": "fake:1b"}
    assert server.client.post("/admin/load", json=load, headers=bearer("ann")).status_code == 403
    assert server.client.post("/admin/load", json=load, headers=bearer("root")).status_code == 200
    assert server.client.get("/admin/ps", headers=bearer("root")).json()["models"][0]["name"] == "fake:1b"
    assert server.client.post("/admin/unload", json=load, headers=bearer("root")).status_code == 200


def test_an_admin_s_key_asks_no_model(serving):
    server = serving(keys=Ring([key("root", kind="admin")]))
    answer = server.client.post(URL, json=CHAT, headers=bearer("root"))
    assert answer.status_code == 403 and "admin" in answer.json()["error"]["message"]


# Rates and budgets.


def test_a_rate_is_kept_by_the_key_and_says_when_to_ask_again(serving):
    server = serving(keys=Ring([key("ann", rate="2/h"), key("bob")]))
    for _ in range(2):
        assert server.client.post(URL, json=CHAT, headers=bearer("ann")).status_code == 200
    refused = server.client.post(URL, json=CHAT, headers=bearer("ann"))
    error = refused.json()["error"]
    assert refused.status_code == 429 and (error["type"], error["code"]) == (
        "rate_limit_error",
        "rate_limit_exceeded",
    )
    assert "2/h" in error["message"] and 1700 < int(refused.headers["retry-after"]) < 1802
    assert server.client.get("/v1/models", headers=bearer("ann")).status_code == 200  # asks no model
    assert server.client.post(URL, json=CHAT, headers=bearer("bob")).status_code == 200


@pytest.mark.parametrize("path", ["/v1/responses/resp_x", "/v1/responses/resp_x/input_items", "/v1/files"])
def test_reads_of_what_is_kept_count_against_the_rate(serving, path):
    server = serving(keys=Ring([key("ann", rate="2/h")]))
    seen = [server.client.get(path, headers=bearer("ann")).status_code for _ in range(3)]
    assert 429 not in seen[:2] and seen[2] == 429
    assert server.client.get("/console/api/chats", headers=bearer("ann")).status_code != 429


def test_a_bucket_fills_at_its_rate():
    now = [0.0]
    accounts, ann = Accounts(clock=lambda: now[0]), key("ann", rate="60/min")
    for _ in range(60):
        accounts.admit(ann)
    with pytest.raises(Refused, match=r"next request in 1\.0 s"):
        accounts.admit(ann)
    now[0] += 1.01
    accounts.admit(ann)
    with pytest.raises(Refused):
        accounts.admit(ann)
    accounts.close()


def test_a_budget_counts_prompt_and_answer_and_a_restart_remembers(serving, tmp_path):
    used = serving(Script(text="one two three")).client.post(URL, json=CHAT).json()["usage"]["total_tokens"]
    keys = Ring([key("ann", tokens=f"{used}/day"), key("bob")])
    first = serving(Script(text="one two three"), keys=keys, accounts=tmp_path / "spent")
    assert first.client.post(URL, json=CHAT, headers=bearer("ann")).json()["usage"]["total_tokens"] == used
    first.end()
    again = serving(Script(text="one two three"), keys=keys, accounts=tmp_path / "spent")
    for stream in (False, True):
        refused = again.client.post(URL, json={**CHAT, "stream": stream}, headers=bearer("ann"))
        message = refused.json()["error"]["message"]
        assert refused.status_code == 429 and f"spent {used} tokens today, its budget is {used}" in message
        assert refused.headers["x-should-retry"] == "false" or int(refused.headers["retry-after"]) < 60
    assert again.client.post(URL, json=CHAT, headers=bearer("bob")).status_code == 200


def test_tokens_of_an_answer_that_nobody_waited_for_are_counted_too(serving):
    server = serving(Script(text="word " * 2000, delay=0.01), keys=Ring([key("ann", tokens="1M/day")]))
    body = {**CHAT, "stream": True}
    with server.client.stream("POST", URL, json=body, headers=bearer("ann")) as answer:
        next(answer.iter_bytes())
    assert eventually(lambda: server.models.in_flight == 0)
    booked = server.models.served["fake:1b"].streams[-1]
    prompt = len(booked.begin.prompt_ids)
    spent = Accounts.today
    seen: list[int] = []
    server.loop.call_soon_threadsafe(lambda: seen.append(spent(server.doors.server.accounts)["ann"]))
    assert eventually(lambda: bool(seen)) and prompt < seen[0] < prompt + 2000


def test_requests_at_once_cost_no_more_than_a_budget(serving):
    gate = threading.Event()
    server = serving(Script(text="word " * 200, gate=gate), keys=Ring([key("ann", tokens="1000/day")]))
    body = {**CHAT, "max_tokens": 250}

    def ask(_: int):
        return server.client.post(URL, json=body, headers=bearer("ann"))

    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(ask, i) for i in range(12)]
        assert eventually(lambda: server.models.in_flight >= 3)
        gate.set()
        answers = [each.result() for each in asked]
    served = [a.json()["usage"]["total_tokens"] for a in answers if a.status_code == 200]
    assert len(served) >= 4 and sum(served) <= 1000
    refused = [a.json()["error"] for a in answers if a.status_code == 429]
    assert refused and {e["code"] for e in refused} <= {"insufficient_quota", "budget_in_use"}
    assert not server.doors.server.accounts._reserved


def test_an_answer_is_cut_where_its_budget_ends_and_says_so(serving):
    server = serving(Script(text="word " * 40), keys=Ring([key("ann", tokens="20/day"), key("bob")]))
    for more in ({}, {"max_tokens": 30}):
        server = serving(Script(text="word " * 40), keys=Ring([key("ann", tokens="20/day"), key("bob")]))
        body = server.client.post(URL, json={**CHAT, **more}, headers=bearer("ann")).json()
        assert body["usage"]["total_tokens"] == 20 and body["choices"][0]["finish_reason"] == "length"
        limit = body["usage"]["completion_tokens"]
        (warning,) = body["freehold"]["warnings"]
        assert warning == f"max_tokens was set to {limit}, by what the key's token budget has left for today"
        whole = server.client.post(URL, json={**CHAT, **more}, headers=bearer("bob")).json()
        assert whole["freehold"]["warnings"] == []


@pytest.mark.parametrize("asked, given", [({"max_tokens": 30}, 30), ({}, 8192)])
def test_an_engine_that_does_not_say_its_context_gets_a_limit(serving, asked, given):
    server = serving(Script(text="word"), keys=Ring([key("ann", tokens="1M/day")]))
    fake = server.models.served["fake:1b"]
    fake.loaded.info = replace(fake.loaded.info, context=0)
    assert server.client.post(URL, json={**CHAT, **asked}, headers=bearer("ann")).status_code == 200
    assert fake.jobs[-1].max_tokens == given


def test_an_answer_that_its_budget_cuts_did_not_fill_the_context(serving):
    server = serving(Script(text="word " * 40), keys=Ring([key("ann", tokens="20/day")]))
    body = {**CHAT, "max_tokens": 30}
    answer = server.client.post("/v1/messages", json=body, headers=bearer("ann")).json()
    assert answer["stop_reason"] == "max_tokens"
    assert not any("the context" in warning for warning in answer["freehold"]["warnings"])


def test_a_request_waits_for_tokens_that_others_give_back(serving):
    gate = threading.Event()
    server = serving(Script(text="a b", gate=gate), keys=Ring([key("ann", tokens="400/day")]))
    body = {**CHAT, "max_tokens": 250}
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(server.client.post, URL, json=body, headers=bearer("ann")) for _ in range(2)]
        assert eventually(lambda: bool(server.doors.server.accounts._given_back))
        assert server.models.in_flight == 1
        gate.set()
        assert [each.result().status_code for each in asked] == [200, 200]


def test_embeddings_are_booked_too(serving):
    server = serving(keys=Ring([key("ann", tokens="9/day")]))
    body = {
        "model": "fake:1b",
        "input": ["one two three", "four"],
    }  # four tokens, and two more around each text
    assert server.client.post("/v1/embeddings", json=body, headers=bearer("ann")).status_code == 200
    refused = server.client.post("/v1/embeddings", json=body, headers=bearer("ann"))
    assert refused.status_code == 429 and "has 5 tokens left today" in refused.json()["error"]["message"]


def test_a_day_begins_anew_and_old_days_are_forgotten(tmp_path):
    now = [86400.0 * 20000]
    accounts, ann = Accounts(tmp_path / "spent", now=lambda: now[0]), key("ann", tokens="10/day")
    accounts.spend("ann", 10)
    with pytest.raises(Refused, match=r"24\.0 h"):
        accounts.left(ann)
    now[0] += 86400
    accounts.left(ann)
    accounts.spend("ann", 3)
    accounts.spend("ann", 4)
    assert accounts.today() == {"ann": 7}
    accounts.close()


def test_a_clock_that_is_set_back_gives_no_budget_twice(tmp_path):
    now = [86400.0 * 20000]
    accounts, ann = Accounts(tmp_path / "spent", now=lambda: now[0]), key("ann", tokens="10/day")
    accounts.spend("ann", 10)
    now[0] += 86400
    accounts.spend("ann", 4)
    accounts.save()
    now[0] -= 86400
    with pytest.raises(Refused, match="has spent 10 tokens today"):
        accounts.left(ann)
    accounts.spend("ann", 1)
    accounts.close()
    assert Accounts(tmp_path / "spent", now=lambda: now[0]).today() == {"ann": 11}


# TLS.


MAKE = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost "
    "-addext subjectAltName=DNS:localhost,IP:127.0.0.1"
)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make(tmp_path_factory.mktemp("tls"))


def make(folder: Path, *more: str) -> tuple[Path, Path]:
    cert, own = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [*MAKE.split(), "-keyout", str(own), "-out", str(cert), *more],
        check=True,
        capture_output=True,
    )
    own.chmod(0o600)
    return cert, own


def test_a_server_with_a_certificate_speaks_tls_and_its_socket_does_not(serving, certificate):
    tls = checked(*certificate)
    assert tls is not None and tls.names == ("localhost", "127.0.0.1") and 29 < tls.days_left < 31
    server = serving(tls=tls)
    assert server.url.startswith("https://")
    with httpx2.Client(verify=ssl.create_default_context(cafile=str(tls.cert))) as client:
        assert client.get(f"{server.url}/health").json() == {"status": "ok"}
    with pytest.raises(httpx2.HTTPError), httpx2.Client() as plain:
        plain.get(server.url.replace("https", "http") + "/health")
    assert server.admin.get("/admin/hello").json()["url"] == server.url


def test_files_that_no_client_could_speak_to_are_refused_at_once(certificate, tmp_path):
    cert, own = certificate
    (tmp_path / "other").mkdir()
    _, foreign = make(tmp_path / "other")
    old, old_key = make(tmp_path, "-not_before", "20200101000000Z", "-not_after", "20200102000000Z")
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "pkey", "-in", own, "-aes256", "-passout", "pass:x", "-out", locked],
        check=True,
        capture_output=True,
    )
    locked.chmod(0o600)
    open_key = tmp_path / "open.pem"
    open_key.write_bytes(own.read_bytes())
    open_key.chmod(0o644)
    wrong = [
        ((cert, None), "--tls-key is missing"),
        ((None, own), "--tls-cert is missing"),
        ((tmp_path / "none", own), "cannot be read"),
        ((own, own), "not a certificate"),
        ((cert, foreign), "not the key of"),
        ((cert, locked), "has a password"),
        ((cert, open_key), "others may read"),
        ((old, old_key), "expired"),
    ]
    for (a, b), part in wrong:
        with pytest.raises(UsageError, match=part):
            checked(a, b)
    assert checked(None, None) is None


# Hints.

CLI_SPEECH = [
    ContextOverflow("prompt has 9 tokens", "load it with --context 16384, shorten the prompt"),
    CapacityExceeded("needs 4 GB", "freehold stop MODEL, or name a smaller --context"),
    ModelNotFound("no model named 'x'", "freehold list shows what there is"),
    UsageError("the template has no switch", "leave --think and --no-think out"),
]


@pytest.mark.parametrize("error", CLI_SPEECH, ids=lambda e: type(e).__name__)
def test_a_hint_over_the_network_names_no_command_and_the_owner_gets_his_own(serving, error):
    server = serving(failing("start", error))
    message = server.client.post(URL, json=CHAT).json()["error"]["message"]
    assert error.message in message and "--" not in message and "freehold " not in message
    assert error.hint in server.admin.post(URL, json=CHAT).json()["error"]["message"]


def test_a_hint_that_speaks_of_no_command_is_passed_on():
    assert hint_for(ModelNotFound("x", "ask for another"), owner=False) == "ask for another"


def test_a_model_that_can_be_fetched_is_told_with_the_way():
    error = ModelNotFound("qwen3:8b is not downloaded", "freehold pull qwen3:8b")
    way = "freehold pull qwen3:8b on the server's machine fetches it; GET /v1/models lists what there is"
    assert hint_for(error, owner=False) == way and hint_for(error, owner=True) == error.hint


@pytest.mark.parametrize("name", ["nobody-knows-it", "smollm2:136m"])
def test_a_name_nobody_knows_is_answered_with_what_can_be_asked(name):
    """Neither with a file, which no request may name, nor with a model of the catalogue that is not here."""
    with pytest.raises(ModelNotFound) as told:
        catalog.find(name)
    assert hint_for(told.value, owner=False) == "GET /v1/models lists what there is"
    assert hint_for(told.value, owner=True) == told.value.hint


@pytest.mark.parametrize("name", ["style", "x"])
def test_a_key_learns_no_adapter_from_the_error_for_another(name):
    """It may ask for `name` by a pattern that holds only some of what the model has."""
    error = unknown_adapter("tiny", name, ["payroll", "stylish"])
    told = problem(error)
    said = f"{told.message} {told.extra}"
    assert "payroll" not in said and "stylish" not in said and "GET /v1/models" in told.message
    assert "tiny+stylish" in problem(error, owner=True).message


def test_protocols_ask_models_through_the_key_s_view_of_them():
    server = Path(freehold.serve.http.__file__).parent
    # The owner's side; Ollama's unloading, which asks the view for the name first, and what admins make, in whose place
    # an engine retires; the paths of a gateway's files;
    # the look at the engines, one for all viewers, of which each key is shown its part (Look.seen_by); and whether
    # the model that answered a run is still in memory, for its title.
    owners = {"call.py", "admin.py", "health.py", "metrics.py", "serve.py", "generating.py", "store.py"}
    behind = owners | {"usage.py", "live.py", "chatrun.py"}
    for path in server.rglob("*.py"):
        assert path.name in behind or "server.models" not in path.read_text(), f"{path.name}: say call.models"


# Caps.


def test_a_thousand_unknown_fields_are_refused_before_each_is_looked_up(serving):
    answer = serving().client.post(URL, json={**CHAT, **{f"field{i}": i for i in range(10_000)}})
    assert answer.status_code == 400 and "10,000 fields are unknown" in answer.json()["error"]["message"]
