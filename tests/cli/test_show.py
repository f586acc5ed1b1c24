"""`freehold show`: lines that explain what a reader would stumble over."""

from __future__ import annotations

from freehold.cli.show import _parameters


def test_a_file_that_repeats_the_embedding_says_why_it_has_more_weights_than_the_model():
    card = {"parameters": 630, "output_parameters": 136, "catalogue": {"parameters": 494}}
    assert _parameters(card) == (
        "630 in the file, 494 in the model: the file repeats the embedding as output.weight"
    )


def test_an_output_matrix_of_its_own_is_counted_like_any_other():
    card = {
        "parameters": 8_000_000_000,
        "output_parameters": 500_000_000,
        "catalogue": {"parameters": 8_000_000_000},
    }
    assert _parameters(card) == "8,000 million" and _parameters({"catalogue": None}) == ""
