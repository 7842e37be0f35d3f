# `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
args ?=
workers ?= 2

.PHONY: help install train smollm2 test test-long verifiers lint format docs wheel results kills bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing into $(VENV): about two minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(INSTALLED) ## create .venv with the tested versions

train: $(INSTALLED) ## install, then train the embedded model (args="algorithm=grpo seed=1" to change it)
	$(BIN)/gspo-train $(args)

smollm2: $(INSTALLED) ## bring the pretrained model of model=smollm2 to this machine (93 MB)
	$(BIN)/python scripts/fetch_smollm2.py

PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(workers) --dist loadfile --no-loadscope-reorder

test: $(INSTALLED) ## run all tests but the long ones: five minutes (args="tests/test_x.py" for some, workers=8 on more cores)
	$(PYTEST) $(if $(findstring tests/,$(args)),,-m "not long") $(args)

test-long: $(INSTALLED) ## run the long tests: whole runs, the real model, two ranks
	$(PYTEST) -m long $(args)

lint: $(INSTALLED) ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

verifiers: $(INSTALLED) ## test task=verifiers, whose package needs an older openai, in an environment of its own
	$(BIN)/python -m venv $(VENV)/verifiers
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $$(echo $(VENV)/verifiers/lib/python3*/site-packages)/base.pth
	$(VENV)/verifiers/bin/pip install -qq --disable-pip-version-check verifiers==0.4.0
	OMP_NUM_THREADS=1 $(VENV)/verifiers/bin/python -m pytest -n $(workers) tests/test_task_verifiers.py $(args)

format: $(INSTALLED) ## rewrite files in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED) ## write docs/configuration.md from the schemas and conf/
	$(BIN)/python scripts/reference.py

wheel: $(INSTALLED) ## build the wheel and check that it brings its configuration
	$(BIN)/python scripts/check_wheel.py

results: $(INSTALLED) ## check the measured parts of docs/results.md against the stored logs
	$(BIN)/python scripts/results.py --check

kills: $(INSTALLED) ## kill and resume runs at random moments, and compare them to the bit
	$(BIN)/python scripts/kill_test.py

clean: ## remove the environment and build products
	rm -rf $(VENV) dist build
