# make demo        trains the tiny default for a while and writes runs/tiny/report.html
# make test        linter and test suite
# make smoke       a minute of training in a temporary folder
# make documented  the README's commands, each for a few updates; with VENV=FOLDER in an environment of its own
# make test-heavy  the tests that take minutes
# make plan        the third stage of one large config of each family, compiled for its TPU slice (no TPU needed)
# make plans       every large config, all stages (hours)
# make clean       removes the environment and the demo's run

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

# A third of the config's updates, and fewer test tasks.
SHORT := --config.rl.stage1_updates=30 --config.rl.stage2_updates=15 --config.rl.updates=60 --config.train.eval_tasks=96

FAMILIES := qwen25_7b.py:v5p-16=v5p-16 qwen3.py:4b-v5p-16=v5p-16 llama32.py:1b-v5e-16=v5e-16

.PHONY: demo test smoke documented test-heavy plan plans clean

demo: $(VENV)/installed
	$(RUN) -m experiments.train --config=configs/tiny.py --workdir=runs/tiny $(SHORT)

test: $(VENV)/installed-test
	$(RUN) -m ruff check .
	$(RUN) -m pytest

test-heavy: $(VENV)/installed-test
	$(RUN) -m pytest -m heavy

plan: $(VENV)/installed-test
	printf '%s\n' $(FAMILIES) | JAX_PLATFORMS=cpu xargs -P 2 -I{} sh -c 'pair={}; \
		exec $(RUN) -m experiments.plan --config=configs/$${pair%=*} --topology=$${pair#*=} --stages=3'

plans: $(VENV)/installed-test
	$(RUN) -m pytest -m plans

smoke: $(VENV)/installed
	workdir=$$(mktemp -d) && trap 'rm -rf "$$workdir"' EXIT && \
	$(RUN) -m experiments.train --config=configs/tiny.py --workdir="$$workdir" \
		--config.rl.stage1_updates=1 --config.rl.stage2_updates=1 --config.rl.updates=3 --config.train.eval_tasks=64 && \
	test -s "$$workdir/summary.json" && test -s "$$workdir/report.html"

# What the README promises has to run on what it installs: nothing of the test extra may be there.
documented: $(VENV)/installed
	@$(RUN) -c 'import importlib.util as u; exit(u.find_spec("torch") and "error: $(VENV) has torch; take a new VENV")'
	tests/documented_commands.sh $(RUN)

clean:
	rm -rf $(VENV) runs/tiny

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
		echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 to 3.13 is needed." \
			"Name one with: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.py | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: setup.py | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --editable '.[test]'
	touch $@
	touch $(VENV)/installed
