PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test perf lint clean

demo: .venv/demo
	$(BIN)/dynjit demo

test: .venv/test
	$(BIN)/ruff check dynjit tests examples perf
	$(BIN)/mypy
	$(BIN)/dynjit warmup
	if $(BIN)/python -c "import numba_cuda" 2>/dev/null; then $(BIN)/dynjit warmup --target cuda --cc 8.0; fi
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

perf: .venv/test
	$(BIN)/python -m perf

.venv/demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/test: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test,plot]'
	$(BIN)/pip install --quiet --editable '.[cuda-test]' || echo "No compiler for CUDA here: its tests are skipped."
	touch $@

clean:
	rm -rf .venv
