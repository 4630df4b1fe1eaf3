# `make` alone lists the targets. Those that need Python packages make .venv first.

# The Python that .venv is made with, and what workers run in: tmux or local.
PYTHON = python3
BACKEND = tmux

BIN = .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help venv example lint check test bench clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*##  */\1	/p' $(MAKEFILE_LIST) | expand -t 12

venv: .venv/installed  ## .venv, with fjd and all that its tests need (PYTHON=python3.12 chooses the interpreter)

# Written last, so an installation that was cut short is not taken for a finished one.
.venv/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo 'fjd needs Python 3.11 or newer, and "$(PYTHON)" is not. Name one that is: make PYTHON=python3.12 venv' >&2; \
	    exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

example: venv  ## ten jobs on four workers, from an empty machine to the results (BACKEND=local does without tmux)
	@[ '$(BACKEND)' != tmux ] || command -v tmux >/dev/null || { \
	    echo 'The workers run in tmux, which is not installed. To get it, run one of these:' >&2; \
	    echo '    apt install tmux    dnf install tmux' >&2; \
	    echo 'or do without it: make example BACKEND=local' >&2; \
	    exit 1; }
# Results of an earlier run are removed, so that only this run can pass. Whatever goes wrong, no worker stays behind.
	@cd example && rm -f data/job?.dat && unset FJD_DIR && export PATH="$(CURDIR)/$(BIN):$$PATH" && \
	trap 'recruiter fire --now' EXIT && trap 'exit 130' HUP INT TERM && \
	./run-example.sh --backend $(BACKEND) && recruiter fire && trap - EXIT && \
	ls data/job0.dat data/job1.dat data/job2.dat data/job3.dat data/job4.dat \
	   data/job5.dat data/job6.dat data/job7.dat data/job8.dat data/job9.dat && \
	echo 'data/job0.dat says:' && cat data/job0.dat

lint: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

check: lint  ## in seconds: ruff, mypy, the unit and crash tests
	$(BIN)/python -m pytest tests/unit tests/crash -m 'not slow'

# Without tmux, the tests that need it are skipped and say how to get it.
test: lint  ## everything: ruff, mypy, all tests
	$(BIN)/python -m pytest

bench: venv  ## the benchmarks
	$(BIN)/python -m bench

clean:  ## remove what the targets above made, .venv too
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf example/jobqueue example/workerqueue example/jobrecord example/data
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
