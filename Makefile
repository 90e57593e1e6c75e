# demo  quantize the bundled model  and show the result      test  run the tests (with Chromium, which `make browser` installs: Debian, root)
# notebook  open the notebooks in JupyterLab                 sync  rewrite what is generated in docs and notebooks
# lint  ruff, layers of imports, mypy                         bench  measure what bench/RESULTS.md quotes
# gpu-check  on an NVIDIA GPU: all that tests prove on a CPU only (GPU_CHECK=--rehearse on a CPU: what of it can be run there)
# colab-check  run 00 in the versions that Colab publishes    pictures  screenshots of every notebook, in browser-output
# Each makes .venv and installs what it needs. Needs Python 3.11 or newer, git and a C++ compiler (llama.cpp is built once: 5 to 10 minutes).
.DELETE_ON_ERROR:
.PHONY: demo test lint sync bench gpu-check colab-check browser chromium notebook pictures clean
PYTHON ?= python3
VENV ?= .venv
COLAB ?= $(VENV)-colab
BIN := $(VENV)/bin
# The lean build: libllama only, for any x86-64 processor with AVX2 (or any ARMv8). A build tuned to one processor (-DGGML_NATIVE=ON) is
# somewhat faster, but crashes where a virtual machine reports AMX without offering it, or when the cached wheel meets another processor.
export CMAKE_ARGS ?= -DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# PyTorch's own index has the build without CUDA; where it cannot be reached, the default index is used. TORCH_INDEX= skips it.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
DEMO_OUT ?= demo-output
# tests at a time: each spends most of it in one thread, importing libraries. 0 runs them one by one, in this process
WORKERS ?= 2
# pip's own cache does not know build flags: a wheel built with others would be taken. So ours lie in a folder named after them.
LLAMA := $(shell grep '^llama_cpp_python==' constraints.txt)
WHEELS ?= $(HOME)/.cache/autoquant/wheels/$(shell echo '$(LLAMA) $(CMAKE_ARGS)' "$$($(PYTHON) -VV) $$(uname -sm)" | cksum | cut -d' ' -f1)

demo: $(VENV)/.ready
	$(BIN)/autoquant quantize gguf demo --out $(DEMO_OUT)/GGUF --imatrix builtin --eval-chunks 60 \
	  --types Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q3_K_M,Q2_K,IQ3_XXS
	$(BIN)/autoquant quantize gguf demo --out $(DEMO_OUT)/Sizes --size Q4_K_M,Q3_K_M,IQ3_XXS,Q2_K --eval-chunks 60
	$(BIN)/autoquant quantize gptq demo --out $(DEMO_OUT)/GPTQ --calibration-length 256 --eval-chunks 60
	$(BIN)/autoquant quantize awq demo --out $(DEMO_OUT)/AWQ --calibration-samples 32 --calibration-length 256 --eval-chunks 60
	$(BIN)/autoquant quantize hqq demo --out $(DEMO_OUT)/HQQ --eval-chunks 60
	$(BIN)/autoquant quantize bitsandbytes demo --out $(DEMO_OUT)/NF4 --eval-chunks 60
	$(BIN)/autoquant quantize bitsandbytes demo --quant-type int8 --out $(DEMO_OUT)/INT8 --eval-chunks 60
	$(BIN)/autoquant quantize w8a8 demo --out $(DEMO_OUT)/W8A8 --eval-chunks 60
	$(BIN)/autoquant quantize w8a8 demo --scheme int8-static --calibration-length 256 --out $(DEMO_OUT)/W8A8-static --eval-chunks 60
	$(BIN)/autoquant quantize w8a8 demo --scheme fp8-dynamic --out $(DEMO_OUT)/FP8 --eval-chunks 60
	@echo "tables above; plots: size-against-quality.png in $(DEMO_OUT)/Sizes (files of a size against llama.cpp's own types) and $(DEMO_OUT)/GGUF; a model card (README.md) in each folder of $(DEMO_OUT)"

test: $(VENV)/.ready $(COLAB)/.ready chromium
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)
	AUTOQUANT_GUISE=colab $(COLAB)/bin/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS) tests/hub tests/forms tests/notebooks/test_run.py

browser: $(VENV)/.ready chromium
	$(BIN)/python -m pytest $(PYTEST_ARGS) tests/browser

chromium:
	@command -v chromium >/dev/null || { echo "installing Chromium"; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
	  || echo "no Chromium: the browser tests are skipped (install Debian's package chromium)"

notebook: $(VENV)/.ready
	$(BIN)/python -m jupyterlab --ServerApp.root_dir="$(CURDIR)" notebooks/00_AutoQuant.ipynb

lint: $(VENV)/.ready
	$(BIN)/ruff check autoquant tests tools bench
	$(BIN)/ruff format --check --quiet autoquant tests tools bench
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	MYPYPATH=tools $(BIN)/mypy --explicit-package-bases --no-warn-unused-ignores tools/gpu_check.py tools/gpu

sync: $(VENV)/.ready
	$(BIN)/python tools/sync_notebooks.py
	$(BIN)/python tools/sync_docs.py
	$(BIN)/python tools/sync_stub.py

# The environment must have torch with CUDA: make .venv/.ready TORCH_INDEX=https://download.pytorch.org/whl/cu130
gpu-check: $(VENV)/.ready
	$(BIN)/python tools/gpu_check.py $(GPU_CHECK)

# Some GB and half an hour; COLAB_CHECK="--python PROGRAM --torch VERSION" takes others than Colab's
colab-check: $(VENV)/.ready
	$(BIN)/python tools/colab_check.py .colab-check $(COLAB_CHECK)

pictures: $(VENV)/.ready chromium
	$(BIN)/python tools/screenshots.py

# Left out: bench.llama_tools (needs cmake, and compiles llama.cpp's tools), bench.manifest and bench.workers (compare two states of the code).
bench: $(VENV)/.ready
	$(BIN)/python -m bench.startup
	$(BIN)/python tools/smollm2.py bench-work/smollm2
	$(BIN)/python -m bench.smollm2 bench-work/smollm2
	$(BIN)/python -m bench.speed bench-work/smollm2
	$(BIN)/python -m bench.overhead bench-work/smollm2
	$(BIN)/python -m bench.memory bench-work
	$(BIN)/python -m bench.measuring bench-work/measuring bench-work/smollm2
	$(BIN)/python -m bench.importance bench-work/importance demo bench-work/smollm2 phi3 gpt2 falcon bloom gpt_neox lfm2 qwen35_text mixtral llama4 qwen3_next qwen3_moe gpt_oss deepseek_v2
	$(BIN)/python -m bench.blocks bench-work/blocks 14 29
	$(BIN)/python -m bench.large bench-work/large
	$(BIN)/python -m bench.calibrated bench-work/calibrated 4 8
	$(BIN)/python -m bench.sized bench-work/sized autoquant/demo/tiny-austen-4m --chunks 80
	$(BIN)/python -m bench.sized bench-work/sized bench-work/smollm2 --dither
	$(BIN)/python -m bench.sensitivity bench-work/smollm2
	$(BIN)/python -m bench.texts bench-work/texts bench-work/smollm2
	$(BIN)/python -m bench.folders demo
	$(BIN)/python -m bench.folders bench-work/smollm2
	$(BIN)/python -m bench.folder_cost bench-work
	$(BIN)/python -m bench.methods
	$(BIN)/python -m bench.hub bench-work/smollm2
	$(BIN)/python -m bench.exl2
	$(BIN)/python -m bench.lesson
	$(BIN)/python -m bench.batch bench-work/batch
	$(BIN)/python -m bench.jobs_cost

$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("AutoQuant needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24" wheel
	@if [ -n "$(TORCH_INDEX)" ]; then $(BIN)/python -m pip install --quiet --no-deps --retries 0 --timeout 20 --index-url $(TORCH_INDEX) \
	  "$$(grep '^torch==' constraints.txt)" 2>/dev/null || true; fi
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	touch $@

$(VENV)/.ready: $(VENV)/.torch pyproject.toml constraints.txt
	@ls $(WHEELS)/llama_cpp_python-*.whl >/dev/null 2>&1 || { echo "compiling llama.cpp, once (5 to 10 minutes on two cores)"; \
	  $(BIN)/python -m pip wheel --quiet --no-cache-dir --no-deps --wheel-dir $(WHEELS) $(LLAMA); }
	$(BIN)/python -m pip install --quiet -c constraints.txt --find-links $(WHEELS) -e '.[gguf,gptq,exl2,exl3,hqq,bitsandbytes,w8a8,adapters,cluster,dev]'
	$(BIN)/autoquant setup gguf
	touch $@

# Colab's huggingface_hub, transformers, ipykernel and ipywidgets over the main environment, whose other packages it sees.
$(COLAB)/.ready: $(VENV)/.ready constraints-colab.txt
	rm -rf $(COLAB)
	$(PYTHON) -m venv $(COLAB)
	$(COLAB)/bin/python -m pip install --quiet --no-deps -r constraints-colab.txt
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
	  > "$$($(COLAB)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/main_environment.pth"
	touch $@

clean:
	rm -rf $(VENV) $(COLAB) .colab-check $(DEMO_OUT) browser-output bench-work .mypy_cache .ruff_cache .pytest_cache
