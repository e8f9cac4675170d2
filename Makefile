# The commands of this repository. `make up` and `make test` do all set-up.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help up test test-v2 test-kvm bench bench-lambda bench-kvm soak lint clean setup build

help:
	@echo "make up        build, make sample images, start a server and deploy to it (ONESHOT=1 ends by itself)"
	@echo "make test      set up and pass every test"
	@echo "make test-v2   only the container class's tests in a machine with pure cgroup v2"
	@echo "make test-kvm  only the monitor's tests on an emulated machine's KVM"
	@echo "make bench     take the figures, into target/bench.json"
	@echo "make bench-lambda take those of functions, into target/bench-lambda.json"
	@echo "make bench-kvm take virtual machines' figures, into target/bench-kvm.json"
	@echo "make soak      the long counts"
	@echo "make lint      formatting, clippy, and the crates' edges"
	@echo "make clean     remove what was built"

setup:
	@scripts/setup.sh

build: setup
	cargo build --release -p skiff -p skiff-vmm
	@scripts/agent.sh >/dev/null

up: build
	@scripts/up.sh

test: setup
	@scripts/test.sh

test-v2: setup
	@scripts/test-v2.sh

test-kvm: setup
	@scripts/test-kvm.sh

bench:
	@scripts/setup.sh bench
	@scripts/bench.sh

bench-lambda:
	@scripts/setup.sh bench
	@scripts/bench.sh lambda

bench-kvm: setup
	@scripts/bench-kvm.sh

soak: setup
	@scripts/soak.sh

lint:
	cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings
	@scripts/edges.sh

clean:
	cargo clean
