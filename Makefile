PYTHON ?= python3
BIN := .venv/bin
ROOMS := calib_data training export quant runtime
STAMP := .venv/.installed

.PHONY: install demo test test-quick test-oldest test-all-builds lint gpu-check fuzz api-check docs docs-text \
	docs-figures image-check audit

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/sodeploy demo --output out/demo

# Training's tests apart: they fork, and the threads of other engines in one process do not survive that
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --durations 15 --ignore=tests/training
	$(BIN)/python -m pytest -n 2 --durations 5 tests/training

# The tests that take less than a minute together, of every room but export; tests/quick.py lists them
test-quick: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m quick

# The quick tests with the oldest version of every dependency that pyproject.toml allows, in an environment of their own
test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/python -m pytest -n 2 -m quick

.venv-oldest/.installed: pyproject.toml
	rm -rf .venv-oldest
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct \
		-e '.[cpu,openvino,bench,adopt,report,quant,train,test]'
	touch $@

# Engines of every network in every precision, and of networks of 2024 to 2026, compiled by TensorRT-RTX without a GPU
test-all-builds: $(STAMP)
	$(BIN)/python -m pytest -n 2 -v -m "all_builds or not all_builds" \
		tests/quant/test_networks_build.py tests/export/test_modern_networks.py

# mypy wants to see the packages as they are installed: a tree of links, every room below sodeploy/
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typed && mkdir -p build/typed/sodeploy
	ln -s $(CURDIR)/sodeploy/*.py build/typed/sodeploy/
	ln -s $(addprefix $(CURDIR)/,$(ROOMS)) build/typed/sodeploy/
	cd build/typed && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p sodeploy

# Spoiled files of every kind through every reader: the tests take some hundred, this takes as long as it may
MINUTES ?= 10
fuzz: $(STAMP)
	PYTHONPATH=$(CURDIR) $(BIN)/python tests/fuzz.py --minutes $(MINUTES)

# Requests that schemathesis makes from the service's OpenAPI description, without API keys and with one; minutes
EXAMPLES ?= 200
api-check: $(STAMP) .venv-api/.installed
	PYTHONPATH=$(CURDIR) $(BIN)/python tests/api_check.py .venv-api/bin/schemathesis --examples $(EXAMPLES)

.venv-api/.installed: tests/api-requirements.txt
	test -x .venv-api/bin/python || $(PYTHON) -m venv .venv-api
	.venv-api/bin/python -m pip install --quiet --disable-pip-version-check -r tests/api-requirements.txt
	touch $@

# On a machine with an NVIDIA GPU, from whatever is installed there; writes benchmarks/results/<gpu>-<date>.{json,md}
gpu-check:
	PYTHONPATH=$(CURDIR) $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu_check.py

# The site of the documentation, into out/site; a warning is an error
docs: $(STAMP)
	$(BIN)/mkdocs build --strict --quiet

# Rewrites what the pages take from the code and from records: options, recipe keys, tables, the picture of the house
docs-text: $(STAMP)
	$(BIN)/python docs/make/blocks.py

# Runs the demo and the comparison of methods again, draws the pictures of the front page; minutes
docs-figures: $(STAMP)
	$(BIN)/python docs/make/figures.py

# The image for CPUs, built and run by podman on a Debian that debootstrap makes: no Docker daemon, no registry; root
image-check: $(STAMP)
	PYTHONPATH=$(CURDIR) $(BIN)/python docker/image_check.py

# The packages installed here as an SBOM (CycloneDX); Dockerfile, compose.yaml and workflows against their rules and
# schemas; known vulnerabilities, which the package index is asked for
AUDIT := .venv-audit/bin
audit: $(STAMP) .venv-audit/.installed
	mkdir -p out
	$(AUDIT)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible \
		--output-format JSON --output-file out/sbom.cdx.json
	$(AUDIT)/hadolint docker/Dockerfile
	$(AUDIT)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml docker/compose.keys.yaml
	$(AUDIT)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(AUDIT)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

.venv-audit/.installed: docker/audit-requirements.txt
	test -x $(AUDIT)/python || $(PYTHON) -m venv .venv-audit
	$(AUDIT)/python -m pip install --quiet --disable-pip-version-check -r docker/audit-requirements.txt
	touch $@
