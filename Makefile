# The commands of everyday work. `make` alone lists them.
#
# Each target first sets up what is missing; with everything in place that takes a fraction of a
# second. The logic is in scripts/, so that CI and a shell can run the same steps.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# The lab of `make demo`.
LAB ?= dsr
# More arguments of cargo, for example: make test ARGS='--package labctl-wire'
ARGS ?=
# Where `make install` puts the binary.
PREFIX ?= /usr/local

# Build scripts run in their crate's folder, where a relative path would mean something else.
ifneq ($(LABCTL_BPF_OBJECT),)
export LABCTL_BPF_OBJECT := $(abspath $(LABCTL_BPF_OBJECT))
endif

# How often `make damage` damages the evidence of each lab.
DAMAGES ?= 25000

.PHONY: help setup build demo test lint bench damage install clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## install what is missing to build and to test
	@scripts/setup.sh test

build: ## build the static binary target/labctl
	@scripts/setup.sh build
	@scripts/build.sh

demo: build ## bring the lab dsr up, prove it, take it down (another: make demo LAB=snat)
	@scripts/demo.sh $(LAB)

# Containers of the kind labs run the static binary; the tests take the one that users get.
test: setup ## run every test
	@scripts/build.sh
	@scripts/cargo-root.sh test --workspace --features labctl/mutations --no-fail-fast $(ARGS)

lint: ## check formatting, clippy, shell scripts and workflows
	@scripts/setup.sh build
	@scripts/lint.sh

bench: setup ## run the benchmarks
	@scripts/build.sh
	@scripts/cargo-root.sh bench --workspace $(ARGS)

damage: build ## test the judge with damaged evidence of every bundled lab (DAMAGES=25000 each)
	@scripts/damage.sh $(DAMAGES)

install: build ## install target/labctl to PREFIX/bin (/usr/local)
	@scripts/as-root.sh install -D -m 755 target/labctl $(DESTDIR)$(PREFIX)/bin/labctl

clean: ## remove everything that was built; evidence in .labctl stays
	@# Tests that ran through sudo leave files of root's.
	@scripts/rust.sh cargo clean || scripts/as-root.sh rm -rf target
