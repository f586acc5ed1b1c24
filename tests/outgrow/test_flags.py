"""Flags of other engines: all are known, and what is unknown, wrong or dangerous is refused with the nearest name."""

from __future__ import annotations

import argparse
import json
import re
from importlib import resources

import pytest

from freehold.base.errors import UsageError
from freehold.outgrow import flags as schema
from freehold.outgrow.flags import checked, refused
from tools import engine_schema

KNOWN = {"vllm": ("0.32.0", 317), "sglang": ("0.5.23", 532), "trtllm": ("1.3.0", 50)}


@pytest.mark.parametrize("engine", KNOWN)
def test_every_flag_of_a_version_is_known(engine):
    version, count = KNOWN[engine]
    known = schema.nearest(engine, version)
    assert known.version == version and len(known.flags) == count
    assert all(known.find(s) is known.flags[f.name] for f in known.flags.values() for s in (f.name, *f.also))


def test_the_nearest_schema_is_not_newer_than_the_engine_and_the_oldest_where_all_are():
    assert schema.nearest("vllm", "0.33.1+cu130").version == "0.32.0"
    assert schema.nearest("vllm", "").version == "0.32.0"
    assert schema.nearest("trtllm", "1.2.1").version == "1.3.0"
    with pytest.raises(UsageError, match="no flags of 'vlm' are known"):
        schema.nearest("vlm", "1")


def test_versions_are_compared_as_numbers():
    assert schema.number("0.9.2") < schema.number("0.32.0") < schema.number("v0.32.0.post1+cpu") or (
        schema.number("0.32.0") == schema.number("v0.32.0.post1+cpu")
    )
    assert schema.number("b11434.0.0") == (11434, 0, 0) and schema.number("") == ()


# Each: an engine, a flag as a user writes it, and what the refusal names: the nearest flag, or the door.
REFUSED = [
    # unknown, with the nearest name
    ("vllm", "--tensor-paralel-size=2", "--tensor-parallel-size"),
    ("vllm", "--max-model-length=4096", "--max-model-len"),
    ("vllm", "--gpu-memory-utilisation=0.9", "--gpu-memory-utilization"),
    ("vllm", "--disable-log-requests", "switched on"),
    ("vllm", "--num-seqs=8", "--max-num-seqs"),
    ("vllm", "-tpp=2", "did you mean -tp?"),
    ("sglang", "--max-running-request=8", "--max-running-requests"),
    ("sglang", "--context-len=8", "--context-length"),
    ("sglang", "--gpu-memory-utilization=0.9", "calls it --mem-fraction-static"),
    ("trtllm", "--tp=2", "--tp_size"),
    ("trtllm", "--max_sequence_len=2", "--max_seq_len"),
    # of the wrong kind, or not a choice
    ("vllm", "--tensor-parallel-size=two", "whole number"),
    ("vllm", "--gpu-memory-utilization=much", "number"),
    ("vllm", "--max-model-len=4096tokens", "number of tokens"),
    ("vllm", "--kv-cache-dtype=fp9", "fp8"),
    ("vllm", "--dtype=bf16", "bfloat16"),
    ("vllm", "--tool-call-parser=hermess", "hermes"),
    ("vllm", "--compilation-config={mode:3", "JSON"),
    ("vllm", "--max-num-seqs", "needs a value"),
    ("vllm", "--enforce-eager=true", "no value"),
    ("sglang", "--schedule-policy=lmp", "lpm"),
    ("sglang", "--reasoning-parser=qwen4", "qwen3"),
    ("trtllm", "--kv_cache_dtype=int8", "fp8"),
    # doors
    ("vllm", "--host=0.0.0.0", "beyond this machine"),
    ("sglang", "--host ::", "beyond this machine"),
    ("vllm", "--trust-remote-code", "code"),
    ("vllm", "--trust_remote_code", "code"),
    ("trtllm", "--trust_remote_code", "code"),
    ("vllm", "--api-key=secret", "command line"),
    ("sglang", "--admin-api-key=secret", "command line"),
    ("vllm", "--enable-log-requests", "log"),
    ("vllm", "--enable-log-outputs", "log"),
    ("sglang", "--log-requests-level=2", "log"),
    ("sglang", "--crash-dump-folder=/tmp", "log"),
    ("vllm", "--middleware=my.Middleware", "code"),
    ("trtllm", "--middleware=my.Middleware", "code"),
    ("vllm", "--tool-parser-plugin=/tmp/x.py", "code"),
    ("vllm", "--reasoning-parser-plugin=/tmp/x.py", "code"),
    ("vllm", "--io-processor-plugin=x", "code"),
    ("vllm", "--logits-processors=x:Y", "code"),
    ("vllm", "--worker-extension-cls=x.Y", "code"),
    ("vllm", "--worker-cls=x.Y", "code"),
    ("vllm", "--scheduler-cls=x.Y", "code"),
    ("sglang", "--forward-hooks=[]", "code"),
    ("sglang", "--enable-custom-logit-processor", "code"),
    ("sglang", "--sidecar=/bin/sh", "code"),
    ("trtllm", "--custom_module_dirs=/tmp", "code"),
    ("trtllm", "--post_processor_hook=x", "code"),
    ("vllm", "--ssl-keyfile=/k", "HTTP"),
    ("sglang", "--enable-ssl-refresh", "HTTP"),
    ("vllm", "--uds=/tmp/x", "the plan says"),
    ("vllm", "--port=80", "the plan says"),
    ("vllm", '--allowed-origins=["*"]', "browsers"),
    ("vllm", "--allowed-local-media-path=/", "files"),
    ("vllm", "--allowed-media-domains=x", "files"),
    ("vllm", "--enable-sleep-mode", "routes"),
    ("sglang", "--checkpoint-engine-wait-weights-before-ready", "routes"),
    ("vllm", "--load-format=pt", "pickled"),
    ("vllm", "--load-format=tensorizer", "pickled"),
    ("sglang", "--load-format=remote", "pickled"),
    ("vllm", "--config=/tmp/flags.yaml", "not checked"),
    ("trtllm", "--extra_llm_api_options=/tmp/x.yaml", "not checked"),
    ("vllm", "--hf-config-path=/tmp", "configuration"),
    ("vllm", "--hf-overrides={}", "configuration"),
    ("vllm", "--kv-events-config={}", "port"),
    ("vllm", "--grpc", "second way in"),
    ("vllm", "--otlp-traces-endpoint=http://x", "somewhere else"),
    ("trtllm", "--telemetry", "somewhere else"),
    ("vllm", "--no-disable-fastapi-docs", "routes"),
    ("vllm", "--uvicorn-log-level=trace", "log"),
    ("trtllm", "--log_level=debug", "log"),
    ("vllm", "--distributed-executor-backend=my.Executor", "code"),
    ("vllm", "--model=other/model", "deploy's own"),
    ("vllm", "--served-model-name=x", "deployment's name"),
    ("vllm", "--master-addr=10.0.0.1", "how its nodes meet"),
    ("vllm", "--headless", "answers"),
    ("vllm", "--shutdown-timeout=0", "draining"),
    ("vllm", "--hf-token=hf_x", "command line"),
    ("vllm", "--tool-server=demo", "tools"),
    ("vllm", "--enable-prompt-embeds", "tensors"),
    ("vllm", "VLLM_SERVER_DEV_MODE=1", "environment"),
    ("vllm", "tensor-parallel-size=2", "--name=value"),
]  # fmt: skip


@pytest.mark.parametrize("engine, flag, named", REFUSED, ids=[f"{e} {f}" for e, f, _ in REFUSED])
def test_a_wrong_or_dangerous_flag_is_refused_and_says_why(engine, flag, named):
    with pytest.raises(UsageError) as error:
        checked(schema.nearest(engine, ""), [flag])
    assert named in f"{error.value.message} | {error.value.hint}"


def test_short_forms_aliases_and_no_forms_are_the_engines_own():
    vllm = schema.nearest("vllm", "")
    own = checked(
        vllm, ("-tp=2", "--no-enable-prefix-caching", "--max_num_seqs 8", "--device-memory-utilization=0.5")
    )
    assert [f.words() for f in own.values()] == [
        ("--tensor-parallel-size", "2"),
        ("--no-enable-prefix-caching",),
        ("--max-num-seqs", "8"),
        ("--gpu-memory-utilization", "0.5"),
    ]
    assert "--tp-size" in checked(schema.nearest("sglang", ""), ("--tensor-parallel-size=2",))
    assert "--tensor_parallel_size" in checked(schema.nearest("trtllm", ""), ("--tp-size=2",))


def test_keys_of_a_configuration_are_vllms_alone():
    assert checked(schema.nearest("vllm", ""), ("--compilation-config.mode=3",))
    for engine, flag in (("sglang", "--cuda-graph-config.x=1"), ("vllm", "--max-num-seqs.x=1")):
        with pytest.raises(UsageError, match="has no flag"):
            checked(schema.nearest(engine, ""), (flag,))


def test_a_key_of_a_refused_configuration_is_refused_too():
    for flag in ("--kv-events-config.endpoint=tcp://*:1", "--profiler-config.x=1", "--logging-config.x=1"):
        with pytest.raises(UsageError, match="is refused"):
            checked(schema.nearest("vllm", ""), (flag,))


def test_a_door_may_be_closed_by_its_no_form_and_loopback_is_no_door():
    vllm = schema.nearest("vllm", "")
    assert checked(vllm, ("--no-trust-remote-code", "--no-enable-log-requests"))
    assert checked(vllm, ("--host=127.0.0.1",)) and checked(vllm, ("--load-format=dummy",))
    assert checked(vllm, ("--uvicorn-log-level=warning",))


def test_a_flag_is_given_once():
    with pytest.raises(UsageError, match="given twice"):
        checked(schema.nearest("vllm", ""), ("-tp=2", "--tensor-parallel-size=4"))


def test_flags_of_versions_to_come_are_refused_by_what_their_names_say():
    known = schema.nearest("vllm", "")
    for name in ("--output-parser-plugin", "--grpc-tls", "--ssl-versions", "--sampler-cls", "--smg-x"):
        assert refused(known, name, "x"), name
    assert not refused(known, "--max-num-seqs", "8")


def test_every_rule_of_doors_shuts_a_flag_that_an_engine_has():
    text = resources.files("freehold.outgrow.flags").joinpath("doors.toml").read_text(encoding="utf-8")
    names = [
        schema.alike(s).lstrip("-")
        for engine in schema.known_engines()
        for f in schema.nearest(engine, "").flags.values()
        for s in (f.name, *f.also)
    ]
    for pattern in re.findall(r'^name = "(.*)"$', text, re.MULTILINE):
        gone = pattern == "disable-log-requests"  # which people still give
        assert gone or any(re.fullmatch(pattern, name) for name in names), pattern


def test_a_secret_on_a_command_line_is_not_repeated():
    with pytest.raises(UsageError) as error:
        checked(schema.nearest("vllm", ""), ("--api-key=sk-1234",))
    assert "sk-1234" not in f"{error.value.message}{error.value.hint}"


# --- the script that makes the next one -------------------------------------------------------------


def test_the_script_reads_a_parser_with_wrapped_types_registries_and_none():
    parser = argparse.ArgumentParser()

    def optional_type(return_type):
        def _optional_type(text):
            return None if text == "None" else return_type(text)

        return _optional_type

    parser.add_argument("--size", "-s", type=optional_type(int))
    parser.add_argument("--on", action=argparse.BooleanOptionalAction)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--config", type=json.loads)
    parser.add_argument("--words", nargs="+", choices=("a", "b"))
    parser.add_argument("--parser")
    rows = {r[0]: r[1:] for r in engine_schema.of_argparse(parser, {"--parser": ["x", "y"]})}
    assert rows["--size"] == ["int", {"also": ["-s"], "none": True}]
    assert rows["--on"] == ["on-off", {"also": ["--no-on"]}]
    assert rows["--quick"] == ["switch"] and rows["--config"] == ["json"]
    assert rows["--words"] == ["text", {"choices": ["a", "b"], "many": True}]
    assert rows["--parser"] == ["text", {"choices": ["x", "y"]}]


def test_the_script_reads_a_reference_of_stability():
    said = {
        "tp": {"flags": ["--tp_size", "--tensor_parallel_size"], "type": "int", "is_flag": False, "multiple": False,
               "status": "beta"},
        "t": {"flags": ["--no-telemetry", "--telemetry"], "type": "bool", "is_flag": True, "multiple": False,
              "status": "stable"},
        "k": {"flags": ["--kv"], "type": "Choice(['auto', 'fp8'])", "is_flag": False, "multiple": False,
              "status": "stable"},
    }  # fmt: skip
    assert list(engine_schema.of_click(said)) == [
        ["--tensor_parallel_size", "int", {"also": ["--tp_size"], "status": "beta"}],
        ["--telemetry", "on-off", {"also": ["--no-telemetry"]}],
        ["--kv", "text", {"choices": ["auto", "fp8"]}],
    ]


@pytest.mark.parametrize(
    "engine, flag",
    [
        ("vllm", '--kv-transfer-config={"kv_connector": "X", "kv_connector_module_path": "evil"}'),
        ("vllm", "--kv-transfer-config.kv_connector_module_path=evil"),
        ("vllm", '--kv-transfer-config.kv_connector_extra_config={"spec-module-path": "evil"}'),
        ("vllm", '--ec-transfer-config={"ec_connector_module_path": "evil"}'),
        ("vllm", '--ec-manager-config={"encoder_cache_manager_cls": "evil.Manager"}'),
        ("vllm", '--structured-outputs-config={"reasoning_parser_plugin": "/tmp/evil.py"}'),
        ("vllm", "--structured_outputs_config.reasoning_parser_plugin=/tmp/evil.py"),
        ("vllm", '--compilation-config={"mode": 1, "backend": "evil.compiler"}'),
        ("vllm", "-cc.backend=evil.compiler"),
        ("vllm", '--compilation-config={"inductor_passes": {"x": "evil.run"}}'),
        ("vllm", '--speculative-config={"method": "custom_class", "model": "evil"}'),
        ("vllm", '--speculative-config={"model": "evil.Proposer"}'),
        ("vllm", '--speculative-config={"draft_load_config": {"load_format": "pt"}}'),
        ("vllm", "--spec-method=custom_class"),
        ("vllm", "--spec-model=evil.Proposer"),
        ("vllm", '--mm-processor-kwargs=[{"a": [{"trust_remote_code": true}]}]'),
        ("vllm", "--log-error-stack"),  # pydantic's message has the request that it refuses
        ("sglang", "--hicache-storage-backend=dynamic"),
        ("sglang", '--hicache-storage-backend-extra-config={"module_path": "evil", "class_name": "X"}'),
        ("sglang", "--speculative-draft-load-format=pt"),
        ("sglang", "--lmcache-config-file=/tmp/x.yaml"),
        ("sglang", "--delete-ckpt-after-loading"),
        ("sglang", "--log-level=Debug"),
        ("sglang", "--log-level=NOTSET"),
        ("llamacpp", "--lookup-cache-dynamic=/tmp/x"),
    ],
)
def test_code_and_logs_by_way_of_a_value_are_refused(engine, flag):
    with pytest.raises(UsageError, match="is refused"):
        checked(schema.nearest(engine, ""), (flag,))


def test_a_value_that_an_engine_would_read_as_a_flag_is_refused():
    for engine, flag in (
        ("vllm", "--chat-template=--trust-remote-code"),
        ("vllm", "--lora-modules=a=/x --trust-remote-code"),
        ("vllm", "--tokenizer -O3"),
        ("sglang", "--chat-template=--admin-api-key=x"),
    ):
        with pytest.raises(UsageError, match="begins with a dash"):
            checked(schema.nearest(engine, ""), (flag,))
    with pytest.raises(UsageError, match="names a file"):
        checked(schema.nearest("sglang", ""), ("--hicache-storage-backend-extra-config=@/tmp/x.toml",))
    assert checked(schema.nearest("llamacpp", ""), ("--spec-draft-threads=-1",))


def test_configurations_that_name_no_code_are_taken():
    for flag in (
        '--speculative-config={"method": "eagle3", "model": "/models/eagle", "num_speculative_tokens": 3}',
        '--kv-transfer-config={"kv_connector": "NixlConnector", "kv_role": "kv_both"}',
        '--compilation-config={"backend": "inductor", "cudagraph_mode": "PIECEWISE"}',
    ):
        assert checked(schema.nearest("vllm", ""), (flag,))


def test_json_of_any_depth_is_refused_and_nothing_else_happens():
    with pytest.raises(UsageError, match="not JSON"):
        checked(schema.nearest("vllm", ""), ("--compilation-config=" + "[" * 100_000,))
