"""An address is what it means, in whatever spelling: a url leads to this machine or network only if it says so."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from freehold.base.errors import UpstreamFailed, UsageError
from freehold.serve.tools.mcp.configured import refusal, resolved, tool_server, tool_servers

FORBIDDEN = [
    *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
    *("100.64.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.0.8", "198.18.0.1"),
    *("::", "::1", "fe80::1", "fc00::1", "fd12::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:a9fe:a9fe"),
    *("::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1", "2002:a9fe:a9fe::1", "2002:7f00:1::"),
    *("::127.0.0.1", "::169.254.169.254", "2001:0:a9fe:a9fe::1", "64:ff9b:1::5db8:d822"),
]
OWN_NAT64 = [  # 169.254.169.254 behind 48, 56, 64 and 96 bits
    *("64:ff9b:1:a9fe:a9:fe00::", "64:ff9b:1:a9:fe:a9fe::", "64:ff9b:1:0:a9:fea9:fe00:0"),
    "64:ff9b:1::a9fe:a9fe",
]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_an_address_of_this_machine_or_network_is_refused(address: str):
    assert refusal(ipaddress.ip_address(address), local=False, private=False)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::5db8:d822"]
)
def test_a_public_address_is_not(address: str):
    assert refusal(ipaddress.ip_address(address), local=False, private=False) == ""


def test_private_opens_private_networks_and_neither_the_link_nor_this_machine():
    def opened(address: str) -> bool:
        return not refusal(ipaddress.ip_address(address), local=False, private=True)

    assert all(map(opened, ("10.0.0.1", "192.168.1.1", "fd12::1", "100.64.0.1", "::ffff:10.0.0.1")))
    assert not any(
        map(opened, ("169.254.169.254", "127.0.0.1", "::1", "fe80::1", "0.0.0.0", "::ffff:a9fe:a9fe"))
    )


@pytest.mark.parametrize("address", OWN_NAT64)
def test_an_address_within_one_of_a_network_s_own_translation_is_found_at_each_place(address: str):
    assert "clouds" in refusal(ipaddress.ip_address(address), local=False, private=True)
    assert not refusal(ipaddress.ip_address("64:ff9b:1::5db8:d822"), local=False, private=True)


@pytest.mark.parametrize(
    "spelling", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0x7f.1", "0xa9fea9fe"]
)
def test_other_spellings_resolve_to_what_they_mean_and_are_refused(spelling: str):
    tool_server("h", {"url": f"https://{spelling}/mcp"}, "here")  # a name, as far as the form goes
    with pytest.raises(UpstreamFailed):
        asyncio.run(resolved(spelling, 443, local=False, private=False))


@pytest.mark.parametrize(
    "given, said",
    [
        ({"url": "http://example.com/"}, "without encryption"),
        ({"url": "https://169.254.169.254/"}, "where clouds keep their keys"),
        ({"url": "https://[::ffff:a9fe:a9fe]/"}, "clouds"),
        ({"url": "https://user:pass@example.com/"}, "password"),
        ({"url": "file:///etc/passwd"}, "https://"),
        ({"command": "npx server; rm -rf ~"}, "no shell"),
        ({"command": []}, "empty"),
        ({"command": ["a\0b"]}, "list of texts"),
        ({"command": ["a"], "url": "https://example.com"}, "either"),
        ({"command": ["a"], "env": {"A": "x\ny"}}, "one line"),
        ({"command": ["a"], "environ": {}}, "did you mean env"),
        ({"url": "https://example.com", "env": {}}, "no meaning beside url"),
    ],
)
def test_a_wrong_table_is_refused_with_its_reason(given: dict[str, object], said: str):
    with pytest.raises(UsageError) as e:
        tool_servers({"h": given})
    assert said in e.value.message + e.value.hint


def test_a_name_that_stands_for_one_forbidden_address_is_refused_whole(monkeypatch: pytest.MonkeyPatch):
    async def both(self, host, port, **more):  # type: ignore[no-untyped-def]
        return [(2, 1, 6, "", (a, port)) for a in ("93.184.216.34", "127.0.0.1")]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", both)
    with pytest.raises(UpstreamFailed, match=r"stands for 127\.0\.0\.1"):
        asyncio.run(resolved("rebound.example", 443, local=False, private=False))


class _Answers(BaseHTTPRequestHandler):
    """Greets, and then does as the path says."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/away":
            self.send_response(307)
            self.send_header("location", "/mcp")
            self.end_headers()
            return
        body = b" " * (5 << 20) if self.path == "/huge" else b""
        info = {"name": "s", "version": "1"}
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": info}
        if asked.get("method") == "tools/list":
            result = {"tools": [{"name": "t", "inputSchema": {"type": "object"}}]}
        body += json.dumps({"jsonrpc": "2.0", "id": asked.get("id"), "result": result}).encode()
        self.send_response(200 if "id" in asked else 202)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        return


@pytest.mark.parametrize("path, said", [("/mcp", ""), ("/away", "not followed"), ("/huge", "more than")])
def test_a_server_at_an_address_is_asked_within_the_same_bounds(tmp_path: Path, path: str, said: str):
    pytest.importorskip("mcp")
    from freehold.serve.tools.mcp.connection import ToolConnection

    http = HTTPServer(("127.0.0.1", 0), _Answers)
    Thread(target=http.serve_forever, daemon=True).start()

    async def run() -> list[str]:
        url = f"http://127.0.0.1:{http.server_port}{path}"
        connection = ToolConnection(tool_server("h", {"url": url}, "here"))
        try:
            await connection.start()
            return [tool["name"] for tool in await connection.listed()]
        finally:
            await connection.close()

    try:
        if said:
            with pytest.raises(Exception, match=said):
                asyncio.run(run())
        else:
            assert asyncio.run(run()) == ["t"]
    finally:
        http.shutdown()
        http.server_close()


def test_localhost_is_this_machine_and_nothing_else():
    assert socket.gethostbyname("localhost")
    assert refusal(ipaddress.ip_address("10.0.0.1"), local=True, private=False)
    assert not refusal(ipaddress.ip_address("::1"), local=True, private=False)
