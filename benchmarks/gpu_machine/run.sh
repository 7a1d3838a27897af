#!/usr/bin/env bash
# Everything that a GPU can show, in at most 8 minutes, without a network; results in the folder $OUT. See README.md.
set -u
cd "$(dirname "$0")/../.."
carried=out/gpu_machine
: "${OUT:?set OUT to the folder for the results}"
mkdir -p "$OUT"
work=$(mktemp -d)
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PATH=/usr/local/cuda/bin:$PATH

most=${MOST_SECONDS:-460} # of all parts together

# part NAME SECONDS COMMAND...: its output goes to $OUT/NAME.txt; a part that fails or hangs costs no other.
part() {
  local name=$1 seconds=$2 status=0
  shift 2
  if ((SECONDS + seconds > most)); then seconds=$((most - SECONDS)); fi
  if ((seconds <= 0)); then
    echo "$name: left out, $most s had passed"
    return
  fi
  timeout --kill-after=5 "$seconds" "$@" >"$OUT/$name.txt" 2>&1 || status=$?
  echo "$name: exit status $status"
  tail -n 3 "$OUT/$name.txt"
}

python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$work/site" \
  "$carried"/whl/*.whl || exit 1
for packed in "$carried"/*.tar.xz; do
  if [ -f "$packed" ]; then tar xJf "$packed" -C "$work/site"; fi
done
export PYTHONPATH=$work/site:$PWD

machine() {
  nvidia-smi
  nvidia-smi --query-gpu=pcie.link.gen.current,pcie.link.width.current,clocks.max.sm,clocks.max.mem --format=csv
  python3 -c 'from sodeploy.artifacts import versions; print(versions())'
  python3 -c 'import pydantic, py_sod_metrics, cuda.bindings.driver, cv2, onnx, torch; print(torch.__version__)'
}
export -f machine
pytest=(python3 -m pytest -q -o addopts= -p no:cacheprovider tests/runtime/test_cuda_processing.py)
kernels='regex:resize|normalise|compose|saliency|output_range'

part machine 40 bash -c machine
names=(u2netp isnet_dis)
if [ -d "$carried/models" ]; then
  mkdir "$work/models"
  cp "$carried"/models/*.onnx "$work/models"
  names=(isnet_dis) # too large to be carried
fi
part models 90 python3 benchmarks/gpu_machine/make_models.py "${names[@]}" --output "$work/models"
data=()
if [ -f "$carried/data/images.txt" ]; then data=(--data "$carried/data/images.txt"); fi
part gpu_check 300 python3 benchmarks/gpu_check.py --models "$work/models" "${data[@]}" --output "$OUT"
part memcheck 60 compute-sanitizer --tool memcheck --error-exitcode 9 "${pytest[@]}" \
  -k "gpu and (normalise or pictures_are or broken_map)"
part racecheck 60 compute-sanitizer --tool racecheck --error-exitcode 9 "${pytest[@]}" \
  -k "gpu and (normalise or pictures_are)"
part ncu 60 ncu --clock-control none --set detailed -k "$kernels" -c 24 --csv --page raw \
  python3 benchmarks/gpu_machine/profiled_kernels.py
rm -rf "$work"
