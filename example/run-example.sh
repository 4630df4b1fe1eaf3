#!/bin/sh
# Ten jobs, four workers, one dispatcher; the order of the three commands does not matter. Arguments go to
# `recruiter hire`: without tmux, run `./run-example.sh --backend local`.
set -eu
cd "$(dirname "$0")"

# The installed commands come first. Without them those of this checkout serve, best with what `make venv` installed.
PATH=$PATH:$PWD/../.venv/bin:$PWD/../bin
# This directory is the project, whatever project the shell usually works in.
unset FJD_DIR

python3 create_jobs.py
recruiter hire 4 "$@"
dispatcher
