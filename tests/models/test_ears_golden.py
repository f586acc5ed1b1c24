"""Towers of sound compute what transformers computed of sounds and chats, from both forms of files on.

Golden files: tests/vectors/make_ears.py.
"""

from __future__ import annotations

import json
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import freehold
from freehold import Audio, Message
from freehold.base.errors import BadModelFile, ContextOverflow, UnsupportedModel, UsageError
from freehold.base.serving import Job
from freehold.run.formats import open_model_file
from freehold.run.formats.fields import Fields
from freehold.run.local import opening
from freehold.run.models.binding.towers import read_tower
from freehold.run.models.load import LoadedModel, load_model
from freehold.run.models.oracle.session import Oracle
from freehold.run.models.oracle.tower import TowerOracle
from freehold.run.models.seeing import LoadedTower, load_tower
from freehold.run.models.tiny import make
from freehold.run.models.towers import gemma4_audio, gemma4_unified_audio, registered, voxtral
from freehold.run.store import eyes as store_eyes
from tests.models.golden_towers import (
    check_greedy,
    cosines,
    error,
    golden,
    lay_out,
    native_logits,
    oracle_logits,
)
from tests.vectors.ears import CHATS, KEPT, LENGTHS, NAMES, RATE, recording, samples
from tests.vectors.weights import checksum

BOUND = 1e-3  # of features and logits, in standard deviations of the golden ones
F32 = np.ndarray


class Hearing:
    """A model's files in one form, and what its golden file has."""

    def __init__(self, name: str, form: str, folder: Path) -> None:
        tiny = make.config(name)
        self.name, self.golden = name, golden(name)
        self.text_path = self.tower_path = folder / name
        if form == "safetensors":
            make.write_safetensors(tiny, self.text_path)
        else:
            self.text_path = make.write_gguf(tiny, folder / f"{name}.gguf")
            self.tower_path = make.write_mmproj(tiny, folder / "mmproj.gguf")

    @cached_property
    def text(self) -> LoadedModel:
        return load_model(self.text_path, threads=1)

    @cached_property
    def tower(self) -> LoadedTower:
        return self.tower_of(None)

    def tower_of(self, rounding: Any) -> LoadedTower:
        tower = load_tower(self.tower_path, self.text, rounding=rounding, hears=True)
        assert tower is not None
        return tower

    def heard(self, number: int) -> Any:
        return self.tower.plan(LENGTHS[number], 1), [samples(number)]

    @cached_property
    def features(self) -> list[F32]:
        return [self.tower.features([self.heard(i)])[0] for i in range(len(LENGTHS))]

    def chat(self, number: int) -> Any:
        shown = [part for _, parts in CHATS[number] for part in parts if isinstance(part, int)]
        plans, features = [self.heard(i)[0] for i in shown], [self.features[i] for i in shown]
        mark = make.config(self.name).hf["audio_token_id"]
        return lay_out(self.golden[f"ids_{number}"].tolist(), mark, plans, features, both=False)


FORMS = [(name, form) for name in NAMES for form in ("safetensors", "gguf")]


@pytest.fixture(scope="module", params=FORMS, ids=lambda it: "-".join(it))
def hearing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Hearing:
    name, form = request.param
    return Hearing(name, form, tmp_path_factory.mktemp("hearing"))


@pytest.mark.parametrize("name", NAMES)
def test_golden_file_was_made_from_these_weights(name: str):
    stored, tiny = golden(name), make.config(name)
    assert int(stored["weights_crc32"]) == checksum(make.hf_tensors(tiny))
    assert json.loads(str(stored["config"])) == tiny.hf


def test_native_plan_computes_the_golden_features(hearing: Hearing):
    for i, features in enumerate(hearing.features):
        assert error(features, hearing.golden[f"features_{i}"]) <= BOUND, i


def test_oracle_computes_the_golden_features(hearing: Hearing):
    oracle = TowerOracle(hearing.tower_path, hears=True)
    for i in range(len(LENGTHS)):
        assert error(oracle.features(*hearing.heard(i)), hearing.golden[f"features_{i}"]) <= BOUND, i


def test_sounds_computed_together_have_the_bits_of_each_alone(hearing: Hearing):
    order = (3, 0, 2, 1, 0)
    together = hearing.tower.features([hearing.heard(i) for i in order])
    assert all(np.array_equal(a, hearing.features[i]) for a, i in zip(together, order, strict=True))


def test_int8_panels_stay_near_the_golden_features(hearing: Hearing):
    tower = hearing.tower_of("q8")
    assert "Q8_0" in {m.weight_type for m in tower.matrices.values()}
    for i in range(len(LENGTHS)):
        (features,) = tower.features([hearing.heard(i)])
        assert cosines(features, hearing.golden[f"features_{i}"]).min() >= 0.998, i


def test_native_plan_computes_the_golden_logits(hearing: Hearing):
    for number in range(len(CHATS)):
        chat = hearing.chat(number)
        whole = native_logits(hearing.text, chat, [len(chat.ids)])
        assert error(whole[-KEPT:], hearing.golden[f"full_{number}"]) <= BOUND, number
        assert np.array_equal(whole, native_logits(hearing.text, chat, chat.pieces))


def test_oracle_computes_the_golden_logits(hearing: Hearing):
    oracle = Oracle(hearing.text_path)
    for number in range(len(CHATS)):
        chat = hearing.chat(number)
        logits = oracle_logits(oracle, chat, [len(chat.ids)])
        assert error(logits[-KEPT:], hearing.golden[f"full_{number}"]) <= BOUND, number


def test_greedy_answers_have_the_tokens_of_transformers(hearing: Hearing):
    for number in range(len(CHATS)):
        check_greedy(hearing.text, hearing.chat(number), hearing.golden[f"greedy_{number}"].tolist())


def test_a_chat_is_written_and_answered_as_by_transformers(hearing: Hearing, monkeypatch: pytest.MonkeyPatch):
    """From the file of a sound on, through the engine, with the tower's matrices as they are."""
    monkeypatch.setattr(opening, "load_tower", partial(load_tower, rounding=None))
    with freehold.load(hearing.text_path, context=512, threads=1, kv_type="f32") as llm:
        assert llm.can_listen and llm.info.can_listen and llm.can_see is make.config(hearing.name).sees
        for number, chat in enumerate(CHATS):
            messages = [
                Message(
                    cast(Any, role),
                    parts=tuple(p if isinstance(p, str) else Audio.of(recording(p)) for p in parts),
                )
                for role, parts in chat
            ]
            assert llm.render(messages) == hearing.golden[f"ids_{number}"].tolist()
            want = hearing.golden[f"greedy_{number}"].tolist()
            answer = llm.chat(messages, temperature=0, max_tokens=len(want))
            got = list(answer.token_ids)
            assert got == want[: len(got)], number
            assert len(got) == len(want) or answer.finish_reason == "stop"


def test_openais_parts_and_sounds_in_python_are_the_same(tmp_path: Path):
    path = make.write_safetensors(make.config("gemma4-ears"), tmp_path / "m")
    sound = Audio.of(recording(1))
    heard = {"type": "input_audio", "input_audio": {"data": sound.data, "format": "wav"}}
    text = {"type": "text", "text": "what?"}
    with freehold.load(path, context=256, threads=1) as llm:
        mine = llm.chat([Message("user", parts=(sound, "what?"))], max_tokens=4, temperature=0)
        openais = llm.chat([{"role": "user", "content": [heard, text]}], max_tokens=4, temperature=0)
        assert mine.token_ids == openais.token_ids and llm.stats.sounds_encoded == 1
        with pytest.raises(UsageError, match="prompt_logprobs are only for text, but the chat has a sound"):
            llm._prepared(
                Job(messages=(Message("user", parts=(sound,)),), prompt_logprobs=1), llm.default_sampling
            )
        long = [Message("user", parts=(Audio.of(recording(4)), "?") * 4)]
        with pytest.raises(ContextOverflow, match=r"252 of them for 4 recordings"):
            llm.chat(long)
    with freehold.load(path, context=256, threads=1, eyes="off") as deaf:
        assert not deaf.can_listen
        with pytest.raises(UsageError, match="reads text only, but the chat has audio"):
            deaf.chat([Message("user", parts=(sound,))])


# --- seconds ------------------------------------------------------------------------------------------------


def test_seconds_beyond_the_limit_are_refused_by_value():
    cfg = make.config("gemma4-ears")
    sizes = gemma4_audio.config_from_hf(Fields(cfg.hf), Fields(cfg.extractor))
    assert gemma4_audio.plan(sizes, 30 * RATE).tokens == 750
    for samples_, seconds in (
        (30 * RATE + 1, r"30\.00"),
        (31 * RATE, r"31\.00"),
        (160, r"0\.01"),
        (0, r"0\.00"),
    ):
        with pytest.raises(
            UsageError, match=rf"the recording lasts {seconds} s; this model accepts 0\.01 to 30 s"
        ):
            gemma4_audio.plan(sizes, samples_)
    assert gemma4_audio.plan(sizes, 161).tokens == 1
    unified = gemma4_unified_audio.config_from_hf(Fields(make.config("gemma4_unified-ears").hf), Fields({}))
    assert [gemma4_unified_audio.plan(unified, n).tokens for n in (1, 320, 321)] == [1, 1, 2]


def test_rows_are_as_many_as_the_processor_counts():
    """Two convolutions at every second frame, of frames that end within the sound."""
    cfg = make.config("gemma4-ears")
    sizes = gemma4_audio.config_from_hf(Fields(cfg.hf), Fields(cfg.extractor))
    for count in (161, 320, 321, 480, 481, 799, 801, 5000, 12_345, 159_999, 480_000):
        frames = (count + 160 - 321) // 160 + 1
        assert (
            len(gemma4_audio.frames(np.zeros(count, np.float32), 32))
            == frames
            == gemma4_audio.frame_count(count)
        )
        after = (frames - 1) // 2 + 1
        assert gemma4_audio.plan(sizes, count).tokens == (after - 1) // 2 + 1


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "key", "value", "why"),
    [
        ("audio_config", "attention_context_right", 2, "later rows"),
        ("audio_config", "attention_chunk_size", 8, "only 12 is supported"),
        ("audio_config", "hidden_act", "gelu", "supported: silu"),
        ("audio_config", "subsampling_conv_channels", [32], "expected two counts"),
        ("audio_config", "subsampling_conv_channels", [64, 16], "the same number of both"),
        ("", "sampling_rate", 8000, "16000 is supported"),
        ("", "mel_floor", 0.1, "0.001 is supported"),
        ("", "per_bin_mean", [0.0] * 32, "None is supported"),
    ],
)
def test_variants_are_refused_by_name(section: str, key: str, value: Any, why: str):
    tiny = make.config("gemma4-ears")
    hf, extractor = dict(tiny.hf), dict(tiny.extractor)
    if section:
        hf[section] = hf[section] | {key: value}
    else:
        extractor[key] = value
    with pytest.raises((UnsupportedModel, BadModelFile), match=f"{key}.*{why}|{why}"):
        gemma4_audio.config_from_hf(Fields(hf), Fields(extractor))


def test_a_tower_is_found_by_its_sense(tmp_path: Path):
    tiny = make.config("gemma4-ears")
    folder, mmproj = (
        make.write_safetensors(tiny, tmp_path / "m"),
        make.write_mmproj(tiny, tmp_path / "mmproj.gguf"),
    )
    for path in (folder, mmproj):
        with open_model_file(path) as opened:
            sight, sound = read_tower(opened), read_tower(opened, hears=True)
        assert sight is not None and (sight.tower.name, sight.notes) == ("gemma4", ())
        assert sound is not None and sound.tower.name == "gemma4_audio"
    deaf = make.write_safetensors(make.config("gemma4-clipped"), tmp_path / "deaf")
    with open_model_file(deaf) as opened:
        assert read_tower(opened, hears=True) is None


def test_the_store_knows_which_towers_of_sound_run():
    kinds = {name for tower in registered() if tower.hears for name in tower.projectors}
    assert kinds == {*store_eyes._HEARD}


def test_voxtral_fills_a_sound_up_to_whole_chunks():
    tiny = make.config("voxtral")
    hf = tiny.hf | {"audio_config": tiny.hf["audio_config"] | {"max_source_positions": 1500}}
    sizes = voxtral.config_from_hf(Fields(hf), Fields(tiny.extractor))
    seconds = (1, 30, 31, 150)
    assert [voxtral.plan(sizes, s * RATE).tokens for s in seconds] == [375, 375, 750, 1875]
    with pytest.raises(UsageError, match=r"lasts 151\.00 s; this model accepts 0\.01 to 150 s"):
        voxtral.plan(sizes, 151 * RATE)
    silent = voxtral.rows(sizes, voxtral.plan(sizes, RATE), [np.zeros(RATE, np.float32)])
    assert silent.groups == (1500,) and np.isfinite(silent.values).all()
    for key, value in (
        ("activation_function", "relu"),
        ("scale_embedding", True),
        ("intermediate_size", 100),
    ):
        wrong = hf | {"audio_config": hf["audio_config"] | {key: value}}
        with pytest.raises(UnsupportedModel):
            voxtral.config_from_hf(Fields(wrong), Fields(tiny.extractor))
    with pytest.raises(UnsupportedModel, match="hop_length is 80"):
        voxtral.config_from_hf(Fields(hf), Fields(tiny.extractor | {"hop_length": 80}))
