# The two main commands: `make lab` opens the tutorials, `make test` runs everything. Both create .venv if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST_PYTHON := $(shell sed -n 's/^requires-python = ">=\(.*\)"$$/\1/p' pyproject.toml)
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help lab test test-all check tutorials frontend picture address dist check-dist check-binder bench-widgets pareto probes claims \
	site check-site lock benchmarks bench check-interchange aarch64 clean

help:
	@echo "make lab         open JupyterLab on the tutorials    (make lab ARGS=\"--no-browser --port 9999\")"
	@echo "make lab CPU=1   the same with torch's CPU build     (Linux without an NVIDIA card)"
	@echo "make test        run the suite"
	@echo "make test-all    the same, and every tutorial in JupyterLab"
	@echo "make check       formatting, lint, spelling, imports and types only"
	@echo "make tutorials   execute the tutorials and keep their outputs (ARGS=\"02 04\": only these)"
	@echo "make frontend    build the widgets' front end        (needs Node.js)"
	@echo "make picture     record the README's animation of the lab again"
	@echo "make address REPOSITORY=owner/name  write the GitHub address into badges, setup cells and docs"
	@echo "make dist        build sdist and wheel               (both go to dist/)"
	@echo "make check-dist  build them from a clean clone and try the wheel on every Python found"
	@echo "make check-binder  have repo2docker parse binder/    (needs no Docker)"
	@echo "make pareto      L0 against loss recovered and gamma, every architecture and controls, five seeds"
	@echo "make probes      the probe tables by layer, five seeds"
	@echo "make claims      what the tutorials say, measured from five seeds  (all three keep their results in build/experiments)"
	@echo "make site        build the static site in build/site  (make check-site: test it in a browser)"
	@echo "make lock        make requirements.lock fit pyproject.toml  (ARGS=--upgrade: and newer versions)"
	@echo "make benchmarks  run the benchmarks that are read by hand"
	@echo "make bench-widgets  how fast the widgets respond      (ARGS=\"--soak 10\": their memory over time)"
	@echo "make check-interchange  exchange SAEs with the real sae-lens and dictionary_learning"
	@echo "make aarch64     test SAEs and training on an emulated aarch64 machine  (x86-64 Debian; ARGS: pytest's)"
	@echo "make bench       compare with other libraries        (make bench ARGS=\"--quick --json build/bench.json\")"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(LOWEST_PYTHON)".split("."))))' || \
		{ echo "SAELab needs Python $(LOWEST_PYTHON) or newer; name one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp per set of packages; a change of the lock or of pyproject.toml reinstalls. CPU=1 takes torch's CPU build.
$(VENV)/.installed-%: pyproject.toml requirements.lock | $(BIN)/python
	@echo "Installing into $(VENV); it takes some minutes."
	$(BIN)/python -m pip install --quiet $(if $(CPU),--requirement binder/torch-cpu.txt) --constraint requirements.lock \
		--editable ".[$*]"
	@touch $@

lab: $(VENV)/.installed-lab
	$(BIN)/saelab lab $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell saelab widgets tutorials docs README.md CONTRIBUTING.md CHANGELOG.md
	$(BIN)/lint-imports
	$(BIN)/mypy

# Hugging Face is offline: no test may use the hub.
test: check
	$(BIN)/python tests/browser/chromium.py
	HF_HUB_OFFLINE=1 $(BIN)/python -X warn_default_encoding -m pytest $(ARGS)

test-all:
	$(MAKE) test ARGS="-m '' $(ARGS)"

tutorials: $(VENV)/.installed-dev
	$(BIN)/python tests/tutorials/execute.py $(ARGS)

frontend:
	cd widgets/frontend && npm ci && npm run check && npm test && npm run build

picture: $(VENV)/.installed-dev
	HF_HUB_OFFLINE=1 $(BIN)/python tools/picture.py

# Without REPOSITORY, the current address is written into new files; an empty one removes it everywhere.
address:
	$(PYTHON) tools/address.py $(if $(filter command line,$(origin REPOSITORY)),--set "$(REPOSITORY)")

build/release/bin/pyproject-build:
	$(PYTHON) -m venv build/release
	build/release/bin/python -m pip install --quiet build

dist: build/release/bin/pyproject-build
	rm -rf dist
	build/release/bin/pyproject-build

check-dist:
	$(PYTHON) tools/check_dist.py $(ARGS)

check-binder:
	$(PYTHON) -m venv build/repo2docker
	build/repo2docker/bin/python -m pip install --quiet jupyter-repo2docker==2026.4.0
	build/repo2docker/bin/repo2docker --no-build --debug . > build/binder.log 2>&1 || { cat build/binder.log; exit 1; }
	@echo "repo2docker reads binder/ without an error; what it would build is in build/binder.log"

pareto probes claims: $(VENV)/.installed-dev
	$(BIN)/python docs/experiments/$@.py $(ARGS)

# Notebooks keep their committed outputs; the gallery's widgets are computed, which takes two minutes the first time.
site: $(VENV)/.installed-site
	HF_HUB_OFFLINE=1 $(BIN)/python docs/site/make_site.py

check-site: site $(VENV)/.installed-dev
	$(BIN)/python tests/browser/chromium.py
	$(BIN)/python -m pytest tests/site/check_site.py $(ARGS)

benchmarks: $(VENV)/.installed-dev
	for script in $(filter-out %_libraries.py %/widgets.py,$(wildcard tests/benchmarks/[a-z]*.py)); do \
		echo "== $$script"; $(BIN)/python $$script || exit 1; done

bench-widgets: $(VENV)/.installed-dev
	HF_HUB_OFFLINE=1 $(BIN)/python tests/benchmarks/widgets.py $(ARGS)

# The first run creates an environment for the other libraries and searches for coefficients; build/ keeps both.
bench: $(VENV)/.installed-dev
	$(BIN)/python tests/benchmarks/against_libraries.py $(ARGS)

# Checks that the real packages read what we write, and that we read what they write.
check-interchange: $(VENV)/.installed-dev
	$(BIN)/python tests/benchmarks/interchange_with_libraries.py $(ARGS)

# Resolved for the lowest Python of requires-python, whatever Python runs this. What the lock holds stays, but for pins that
# cannot; ARGS=--upgrade takes new versions of everything except torch, whose pin is changed by hand.
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet uv
	grep ^torch== requirements.lock | build/lock/bin/uv pip compile --quiet --python-version $(LOWEST_PYTHON) --extra dev \
		--no-header --no-annotate --constraint - --output-file requirements.lock $(ARGS) pyproject.toml > build/lock/log
	rm -rf build/lock

# The first run makes the machine in build/aarch64; TREE=../clone tests another clone's code on it.
aarch64:
	$(PYTHON) tools/aarch64.py $(ARGS)

clean:
	rm -rf $(VENV) build dist
