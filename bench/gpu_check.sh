#!/usr/bin/env bash
# Builds for the card of this machine, tests, sanitizes and times there: one command, offline, under ten minutes.
#
#   bench/gpu_check.sh [folder of the results, default bench/results]
#
# Needs python3 (another: PYTHON=...) with torch for CUDA, pytest, numpy, setuptools and ninja, and nvcc. Leaves
# gpu_check.json and gpu_check.log in the folder, and the build in build/gpu_check. GPU_CHECK_SECONDS is the limit of
# all steps together. Ends with 1 when a step failed, 2 when nothing could be started.
set -uo pipefail

usage() {
  echo "gpu_check: $1" >&2
  exit 2
}

[ $# -le 1 ] || usage "got $# arguments, expected at most one: the folder of the results"
PYTHON=${PYTHON:-python3}
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
results=${1:-$checkout/bench/results}
mkdir -p "$results" || usage "cannot make the folder $results; give one that can be written to"
results=$(cd "$results" && pwd)
for place in "${CUDA_HOME:-}" /usr/local/cuda; do
  [ -x "$place/bin/nvcc" ] && PATH=$PATH:$place/bin
done
command -v nvcc > /dev/null || usage "no nvcc; install the CUDA toolkit of torch's version, or set CUDA_HOME"
architecture=$("$PYTHON" - << 'END'
import sys
try:
    import torch
except ImportError:
    sys.exit(f"gpu_check: {sys.executable} has no torch; name a Python that has it: PYTHON=... bench/gpu_check.sh")
if not torch.cuda.is_available():
    sys.exit(f"gpu_check: torch {torch.__version__} sees no GPU; run this on a machine with an NVIDIA GPU, its driver "
             "and a torch built for CUDA")
print("{}.{}".format(*torch.cuda.get_device_capability()))
END
) || exit 2
STC_CUDA_COMMIT=${STC_CUDA_COMMIT:-$(git -C "$checkout" describe --always --dirty 2> /dev/null || echo unknown)}
export STC_CUDA_COMMIT

# The build goes into a copy: the checkout keeps its own, and stc_cuda.reference is found without an installation.
tree=$checkout/build/gpu_check
mkdir -p "$tree"
find "$tree" -mindepth 1 -maxdepth 1 ! -name build -exec rm -rf {} +
tar -C "$checkout" --exclude=./build --exclude='./.*' --exclude='*.so' --exclude=./bench/results -cf - . \
  | tar -C "$tree" -xf - || usage "cannot copy the sources to $tree"
ln -s ../python_ref "$tree/stc_cuda/reference"
cd "$tree" || exit 2

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
deadline=$((SECONDS + ${GPU_CHECK_SECONDS:-570}))
failed=0

# step NAME SECONDS COMMAND...: runs it with its output in a log, and notes status, seconds and command. A run of pytest
# in which nothing passed has failed.
step() {
  local name=$1 limit=$2 begin=$SECONDS left=$((deadline - SECONDS)) status=passed rc=0
  shift 2
  if [ $left -le 0 ]; then
    status="no time left"
  else
    echo "gpu_check: $name" >&2
    timeout --kill-after=5 $((limit < left ? limit : left)) "$@" > "$logs/$name.log" 2>&1 < /dev/null || rc=$?
    case $rc in
      0)
        case " $* " in
          *" -m pytest "*) grep -qE '[0-9]+ passed' "$logs/$name.log" || status="failed: no test passed" ;;
        esac
        ;;
      124 | 137) status="over its time limit" ;;
      *) status="failed with $rc" ;;
    esac
  fi
  [ "$status" = passed ] || failed=1
  printf '%s\t%s\t%s\t%s\n' "$name" "$status" $((SECONDS - begin)) "$*" >> "$logs/steps.tsv"
}

skip() {
  printf '%s\t%s\t0\t\n' "$1" "skipped: $2" >> "$logs/steps.tsv"
}

workers=()
# The oracle of the parity tests works on the CPU.
"$PYTHON" -c 'import xdist' 2> /dev/null && workers=(-n $(($(nproc) < 16 ? ($(nproc) + 1) / 2 : 8)))
tests=("$PYTHON" -m pytest -q -p no:cacheprovider --durations=5)

step build 360 env STC_CUDA_FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="$architecture" "$PYTHON" setup.py build_ext --inplace
# A build for the CPU alone would skip every test and pass.
step import 60 "$PYTHON" -c 'import stc_cuda as s; i = s.build_info(); print(i); raise SystemExit(i["cuda"] is None)'
# Left out: files that test nothing on a GPU, some of which need packages of their own, and the emulation's. -s: should a
# worker crash, its C++ frames reach the log.
step suite 240 "${tests[@]}" -s "${workers[@]}" tests -k 'cuda and not emulated' \
  --ignore=tests/test_{cuda_compile,cuda_kernels,data,datasets,demo,emulation,loading,metrics,readme,train,train_processes}.py
step twins 90 "${tests[@]}" tests/test_emulation.py -k gpu
# torch.compile is not among the rivals here: it takes longer than all of the rest.
step latency 120 "$PYTHON" -m bench --device cuda --rivals graph reference authors --seconds 100 --json "$logs/latency.json"
if command -v compute-sanitizer > /dev/null; then
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for tool in memcheck racecheck initcheck; do
    step $tool 90 compute-sanitizer --tool $tool --error-exitcode 9 "$PYTHON" -m bench.sanitize
  done
else
  for tool in memcheck racecheck initcheck; do skip $tool "compute-sanitizer is not installed"; done
fi

"$PYTHON" -m bench.gpu_report "$logs" "$results" || failed=1
exit $failed
