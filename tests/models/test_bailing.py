"""What Ling 3's files state of groups of layers, decays and limits, and what Kolibri's state of routers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.base.layers import kept_bytes, recurrent_bytes
from freehold.choose.advisor.file_anatomy import from_file
from freehold.run.formats import open_model_file
from freehold.run.formats.fields import Fields
from freehold.run.models.binding.bind import read_source
from freehold.run.models.families import kolibri1
from freehold.run.models.families.bailingmoe3 import BailingSizes, config_from_hf
from freehold.run.models.parts.moe import Moe
from freehold.run.models.tiny import make
from tests.models.golden import write_model


def config(**changes: Any) -> BailingSizes:
    return config_from_hf(Fields(make.config("bailing_hybrid").hf | changes))


def test_both_formats_state_the_same_layers(tmp_path: Path):
    read: list[BailingSizes] = []
    for form in ("hf", "gguf"):
        (folder := tmp_path / form).mkdir()
        read.append(read_source(open_model_file(write_model("bailing_hybrid", form, folder))).cfg)
    for key in (
        "delta",
        "recurrent",
        "bound",
        "mixture",
        "latent",
        "query",
        "nope",
        "turned",
        "value",
        "limits",
    ):
        assert getattr(read[0], key) == getattr(read[1], key), key
    assert read[0].recurrent == (True, True, True, False) and read[0].bound == -5.0


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_fit_keeps_what_the_engine_keeps(form: str, tmp_path: Path):
    path = write_model("bailing_hybrid", form, tmp_path)
    layers = [layer.keeps for layer in read_source(open_model_file(path)).network.layers]
    anatomy = from_file(path)
    assert kept_bytes(anatomy.layers, 100) == kept_bytes(layers, 100) > 0
    assert recurrent_bytes(anatomy.layers) == recurrent_bytes(layers) > 0


def test_lists_may_count_the_layers_that_draft():
    cfg = config(num_nextn_predict_layers=1, expert_swiglu_limit_list=[0.0, None, 7.0, 7.0, 0.0])
    assert cfg.layers == 4 and cfg.limits == (0.0, 0.0, 7.0, 7.0)


def test_makers_keys_mean_transformers():
    own = make.config("bailing_hybrid").hf
    names = {"max_position_embeddings": "model_max_length", "num_experts_per_tok": "num_experts_per_token"}
    names |= {"n_group": "num_expert_group"}
    renamed = {names.get(key, key): value for key, value in own.items() if key != "n_shared_experts"}
    assert config_from_hf(Fields(renamed)) == config()


@pytest.mark.parametrize(
    ("changes", "kind", "named"),
    [
        ({"no_kda_lora": False}, UnsupportedModel, "no_kda_lora"),
        ({"kda_safe_gate": False}, UnsupportedModel, "kda_safe_gate"),
        ({"gated_attention_proj_granularity_type": "elementwise"}, UnsupportedModel, "granularity"),
        ({"kda_lower_bound": 0.5}, BadModelFile, "kda_lower_bound"),
        ({"topk_group": 5}, BadModelFile, "topk_group"),
    ],
)
def test_what_is_not_computed_is_refused_by_its_key(
    changes: dict[str, Any], kind: type[Exception], named: str
):
    with pytest.raises(kind, match=named):
        config(**changes)


# --- Kolibri -----------------------------------------------------------------------------------------------


def kolibri(**changes: Any) -> Any:
    return kolibri1.config_from_hf(Fields(make.config("kolibri1").hf | changes))


def test_every_fifth_layer_of_a_kolibri_sees_all_tokens_without_a_rope():
    cfg = kolibri(layer_types=None, num_hidden_layers=10, sliding_window=None)
    assert cfg.windows == (513, 513, 513, 513, 0) * 2
    assert [kolibri1.layer(cfg, i)[0].rope is None for i in range(5)] == [False] * 4 + [True]


def test_a_kolibris_correction_joins_logits():
    routing = kolibri().mixture.routing
    assert (routing.scoring, routing.renormalise, routing.corrects_logits) == ("sigmoid", False, True)
    assert kolibri(norm_topk_prob=True).mixture.routing.renormalise
    assert isinstance(kolibri1.layer(kolibri(), 0)[1], Moe)


def test_a_kolibri_of_ggufs_is_refused_with_the_way_out():
    with pytest.raises(UnsupportedModel) as error:
        kolibri1.config_from_gguf(Fields({}), 256)
    assert "kolibri1" in error.value.message and "safetensors" in (error.value.hint or "")
