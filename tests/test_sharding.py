"""Four commits in a row run every case, and each run has every test but the heavy ones."""

from __future__ import annotations

from tests.sharding import SHARDS, runs

IDS = [f"tests/a.py::test_{name}[{case}]" for name in "abcdefgh" for case in range(50)] + [
    "tests/a.py::test_one"
]


def chosen(shard: int) -> set[str]:
    return {id for id, ran in zip(IDS, runs(IDS, shard=shard), strict=True) if ran}


def test_four_shards_have_every_case():
    assert set().union(*map(chosen, range(SHARDS))) == set(IDS)


def test_each_shard_has_every_test_and_about_a_quarter_of_the_cases():
    for shard in range(SHARDS):
        assert {id.partition("[")[0] for id in chosen(shard)} == {id.partition("[")[0] for id in IDS}
        assert len(IDS) / 8 < len(chosen(shard)) < len(IDS) / 2


def test_a_case_stays_in_its_shard_when_other_tests_come():
    kept = [id for id in IDS if "test_c" in id]
    assert runs(kept, shard=1) == [
        ran for id, ran in zip(IDS, runs(IDS, shard=1), strict=True) if "test_c" in id
    ]


def test_a_shard_has_a_quarter_of_heavy_tests():
    heavy = {id for id in IDS if "test_a" in id} | {"tests/a.py::test_one"}
    shards = [
        {id for id, ran in zip(IDS, runs(IDS, shard=shard, heavy=heavy), strict=True) if ran}
        for shard in range(SHARDS)
    ]
    assert all(sum(id in shard for shard in shards) == 1 for id in heavy)
    assert all("tests/a.py::test_b[0]" in shard for shard in shards)
