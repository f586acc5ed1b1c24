"""What configs of Falcon, GPT-BigCode, OPT, MiniCPM3 and Apertus state, where families' first files differ."""

from __future__ import annotations

from typing import Any

import pytest

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats.fields import Fields
from freehold.run.models.families import apertus, falcon, minicpm3, opt, starcoder
from freehold.run.models.parts.attention import Attention
from freehold.run.models.tiny import make

READERS: dict[str, Any] = {
    "falcon": falcon.config_from_hf,
    "gpt_bigcode": starcoder.config_from_hf,
    "opt": opt.config_from_hf,
    "minicpm3": minicpm3.config_from_hf,
    "apertus": apertus.config_from_hf,
}


def config(name: str, **changes: Any) -> Any:
    return READERS[name](Fields(make.config(name).hf | changes))


@pytest.mark.parametrize(
    ("name", "changes", "kind", "named"),
    [
        ("falcon", {"alibi": True}, UnsupportedModel, "alibi"),
        ("falcon", {"bias": True}, UnsupportedModel, "bias"),
        ("falcon", {"parallel_attn": False}, UnsupportedModel, "parallel_attn"),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 3}, BadModelFile, "do not divide 4"),
        ("gpt_bigcode", {"multi_query": False}, UnsupportedModel, "multi_query"),
        ("gpt_bigcode", {"activation_function": "relu"}, UnsupportedModel, "activation_function"),
        ("opt", {"do_layer_norm_before": False}, UnsupportedModel, "do_layer_norm_before"),
        ("opt", {"word_embed_proj_dim": 32}, UnsupportedModel, "word_embed_proj_dim is 32"),
        ("opt", {"activation_function": "gelu"}, UnsupportedModel, "activation_function"),
        ("minicpm3", {"mlp_bias": True}, UnsupportedModel, "mlp_bias"),
        ("minicpm3", {"num_key_value_heads": 2}, UnsupportedModel, "num_key_value_heads is 2"),
        ("apertus", {"attention_bias": True}, UnsupportedModel, "attention_bias"),
        ("apertus", {"hidden_act": "relu2"}, UnsupportedModel, "hidden_act"),
    ],
)
def test_what_is_not_computed_is_refused_by_its_key(
    name: str, changes: dict[str, Any], kind: type[Exception], named: str
):
    with pytest.raises(kind, match=named):
        config(name, **changes)


def test_falcons_first_names_mean_todays():
    today = make.config("falcon-groups").hf
    names = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer", "num_kv_heads": "n_head_kv"}
    first = {names.get(key, key): value for key, value in today.items()}
    assert falcon.config_from_hf(Fields(first)) == falcon.config_from_hf(Fields(today))


def test_a_falcon_without_shared_heads_has_as_many_keys_as_queries():
    assert config("falcon", multi_query=False).kv_heads == (4, 4, 4)
    assert config("falcon").kv_heads == (1, 1, 1)


def test_a_bigcodes_act_may_be_either_gelu():
    assert (
        config("gpt_bigcode").act == "gelu"
        and config("gpt_bigcode", activation_function="gelu").act == "gelu_erf"
    )


def test_an_opt_of_ggufs_is_refused_with_the_way_out():
    with pytest.raises(UnsupportedModel) as error:
        opt.config_from_gguf(Fields({}), 256)
    assert "opt" in error.value.message and "safetensors" in (error.value.hint or "")


def test_a_minicpm3_without_a_values_width_divides_the_hidden_one():
    assert config("minicpm3").value == 64 // 4
    assert config("minicpm3", v_head_dim=32).value == 32


def test_minicpm3_has_the_4bs_factors_in_a_gguf():
    read = minicpm3.config_from_gguf(Fields(make.config("minicpm3").gguf, "minicpm3."), 256)
    stated = config("minicpm3")
    for key in ("embeddings", "residual", "logits", "value", "nope", "turned", "scale"):
        assert getattr(read, key) == getattr(stated, key), key


def test_an_apertus_that_states_no_rope_has_its_classs():
    rope = config("apertus", rope_parameters=None).rope
    assert rope is not None and (rope.scaling, rope.base, rope.original) == ("llama3", 12e6, 8192)


def test_positions_begin_at_the_third_row():
    table = opt.FAMILY.ends(config("opt")).tensors()["positions"].hf[0]
    assert not isinstance(table, str) and (table.shape[0], next(iter(table.rows or ()))) == (258, 2)


def test_a_value_a_layer_is_read_of_lists_and_refused_of_others():
    keys = make.config("apertus").gguf
    cfg = apertus.config_from_gguf(Fields(keys, "apertus."), 256)
    assert len(cfg.activations) == 4 and cfg.activations[0].alpha_p == keys["xielu.alpha_p"][0]
    for wrong in ([0.5, 0.5], [0.5, 0.5, 0.5, float("nan")], [0.5, 0.5, 0.5, True], None):
        with pytest.raises(BadModelFile, match=r"xielu\.alpha_p"):
            apertus.config_from_gguf(Fields(keys | {"xielu.alpha_p": wrong}, "apertus."), 256)
    part = apertus.layer(cfg, 0)[0]
    assert isinstance(part, Attention)
