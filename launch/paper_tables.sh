#!/usr/bin/env bash
# Trains and evaluates every row of the paper's tables, one after the other, and prints the tables.
#
#   launch/paper_tables.sh [--smoke] [--data_dir=DIR] [--runs=DIR] [--row=CONFIG ...] [--dry-run]
#
#   --smoke     the small form of every row (minutes each on a laptop), not the paper's model
#   --data_dir  where the data sets are (default: that of main.py)
#   --runs      where the runs go (default: runs); existing runs are resumed
#   --row       only this row, such as cifar10_blocks.py:64
#   --dry-run   prints the commands only
#
# Relative folders are those of the checkout.
#
# A row that fails is named at the end, with exit code 1, and does not stop the others. A run that was told to
# stop (Ctrl-C) saves and ends with exit code 75, and so does this script; the same command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

smoke='' data_dir='' runs=runs rows=()
for argument in "$@"; do
  case $argument in
    --smoke) smoke=1 ;;
    --data_dir=*) data_dir=${argument#*=} ;;
    --runs=*) runs=${argument#*=} ;;
    --row=*) rows+=("${argument#*=}") ;;
    --dry-run) dry_run=1 ;;
    *) error "unknown argument $argument; known: --smoke --data_dir=DIR --runs=DIR --row=CONFIG --dry-run" ;;
  esac
done

# Each line: the configuration, its folder, over how many checkpoints it is averaged, and how many
# images are made large to measure super-resolution.
plan=$("$python" - "$smoke" ${rows[@]+"${rows[@]}"} <<'EOF'
import sys
from configs import paper

wanted = sys.argv[2:]
known = [row for row in paper.ROWS if row.config]
unknown = set(wanted) - {row.config for row in known}
if unknown:
  sys.exit(f'Error: no row is {", ".join(unknown)}; known: {", ".join(row.config for row in known)}')
for row in known:
  if not wanted or row.config in wanted:
    name = paper.smoke(row.config) if sys.argv[1] else row.config
    folder = name.replace('.py', '').replace(':', '_').replace(',', '_')
    print(name, folder, row.num_checkpoints, ('superres' in name) * (16 if sys.argv[1] else 100))
EOF
) || exit 2

failed=()
while read -r name folder num_checkpoints superres; do
  workdir=$runs/$folder
  {
    run "$python" main.py --config="configs/$name" ${data_dir:+--config.data_dir="$data_dir"} --workdir="$workdir" &&
    { [[ $num_checkpoints == 1 ]] ||
      run "$python" main.py --mode=eval --workdir="$workdir" --average_checkpoints="$num_checkpoints"; } &&
    { [[ $superres == 0 ]] ||
      run "$python" main.py --mode=superres --workdir="$workdir" --num_inputs="$superres" \
        --temperature=1.0,0.9,0.8; }
  } < /dev/null || {
    # Not started again here: a Ctrl-C was meant for this script too.
    if (($? == 75)); then
      echo 'Stopped after saving; the same command resumes.' >&2
      exit 75
    fi
    failed+=("$name")
  }
done <<< "$plan"

run "$python" main.py --mode=table --workdir="$runs" || failed+=("the table")
if ((${#failed[@]})); then
  echo "Error: failed: ${failed[*]}" >&2
  exit 1
fi
