"""Plans of vLLM, SGLang and TensorRT-LLM: flags of the schema, sizes that divide, misfits that say what fits.

benches/outgrow/plans.py gives vLLM's own parser the same random plans.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.base.catalog.hardware import Rig, rig
from freehold.base.config import load_settings
from freehold.base.errors import UsageError
from freehold.choose.advisor.anatomy import WeightGroup, in_quant
from freehold.outgrow import drivers
from freehold.outgrow import flags as schema
from freehold.outgrow.contract import (
    DeployedModel,
    DeployPlan,
    EngineFacts,
    Nodes,
    ParallelSizes,
    PlannedFlag,
    PlanRequest,
)
from freehold.outgrow.options import DeployOptions
from freehold.outgrow.planning import printed
from freehold.outgrow.planning.facts import nodes_on, of_path, processor
from freehold.outgrow.planning.layout import Wanted, candidates, divides, with_experts
from freehold.outgrow.planning.options import planned
from tests.outgrow.plan_cases import hub_plans, plans, synthetic
from tests.outgrow.test_facts import write_model

PLANS = 400


def typed(flag: PlannedFlag, known: schema.FlagSchema) -> str:
    """What is wrong with a flag by its schema, read here once more; "" for nothing."""
    spec = known.find(flag.name.partition(".")[0])
    if spec is None:
        return "unknown"
    if "." in flag.name:
        return "" if spec.name.endswith("-config") else "not dotted"
    if spec.kind in ("switch", "on-off"):
        return "" if flag.value is None else "takes no value"
    if flag.value is None:
        return "needs a value"
    if spec.choices and flag.value not in spec.choices:
        return f"{flag.value} is not a choice"
    pattern = {"int": r"-?\d+", "float": r"\d+(\.\d+)?", "size": r"\d+(\.\d+)?[kKmMgG]?"}.get(
        spec.kind, r"(?s).+"
    )
    fits = re.fullmatch(pattern, flag.value) or flag.value in ("{port}", "{rank}")
    return "" if fits else f"{flag.value} is not a {spec.kind}"


def wrong(plan: DeployPlan) -> list[str]:
    """Everything about a plan that cannot be."""
    known = schema.nearest(plan.engine, plan.version)
    found = [f"{f.name}: {why}" for f in (*plan.flags, *plan.follower) if (why := typed(f, known))]
    names = [known.find(f.name.partition(".")[0]) for f in plan.flags]
    found += [f"{n.name} twice" for n in set(names) if n and names.count(n) > 1 and "." not in n.name]
    found += [f"{f.name} without a reason" for f in plan.flags if not f.reason]
    model, sizes, rig = plan.model, plan.sizes, plan.nodes.rig
    if not divides(model, sizes.tensor):
        found.append(f"{model.heads} heads, {model.kv_heads} of keys and values on {sizes.tensor}")
    if sizes.expert > 1 and model.experts % sizes.expert:
        found.append(f"{model.experts} experts on {sizes.expert}")
    if sizes.pipeline > max(model.anatomy.depth, 1):
        found.append(f"{sizes.pipeline} stages of {model.anatomy.depth} layers")
    if rig.device.kind == "gpu":
        if sizes.tensor > rig.count:
            found.append("a tensor group across nodes")
        if plan.replicas * sizes.devices > rig.count * plan.nodes.count:
            found.append(f"{plan.replicas} replicas of {sizes} on {rig.name} x {plan.nodes.count}")
        per_node = (
            plan.nodes.count // plan.across
            if plan.across > 1
            else (rig.count // sizes.devices * plan.nodes.count)
        )
        if plan.replicas > per_node:
            found.append(f"{plan.replicas} replicas of {sizes} do not fit into {plan.nodes.count} nodes")
        if model.blocks and model.blocks % sizes.tensor and sizes.expert == 1:
            found.append(f"slices of {model.blocks} blocks on {sizes.tensor} devices")
        if plan.across * rig.count < sizes.devices:
            found.append("more devices than its nodes have")
    if plan.memory_bytes > rig.memory_bytes * plan.nodes.count:
        found.append("more memory than there is")
    if model.anatomy.context and plan.context > model.anatomy.context:
        found.append("a context beyond the model's own")
    return found


@pytest.mark.heavy
def test_random_plans_have_only_flags_of_their_schema_and_sizes_that_divide():
    made, refused, engines = [], [], set()
    for found in plans(PLANS, seed=21):
        if isinstance(found, UsageError):
            refused.append(found)
            continue
        made.append(found)
        engines.add((found.engine, found.sizes.tensor > 1, found.sizes.pipeline > 1, found.sizes.expert > 1))
        assert not wrong(found), (wrong(found), found.shell())
    assert len(made) == PLANS
    assert {e for e, *_ in engines} == {"vllm", "sglang", "trtllm"}
    assert len(engines) > 12  # tensor, pipeline and expert parallel of each were drawn
    assert all(error.hint for error in refused), [e.message for e in refused if not e.hint]


def test_forty_plans_of_the_hub_have_flags_of_their_engines_and_contexts_of_their_configurations(tmp_path):
    """Flags are judged by what each engine's own parser takes (tools/engine_schema.py wrote the data)."""
    lines = (
        (Path(__file__).parent.parent / "catalog" / "contexts.tsv").read_text(encoding="utf-8").splitlines()
    )
    stated = {
        name: int(tokens) for name, tokens, _ in (x.split("\t") for x in lines if not x.startswith("#"))
    }
    made = hub_plans(load_settings({"FREEHOLD_HOME": str(tmp_path)}))
    assert len(made) == 40 and sum(plan.model.base in stated for plan in made) >= 30
    for plan in made:
        assert not wrong(plan), (wrong(plan), plan.shell())
        flag = {"vllm": "--max-model-len", "sglang": "--context-length"}[plan.engine]
        assert int(value(plan, flag) or 0) == plan.context
        assert plan.context <= stated.get(plan.model.base, plan.model.anatomy.context)


def test_random_plans_print_as_text_json_and_shell_without_a_secret():
    for found in plans(20, seed=4):
        if isinstance(found, DeployPlan):
            told = json.dumps(printed.as_dict(found))
            assert json.loads(told)["argv"] == list(found.argv())
            text = printed.text(found)
            assert all(flag.reason in text and flag.name in text for flag in found.flags)
            assert all(f"{s.variable}=${s.variable} " in found.shell() for s in found.secrets if not s.file)


# --- sizes ------------------------------------------------------------------------------------------


def model_of(heads: int, kv_heads: int, experts: int = 0, **changed):
    import random

    made = synthetic(random.Random(1))
    return replace(made, heads=heads, kv_heads=kv_heads, experts=experts, **changed)


def test_tensor_goes_inside_a_node_before_pipeline_across_nodes():
    ways = candidates(model_of(64, 8), 8, 2, Wanted())
    first = {w.devices: w for w in reversed(ways)}
    assert first[8] == ParallelSizes(tensor=8)
    assert first[16] == ParallelSizes(tensor=8, pipeline=2)
    assert all(w.tensor <= 8 for w in ways)


def test_heads_of_keys_and_values_are_copied_evenly_or_not_at_all():
    assert divides(model_of(64, 4), 8) and not divides(model_of(64, 4), 8, copies=False)
    assert not divides(model_of(14, 2), 4) and divides(model_of(14, 2), 2)
    assert not divides(model_of(24, 6), 4)


def test_experts_that_do_not_divide_stay_sliced():
    sizes = ParallelSizes(tensor=8)
    assert with_experts(sizes, model_of(64, 8, experts=128), Wanted()).expert == 8
    assert with_experts(sizes, model_of(64, 8, experts=60), Wanted()).expert == 1
    assert with_experts(sizes, model_of(64, 8, experts=128), Wanted(expert=False)).expert == 1


def test_quantised_blocks_are_sliced_whole_or_experts_are_spread():
    assert not divides(model_of(64, 8, blocks=20), 8) and divides(model_of(64, 8, blocks=20), 4)
    moe = model_of(64, 8, experts=128, blocks=12)
    assert divides(moe, 8) and with_experts(ParallelSizes(tensor=8), moe, Wanted(expert=False)).expert == 8
    assert with_experts(ParallelSizes(tensor=4), moe, Wanted()).expert == 1


def test_replicas_share_nodes_evenly(tmp_path):
    model = weighing(of_path(write_model(tmp_path)), 10)
    plan = drivers.driver("vllm").plan(PlanRequest(model, nodes_on("2x8xh100"), replicas=3))
    assert (plan.replicas, plan.sizes) == (
        3,
        ParallelSizes(tensor=4),
    )  # two on a node: five would not go twice
    assert drivers.driver("vllm").plan(PlanRequest(model, nodes_on("2x8xh100"), replicas=2)).sizes.tensor == 8
    with pytest.raises(UsageError):
        drivers.driver("vllm").plan(PlanRequest(model, nodes_on("2x8xh100"), replicas=17))


def test_memory_that_others_have_taken_is_left_to_them(tmp_path):
    model = of_path(write_model(tmp_path))
    nodes = replace(nodes_on("h100"), here=True, free=0.6)
    plan = drivers.driver("vllm").plan(PlanRequest(model, nodes))
    assert value(plan, "--gpu-memory-utilization") == "0.58"


def test_ray_across_nodes_takes_ranks_from_its_cluster(tmp_path):
    heavy = weighing(of_path(write_model(tmp_path)), 800, layers=126)
    plan = drivers.driver("vllm").plan(
        PlanRequest(heavy, nodes_on("2x8xh100"), flags=("--distributed-executor-backend=ray",))
    )
    assert value(plan, "--nnodes") == "absent" and not plan.follower
    assert any("Ray cluster" in note for note in plan.notes)


@pytest.mark.parametrize("engine, flag", [("vllm", "--runner"), ("sglang", "--is-embedding")])
def test_an_embedder_is_started_as_one(tmp_path, engine, flag):
    folder = write_model(tmp_path)
    (folder / "modules.json").write_text("[]")
    plan = drivers.driver(engine).plan(PlanRequest(of_path(folder), nodes_on("h100")))
    assert value(plan, flag) != "absent" and value(plan, "--tool-call-parser") == "absent"


@pytest.mark.parametrize("count", ["0", "9" * 400])
def test_a_count_that_no_device_holds_is_refused(tmp_path, count):
    request = PlanRequest(
        of_path(write_model(tmp_path)), nodes_on("h100"), flags=(f"--max-num-seqs={count}",)
    )
    with pytest.raises(UsageError, match="not within 1 to") as error:
        drivers.driver("vllm").plan(request)
    assert len(error.value.message) < 100


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_a_cache_type_of_another_engine_is_refused(tmp_path, engine):
    request = PlanRequest(of_path(write_model(tmp_path)), nodes_on("h100"), cache_type="q8_0")
    with pytest.raises(UsageError, match=r"--cache-type of .*'q8_0' is not one of"):
        drivers.driver(engine).plan(request)


def test_a_gguf_names_the_engine_that_loads_it_and_where_its_safetensors_are(tmp_path):
    gguf = replace(of_path(write_model(tmp_path)), files="gguf", name="qwen2.5-coder:0.5b")
    with pytest.raises(UsageError, match="is a GGUF") as error:
        drivers.driver("vllm").plan(PlanRequest(gguf, nodes_on("h100")))
    assert "llamacpp" in error.value.hint and "pull hf://Qwen/Qwen2.5-Coder-0.5B" in error.value.hint


def test_a_size_of_the_user_that_does_not_divide_is_refused_with_those_that_do(tmp_path):
    model = of_path(write_model(tmp_path, heads=4, kv_heads=2))
    with pytest.raises(UsageError, match="3 devices cannot share out") as error:
        drivers.driver("vllm").plan(PlanRequest(model, nodes_on("8xh100"), flags=("-tp=3",)))
    assert "1, 2, 4" in error.value.hint


def weighing(model: DeployedModel, gigabytes: float, layers: int = 0) -> DeployedModel:
    """The model as if its weights of 16 bits took so much, with 64 heads."""
    weights = gigabytes * 5e8
    body = WeightGroup("body", "BF16", weights, 2 * weights)
    group = model.anatomy.layers[0]
    kept = (replace(group, count=layers or group.count, kv_heads=8),)
    anatomy = replace(model.anatomy, parts=(body,), layers=kept, exact=False)
    return replace(model, heads=64, kv_heads=8, anatomy=anatomy)


# --- vLLM on processors -----------------------------------------------------------------------------


def on_cpu(model, **asked) -> DeployPlan:
    nodes = asked.pop("nodes", Nodes(Rig(processor("a processor", 2, 20 << 30, 10.0))))
    return drivers.driver("vllm").plan(
        PlanRequest(model, nodes, EngineFacts("0.32.0+cpu", cpu=True), **asked)
    )


def value(plan: DeployPlan, name: str) -> str | None:
    return next((f.value for f in plan.flags if f.name == name), "absent")


def test_vllm_on_a_processor_gets_its_cache_in_bytes_and_no_binding(tmp_path):
    plan = on_cpu(of_path(write_model(tmp_path)), socket=tmp_path / "s.sock")
    anatomy = plan.model.anatomy
    wanted = 16 * anatomy.cache_bytes(plan.context) + anatomy.cache_bytes(128)  # and a block to spare
    assert int(value(plan, "--kv-cache-memory-bytes") or 0) == wanted
    assert plan.environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert plan.environment["VLLM_HOST_IP"] == "127.0.0.1"
    assert plan.environment["OMP_NUM_THREADS"] == "2"
    assert value(plan, "--uds") == str(tmp_path / "s.sock") and value(plan, "--host") == "absent"
    assert plan.listens.socket == tmp_path / "s.sock"


def test_two_sockets_are_a_tensor_group_where_heads_divide_and_copies_where_not(tmp_path):
    two = Nodes(Rig(processor("a processor", 2, 20 << 30, 10.0), 2))
    plan = on_cpu(of_path(write_model(tmp_path / "even", heads=4, kv_heads=2)), nodes=two)
    assert plan.sizes == ParallelSizes(tensor=2) and value(plan, "--tensor-parallel-size") == "2"
    odd = on_cpu(of_path(write_model(tmp_path / "odd", heads=3, kv_heads=3)), nodes=two)
    assert odd.sizes == ParallelSizes(data=2) and value(odd, "--data-parallel-size") == "2"
    assert value(odd, "--max-num-seqs") == "8"  # vLLM counts them for each copy


def test_ranks_beyond_the_heads_of_keys_and_values_hold_copies(tmp_path):
    model = of_path(write_model(tmp_path, heads=4, kv_heads=2))
    two, four = (on_cpu(model, flags=(f"-tp={n}",)) for n in (2, 4))
    assert value(two, "--kv-cache-memory-bytes") == value(four, "--kv-cache-memory-bytes")


def test_sizes_by_flag_reach_the_plan(tmp_path):
    plan = on_cpu(of_path(write_model(tmp_path)), flags=("-tp=2",))
    assert plan.sizes.tensor == 2 and plan.environment["OMP_NUM_THREADS"] == "1"
    assert [f.name for f in plan.flags].count("--tensor-parallel-size") == 1
    assert on_cpu(of_path(write_model(tmp_path)), flags=("--data-parallel-size=2",)).sizes.data == 2
    assert on_cpu(of_path(write_model(tmp_path)), flags=("-pp=2",)).sizes.pipeline == 2


def test_ray_under_vllms_cpu_build_is_refused_before_the_start(tmp_path):
    with pytest.raises(UsageError, match="does not support Ray"):
        on_cpu(of_path(write_model(tmp_path)), flags=("--distributed-executor-backend=ray",))


def test_a_model_larger_than_memory_says_which_context_or_hardware_fits(tmp_path):
    small = Nodes(Rig(processor("a processor", 2, 3 << 30, 10.0)))
    model = of_path(write_model(tmp_path))
    big = weighing(model, 4)
    with pytest.raises(UsageError, match="are free") as error:
        on_cpu(big, nodes=small)
    assert "--on" in error.value.hint


# --- what each plan has -----------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_telemetry_and_the_hub_are_off_and_the_engine_is_reached_from_here_alone(tmp_path, engine):
    plan = drivers.driver(engine).plan(PlanRequest(of_path(write_model(tmp_path)), nodes_on("h100")))
    assert plan.environment["HF_HUB_OFFLINE"] == plan.environment["TRANSFORMERS_OFFLINE"] == "1"
    assert plan.environment["DO_NOT_TRACK"] == plan.environment["HF_HUB_DISABLE_TELEMETRY"] == "1"
    off = {"vllm": "VLLM_NO_USAGE_STATS", "trtllm": "TRTLLM_NO_USAGE_STATS"}.get(engine, "DO_NOT_TRACK")
    assert plan.environment[off] == "1"
    assert value(plan, "--host") == "127.0.0.1"
    assert not [f for f in plan.flags if re.search("api-key|trust|log-requests", f.name)]
    assert (value(plan, "--no-telemetry") is None) == (engine == "trtllm")
    # reasons are for people: each flag has one, and none is a mere label
    assert all(len(f.reason) > 3 for f in plan.flags)


def test_vllms_answers_end_before_it_does(tmp_path):
    from freehold.serve.http.serve import ServerSettings

    plan = drivers.driver("vllm").plan(PlanRequest(of_path(write_model(tmp_path)), nodes_on("h100")))
    assert int(value(plan, "--shutdown-timeout") or 0) >= ServerSettings.drain_s


def test_parsers_come_from_the_family_and_the_plan_says_that_they_were_guessed(tmp_path):
    model = of_path(write_model(tmp_path, template="{% if tools %}{{ tools }}{% endif %}"))
    plan = drivers.driver("vllm").plan(PlanRequest(model, nodes_on("h100")))
    assert value(plan, "--tool-call-parser") == "hermes" and value(plan, "--enable-auto-tool-choice") is None
    assert any("family qwen2.5" in note for note in plan.notes)
    own = drivers.driver("vllm").plan(
        PlanRequest(model, nodes_on("h100"), flags=("--tool-call-parser=qwen3_xml",))
    )
    assert value(own, "--tool-call-parser") == "qwen3_xml" and value(own, "--enable-auto-tool-choice") is None


def test_a_template_without_tools_gets_no_tool_parser_and_none_at_all_is_said(tmp_path):
    plain = of_path(write_model(tmp_path / "plain", template="{{ messages }}"))
    assert (
        value(drivers.driver("vllm").plan(PlanRequest(plain, nodes_on("h100"))), "--tool-call-parser")
        == "absent"
    )
    bare = of_path(write_model(tmp_path / "bare", template=""))
    plan = drivers.driver("vllm").plan(PlanRequest(bare, nodes_on("h100")))
    assert any("no chat template" in note for note in plan.notes)


@pytest.mark.parametrize(
    "on, asked, told, hint",
    [
        ("h100", {"replicas": 3}, "3 replicas of 1 device: h100 has 1", "--replicas 1, or --on 3xh100"),
        (
            "h100",
            {"flags": ("--tensor-parallel-size=2",)},
            "1 replica of 2 devices: h100 has 1",
            "--on 2xh100",
        ),
        (
            "4xh100",
            {"flags": ("--tensor-parallel-size=2",), "replicas": 3},
            "3 replicas of 2 devices: 4xh100 has 4",
            "--replicas 2, or --on 6xh100",
        ),
    ],
)
def test_more_devices_than_there_are_are_counted(tmp_path, on, asked, told, hint):
    model = of_path(write_model(tmp_path))
    with pytest.raises(UsageError) as refused:
        drivers.driver("vllm").plan(PlanRequest(model, nodes_on(on), **asked))
    assert (refused.value.message, refused.value.hint) == (told, hint)


def test_misfit_of_the_largest_box_names_several(tmp_path):
    heavy = weighing(of_path(write_model(tmp_path)), 800, layers=126)
    with pytest.raises(UsageError) as refused:
        drivers.driver("trtllm").plan(PlanRequest(heavy, nodes_on("8xh100")))
    assert "--on 8xh100 --nodes 2 would hold it" in refused.value.hint


def test_weights_of_32_bits_are_planned_as_they_are_loaded(tmp_path):
    model = of_path(write_model(tmp_path))
    model = replace(model, anatomy=in_quant(model.anatomy, "F32"))
    assert drivers.driver("vllm").plan(PlanRequest(model, nodes_on("h100"))).sizes.devices == 1


def test_two_nodes_meet_by_rank_and_the_first_ones_address(tmp_path):
    model = of_path(write_model(tmp_path))
    heavy = weighing(model, 800, layers=126)
    plan = drivers.driver("vllm").plan(PlanRequest(heavy, nodes_on("2x8xh100")))
    assert plan.sizes == ParallelSizes(tensor=8, pipeline=2) and plan.across == 2 and plan.replicas == 1
    second = plan.argv("$(RANK)", "$(HEAD)", port=8000)
    assert second[:3] == ("vllm", "serve", heavy.source)  # alone reads --headless
    assert "--master-addr HEAD" in plan.shell() and plan.shell(1).endswith("--headless")
    assert second[second.index("--node-rank") + 1] == "$(RANK)" and second[-1] == "--headless"
    assert second[second.index("--master-addr") + 1] == "$(HEAD)" and "--headless" not in plan.argv()
    other = drivers.driver("sglang").plan(PlanRequest(heavy, nodes_on("2x8xh100")))
    argv = other.argv(1, "10.0.0.1", folder="/f", port=1)
    assert argv[argv.index("--dist-init-addr") + 1] == "10.0.0.1:5000"
    assert argv[argv.index("--config") + 1] == "/f/keys.yaml"
    third = drivers.driver("trtllm").plan(PlanRequest(heavy, nodes_on("2x8xh100")))
    assert third.command[0] == "trtllm-llmapi-launch" and value(third, "--gpus_per_node") == "8"


def test_each_replica_of_one_machine_sees_its_own_devices(tmp_path):
    nodes = replace(nodes_on("4xh100"), here=True)
    plan = drivers.driver("vllm").plan(PlanRequest(of_path(write_model(tmp_path)), nodes))
    assert plan.replicas == 4 and plan.sizes.devices == 1
    assert [plan.of_replica(n).environment["CUDA_VISIBLE_DEVICES"] for n in range(4)] == ["0", "1", "2", "3"]


def test_code_of_the_models_own_is_refused_with_its_name(tmp_path):
    folder = write_model(tmp_path, auto_map={"AutoConfig": "configuration_x.XConfig"})
    for engine in ("vllm", "sglang", "trtllm"):
        with pytest.raises(UsageError, match=r"auto_map names configuration_x\.XConfig"):
            drivers.driver(engine).plan(PlanRequest(of_path(folder), nodes_on("h100")))


def test_versions_with_known_holes_are_refused(tmp_path):
    model = of_path(write_model(tmp_path))
    for engine, old in (("vllm", "0.31.2"), ("sglang", "0.5.22.post1"), ("trtllm", "1.1.0")):
        with pytest.raises(UsageError, match="holes"):
            drivers.driver(engine).plan(PlanRequest(model, nodes_on("h100"), EngineFacts(old)))


def test_weights_are_rounded_only_where_the_device_has_kernels_and_sixteen_bits_do_not_fit(tmp_path):
    wide = weighing(of_path(write_model(tmp_path)), 90)

    def rounded(engine: str, rig: str) -> str | None:
        return value(drivers.driver(engine).plan(PlanRequest(wide, nodes_on(rig))), "--quantization")

    assert (rounded("vllm", "h100"), rounded("sglang", "h100")) == ("fp8_per_tensor", "fp8")
    assert (
        value(drivers.driver("sglang").plan(PlanRequest(wide, nodes_on("h100"))), "--load-format")
        == "layered"
    )
    assert rounded("vllm", "b200") == "absent" == rounded("vllm", "2xh100")
    with pytest.raises(UsageError, match="80 GB have") as error:
        drivers.driver("trtllm").plan(PlanRequest(wide, nodes_on("h100")))
    assert "2xh100" in error.value.hint and "FP8" in error.value.hint


def test_a_plan_imports_no_engine():
    program = (
        "import sys; from freehold.outgrow import drivers; drivers.driver('vllm'), drivers.driver('sglang');"
        "print([m for m in ('vllm','sglang','torch','transformers','aiohttp','yaml') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_a_plan_is_made_from_a_folder_alone(tmp_path: Path):
    plan = on_cpu(of_path(write_model(tmp_path)))
    assert plan.argv()[:3] == ("python", "-m", "vllm.entrypoints.openai.api_server")
    assert plan.schema == "vllm 0.32.0" and not wrong(plan)


def test_upgrade_is_planned_for_the_memory_before_its_own_engines_and_drains_first_where_they_fill_it(
    tmp_path: Path,
) -> None:
    settings = load_settings({"FREEHOLD_HOME": str(tmp_path)})
    here = Nodes(rig("2xh100"))
    asked = DeployOptions(str(write_model(tmp_path / "m")), engine="vllm", replicas=2)
    plan = planned(settings, asked, here=here)
    assert plan.nodes == here and plan.replicas == 2
    assert not plan.room_beside(plan)


@pytest.mark.parametrize("engine", ["vllm", "auto"])
def test_a_start_is_never_planned_for_hardware_that_may_be_elsewhere(engine: str) -> None:
    with pytest.raises(UsageError, match="a start is on this machine"):
        planned(load_settings(), DeployOptions("qwen3:8b", engine=engine, on="h100"), start=True)
