# The commands people and CI use. `make` alone lists them.
#
# Every target sets the machine up first; that takes a moment when nothing is missing.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup up demo test fmt soak bench

# Cargo finds RocksDB by these variables.
with_env := source scripts/env &&

help: ## this list
	@echo 'Holdfast: make TARGET [ARGS="…"]'
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

setup: ## install what is missing, compile RocksDB once (about 20 minutes the first time)
	@scripts/setup

up: setup ## build the release and run a cluster on this machine; ARGS="--asds 6 …"
	@$(with_env) cargo build --locked --release --package holdfast
	@exec "$${CARGO_TARGET_DIR:-target}/release/holdfast" up $(ARGS)

demo: setup ## the tour: a filesystem on a vDisk, disks killed under it, files compared
	@$(with_env) cargo build --locked --release --package holdfast
	@scripts/demo $(ARGS)

test: setup ## everything CI runs; ARGS="--stage clippy" for one stage
	@$(with_env) cargo xtask ci $(ARGS)

fmt: ## format the code
	@cargo fmt --all

soak: setup ## long crash and loss tests; ARGS go to nextest
	@$(with_env) cargo xtask soak $(ARGS)

bench: setup ## benchmarks, as ratios against plain servers in the same run; ARGS go to the harness
	@$(with_env) cargo xtask bench $(ARGS)
