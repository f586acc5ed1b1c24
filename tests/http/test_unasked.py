"""What a page of another origin may send unasked computes nothing: every route that takes a body."""

from __future__ import annotations

import pytest

from freehold.serve.http.app import routes
from freehold.serve.http.core.call import endpoint_of

# What a browser sends to another origin without asking it first, and none at all.
UNASKED = [
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "TEXT/PLAIN;a=b",
    "",
]
LOOPBACK = (
    "http://localhost:8080"  # another port of this machine: another origin, and one that pages may come from
)
BODY = b'{"model": "fake:1b", "messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "input": "hi"}'
POSTED = sorted(
    {(endpoint_of(r).path, bool(endpoint_of(r).form)) for r in routes() if "POST" in (r.methods or set())}
)


@pytest.mark.parametrize("path, form", POSTED, ids=[path for path, _ in POSTED])
def test_no_page_of_another_loopback_origin_makes_a_keyless_server_compute(serving, path, form):
    running = serving()
    running.models.origins.clear()
    for kind in UNASKED:
        headers = {
            "Origin": LOOPBACK,
            "Sec-Fetch-Site": "same-site",
            **({"Content-Type": kind} if kind else {}),
        }
        answer = running.client.post(path.replace("{", "").replace("}", ""), content=BODY, headers=headers)
        assert answer.status_code in (400, 401, 403, 404, 415), (kind, answer.status_code, answer.text)
    assert not running.models.origins  # no model was asked for


def test_a_json_body_of_another_loopback_origin_is_for_the_browser_to_ask_about(serving):
    client = serving().client
    asked = client.options(
        "/v1/chat/completions",
        headers={
            "Origin": LOOPBACK,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        },
    )
    assert "access-control-allow-origin" not in asked.headers and asked.status_code >= 400


NAMED = sorted({endpoint_of(r).path for r in routes() if "model" in endpoint_of(r).query})


@pytest.mark.parametrize("path", NAMED)
@pytest.mark.parametrize("site", ["same-site", "cross-site"])
def test_no_picture_of_another_origin_makes_a_server_load_a_model(serving, path, site):
    running = serving()
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    answer = running.client.get(f"{path}?model=fake:1b", headers=headers)
    assert answer.status_code in (403, 404) and not running.models.used
    if path == "/tokenizer_info":  # a program, and what is typed into the address
        for headers in ({}, {"Sec-Fetch-Site": "none"}):
            assert running.client.get(f"{path}?model=fake:1b", headers=headers).status_code == 200
