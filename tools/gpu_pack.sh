#!/usr/bin/env bash
# Packs of wheels for tools/gpu_check.py on a CUDA machine without network: gpu-pack/1, gpu-pack/2, …
# usage: tools/gpu_pack.sh --max-mib N [--python 3.12] [--cuda 130] [--more NAME==VERSION]… [--pip PIP]
#
# A machine is taken to have torch, transformers, accelerate, pyarrow, matplotlib and what these
# need, and a copy of this tree; all else that the stages use is packed, in the versions of
# constraints.txt, so that no environment is laid over it there. Give what yours lacks besides as
# --more. Of bitsandbytes only the library for the machine's CUDA is kept (it has one for each), of
# this package only what says which versions it wants. PyPcre, which GPTQModel needs, has no wheels:
# where it cannot be imported, gpu_check puts a stand-in by Python's re in its place.
set -euo pipefail
cd "$(dirname "$0")/.."
max="" python=3.12 cuda=130 more=() pip="${PIP:-.venv/bin/python -m pip}" out=gpu-pack
while [ $# -gt 0 ]; do
  case "$1" in
    --max-mib) max=$2 ;; --python) python=$2 ;; --cuda) cuda=$2 ;; --more) more+=("$2") ;;
    --pip) pip=$2 ;; *) sed -n 3p "$0"; exit 2 ;;
  esac
  shift 2
done
[ -n "$max" ] || { sed -n 3p "$0"; exit 2; }

binary=(annotated-types auto-round bitsandbytes compressed-tensors cramjam datasets dill exllamav2 exllamav3
        fastparquet llguidance loguru marisa-trie markdown-it-py mdurl multiprocess optimum pandas pydantic pydantic_core Pygments rich termcolor torchao
        typing-inspection websockets)
pure=(Defuser Device-SMI GPTQModel hqq LogBar TokeNicer)  # source packages of Python alone
pinned() { grep -i "^$1==" constraints.txt || { echo "constraints.txt does not pin $1" >&2; exit 1; }; }
platforms=()
for n in 5 12 17 24 27 28 31 34 35; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)

rm -rf "$out" && mkdir -p "$out/all"
wanted=()
for name in "${binary[@]}"; do wanted+=("$(pinned "$name")"); done
$pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$python" \
  "${platforms[@]}" --dest "$out/all" "${wanted[@]}" ${more[@]+"${more[@]}"}
wanted=()
for name in "${pure[@]}"; do wanted+=("$(pinned "$name")"); done
$pip wheel --quiet --no-deps --wheel-dir "$out/all" "${wanted[@]}" .
rm -rf build  # what building this package leaves here

wheel=$(ls "$out"/all/bitsandbytes-*.whl)
others=$(unzip -Z1 "$wheel" '*/libbitsandbytes_*.so' | grep -v "_cpu.so\|_cuda$cuda.so") || true
# shellcheck disable=SC2086  # names without spaces
[ -z "$others" ] || zip --quiet --delete "$wheel" $others
held=$(unzip -Z1 "$wheel")  # not piped: grep -q closes its end early, which pipefail takes for a failure
[[ $held == *"libbitsandbytes_cuda$cuda.so"* ]] || { echo "bitsandbytes has no library for CUDA $cuda" >&2; exit 1; }
zip --quiet --delete "$(ls "$out"/all/autoquant_notebooks-*.whl)" 'autoquant/*'
tags=$(ls "$out"/all | grep -v -- "-py[23]\|-cp3[0-9]*-abi3\|-cp${python/./}-\|-py${python/./}-" | grep '\.whl$') || true
[ -z "$tags" ] || { echo "not for Python $python: $tags" >&2; exit 1; }

python3 - "$out" "$max" <<'PYTHON'
import pathlib
import sys

out, most = pathlib.Path(sys.argv[1]), int(sys.argv[2]) << 20
packs: list[list[pathlib.Path]] = []
for wheel in sorted((out / "all").glob("*.whl"), key=lambda one: -one.stat().st_size):
    size = wheel.stat().st_size
    if size > most:
        sys.exit(f"{wheel.name} alone has {size / 2**20:.1f} MiB")
    fits = (one for one in packs if sum(w.stat().st_size for w in one) + size <= most)
    pack = next(fits, None)
    if pack is None:
        packs.append([wheel])
    else:
        pack.append(wheel)
for i, pack in enumerate(packs, 1):
    (out / str(i)).mkdir()
    total = sum(wheel.stat().st_size for wheel in pack)
    for wheel in pack:
        wheel.rename(out / str(i) / wheel.name)
    print(f"{out}/{i}: {len(pack)} wheels, {total / 2**20:.1f} MiB")
PYTHON
rm -rf "$out/all"
git describe --always --dirty --abbrev=12 > "$out/1/commit.txt" 2>/dev/null || true
