#!/usr/bin/env bash
# Measures an accelerator, part by part, in at most 8 minutes on one H100: its limits, attention, training and sampling
# by configuration, main.py's logged rate, and the tests of the network there. --train trains by the fast recipe
# instead, for some ten minutes. --small is a form for CPUs, which shows only that everything runs.
#
#   benchmarks/device.sh [--small] [--train] --out=DIR [--data_dir=DIR] [--wheels=DIR]
#
# Each part has a time limit and writes its own file, DIR/PART.json; what is there is not measured again. At the end,
# and after each part, DIR/table.md holds what there is. --wheels names a folder of packages to install first.
set -u
cd "$(dirname "$0")/.."
small='' train='' out='' data_dir='' wheels=''
for argument; do
  case $argument in
    --small) small=1 ;;
    --train) train=1 ;;
    --out=*) out=${argument#*=} ;;
    --data_dir=*) data_dir=${argument#*=} ;;
    --wheels=*) wheels=${argument#*=} ;;
    *) echo "Error: unknown argument $argument; see the first lines of benchmarks/device.sh." >&2; exit 2 ;;
  esac
done
[ -n "$out" ] || { echo 'Error: --out=DIR is missing, the folder to write to.' >&2; exit 2; }
mkdir -p "$out"
python=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)
[ -z "$wheels" ] || $python -m pip install --quiet --no-deps "$wheels"/*.whl

# part NAME SECONDS COMMAND...: runs a command that writes $out/NAME.json.
part() {
  local name=$1 limit=$2 began=$SECONDS
  shift 2
  [ -e "$out/$name.json" ] && return
  timeout "$limit" "$@" > "$out/$name.log" 2>&1
  local code=$?
  echo "$name: exit code $code after $((SECONDS - began)) s of at most $limit"
  $python benchmarks/device_table.py "$out" > "$out/table.md"
}

measure() {
  local name=$1 limit=$2 script=$3
  shift 3
  part "$name" "$limit" "$python" "benchmarks/$script.py" "--out=$out/$name.json" "$@"
}

if [ -n "$train" ]; then
  variant=$([ -n "$small" ] && echo smoke || echo gpu)
  fast() {
    part "$1" "$2" $python main.py "--config=configs/cifar10_fast.py:$variant" "--workdir=$out/run" \
      "--config.data_dir=$data_dir" ${small:+--config.train.steps=20 --config.eval.num_images=4} "${@:3}"
  }
  fast train 480
  # What the time limit stops is saved, and evaluated as it is.
  [ -e "$out/run/results.json" ] || fast evaluate 110 --mode=eval
  cp "$out/run/results.json" "$out/train.json" 2>/dev/null
elif [ -n "$small" ]; then
  measure attention 300 attention --runs=1
  measure training_digits 200 training --config=configs/digits.py:smoke --batch_sizes=4 --runs=1
  measure sampling_digits 200 sampling --config=configs/digits.py:smoke --batch_sizes=2 --runs=1
else
  measure attention 60 attention --dtype=bfloat16 --batch_size=32 --runs=3
  for config in 1d_dmol 2d_dmol 1d; do
    batch=$([ $config = 1d ] && echo 32 || echo 64)
    measure "training_$config" 150 training "--config=configs/cifar10_$config.py" "--batch_sizes=$batch" \
      --dtypes=bfloat16 --runs=5
  done
  for config in 1d_dmol 1d; do
    measure "sampling_$config" 120 sampling "--config=configs/cifar10_$config.py" --dtype=bfloat16 --batch_sizes=1,256,1024
  done
  part logged 120 $python main.py --config=configs/cifar10_1d_dmol.py "--workdir=$out/logged" "--config.data_dir=$data_dir" \
    --config.model.dtype=bfloat16 --config.train.steps=600 --config.train.log_every=100 --config.eval.num_images=8
  part tests 240 $python -m pytest -q tests/test_causality.py tests/test_sampling.py tests/test_model.py \
    tests/test_golden.py tests/test_likelihoods.py tests/test_fused.py "--junitxml=$out/tests.xml"
fi
$python benchmarks/device_table.py "$out" | tee "$out/table.md"
