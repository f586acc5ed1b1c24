"""What was computed outlives the engine: as the same bits, or, whatever became of its file, not at all."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from freehold.base.types import KvType
from freehold.run import models
from freehold.run.engine import Engine
from freehold.run.engine.cache import blocks as blocks_module
from freehold.run.engine.cache import disk as disk_module
from freehold.run.engine.cache import disk as tier_module
from freehold.run.engine.cache.capacity import KV_TYPES
from freehold.run.engine.cache.disk import DiskCache, KvPages, dependencies
from freehold.run.engine.cache.pool import PrefixTree, key_of
from freehold.run.engine.schedule.scheduler import Scheduler
from freehold.run.models.load import LoadedModel
from tests.engine.rig import GREEDY, Rig, check_books, sequence

PROMPT = [17 * i % 250 + 5 for i in range(300)]  # nine blocks and a part
WHOLE = 9


@pytest.fixture
def known(model: LoadedModel) -> LoadedModel:
    """The tiny model as the store gives one: with a digest."""
    return replace(model, digest="d" * 64)


def computed(model: LoadedModel, folder: Path, tokens: list[int] = PROMPT, tenant: str = "") -> Rig:
    """Compute a prompt in a first life, and see it written."""
    rig = Rig(model, 16, folder)
    seq = sequence(tokens, tenant)
    rig.step(seq)
    rig.blocks.retire(seq)
    rig.blocks.close()
    return rig


def found(model: LoadedModel, folder: Path, tokens: list[int] = PROMPT, tenant: str = "") -> int:
    """Compute a prompt in a second life, to the bits of a recompute; return the tokens that the disk gave."""
    rig = Rig(model, 16, folder)
    seq = sequence(tokens, tenant)
    row = rig.step(seq)[0]
    assert np.array_equal(row, Rig(model, 16).alone(tokens))
    check_books(rig.blocks, [seq])
    assert seq.num_cached_tokens == rig.blocks.disk_tokens
    rig.blocks.close()
    return rig.blocks.disk_tokens


def files(folder: Path) -> list[Path]:
    """List the blocks on disk, the beginnings of prompts first."""
    return sorted(folder.glob("*.kv"), key=lambda p: p.read_bytes()[72:76])  # tokens up to the block's end


# --- hits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model", "sliding"])
def test_second_life_finds_what_the_first_computed(name: str, request: pytest.FixtureRequest, tmp_path: Path):
    loaded: LoadedModel = request.getfixturevalue(name)
    computed(loaded, tmp_path)
    assert found(loaded, tmp_path) == WHOLE * 32
    assert found(loaded, tmp_path, [*PROMPT[:200], 9, 9]) == 6 * 32
    assert found(loaded, tmp_path, PROMPT[:64]) == 32  # the last token is computed anew


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_engine_continues_what_another_began(known: LoadedModel, tmp_path: Path, kv_type: KvType):
    with Engine(known, context=512, kv_type=kv_type, disk=tmp_path) as engine:
        answer = [out.id for out in engine.generate(PROMPT, GREEDY, max_tokens=40)]
    longer = [*PROMPT, *answer, 8]
    with Engine(known, context=512, kv_type=kv_type, disk=tmp_path) as engine:
        job = engine.generate(longer, GREEDY, max_tokens=10, logprobs=2)
        made = list(job)
        assert job.usage.cached_tokens == engine.stats().disk_tokens == len(longer) // 32 * 32
    fresh = Engine(known, context=512, kv_type=kv_type)
    assert made == list(fresh.generate(longer, GREEDY, max_tokens=10, logprobs=2))


def test_prompt_is_on_disk_before_its_answer_ends(known: LoadedModel, tmp_path: Path):
    engine = Engine(known, context=512, disk=tmp_path)
    answer = engine.generate(PROMPT, GREEDY)
    next(answer)
    tier = engine._blocks._tier
    assert tier is not None and tier._disk is not None
    tier._disk.flush()
    assert len(files(tmp_path)) == WHOLE
    engine.close()


def test_what_the_disk_gave_is_shared_like_anything_else(model: LoadedModel, tmp_path: Path):
    computed(model, tmp_path)
    rig = Rig(model, 24, tmp_path)
    a, b = sequence(PROMPT), sequence([*PROMPT[:250], 9])
    rig.step(a)
    rig.step(b)
    assert (
        b.block_table[:7] == a.block_table[:7]
        and b.num_cached_tokens == 250
        and rig.blocks.disk_tokens == WHOLE * 32
    )
    check_books(rig.blocks, [a, b])


def test_others_wait_for_a_part_of_it_only(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blocks_module, "LOAD_S", 0.0)
    computed(model, tmp_path)
    rig = Rig(model, 24, tmp_path)
    seq = sequence(PROMPT)
    assert rig.blocks.adopt(seq) and seq.num_computed_tokens == WHOLE * 32  # no step waits for it
    rig, seq = Rig(model, 24, tmp_path), sequence([*PROMPT[:290], 9])
    steps = 1
    while not rig.blocks.adopt(seq, hurry=True):
        assert seq.num_computed_tokens == 32 * steps
        steps += 1
    assert steps == WHOLE
    assert np.array_equal(rig.step(seq)[0], rig.alone(seq.tokens))


def test_answer_goes_on_while_the_disk_is_read_for_another(
    known: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with Engine(known, context=512, disk=tmp_path) as engine:
        first = [out.id for out in engine.generate(PROMPT, GREEDY, max_tokens=4)]
    monkeypatch.setattr(blocks_module, "LOAD_S", 0.0)
    with Engine(known, context=512, blocks=64, speculate=False, disk=tmp_path) as engine:
        running = engine.generate([9, 8, 7], GREEDY, max_tokens=60)
        next(running)
        job = engine.generate(PROMPT, GREEDY, max_tokens=4)
        job.start()
        read = [0]
        while read[-1] < WHOLE * 32:
            next(running)
            read.append(engine.stats().disk_tokens)
        assert {b - a for a, b in pairwise(read)} <= {0, 32}
        assert [out.id for out in job] == first and job.usage.cached_tokens == WHOLE * 32


def test_answer_that_began_to_read_the_disk_does_not_fork_its_parent(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blocks_module, "LOAD_S", 0.0)
    computed(model, tmp_path)
    rig, first, second = Rig(model, 64, tmp_path), sequence(PROMPT), sequence(PROMPT)
    second.parent, scheduler = first, Scheduler(rig.blocks)
    second.loading = not rig.blocks.adopt(second, hurry=True)  # while the first was preempted
    rig.step(first)
    scheduler.add(first)
    assert second.loading and scheduler._adopt(second)
    assert second.num_computed_tokens == WHOLE * 32
    check_books(rig.blocks, [first, second])


def test_pool_without_room_takes_what_fits(model: LoadedModel, tmp_path: Path):
    computed(model, tmp_path)
    rig = Rig(model, 10, tmp_path)
    rig.step(sequence([9] * 150))
    seq = sequence(PROMPT)
    assert rig.blocks.adopt(seq) and seq.num_computed_tokens == 5 * 32 and rig.blocks.available == 0


def test_copies_that_are_due_come_before_what_is_read(model: LoadedModel, tmp_path: Path):
    computed(model, tmp_path)
    rig = Rig(model, 11, tmp_path)
    end = sequence([7] * 20)
    rig.step(end)
    rig.blocks.retire(end)
    early = sequence([*[7] * 20, 9])
    rig.blocks.adopt(early)  # by a copy of the block that the disk's last one will lie in
    late = sequence(PROMPT)
    rig.blocks.adopt(late)
    assert rig.blocks.available == 1
    rig.blocks.release(late)
    assert np.array_equal(rig.step(early)[0], Rig(model, 8).alone(early.tokens))


# --- misses ------------------------------------------------------------------------------------------


def test_another_tenant_or_model_or_type_finds_nothing(model: LoadedModel, tmp_path: Path):
    computed(model, tmp_path, tenant="secret key")
    assert found(model, tmp_path) == found(model, tmp_path, tenant="other") == 0
    assert found(replace(model, digest="e" * 64), tmp_path, tenant="secret key") == 0
    assert found(model, tmp_path, tenant="secret key") == WHOLE * 32


def test_key_names_all_that_bits_depend_on(model: LoadedModel, monkeypatch: pytest.MonkeyPatch):
    key = dependencies(model, "f16")
    assert dependencies(model, "q8") != key
    assert dependencies(replace(model, digest="x"), "f16") != key
    monkeypatch.setattr(disk_module.native, "REVISION", "another")
    assert dependencies(model, "f16") != key


def test_a_change_of_any_parts_source_misses(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Forward passes lie in models/parts and models/families, below the folder that holds the package."""
    copy = tmp_path / "models"
    shutil.copytree(Path(models.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(models, "__file__", str(copy / "__init__.py"))
    key = dependencies(model, "f16")
    for source in ("parts/attention.py", "families/qwen2.py"):
        with open(copy / source, "a", encoding="utf-8") as file:
            file.write("\n")
        before, key = key, dependencies(model, "f16")
        assert key != before


def test_tenants_name_is_not_on_disk(model: LoadedModel, tmp_path: Path):
    computed(model, tmp_path, tenant="sk-very-secret")
    assert all(b"secret" not in p.read_bytes() and "secret" not in p.name for p in files(tmp_path))


def flip(at: int) -> Callable[[Path], None]:
    """Change one byte."""

    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)

    return damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def exchange(path: Path) -> None:
    """Let it be another block under its name, whole and sound."""
    other = files(path.parent)[0]
    path.write_bytes(other.read_bytes())


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE = [flip(0), flip(9), flip(41), flip(75), flip(90), flip(-1), cut, lengthen, empty, exchange, pipe]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_file_is_a_miss_and_removed(
    model: LoadedModel, tmp_path: Path, damage: Callable[[Path], None]
):
    computed(model, tmp_path)
    victim = files(tmp_path)[4]
    damage(victim)
    rig = Rig(model, 16, tmp_path)
    seq = sequence(PROMPT)
    rig.blocks.adopt(seq)
    assert seq.num_computed_tokens == 4 * 32 and not victim.exists()
    rig.blocks.release(seq)
    assert np.array_equal(rig.step(seq)[0], Rig(model, 16).alone(PROMPT))
    rig.blocks.retire(seq)
    rig.blocks.close()
    assert found(model, tmp_path) == WHOLE * 32  # and it was written again


def test_link_is_not_followed(model: LoadedModel, tmp_path: Path):
    computed(model, tmp_path)
    victim = files(tmp_path)[2]
    victim.rename(tmp_path / "elsewhere")
    victim.symlink_to(tmp_path / "elsewhere")
    assert found(model, tmp_path) == 2 * 32


# --- writing -----------------------------------------------------------------------------------------


def test_short_prompts_are_not_kept(model: LoadedModel, tmp_path: Path):
    computed(model, tmp_path, PROMPT[: 32 * tier_module.KEPT_BLOCKS - 1])
    assert not files(tmp_path)


def test_folder_and_files_are_the_users_alone(model: LoadedModel, tmp_path: Path):
    folder = tmp_path / "prefixes"
    computed(model, folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o600}
    assert {p.suffix for p in folder.iterdir()} == {".kv"}


def test_block_that_was_taken_before_its_turn_is_not_written(model: LoadedModel, tmp_path: Path):
    rig = Rig(model, 16, tmp_path)
    assert rig.disk is not None
    nodes = []
    above = rig.blocks.pool.tree.root("|")
    for i in range(3):
        above = rig.blocks.pool.tree.insert(above, key_of([i] * 32), i)
        nodes.append(above)
    content = rig.runner.cache.read_block(0)
    rig.disk.keep(
        "|", [node.key for node in nodes], nodes, 0, lambda node, _: None if node is nodes[1] else content
    )
    rig.disk.flush()
    assert len(files(tmp_path)) == 1 and rig.disk.dropped == 2
    assert [node.kept for node in nodes] == [True, False, False]


def test_states_are_found_where_no_layer_has_pages(tmp_path: Path):
    tree = PrefixTree()
    nodes = [tree.insert(tree.root("|"), key_of([7] * 32), 0)]
    contents = [np.empty(0, np.uint8), np.arange(8, dtype=np.uint8)]
    disk = DiskCache(tmp_path, {}, pages=0, state=8)
    disk.keep("|", [node.key for node in nodes], nodes, 0, lambda _, part: contents[part])
    disk.close()
    again, keys = DiskCache(tmp_path, {}, pages=0, state=8), [nodes[0].key]
    assert len(list(again.read("|", keys, 0))) == again.last_state("|", keys, 0) == 1
    state = again.read_state("|", keys)
    assert state is not None and np.array_equal(state, contents[1])


def test_folder_that_cannot_be_written_costs_hits_alone(model: LoadedModel, tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    rig = computed(model, blocked)
    assert rig.disk is not None and rig.disk.dropped >= WHOLE
    assert found(model, blocked) == 0


def test_more_prompts_than_can_wait_are_dropped_and_counted(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(disk_module, "QUEUE", 0)
    rig = computed(model, tmp_path)
    assert rig.disk is not None and rig.disk.dropped == 2 * WHOLE and not files(tmp_path)


def test_budget_keeps_what_was_used_last_and_the_beginnings_of_the_rest(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    utime = os.utime
    monkeypatch.setattr(os, "utime", lambda *a, **k: (time.sleep(0.002), utime(*a, **k)))  # a busy disk
    first, second, third = PROMPT, PROMPT[::-1], [9] * 256
    computed(model, tmp_path, first)
    computed(model, tmp_path, second)
    budget = sum(p.stat().st_size for p in files(tmp_path)) * 22 // 18
    for path in files(tmp_path):  # a minute ago
        used = path.stat().st_mtime_ns - 60 * 10**9
        os.utime(path, ns=(used, used))
    found(model, tmp_path, first)  # used again
    rig = Rig(model, 16)
    pages = KvPages(rig.runner.cache)
    rig.blocks.attach(DiskCache(tmp_path, dependencies(model, "f16"), pages.nbytes, budget=budget), pages)
    seq = sequence(third)
    rig.step(seq)
    rig.blocks.retire(seq)
    rig.blocks.close()
    assert sum(p.stat().st_size for p in files(tmp_path)) <= budget
    left = len(files(tmp_path)) - WHOLE - 8
    assert found(model, tmp_path, first) == WHOLE * 32
    assert found(model, tmp_path, [*third, 1]) == 8 * 32
    assert 0 < left < WHOLE and found(model, tmp_path, second) == left * 32


def test_what_a_dead_process_left_half_written_is_removed(model: LoadedModel, tmp_path: Path):
    old, new = tmp_path / "old.1.part", tmp_path / "new.2.part"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    computed(model, tmp_path)
    assert not old.exists() and new.exists()


def test_model_without_a_digest_leaves_nothing_behind(model: LoadedModel, tmp_path: Path):
    with Engine(model, context=512, disk=tmp_path) as engine:
        list(engine.generate(PROMPT, GREEDY, max_tokens=3))
    assert not list(tmp_path.iterdir())
