"""Traces are read as they are published, and nothing of them is left out in silence."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from freehold.base.errors import UsageError
from freehold.outgrow.capacity import trace

HERE = Path(__file__).parent


def test_azures_csv_is_read_with_its_seven_digits():
    found = trace.from_file(HERE / "azure-conv-1000.csv")
    assert len(found.requests) == 1000
    first, second = found.requests[:2]
    assert (first.at, first.prompt, first.answer) == (0.0, 374, 44)
    assert second.at == pytest.approx(4.314579, abs=1e-6)
    assert found.block == 0


def test_mooncakes_lines_keep_whole_blocks_and_seconds():
    found = trace.from_file(HERE / "mooncake-200.jsonl")
    one, two = found.requests[:2]
    assert len(found.requests) == 200 and found.block == 512
    assert one.blocks[0] == two.blocks[0] and len(one.blocks) == 6758 // 512
    assert found.span_s < 100


def test_a_gzipped_trace_is_the_same(tmp_path: Path):
    packed = tmp_path / "a.csv.gz"
    packed.write_bytes(gzip.compress((HERE / "azure-conv-1000.csv").read_bytes()))
    assert trace.from_file(packed).requests == trace.from_file(HERE / "azure-conv-1000.csv").requests


def test_columns_of_other_names_and_plain_seconds_are_read_and_sorted(tmp_path: Path):
    (tmp_path / "a.csv").write_text("id,time,output_tokens,input_tokens\nb,7.5,20,100\na,5,10,50\n")
    found = trace.from_file(tmp_path / "a.csv")
    assert [(r.at, r.prompt, r.answer) for r in found.requests] == [(0.0, 50, 10), (2.5, 100, 20)]


@pytest.mark.parametrize(
    "text, told",
    [
        ("time,input,output\n1,2,3\nx,2,3\n", "line 3"),
        ("time,input,output\n1,2\n", "line 2: 2 values"),
        ("time,input,output\n1,-2,3\n", "line 2"),
        ("time,input\n1,2\n", "tokens written"),
        ("time,input,output\n", "no request"),
        ("time,input,output\ninf,2,3\n", "line 2: a request at inf s"),
        ('{"timestamp": NaN, "input_length": 5, "output_length": 1}\n', "line 1: a request at nan s"),
        ('{"timestamp": 0, "input_length": Infinity, "output_length": 1}\n', "line 1"),
        ('{"timestamp": 0, "input_length": 5}\n', "line 1: it has no output_length"),
        ('{"timestamp": 0, "input_length": "5", "output_length": 1}\n', "line 1: its input_length is not"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": "abc"}\n', "its hash_ids"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 1}\n[1]\n', "line 2: not a JSON object"),
        ('{"x": ' + "[" * 100_000 + "\n", "line 1"),
        ("time,input,output\n1790000000000,2,3\n", "line 2: a request at 1.79e+12 s"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 1}\nnot json\n', "line 2"),
        ("", "no column"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, told: str):
    (tmp_path / "a").write_text(text)
    with pytest.raises(UsageError) as refused:
        trace.from_file(tmp_path / "a")
    assert told in refused.value.message


def test_lines_of_mooncake_s_form_without_hashes_are_read(tmp_path: Path):
    row = '{"timestamp": 27000, "input_length": 1024, "output_length": 2'
    (tmp_path / "a").write_text(f'{row}}}\n{row}, "hash_ids": null}}\n{row}, "hash_ids": [7]}}\n')
    found = trace.from_file(tmp_path / "a")
    assert [r.blocks for r in found.requests] == [(), (), (7,)] and found.block == 512


def test_what_is_no_file_or_no_text_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="no trace"):
        trace.from_file(tmp_path / "gone.csv")
    (tmp_path / "broken.gz").write_bytes(b"\x1f\x8bnot a gzip")
    (tmp_path / "binary").write_bytes(b"time,input,output\n\xff\xfe,\x00,1\n")
    for name in ("broken.gz", "binary"):
        with pytest.raises(UsageError, match="cannot be read"):
            trace.from_file(tmp_path / name)


def test_made_up_requests_have_the_rate_and_the_lengths_that_were_asked():
    found = trace.steady(5, 200, 50, seconds=2000, vary=True)
    assert found.rate == pytest.approx(5, rel=0.05)
    assert found.prompt_mean == pytest.approx(200, rel=0.05)
    assert trace.steady(5, 200, 50).requests == trace.steady(5, 200, 50).requests
    for wrong in ((0, 1, 1), (5, 0, 1), (1e9, 1, 1)):
        with pytest.raises(UsageError):
            trace.steady(*wrong)


def test_a_trace_can_be_cut_and_sped_up():
    found = trace.steady(5, 200, 50, seconds=100)
    assert found.faster(2).rate == pytest.approx(2 * found.rate)
    assert found.first(10).requests[-1].at <= 10
    for wrong in (0, float("inf"), float("nan"), 1e-300):
        with pytest.raises(UsageError):
            found.faster(wrong)


def test_rows_of_a_ledger_become_a_trace():
    found = trace.from_rows([(100.5, 10, 2), (100.0, 7, 0)], "ledger")
    assert [(r.at, r.prompt, r.answer) for r in found.requests] == [(0.0, 7, 1), (0.5, 10, 2)]
