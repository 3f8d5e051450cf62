#!/usr/bin/env bash
# What tpu_pod.sh does on each machine of a TPU slice, in the copy of the checkout there.
#
#   launch/tpu_machine.sh run ARGUMENTS     installs, and runs main.py in the background; output goes to run.log
#   launch/tpu_machine.sh stop              lets it save and end, and waits for that
#   launch/tpu_machine.sh loop ARGUMENTS    what `run` leaves running
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

action=$1
shift
case $action in
  run)
    # The Python of these machines may be too old; uv brings another. The variable lets pip install where the
    # system's packages are managed by others.
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
    [[ -x .venv/bin/python ]] || ~/.local/bin/uv venv --quiet --python 3.12 .venv
    ~/.local/bin/uv pip install --quiet --python .venv/bin/python --editable '.[tpu,gcs]'
    PYTHONUNBUFFERED=1 nohup launch/tpu_machine.sh loop "$@" >> run.log 2>&1 < /dev/null &
    echo $! > run.pid
    ;;
  loop)
    while run .venv/bin/python main.py --distributed "$@"; code=$?; ((code == 75)); do
      echo 'Stopped after saving: starting again.'
    done
    echo "Ended with exit code $code."
    ;;
  stop)
    { loop=$(cat run.pid) && child=$(pgrep -P "$loop"); } 2> /dev/null || error 'no run is going'
    kill "$loop" "$child"  # the loop first, or it would start again
    tail --pid="$child" --sleep-interval=0.2 -f /dev/null
    ;;
esac
