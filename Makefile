# SPDX-License-Identifier: Apache-2.0
# Each target makes what it needs first (tests/setup): Debian packages and a virtual environment outside the repository.
RUN := tests/setup
PARTS := lint unit conformance molecule integration

.DEFAULT_GOAL := help
.PHONY: help test $(PARTS) roles openstack openstack-testbed nightly docs udocker pins clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 20

test: ## lint, unit, conformance, molecule and integration, and how long each took
	@$(RUN) tests/timed $(PARTS)

lint: ## what can be said without running anything
	@$(RUN) tests/lint/run

unit: ## libraries and services, on loopback
	@$(RUN) pytest -n 4 --dist loadfile tests/unit

conformance: ## credentials before foreign verifiers, containers beside foreign programs, and attacks on both
	@$(RUN) pytest tests/conformance/x509
	@$(RUN) pytest -n 3 --dist loadfile tests/conformance/udocker
	@$(RUN) pytest tests/conformance/mesos tests/conformance/cvmfs

molecule: ## what no cluster below shows: playbooks twice and in check mode, CVMFS
	@$(RUN) molecule test -s default -s cvmfs

roles: ## each role by itself, on hosts that are containers
	@$(RUN) molecule test --all

integration: ## whole clusters, from a template to a finished job and back
	@$(RUN) pytest -m "not nightly" --durations 12 --ignore tests/integration/openstack tests/integration

openstack: ## provisioning before a real OpenStack, and whole clusters on its servers
	@$(RUN) pytest -m "not nightly" --durations 12 tests/conformance/openstack
	@$(RUN) pytest -m "not nightly" --durations 12 tests/integration/openstack

openstack-testbed: ## a real OpenStack on this machine, to try things on
	@$(RUN) tests/testbeds/openstack/testbed up --compute guests --hosts 3

nightly: roles ## what takes too long for every change: also names from 100,000 tokens, and a soak of 20 minutes
	@HYPOTHESIS_PROFILE=nightly $(RUN) pytest -n 2 tests/unit/x509/test_x509_claims_to_names.py tests/unit/x509/test_x509_names.py
	@$(RUN) pytest tests/conformance/openstack
	@$(RUN) pytest tests/integration/openstack
	@$(RUN) pytest -m nightly --ignore tests/integration/openstack tests/integration
	@$(RUN) tests/bench/credentials/soak.py --minutes 20

docs: ## reference of the collection, in build/docs
	@$(RUN) tests/lint/run docs

udocker: ## the container runtime, one file, in build/udocker
	@mkdir -p build && python3 -IS collections/ansible_collections/dodas/cluster/plugins/module_utils/udocker/bundle.py build/udocker

pins: ## requirements*.txt from requirements*.in
	@$(RUN) tests/pins

clean: ## what these targets left in the repository
	rm -rf build .pytest_cache .ruff_cache .hypothesis .ansible
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
