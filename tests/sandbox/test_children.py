"""Children end with their parent, not with the thread that wanted them."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import datetime

import psutil
import pytest

from freehold.base.errors import BadTemplate, CapacityExceeded
from freehold.base.sandbox import rendering
from freehold.base.sandbox.children import spawn
from freehold.base.sandbox.rendering import Renderers, RenderJob
from freehold.run.store import judging
from freehold.serve.worker import client
from tests.sandbox.conftest import all_end

NOW = datetime(2026, 1, 2, 3, 4, 5)
FOLLOW = "import sys, time; from freehold.base.sandbox.children import follow_parent; follow_parent(int(sys.argv[1]))"
SPIN = f"{FOLLOW}; print(flush=True)\nwhile True: pass"


@pytest.fixture
def renderers():
    made = Renderers()
    yield made
    made.close()


def asked(source: str, *renders: dict) -> RenderJob:
    """Return a job without a limit of time that a slow machine could meet first: no claim here is about time."""
    return RenderJob(source, renders or ({},), NOW, 60.0)


@pytest.mark.parametrize("command", [rendering.COMMAND, client.COMMAND, judging.COMMAND])
def test_a_child_imports_nothing_from_the_folder_it_is_started_in(command, tmp_path, monkeypatch):
    """A folder that was fetched may hold a json.py, and a server may be started there."""
    (tmp_path / "freehold.py").write_text("raise SystemExit('imported')")
    (tmp_path / "json.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    done = subprocess.run([*command, "x", "x"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert "imported" not in done.stderr and "ValueError" in done.stderr


def test_a_child_outlives_the_thread_that_wanted_it():
    started: list[subprocess.Popen[bytes]] = []
    thread = threading.Thread(
        target=lambda: started.append(spawn([sys.executable, "-c", SPIN], stdout=subprocess.PIPE))
    )
    thread.start()
    thread.join()
    with started[0] as child:
        assert child.stdout is not None and child.stdout.readline()  # it follows its parent by now
        assert child.poll() is None
        child.kill()


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_child_that_spins_ends_with_a_parent_that_is_killed(platform: str):
    """By the kernel where it is Linux, by a thread that looks elsewhere."""
    spin = f"import sys; sys.platform = {platform!r}; {SPIN}"
    parent = (
        "import subprocess, sys; from freehold.base.sandbox.children import spawn\n"
        f"child = spawn([sys.executable, '-c', {spin!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", parent], **pipes) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        assert child.is_running()
        process.kill()
    assert all_end([child])


def test_a_child_whose_parent_is_gone_before_it_looks_ends_at_once():
    code = f"{FOLLOW}; print('lived')"
    done = subprocess.run([sys.executable, "-c", code, "1"], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


def test_each_render_has_a_text_or_a_reason(renderers: Renderers):
    source = "{% if x == 1 %}{{ raise_exception('no one') }}{% endif %}{{ x }}{{ strftime_now('%Y') }}"
    texts = renderers.run(asked(source, {"x": 1}, {"x": "\ud800"}))
    assert isinstance(texts[0], BadTemplate) and "no one" in texts[0].message
    assert texts[1] == "\ud8002026"


def test_a_renderer_that_is_killed_from_outside_is_replaced(renderers: Renderers):
    assert renderers.run(asked("a")) == ["a"]
    renderers._idle[0]._process.kill()
    assert renderers.run(asked("b")) == ["b"]


def test_renderers_that_left_while_nobody_asked_are_replaced(renderers: Renderers):
    both = threading.Barrier(2)
    source = "{% for i in range(99999) %}{% endfor %}x"
    threads = [threading.Thread(target=lambda: (both.wait(), renderers.run(asked(source)))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for child in renderers._idle:
        child._process.kill()
        child._process.wait()
    assert renderers.run(asked("y")) == ["y"] and len(renderers._idle) == 1


def test_a_renderer_knows_no_secret_of_the_environment(renderers: Renderers, monkeypatch):
    monkeypatch.setenv("FREEHOLD_API_KEY", "secret")
    renderers.run(asked("x"))
    environment = psutil.Process(renderers._idle[0]._process.pid).environ()
    assert "FREEHOLD_API_KEY" not in environment and "HOME" not in environment


def test_a_template_that_used_up_its_memory_leaves_enough_for_the_next(renderers: Renderers):
    grow = "{% set n.a = [n.a, 'x' * 1000000 ~ i] %}"
    hoard = "{% set n = namespace(a=[]) %}{% for i in range(9999) %}" + grow + "{% endfor %}"
    kept = "{{ range(99999) | map('string') | list | length }}"
    for _ in range(2):
        with pytest.raises(BadTemplate, match="more memory"):
            renderers.run(asked(hoard, {}, {}))
        assert renderers.run(asked("{{ 'x' * 15000000 }}"))[0] == "x" * 15_000_000
    assert isinstance(renderers.run(asked(kept))[0], str)


def test_threads_that_render_at_once_get_their_own_texts(renderers: Renderers):
    got: dict[int, list] = {}
    source = "{% for i in range(2000) %}{% endfor %}{{ x }}"
    threads = [
        threading.Thread(target=lambda i=i: got.update({i: renderers.run(asked(source, {"x": i}))}))
        for i in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {i: [str(i)] for i in range(20)}


def test_an_interrupted_render_leaves_no_answer_behind_for_the_next(renderers: Renderers, monkeypatch):
    def interrupted(*_: object, **__: object) -> bytes:
        raise KeyboardInterrupt

    receive = rendering.receive
    monkeypatch.setattr(rendering, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        renderers.run(asked("first"))
    monkeypatch.setattr(rendering, "receive", receive)
    assert renderers.run(asked("second")) == ["second"]


def test_a_renderer_that_does_not_come_to_life_is_no_fault_of_the_template(renderers: Renderers, monkeypatch):
    monkeypatch.setattr(rendering, "COMMAND", (sys.executable, "-c", "import sys; sys.exit(3)"))
    with pytest.raises(CapacityExceeded, match="ended twice"):
        renderers.run(asked("x"))
    monkeypatch.setattr(rendering, "COMMAND", ("/nonexistent/python",))
    with pytest.raises(CapacityExceeded, match="No such file"):
        renderers.run(asked("x"))


@pytest.mark.parametrize(
    "source", ["{{ x | pprint }}", "{{ 'x'.encode() }}", "{{ x is filter }}", "{{ lipsum() }}"]
)
def test_what_is_on_no_list_is_refused_by_name(renderers: Renderers, source: str):
    with pytest.raises(BadTemplate):
        raise renderers.run(asked(source, {}, {}))[0]  # type: ignore[misc]


def test_messages_nested_too_deeply_are_an_error_of_the_request(renderers: Renderers):
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(BadTemplate, match="nested too deeply"):
        renderers.run(asked("x", {"messages": deep}))


@pytest.mark.heavy
def test_neither_server_nor_engine_has_jinja_in_it():
    code = (
        "import sys, freehold.serve.http.serve, freehold.serve.http.ollama.models\n"
        "import freehold.serve.worker.process, freehold.run.local\n"
        "from freehold.run.local import opening; print('jinja2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_renderer_of_a_large_process_does_more_than_one_job():
    code = (
        "from datetime import datetime; from freehold.base.sandbox.rendering import RenderJob, Renderers\n"
        "ballast = bytearray(300 << 20); ballast[::4096] = b'x' * len(ballast[::4096])\n"
        "renderers = Renderers()\n"
        "for _ in range(3): renderers.run(RenderJob('y', ({},), datetime(2026, 1, 2), 1.0))\n"
        "print(len(renderers._idle)); renderers.close()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
