# `make` explains itself. Everything runs in .venv, which the first target makes.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
RUN_DIR ?= runs/quickstart
# A drill trains two runs in there, and never overwrites one.
DRILL_DIR ?= runs/drill-$(shell date +%Y%m%d-%H%M%S)
CONFIG ?= pipeline/configs/digits.yaml
NODES ?= 2
# Cores per node, and so threads per process: all nodes of a local run share this machine.
CPU ?= 1
SCHEDULER ?= local_cwd
# Of a benchmark: its subjects, without which all are measured, and options; the storage that saves are measured on.
BENCH ?=
BENCH_URL ?=
# Of how cost grows: the curves, without which all are measured, and options.
GROWTH ?=
# Of a check of a GPU: its checks, without which all are made, and options.
GPU_CHECK ?=
# The app's own flags, such as ARGS="--trainer.max_epochs=3".
ARGS ?=
# Of a drill: how many faults, and the seed of their plan.
FAULTS ?= 12
SEED ?= 7
# The container image: its name, the base it is built on, and torch's build: cuda or cpu.
export IMAGE ?= torchx-lightning-pipeline:latest
DRIVER_IMAGE ?= torchx-lightning-pipeline-driver:latest
export BASE_IMAGE ?=
export TORCH ?= cuda
# Kubernetes: the run options of kubernetes_job, and the name of a pipeline.
K8S_ARGS ?= namespace=pipeline,service_account=pipeline-training,env_secrets=s3
NAME ?=
# An index of CPU builds, where the one that pip knows has none; more options of `docker build`; the client itself.
export TORCH_INDEX ?=
export BUILD_ARGS ?=
export DOCKER ?= docker
READY := .venv/.ready
# A second environment, for TorchX and its nightlies install the same package.
NIGHTLY := .venv/torchx-nightly
# What rests on private members of torch, Lightning and jsonargparse.
VERSIONED := tests/agent tests/process/test_preemption.py tests/run/test_s3_client.py tests/config/test_messages.py \
  tests/test_golden_run.py tests/training/step tests/training/test_memory_checkpoints.py tests/config/test_memory_state.py \
  tests/training/inspection \
  $(foreach part,compat epoch_loop resume session stop_vote,tests/training/test_$(part).py)
# The stages that a launcher starts on this machine find their Python first.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help setup check format test wheel test-slow test-torchx-nightly test-integrations test-versions bench bench-quick growth gpu-check drill soak \
  pipeline train evaluate report tensorboard image driver-image image-push smoke-docker smoke-slurm audit \
  k8s-setup k8s-render k8s-submit k8s-status k8s-logs docs docs-serve reference clean

help: ## Explain every target.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  RUN_DIR=$(RUN_DIR)   a path or any fsspec URL, such as s3://bucket/run'
	@echo '  CONFIG=$(CONFIG)  NODES=$(NODES)  SCHEDULER=$(SCHEDULER)'
	@echo '  ARGS="--trainer.max_epochs=3"   flags of the app itself'

setup: $(READY) ## Make .venv with the exact versions of constraints.txt and constraints-dev.txt.

$(READY): pyproject.toml constraints.txt constraints-dev.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Python %d.%d is too old: 3.11 or newer is needed, make PYTHON=python3.12" % sys.version_info[:2])'
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo 'error: no virtual environments here; on Debian: apt-get install python3-venv' >&2; exit 1; }
	@echo 'setting up .venv (the first time takes a few minutes)'
	@python -m pip install --quiet --disable-pip-version-check -c constraints.txt -c constraints-dev.txt -e '.[dev]'
	@touch $@

check: $(READY) ## Lint, types, spelling: all that pre-commit runs.
	@pre-commit run --all-files

format: $(READY) ## Format the code.
	@ruff check --fix-only --quiet . && ruff format --quiet .

test: $(READY) ## Run the tests.
	@python -m pytest

wheel: $(READY) ## Build the wheel and the source distribution, into dist/.
	@rm -rf build dist *.egg-info
	@said=$$(python -m build --no-isolation --outdir dist . 2>&1) || { echo "$$said" >&2; exit 1; }
	@rm -rf *.egg-info
	@twine check --strict dist/*

test-slow: $(READY) ## Run the slow tests (minutes).
	@python -m pytest -m slow

test-torchx-nightly: $(NIGHTLY)/.ready ## Run the tests of the Kubernetes scheduler under TorchX's nightly.
	@$(NIGHTLY)/bin/python -m pytest --noconftest $(foreach part,api_errors cancel cluster_api commands diagnostics logs renewal scheduler status waiting,tests/k8s/test_$(part).py)

$(NIGHTLY)/.ready: $(READY)
	@python -m venv $(NIGHTLY)
	@$(NIGHTLY)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -c constraints-dev.txt \
	  torchx-nightly kubernetes kmock pytest pytest-timeout pytest-xdist
	@$(NIGHTLY)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

test-integrations: .venv/integrations/.ready ## Run the tests with MLflow, Weights & Biases and transformers, which nothing here needs.
	@.venv/integrations/bin/python -m pytest -m '' tests/config/test_run_loggers.py tests/examples/test_configs.py tests/test_cli.py \
	  -k 'run_loggers or bert or resnet'

.venv/integrations/.ready: $(READY)
	@python -m venv .venv/integrations
	@.venv/integrations/bin/python -m pip install --quiet --disable-pip-version-check mlflow-skinny sqlalchemy alembic pandas wandb transformers
	@python -c 'import sys; print(*(each for each in sys.path if each.endswith("site-packages")), sep="\n")' \
	  >$$(echo .venv/integrations/lib/python*/site-packages)/everything-else.pth
	@touch $@

test-versions: .venv/lowest/.ready .venv/newest/.ready ## Run what rests on torch and Lightning under the lowest and newest declared versions.
	@for each in lowest newest; do echo "$$each versions:"; .venv/$$each/bin/python -m pytest -m 'not slow' $(VERSIONED) || exit 1; done

.venv/%/.ready: $(READY)
	@python -m venv .venv/$*
	@python -m tests.versions $* >.venv/$*/requirements.txt
	@.venv/$*/bin/python -m pip install --quiet --disable-pip-version-check -r .venv/$*/requirements.txt \
	  'torchx==0.7.*' kubernetes moto[server] hypothesis pytest pytest-timeout pytest-xdist
	@.venv/$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

bench: $(READY) ## Measure speed beside Lightning and a hand-written loop; BENCH='step load --write-docs', BENCH_URL=s3://...
	@python -m tests.benchmarks --against docs/performance.json $(if $(BENCH_URL),--url $(BENCH_URL)) $(BENCH)

bench-quick: $(READY) ## The same within three minutes.
	@python -m tests.benchmarks --scale quick --against docs/performance.json $(if $(BENCH_URL),--url $(BENCH_URL)) $(BENCH)

growth: $(READY) ## Measure how cost grows with nodes, data, state and the length of a run; GROWTH='ranks state --write-docs'.
	@python -m tests.benchmarks.growth $(GROWTH)

gpu-check: $(READY) ## Check one CUDA device within six minutes, or the same smaller on the CPU; GPU_CHECK='snapshots save --write-docs'.
	@python -m tests.gpu_check $(GPU_CHECK)

drill: $(READY) ## Disturb a training in every way, FAULTS times, and compare it with an undisturbed one.
	@python -m pipeline drill --config $(CONFIG) --run_dir $(DRILL_DIR) --nodes $(NODES) --faults $(FAULTS) --seed $(SEED) --args='$(ARGS)'

soak: $(READY) ## SIGTERM to a rank, an agent, all: 20 trials of each (10 minutes).
	@python -m tests.support.sigterm_trials 20

pipeline: $(READY) ## Train on NODES nodes, then evaluate on one device, and show the result.
	@python -m components.launch -s $(SCHEDULER) --image $(IMAGE) --nodes $(NODES) --cpu $(CPU) --config $(CONFIG) --run_dir $(RUN_DIR) -- $(ARGS)

train: $(READY) ## Only train.
	@torchx run -s $(SCHEDULER) components/train.py:train --image $(IMAGE) --nodes $(NODES) --cpu $(CPU) --config $(CONFIG) --run_dir $(RUN_DIR) -- $(ARGS)

report: $(READY) ## Write the page on the run RUN_DIR; RUN_DIR='runs/one runs/two' compares them.
	@python -m pipeline report --run_dir $(RUN_DIR)

evaluate: $(READY) ## Only evaluate a trained run.
	@torchx run -s $(SCHEDULER) components/evaluate.py:evaluate --image $(IMAGE) --run_dir $(RUN_DIR) -- $(ARGS)

tensorboard: $(READY) ## Open TensorBoard over RUN_DIR: one run or a folder of runs, local or s3:// (a bucket, too).
	@python -m pipeline tensorboard $(RUN_DIR)

image: $(READY) ## Build the container image IMAGE: for GPUs, or without CUDA by TORCH=cpu.
	@PYTHON=python docker/build.sh

driver-image: ## Build DRIVER_IMAGE, which submits from inside a cluster.
	@IMAGE=$(DRIVER_IMAGE) BUILD_ARGS="$(BUILD_ARGS) --target driver" docker/build.sh

image-push: ## Push IMAGE to REGISTRY=host/team, named by its version and revision.
	@docker/push.sh $(REGISTRY)

smoke-docker: image ## Build the image, check it, train in two containers, evaluate in one, and kill some.
	@python -m pytest tests/docker -n 0

smoke-slurm: $(READY) ## Train, kill, preempt and requeue on a Slurm of two nodes, which is set up on this machine (root, Debian).
	@python -m pytest tests/slurm -n 2

k8s-setup: ## Install what a cluster needs once (kubectl): namespace, service accounts, roles, network policies.
	@kubectl apply -k k8s/cluster

k8s-render: $(READY) ## Print the Kubernetes objects of a training, as YAML for kubectl.
	@torchx --log_level ERROR run --dryrun --workspace '' -s kubernetes_job -cfg '$(K8S_ARGS)' components/train.py:train \
	  --nodes $(NODES) --cpu $(CPU) --config $(CONFIG) --run_dir $(RUN_DIR) --image $(IMAGE) -- $(ARGS) | sed '1,/SCHEDULER REQUEST/d'

k8s-submit: $(READY) ## Train on NODES pods, then evaluate in one; this machine is not needed meanwhile.
	@python -m components.launch -s kubernetes_job --detach --scheduler_args '$(K8S_ARGS)' --nodes $(NODES) --cpu $(CPU) \
	  --config $(CONFIG) --run_dir $(RUN_DIR) --image $(IMAGE) --driver_image $(DRIVER_IMAGE) $(if $(NAME),--name $(NAME)) -- $(ARGS)

k8s-status: $(READY) ## Show the status of the run NAME; without one, of all your runs.
	@python -m components.jobs $(if $(NAME),status,list) -s kubernetes_job $(NAME)

k8s-logs: $(READY) ## Follow the log of the run NAME.
	@python -m components.jobs logs --follow -s kubernetes_job $(NAME)

audit: $(READY) ## Check everything in IMAGE against the database of known vulnerabilities.
	@python docker/audit.py $(IMAGE)

docs: $(READY) ## Build the documentation as a site, into site/.
	@NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict --quiet && echo site/index.html

docs-serve: $(READY) ## Show the documentation with its search while it is written: http://127.0.0.1:8000
	@NO_MKDOCS_2_WARNING=1 python -m mkdocs serve

reference: $(READY) ## Write docs/reference/ again, from the code.
	@python docs/tools/reference.py

clean: ## Remove .venv and caches, never a run.
	rm -rf .venv build dist site docker/wheels/*/ *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
