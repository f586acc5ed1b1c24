"""Which targets of a route may and can answer: labels, abilities, windows, bars, names."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from freehold.base.errors import ModelNotFound, PolicyRefused, UnsupportedModel
from freehold.base.prompts import prompt_size
from freehold.base.serving import EmbedJob, EstimatedCount, Job, Origin
from freehold.base.types import Audio, Chunk, Format, Image, Message, Tool
from freehold.route.providers.contract import Cleared
from freehold.route.router.gateway import GatewayModel, QualityTask
from freehold.route.router.price import TokenRatio
from freehold.route.router.routing import Breakers, GatewayPlan, TargetChoice, choose
from tests.router.house import gateway_of, job, within
from tests.router.rented import Answers, FakeRented

ROUTE = '[routes.chat]\ntargets = ["own", "box-70b", "big"]\n'


def chosen(work: Job | EmbedJob, text: str = ROUTE, bars=None, places=None) -> TargetChoice:
    plan = GatewayPlan(gateway_of(text))
    planned = plan.route("chat")
    assert planned is not None
    cleared: Cleared = Cleared(work, places or plan.gateway.all_places)
    return choose(planned, cleared, prompt_size(work), Breakers(), bars)


def names(choice: TargetChoice) -> list[str]:
    return [target.name for target in choice.allowed]


PICTURE = Job(messages=(Message("user", "see", parts=("see", Image("image/png", "AAAA"))),))
NEEDS = {
    "images": (PICTURE, "images = false", "cannot read pictures"),
    "tools": (job(tools=(Tool("add"),)), "tools = false", "does not support tools"),
    "schema": (
        job(format=Format("json_schema", {"type": "object"})),
        "json_schema = false",
        "does not support JSON schemas",
    ),
    "logprobs": (job(logprobs=1), "logprobs = false", "returns no log-probabilities"),
    "several": (job(n=2), "several = false", "returns one answer per request"),
}


@pytest.mark.parametrize("need", NEEDS)
def test_target_without_an_ability_is_passed_over_before_it_is_asked(need):
    work, lacks, reason = NEEDS[need]
    text = f'[models.weak]\nprovider = "box"\nmodel = "weak"\ncan = {{ {lacks} }}\n'
    choice = chosen(work, text + '[routes.chat]\ntargets = ["weak", "big"]\n')
    assert choice.passed_over["weak"].reason == reason


@pytest.mark.parametrize(
    "work",
    [
        job(format=Format("regex", "a+")),
        Job(prompt=(1, 2, 3)),
        Job(messages=(Message("user", "x"),), template="{{ x }}"),
        job(prompt_logprobs=1),
        job(adapter="mine"),
        Job(messages=(Message("user", "hear", parts=("hear", Audio("AAAA"))),)),
    ],
    ids=["grammar", "token ids", "template", "prompt_logprobs", "adapter", "sound"],
)
def test_what_no_provider_has_stays_with_our_engines(work):
    assert names(chosen(work)) == ["own"]


def test_prompt_that_no_tokenizer_fits_into_a_window_passes_it_over():
    text = '[models.tiny]\nprovider = "box"\nmodel = "tiny"\ncontext = 1000\n[routes.chat]\ntargets = ["tiny", "big"]\n'
    assert names(chosen(job("word " * 2000), text)) == ["big"]
    assert names(chosen(job("word " * 800), text)) == ["tiny", "big"]  # it may fit: asking decides


def test_target_whose_terms_do_not_let_answers_train_a_model_is_passed_over_where_they_will(tmp_path: Path):
    more = '[models.free]\nprovider = "box"\nmodel = "m"\nterms = "Apache-2.0"\nmay_teach = true\n'
    route = '[routes.chat]\ntargets = ["big", "box-70b", "free"]\n'
    assert names(chosen(job("hello"), more + route)) == ["big", "box-70b", "free"]
    choice = chosen(job("hello"), more + route + "may_teach = true\n")
    assert names(choice) == ["free"]
    assert choice.passed_over["big"].reason == "its terms do not let answers train a model"
    assert choice.passed_over["box-70b"].reason == "its terms are not known to let answers train a model"

    async def test(house):
        await house.text("chat", job("hello"))
        (row,) = house.rows
        assert (row.target, row.may_teach, row.terms) == ("free", True, "Apache-2.0")
        assert row.candidates[0].reason == "its terms do not let answers train a model"

    run(test, tmp_path, more + route + "may_teach = true\n")


class Scores:
    def __init__(self, **scores: float) -> None:
        self.scores = scores

    def passes(self, task: QualityTask, model: GatewayModel) -> tuple[bool, str]:
        if model.name not in self.scores:
            return False, f"not measured on {task.name}"
        score = self.scores[model.name]
        return score >= task.bar, f"{score} against {task.bar}"


def test_bar_that_is_not_reached_or_not_measured_passes_a_target_over(tmp_path: Path):
    cases = tmp_path / "cases.jsonl"
    cases.write_text('{"prompt": "x"}\n')
    text = f'[tasks.support]\nbar = 0.8\nfile = "{cases}"\n' + ROUTE + 'task = "support"\n'
    choice = chosen(job(), text, Scores(own=0.7, big=0.9))
    assert names(choice) == ["big"]
    assert choice.passed_over["own"].reason == "0.7 against 0.8"
    assert choice.passed_over["box-70b"].reason == "not measured on support"


def run(test, folder: Path, text: str = "", **parts) -> None:
    async def main() -> None:
        async with within(folder, text, **parts) as house:
            await test(house)

    asyncio.run(main())


def test_names_are_the_files_and_then_the_stores(tmp_path):
    async def test(house):
        listed = [each.name for each in await house.models.names()]
        assert listed == ["chat", "big", "small", "box-70b", "own", "fake:1b", "org/fake:2b"]
        models = house.models.asked_by(Origin())
        assert await models.name_of("chat") == "chat" and await models.name_of("own") == "fake:1b"
        with pytest.raises(ModelNotFound):
            await models.use("nothing")
        with pytest.raises(ModelNotFound):
            await models.name_of("nothing")

    run(test, tmp_path, ROUTE)


def test_model_of_the_store_has_its_row_and_its_labels_too(tmp_path):
    async def test(house):
        assert await house.text("org/fake:2b", labels=("private",)) == "Hello there, world."
        (row,) = house.rows
        assert (row.asked, row.target, row.place) == ("org/fake:2b", "org/fake:2b", "this machine")

    run(test, tmp_path)


def test_lone_owned_model_keeps_its_own_info_and_tokenizer(tmp_path):
    async def test(house):
        models = house.models.asked_by(Origin())
        own, route = await models.use("own"), await models.use("chat")
        assert own.tokenizer is not None and own.info.vocab == 50_000
        assert route.tokenizer is None and route.info.can_see and route.info.thinking == "switch"
        assert route.name == "chat"

    run(test, tmp_path, ROUTE)


def test_request_keeps_the_file_it_began_with(tmp_path):
    async def test(house):
        handle = await house.models.asked_by(Origin()).use("chat")
        house.reload("")
        stream = await handle.start(job())
        assert [chunk async for _, chunk in stream]
        with pytest.raises(ModelNotFound):
            await house.text("chat")
        assert house.rented.kept == ["far", "box"]

    run(test, tmp_path, ROUTE)


def test_count_is_the_providers_or_says_that_it_is_estimated(tmp_path):
    async def test(house):
        models = house.models.asked_by(Origin())
        big, small = await models.use("big"), await models.use("small")
        assert await big.count(job()) == 77
        assert house.rows[-1].left_house and house.rows[-1].nano == 0
        guess = await small.count(job("word " * 100))
        assert isinstance(guess, EstimatedCount) and 100 < guess < 150
        assert not isinstance(await (await models.use("own")).count(job()), EstimatedCount)

    run(test, tmp_path, rented=FakeRented(big=Answers(counts=77)))


@pytest.mark.parametrize("path", ["start", "embed"])
def test_what_no_target_can_do_is_the_requests_fault_and_no_policy(path, tmp_path):
    more = '[models.plain]\nprovider = "far"\nmodel = "plain"\nprice = { input = 1.0, output = 1.0 }\n'
    more += "can = { tools = false, embeddings = false }\n"

    async def test(house):
        handle = await house.models.asked_by(Origin()).use("plain")
        tool = job("hello", tools=(Tool("add"),))
        with pytest.raises(UnsupportedModel, match="no target of plain can answer this request"):
            await getattr(handle, path)(EmbedJob(("a",)) if path == "embed" else tool)
        assert house.rows[-1].outcome == "refused" and not house.rented.asked

    run(test, tmp_path, more)


@pytest.mark.parametrize("path", ["start", "count", "embed"])
def test_every_path_of_a_labelled_request_is_refused_at_a_rented_model(path, tmp_path):
    async def test(house):
        handle = await house.models.asked_by(Origin(labels=("private",))).use("big")
        work = EmbedJob(("secret",)) if path == "embed" else job("secret")
        with pytest.raises(PolicyRefused):
            await getattr(handle, path)(work)
        assert not (house.rented.asked or house.rented.counted or house.rented.embedded)

    run(test, tmp_path, rented=FakeRented(big=Answers(counts=5)))


def test_vectors_of_two_models_are_never_mixed_by_a_fault(tmp_path):
    async def test(house):
        handle = await house.models.asked_by(Origin()).use("vectors")
        vectors = await handle.embed(EmbedJob(("a", "b")))
        assert vectors.tokens == (3, 3)
        assert [model for model, _ in house.rented.embedded] == ["big"]
        row = house.rows[-1]
        assert (row.outcome, row.nano, row.usage.prompt_tokens) == ("whole", 6000, 6)
        assert "not comparable" in row.candidates[1].reason

    run(test, tmp_path, '[routes.vectors]\ntargets = ["big", "small"]\n')


def test_guess_of_tokens_follows_a_targets_own_counts():
    ratio, work = TokenRatio(), job("word " * 400)
    size = prompt_size(work)
    for _ in range(20):
        ratio.learn(size, 1000, 600, 100)
    assert abs(ratio.prompt_tokens(size) - 1000) < 30
    assert abs(ratio.answer_tokens(600) - 100) < 5


@pytest.mark.parametrize(
    "text",
    ["word " * 50, "1 2 3 4 5 6 7 8", "{}[]();:,.", "\u4f60\u597d" * 20, "\U0001f600" * 9, "aB3$" * 40],
)
def test_bound_of_a_prompts_tokens_is_not_below_any_bytes_pair_encoding_of_it(text):
    """Digits, punctuation and bytes beyond ASCII may stand alone; letters come in pairs at least."""
    size = prompt_size(job(text))
    alone = sum(len(c.encode()) for c in text if not (c.isascii() and (c.isalpha() or c == " ")))
    letters = sum(c.isascii() and (c.isalpha() or c == " ") for c in text)
    assert size.most >= alone + letters // 2
    assert size.fewest <= len(text.encode()) // 8


def test_estimate_counts_what_a_call_adds():
    from freehold.base.types import ToolPiece
    from freehold.route.router.price import letters_in

    assert letters_in(Chunk("ab", thinking="c", tool_calls=(ToolPiece(0, "id", "add", "{}"),))) == 8


def test_target_at_a_place_that_is_not_allowed_is_passed_over_before_anything_else():
    choice = chosen(job(), places=frozenset({"this machine", "box"}))
    assert names(choice) == ["own", "box-70b"] and choice.passed_over["big"].kind == "label"
