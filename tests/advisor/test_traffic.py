"""Traffic from figures and from a CSV: sums are right, lengths are kept apart, bad lines are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.base.errors import UsageError
from freehold.choose.advisor import breakeven
from freehold.choose.advisor.breakeven import from_csv, from_figures

EDGES = (100_000, 200_000)


def made(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "use.csv"
    path.write_text(text, encoding="utf-8")
    return path


@given(st.floats(1, 1e12), st.floats(0, 0.99), st.floats(0, 1), st.floats(1, 1e6))
def test_figures_add_up(tokens: float, share: float, cached: float, size: float):
    found = from_figures(tokens, share, cached, size)
    assert found.tokens == pytest.approx(tokens)
    assert found.input == pytest.approx(tokens * share)
    assert found.cached == pytest.approx(tokens * share * cached)
    assert found.requests == pytest.approx(tokens / size)


@pytest.mark.parametrize(
    "figures, said",
    [
        ((0, 0.5, 0, 2000), "0 tokens a day"),
        ((1e16, 0.5, 0, 2000), "not within"),
        ((1e6, 1.0, 0, 2000), "leaves no answers"),
        ((1e6, -0.1, 0, 2000), "leaves no answers"),
        ((1e6, 0.5, 1.1, 2000), "cached share"),
        ((1e6, 0.5, 0, 0), "tokens a request"),
    ],
)
def test_impossible_figures_are_refused(figures: tuple[float, ...], said: str):
    with pytest.raises(UsageError, match=said):
        from_figures(*figures)


def test_growth_is_the_mean_of_its_months():
    day = from_figures(1e6, 0.5, 0, 1000)
    assert day.growing(0.1, 3).tokens == pytest.approx(1e6 * (1 + 1.1 + 1.21) / 3)
    assert day.growing(0, 24) is day
    with pytest.raises(UsageError, match="growth"):
        day.growing(2, 12)


def test_a_csv_is_summed_by_length_and_by_hour(tmp_path: Path):
    path = made(
        tmp_path,
        "time,requests,input_tokens,cached_tokens,output_tokens\n"
        "2026-11-23T09:10,10,50000,20000,5000\n"  # 5,000 each
        "2026-11-23T09:50+00:00,,150000,,1000\n"  # one long request
        "2026-11-24T23:00+01:00,1,100000,0,1000\n",  # an edge belongs to the shorter ones; 22 o'clock UTC
    )
    found = from_csv(path, EDGES)
    assert found.requests == 12 / 2 and found.input == 300_000 / 2 and found.output == 7_000 / 2
    assert found.cached == 20_000 / 2
    assert [s.a_day for s in found.shapes] == [11 / 2, 1 / 2]
    assert found.shapes[1].request.input == 150_000
    assert found.hours[9] == pytest.approx(206 / 307) and found.hours[22] == pytest.approx(101 / 307)
    assert found.peak == pytest.approx(206_000 / (307_000 / 48))
    assert found.source == "use.csv, 2026-11-23 to 2026-11-24"


def test_days_alone_tell_no_hours(tmp_path: Path):
    found = from_csv(
        made(tmp_path, "time,input_tokens,output_tokens\n2026-11-01,3,1\n2026-11-10,3,1\n"), EDGES
    )
    assert found.peak is None and found.tokens == 0.8


@pytest.mark.parametrize(
    "text, said",
    [
        ("time,input_tokens,output_token\n", "did you mean output_tokens"),
        ("time,input_tokens\n", "no column output_tokens"),
        ("", "no column time"),
        ("time,input_tokens,output_tokens\n", "has no answers"),
        ("time,input_tokens,output_tokens\n2026-11-01,5,0\n", "has no answers"),
        (
            "time,input_tokens,output_tokens\n2026-11-01,1,1\nyesterday,1,1\n2026-11-02,x,1\n2026-11-03,1\n",
            "line 3: time 'yesterday'.*line 4: input_tokens 'x'.*line 5: output_tokens is empty",
        ),
        ("time,input_tokens,output_tokens\n" + "x,1,1\n" * 9, "line 6: .*and 4 more"),
        ("time,input_tokens,output_tokens\n2026-11-01,-5,1\n", "line 2: input_tokens -5 is not within"),
        ("time,input_tokens,output_tokens\n2026-11-01,nan,1\n", "line 2: input_tokens nan is not within"),
        (
            "time,input_tokens,output_tokens,cached_tokens\n2026-11-01,5,1,6\n",
            "line 2: 6 tokens cached .*of 5",
        ),
        ("time,input_tokens,output_tokens,requests\n2026-11-01,5,1,0\n", "line 2: requests 0"),
    ],
)
def test_bad_csv_is_refused_with_its_lines(tmp_path: Path, text: str, said: str):
    with pytest.raises(UsageError) as raised:
        from_csv(made(tmp_path, text), EDGES)
    told = f"{raised.value.message} {raised.value.hint}"
    import re

    assert re.search(said, told), told


def test_files_that_are_no_csv_or_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match="No such file"):
        from_csv(tmp_path / "none.csv", EDGES)
    binary = tmp_path / "b.csv"
    binary.write_bytes(b"time,input_tokens,output_tokens\n\xff\xfe\n")
    with pytest.raises(UsageError, match="not a CSV file in UTF-8"):
        from_csv(binary, EDGES)
    path = made(tmp_path, "time,input_tokens,output_tokens\n2026-11-01,1,1\n2026-11-01,1,1\n")
    monkeypatch.setattr(breakeven, "MOST_ROWS", 1)
    with pytest.raises(UsageError, match="more than 1 lines"):
        from_csv(path, EDGES)
    monkeypatch.setattr(breakeven, "MOST_BYTES", 10)
    with pytest.raises(UsageError, match="more than 10"):
        from_csv(path, EDGES)
