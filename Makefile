# Everything happens in .venv, made here from the first Python 3.11 or later on the PATH. No step needs root.
# A C++ compiler is the one thing that must be there, and not even that where a wheel fits; cmake and ninja come with the
# build if they are missing.

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; exit; }; done)
BIN := $(VENV)/bin
NATIVE := CMakeLists.txt pyproject.toml $(shell find csrc -type f)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
INSTALL := $(BIN)/python tools/install.py
ARM64 = $(PIP) --requirement requirements/build.in "ziglang>=0.15" && $(BIN)/python tools/arm64.py
# A folder of wheels for "make run" to install from; without one it looks into dist, and builds where no wheel fits.
export WHEELS ?=
# Every package of a test run by version and hash, for all Pythons and systems; "make test LOCK=" takes the newest instead.
LOCK ?= requirements/ci.txt
UV := $(BIN)/uv pip compile --universal --generate-hashes --python-version 3.11 --no-header --quiet --upgrade
# Of whatever build the machine's index gives: the CPU's is enough, and a local folder of wheels may hold it.
TORCH ?= torch>=2.6
MINUTES ?= 10
# Processes that run tests at a time; a test waits for its servers two thirds of its time.
WORKERS ?= 3
# Beside each test's first case "make test" runs one quarter of the others and of heavy tests, the next one with each commit.
SHARD ?= $(shell [ "$$(git rev-parse --is-shallow-repository 2>/dev/null)" = false ] && \
	echo $$(($$(git rev-list --count HEAD) % 4)) || echo 0)
# At temperature 0 the answers of qwen2.5-coder 0.5b and 1.5b are right: tests/test_showcase.py checks them.
QUESTION := Write a Python function that reverses a string, and show one call with its result.
MODELS := smollm2:135m qwen2.5-coder:0.5b

.PHONY: help run test test-native test-all check lint bench native console test-console docs site wheels lock sbom sanitize cross arm64 fuzz clean

help: ## Show these targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

run: $(VENV)/.installed ## Fetch a model that runs well here, ask it a real question, say how fast it answered
	$(BIN)/freehold run "$(QUESTION)" --temperature 0 --seed 1 --max-tokens 250 --verbose

test: $(VENV)/.tested ## Lint, types, and the tests, those that need weights included
	for model in $(MODELS); do $(BIN)/freehold pull $$model || exit; done
	$(BIN)/python tools/check.py -m "not big" -n $(WORKERS) --dist worksteal --shard=$(SHARD)

test-native: $(VENV)/.tested ## csrc under the sanitizers and on emulated ARM in part, types and compilation for macOS
	$(PIP) --requirement requirements/build.in "ziglang>=0.15"
	$(BIN)/pyright --threads 2 --pythonplatform Darwin
	$(BIN)/python tools/sanitize.py --short
	$(BIN)/python tools/arm64.py test --every=3
	$(BIN)/python tools/cross.py

test-all: check ## Every test and every case, csrc under the sanitizers, for ARM and for macOS too
	$(BIN)/pyright --threads 2 --pythonplatform Darwin
	for model in $(MODELS); do $(BIN)/freehold pull $$model || exit; done
	$(BIN)/python -m pytest -m "big or not big" -n $(WORKERS) --dist worksteal
	$(PIP) --requirement requirements/build.in "ziglang>=0.15"
	$(BIN)/python tools/sanitize.py
	$(BIN)/python tools/arm64.py test
	$(BIN)/python tools/cross.py

check: lint ## Lint, and types for Linux
	$(BIN)/pyright --threads 2 --pythonplatform Linux

lint: $(VENV)/.tested
	$(BIN)/ruff check
	$(BIN)/ruff format --check

bench: $(VENV)/.tested ## Measure this machine: start-up, then a model beside its ceiling
	$(BIN)/python benches/engine/startup.py
	$(BIN)/freehold pull qwen2.5-coder:0.5b
	$(BIN)/freehold bench qwen2.5-coder:0.5b

native: $(VENV)/.tested ## Build the C++ again, only what changed
	$(PIP) --requirement requirements/build.in
	$(PIP) --no-build-isolation --no-deps --editable .
	@touch $(VENV)/.installed $(VENV)/.tested

console: ## Build the page into the package, with Node 20.19 or later; its files are committed with its sources
	cd console && npm ci --no-audit --no-fund && npx tsc --noEmit && npx vite build

test-console: $(VENV)/.tested ## Test the page in Debian's Chromium (apt-get install chromium), the long tests too
	$(BIN)/python -m pytest -m "not model" tests/console

docs: $(VENV)/.installed ## Generate the reference pages
	$(BIN)/python docs/generate.py

site: $(VENV)/.tested ## Build the documentation site, strictly, into build/site
	$(BIN)/zensical build --strict

wheels: $(BIN)/python ## Build the wheels of Linux and macOS into dist, and check them; ARGS="--only abi3": a part
	$(PIP) --requirement requirements/build.in --requirement requirements/wheels.in
	@mkdir -p build
	$(BIN)/python tools/wheels.py $(ARGS) > build/SHA256SUMS
	@mv build/SHA256SUMS dist/ && cat dist/SHA256SUMS

lock: $(BIN)/python ## Resolve requirements/*.txt again, to the newest releases that go together
	$(PIP) "uv>=0.9"
	$(UV) pyproject.toml requirements/build.in --extra test --extra gateway --extra adapt --extra mcp --no-emit-package torch \
		--output-file requirements/ci.txt
	$(UV) pyproject.toml --constraint requirements/ci.txt --output-file requirements/run.txt
	$(BIN)/python tools/sbom.py packaging/freehold.cdx.json

sbom: $(BIN)/python ## Write what an installed Freehold consists of, which wheels carry (CycloneDX)
	$(BIN)/python tools/sbom.py packaging/freehold.cdx.json

sanitize: $(VENV)/.tested ## Test csrc under AddressSanitizer and UndefinedBehaviorSanitizer; ARGS=--short: a part
	$(PIP) --requirement requirements/build.in
	$(BIN)/python tools/sanitize.py $(ARGS)

cross: $(VENV)/.tested ## Compile csrc for macOS on both processors, with zig
	$(PIP) --requirement requirements/build.in "ziglang>=0.15"
	$(BIN)/python tools/cross.py

arm64: $(VENV)/.tested ## Test the ARM kernels by emulation, where Debian's packages can be had
	$(ARM64) test

fuzz: $(VENV)/.tested ## Fuzz the readers of model files for MINUTES each, where atheris is to be had
	$(PIP) "atheris>=2.3"
	for target in gguf safetensors lora; do \
		$(BIN)/python -m tests.fuzz $$target --seconds $$((60 * $(MINUTES))) || exit; done

clean: ## Remove what was built here; models stay in the data folder
	rm -rf $(VENV) build

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or later on the PATH" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python $(NATIVE)
	$(INSTALL) --run
	@touch $@

# Not after .installed: each install builds the C++ anew, and one of them is enough.
$(VENV)/.tested: $(BIN)/python $(NATIVE) $(LOCK)
ifeq ($(LOCK),)
	$(INSTALL) --editable ".[test]"
else
	$(INSTALL) --locked $(LOCK) "$(TORCH)"
endif
	@touch $(VENV)/.installed $@
