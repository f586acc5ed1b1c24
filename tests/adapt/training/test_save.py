"""A saved adapter is the trained one: in the engine, in PEFT beside transformers, and as a GGUF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from freehold.adapt.training.trainee import GGUF, Trainee
from freehold.run.formats import open_lora
from freehold.run.models.load import load_model
from freehold.run.models.lora import load_adapter, pack_pairs
from tests.adapt.training.conftest import Made
from tests.adapt.training.test_trainee import IDS, moved


@pytest.mark.parametrize("base", ["llama", "llama/hf", "qwen2", "gemma3/hf"])
def test_both_files_hold_what_was_trained(base: str, tiny: Made, tmp_path: Path):
    trainee = moved(Trainee.open(tiny(base), rank=4))
    trainee.save(tmp_path, gguf=True)
    for path, gguf in ((tmp_path, False), (tmp_path / GGUF, True)):
        other = "" if gguf else "/hf"
        same = Trainee.open(tiny(base.removesuffix("/hf") + other), rank=4)
        modules = open_lora(path).modules
        for pair in same.adapted:
            saved = modules[pair.place.gguf if gguf else f"{pair.place.module}.weight"]
            assert saved.scale == trainee.scale
            pair.a.data.numpy()[:], pair.b.data.numpy()[:] = saved.a.numpy(), saved.b.numpy()
        assert len(modules) == len(same.adapted)
        expected, found = (t.log_probs([IDS])[0].detach().numpy() for t in (trainee, same))
        assert np.abs(expected - found).max() < 1e-4, path


@pytest.mark.parametrize("base", ["llama", "llama/hf"])
def test_the_engine_takes_pairs_from_memory_and_from_files(base: str, tiny: Made, tmp_path: Path):
    trainee = moved(Trainee.open(tiny(base), rank=4))
    trainee.save(tmp_path, gguf=True)
    model = load_model(tiny(base), threads=1)
    made = [
        pack_pairs(trainee.pairs(), trainee.scale, model, "memory"),
        load_adapter(tmp_path, model, "peft"),
        load_adapter(tmp_path / GGUF, model, "gguf"),
    ]
    assert {(each.modules, each.rank) for each in made} == {(len(trainee.adapted), 4)}


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_peft_computes_the_same(tiny: Made, tmp_path: Path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    import torch

    trainee = moved(Trainee.open(tiny("llama"), rank=4))
    trainee.save(tmp_path)
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny("llama/hf"), dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, str(tmp_path))
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0]
    expected = torch.log_softmax(logits[:-1], 1).gather(1, torch.tensor(IDS[1:])[:, None])[:, 0]
    assert torch.allclose(trainee.log_probs([IDS])[0], expected, atol=1e-4)
