# Everything needs only Python 3.11 or newer, git and make; each target sets up what it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PROBING := generate-model-acts train-baselines generate-sae-acts train-sae-probes visualize

.PHONY: test demo taste bench lint clean $(PROBING)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

test: $(READY)  ## every test but those that need a GPU, with coverage
	$(BIN)/python -m pytest -m 'not gpu' --cov=saestore --cov-report=term

demo: $(READY)  ## the main job on real data, in demo/
	$(BIN)/saestore run pipelines/quickstart.yaml

taste: $(READY)  ## the demo in a short form
	$(BIN)/saestore run pipelines/taste.yaml

$(PROBING): $(READY)  ## a part of the probing benchmark, on MiniLM; in this order
	$(BIN)/saestore run pipelines/sae_probes.yaml --steps $@

bench: $(READY)  ## every benchmark, in one table
	$(BIN)/python scripts/bench/run.py

lint: $(READY)  ## style, types and the layers of the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo build dist *.egg-info .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis
