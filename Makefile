# `make demo` and `make test` set up all they need: a Python with venv and pip is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTORCH_VENV := .venv-pytorch
PLUGINS := .plugins
OUT := out
ON_JAX := KERAS_BACKEND=jax JAX_ENABLE_X64=1 $(BIN)/python -m pytest
# Properties of gradients, couplings, layers and conversions.
JAX_FILES := $(addprefix tests/, test_gradients.py test_passed_on_tensors.py test_layers.py \
	test_exact_couplings.py test_structure.py test_bad_input.py test_memory_modes.py \
	convert/test_find_runs.py convert/test_copies.py convert/test_readers.py \
	convert/test_inlined_blocks.py)
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test test-jax test-versions lint bench bench-full bench-distributed bench-models ahead-of-time horovod pytorch exactness clean

demo: $(VENV)/demo
	$(BIN)/python examples/language_model.py --out $(OUT)

# Files in their order: the longest have few tests, and would come last, on one worker, by number.
test: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
	KERAS_BACKEND=jax $(BIN)/python -m pytest tests/backends --numprocesses 2 --dist loadscope
	$(ON_JAX) $(JAX_FILES) --numprocesses 2 --dist loadfile
	KERAS_BACKEND=torch $(BIN)/python -m pytest tests/backends --numprocesses 2 --dist loadscope

# All that is not about TensorFlow, on JAX: a quarter of an hour.
test-jax: $(VENV)/installed
	$(ON_JAX) tests --numprocesses 2 --dist loadfile

# The oldest supported Keras, the current one, and the next one.
test-versions:
	PYTHON=$(PYTHON) scripts/test_keras_versions.sh 3.10.0 3.15.1 nightly

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/installed
	$(BIN)/python benchmarks/training_step.py --quick --out $(OUT)

bench-full: $(VENV)/installed pytorch
	$(BIN)/python benchmarks/training_step.py --out $(OUT) --docs docs/performance.md

bench-distributed: $(VENV)/installed
	$(BIN)/python benchmarks/distributed.py

horovod: $(VENV)/installed
	scripts/build_horovod.sh $(BIN)/python

bench-models: $(VENV)/installed
	$(BIN)/python benchmarks/models.py --docs docs/models.md

ahead-of-time: $(VENV)/installed $(PLUGINS)/installed
	PYTHONPATH=$(PLUGINS) $(BIN)/python benchmarks/ahead_of_time.py

pytorch: $(PYTORCH_VENV)/installed

exactness: $(VENV)/installed
	$(BIN)/python benchmarks/exactness.py --out $(OUT)

$(VENV)/demo: requirements-demo.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/installed: requirements-dev.txt requirements-keras-hub.txt $(VENV)/demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-keras-hub.txt
	touch $@

$(PYTORCH_VENV)/installed: benchmarks/requirements-pytorch.txt
	$(PYTHON) -m venv $(PYTORCH_VENV)
	$(PYTORCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

$(PLUGINS)/installed: benchmarks/requirements-plugins.txt $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(PLUGINS) -r $<
	touch $@

clean:
	rm -rf $(VENV) $(PYTORCH_VENV) $(PLUGINS) .venv-keras-* $(OUT) build *.egg-info
