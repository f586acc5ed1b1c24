"""The verbs of `freehold`, by group: what --help says of each, and an example.

Data alone: a verb's file in freehold/cli is imported when the verb is used.
"""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    """`help`: the line in the list of verbs. `example`: a command line that does something useful at once.

    `file`: the file of freehold/cli with its command, as `VERB_command`; "": `command` in the file of its own name.
    """

    help: str
    example: str
    file: str = ""


GROUPS: dict[str, dict[str, Verb]] = {
    "Use a model": {
        "run": Verb(
            "Answer a prompt, or chat, with a model.",
            'freehold run qwen2.5-coder:0.5b "Reverse a string in Python."',
        ),
        "transcribe": Verb(
            "Turn recordings of speech into text or subtitles.",
            "freehold transcribe talk.wav --srt",
        ),
        "docs": Verb(
            "Keep collections of your documents, and search them.",
            "freehold docs add ~/notes --to notes",
        ),
        "embed": Verb("Turn texts into vectors.", 'freehold embed all-minilm:22m "a cat" "a dog"'),
    },
    "Choose a model": {
        "advise": Verb("Recommend a model for a task, with reasons.", 'freehold advise "code completion"'),
        "fit": Verb(
            "Predict whether a model fits, and its speed, here or on other hardware.",
            "freehold fit qwen3:8b --context 32k --on rtx-4090",
        ),
        "license": Verb(
            "Check whether a licence allows your use, and on which conditions.",
            "freehold license llama3.1:8b --for commercial",
        ),
        "hardware": Verb(
            "Find the hardware that serves a model to a number of users, with prices.",
            "freehold hardware deepseek-v3 --users 50",
        ),
        "cost": Verb(
            "Compare API prices with self-hosting and find the break-even volume.",
            "freehold cost qwen3:8b --on rtx-4090 --tokens-per-day 20M --against gpt-5-mini",
        ),
        "why": Verb(
            "Show the known facts about a model, their sources, and what is unknown.",
            "freehold why qwen2.5-coder:0.5b",
            "show",
        ),
        "models": Verb(
            "Search the catalogue of open models, or refresh it from the hub.", "freehold models --country FR"
        ),
    },
    "Keep models": {
        "pull": Verb(
            "Download a model, or add a file that is already here.", "freehold pull smollm2:135m", "stored"
        ),
        "list": Verb("List installed models.", "freehold list", "stored"),
        "show": Verb("Show what a model is and where its settings come from.", "freehold show smollm2:135m"),
        "create": Verb(
            "Make a model from another one, with a system prompt, settings or a Modelfile.",
            'freehold create pirate --from qwen2.5-coder:0.5b --system "Answer as a pirate."',
        ),
        "cp": Verb("Give a model another name.", "freehold cp smollm2:135m small", "stored"),
        "make-tiny": Verb(
            "Make a tiny random model of a family, for tests.",
            "freehold make-tiny qwen3 --out tiny",
            "create",
        ),
        "update": Verb("Download newer versions of models.", "freehold update", "stored"),
        "rm": Verb(
            "Delete a model, or remove another program's from the list.", "freehold rm smollm2:135m", "stored"
        ),
    },
    "Make a model yours": {
        "eval": Verb(
            "Score a model on tasks or your own cases, and compare two results.",
            "freehold eval qwen2.5-coder:0.5b --data humaneval --limit 20",
        ),
        "finetune": Verb(
            "Teach a model your examples, without forgetting the rest.",
            "freehold finetune smollm2:135m --data examples.jsonl --test test.jsonl -o mine",
        ),
        "data": Verb(
            "Make files to train on from a gateway's kept texts or from your chats.",
            "freehold data from-ledger --route tickets -o tickets",
        ),
        "fuse": Verb(
            "Put an adapter into a model's weights, as one file, and check it.",
            "freehold fuse smollm2:135m+./mine -o whole --test test.jsonl",
        ),
        "quantize": Verb(
            "Store a model's weights in fewer bits, and measure the loss.",
            "freehold quantize qwen2.5-coder:0.5b -o small --quant Q4_K_M --report",
        ),
        "align": Verb(
            "Teach a model which of two answers to prefer.",
            "freehold align smollm2:135m --pairs pairs.jsonl -o tuned",
        ),
        "distil": Verb(
            "Teach a small model to answer certain prompts like a larger one.",
            "freehold distil qwen2.5-coder:0.5b --into smollm2:135m --prompts prompts.jsonl -o tuned",
        ),
        "reinforce": Verb(
            "Train a model on scores that a program gives its answers.",
            "freehold reinforce smollm2:135m --reward reward.py --prompts prompts.jsonl --steps 60 -o mine",
        ),
        "build": Verb(
            "Build a model in stages from a recipe, with a test at each gate.",
            "freehold build recipe.toml --plan",
        ),
    },
    "Serve models": {
        "serve": Verb(
            "Serve models to clients of OpenAI, Anthropic and Ollama.", "freehold serve smollm2:135m"
        ),
        "open": Verb(
            "Open the web console in this machine's browser, signed in as the owner.", "freehold open", "ps"
        ),
        "keys": Verb(
            "Create, list and revoke the server's API keys.", "freehold keys add alice --rate 60/min"
        ),
        "agent": Verb(
            "Let a model work in a folder until it is done, within a budget; undo it.",
            'freehold agent "Convert data.csv to data.json." --folder .',
        ),
        "mcp": Verb(
            "Configure the programs whose tools a model may call.",
            "freehold mcp add files -- python ~/files_server.py ~/notes",
        ),
        "gateway": Verb(
            "Check a gateway.toml, or make one from a LiteLLM configuration.",
            "freehold gateway check gateway.toml",
        ),
        "route": Verb(
            "Show which models of a gateway would answer a request, and why; judge a prompt router.",
            'freehold route explain "Who is our supplier?" --label private --gateway gateway.toml',
            "gateway",
        ),
        "ledger": Verb(
            "Show what a gateway's requests cost, by model, key or task, and why each target was chosen.",
            "freehold ledger --since 7d --by model,key",
        ),
        "bar": Verb(
            "Measure models on your own cases, for the quality bars of routes.",
            "freehold bar run cases.jsonl --model qwen2.5-coder:0.5b",
        ),
        "graduate": Verb(
            "Train your own model on a paid API's answers, and let it take over.",
            "freehold graduate tickets --gateway gateway.toml",
        ),
        "audit": Verb(
            "Show which requests with a label were sent to a provider, and to which.",
            "freehold audit --label private --since 90d",
            "ledger",
        ),
        "launch": Verb(
            "Show or write the settings another program needs to use this server.",
            "freehold launch codex",
        ),
        "ps": Verb("List the models in the server's memory.", "freehold ps"),
        "stop": Verb("Unload a model, or stop the server.", "freehold stop smollm2:135m", "ps"),
    },
    "Use GPUs or several machines": {
        "deploy": Verb(
            "Run a model with vLLM, SGLang, llama.cpp or another engine, behind this server.",
            "freehold deploy qwen3:32b --on 2xh100 --dry-run",
        ),
    },
    "Inspect the machine": {
        "bench": Verb(
            "Measure prefill, decode and load beside the machine's limits.", "freehold bench smollm2:135m"
        ),
        "doctor": Verb("Show CPU, memory, kernels and model stores in use.", "freehold doctor"),
    },
    "Help": {
        "help": Verb("Show the help of a verb.", "freehold help run", "helping"),
        "completion": Verb(
            "Print a script that completes verbs, options, models and hardware with Tab.",
            'eval "$(freehold completion bash)"',
            "complete",
        ),
    },
}
VERBS = {name: verb for group in GROUPS.values() for name, verb in group.items()}
ALIASES = {"ls": "list", "licence": "license", "chat": "run", "search": "models"}
# What a person may type who knows other programs -> the verb for it.
MEANT = {
    "ask": "run", "talk": "run", "prompt": "run", "generate": "run",
    "download": "pull", "fetch": "pull", "get": "pull", "install": "pull",
    "delete": "rm", "remove": "rm", "uninstall": "rm", "copy": "cp", "rename": "cp",
    "find": "search", "browse": "search", "recommend": "advise", "info": "show", "inspect": "show",
    "start": "serve", "server": "serve", "web": "open", "ui": "open", "kill": "stop", "unload": "stop",
    "status": "ps", "train": "finetune", "quantise": "quantize", "benchmark": "bench", "upgrade": "update",
}  # fmt: skip

# The verbs below `freehold deploy`: the file of cli/deploying that has each, its name there, and its line in the list.
UNDER_DEPLOY = {
    "status": ("verbs", "status", "List deployments, their replicas and latest deaths."),
    "restart": ("verbs", "restart", "Replace every replica by a new engine; no answer is cut."),
    "upgrade": ("verbs", "upgrade", "Move a deployment to another plan, replica by replica."),
    "stop": ("verbs", "stop", "End a deployment after its answers, and forget it."),
    "logs": ("verbs", "logs", "Print what an engine wrote."),
    "bench": ("capacity", "bench", "Measure what the steps of a running engine take."),
    "capacity": (
        "capacity",
        "command",
        "Find the replicas that a load and an objective need, by simulation.",
    ),
}
