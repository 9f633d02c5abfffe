# Every target sets itself up: make, Python 3.11 or newer and, for speed, a C++ compiler are all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# An environment of another Python than the one that is asked for is made anew, so that nothing runs on the wrong one.
VERSION := import sys; print(*sys.version_info[:2])
ifneq ($(origin PYTHON),file)
ifneq ($(wildcard $(STAMP)),)
ifneq ($(shell $(PYTHON) -c '$(VERSION)'),$(shell $(BIN)/python -c '$(VERSION)'))
ANEW := anew
endif
endif
endif

.PHONY: anew demo test lint tutorials bench soak clean

$(STAMP): pyproject.toml constraints.txt $(ANEW)
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed, this is " + sys.version'
	$(PYTHON) -m venv $(if $(ANEW),--clear) $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[export,hub,tables,test]'
# The extra `laplace` without torchvision: nothing here needs it, and one for CUDA breaks beside a torch for the CPU.
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps laplace-torch asdfghjkl backpack-for-pytorch \
		curvlinops-for-pytorch einconv einops lightning-utilities linear_operator opt_einsum torchmetrics tqdm unfoldNd
	touch $(STAMP)

demo: $(STAMP)  ## fit Bayesian compression on bundled MNIST and write its report
	$(BIN)/zoo fit bayesian_compression --data mnist --seed 0 --out runs/demo

test: $(STAMP) lint  ## the whole suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup  # two workers, one thread each

lint: $(STAMP)
	$(BIN)/ruff check zoo tests tutorials benchmarks
	$(BIN)/ruff format --check zoo tests tutorials benchmarks
	$(BIN)/mypy

tutorials: $(STAMP)  ## execute the notebooks in place
	$(BIN)/python tutorials/execute.py

bench: $(STAMP)  ## compare with Pyro, PyTorch and NumPyro; CASES=small_network,... for some of the cases
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks $(if $(CASES),--cases $(CASES))

soak: $(STAMP)  ## kill fits at random moments, at length, and write RELIABILITY.md
	$(BIN)/python -m tests.reliability

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
