#!/usr/bin/env bash
# Runs main.py in several processes on this machine's CPU, as several machines would: for tests, and to see it work.
#
#   launch/local_processes.sh N [--devices=D] [--dry-run] -- ARGUMENTS
#
#   N          how many processes
#   --devices  how many virtual CPU devices each has (default: 1)
#   --dry-run  prints the commands only
#   ARGUMENTS  those of main.py
#
# Each line of output begins with the number of its process. SIGTERM or SIGINT (Ctrl-C) lets all processes save and
# end, with exit code 75; a second one kills them. If they end with 75 by themselves, as on a machine that is taken
# away, all are started again. If one fails, the others are stopped, and its exit code is that of this script.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

number=${1:-} devices=1
[[ $number =~ ^[1-9][0-9]*$ ]] || error "'$number' is no number of processes; it comes first"
shift
while (($#)); do
  case $1 in
    --devices=*) devices=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    --) shift; break ;;
    *) error "unknown argument $1; known: --devices=D --dry-run, and those of main.py after --" ;;
  esac
  shift
done
[[ $devices =~ ^[1-9][0-9]*$ ]] || error "--devices is '$devices', but must be a positive number"
(($#)) || error 'give the arguments of main.py after --'
arguments=("$@")

# Leaves the command of process $1 in `command`.
set_command() {
  command=(env JAX_PLATFORMS=cpu PYTHONUNBUFFERED=1
           XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices"
           "$python" main.py --coordinator="127.0.0.1:$port" --num_processes="$number" --process_id="$1"
           "${arguments[@]}")
}

# Sends signal $1 to the processes that run, or, with a minus sign as $2, to all that they started too.
send() {
  local i
  for i in "${!running[@]}"; do
    kill "-$1" -- "${2:-}${pids[i]}" 2> /dev/null || :
  done
}

# What a process that died has left behind is ended too, or its output would never end.
clean_up() {
  running=(${pids[@]+"${!pids[@]}"})
  send KILL -
  wait
  rm -rf "$folder"
  pids=()
}

# Starts all processes and waits until all have ended; leaves the exit code of them all in `code`.
run_all() {
  local i ended saved=0 failed='' told='' deadline=''
  for ((i = 0; i < number; i++)); do
    set_command "$i"
    mkfifo "$folder/$i"
    # Each gets a process group of its own, so that a Ctrl-C reaches it once only, from here.
    set -m
    while IFS= read -r line || [[ $line ]]; do printf '[%s] %s\n' "$i" "$line"; done < "$folder/$i" &
    "${command[@]}" < /dev/null > "$folder/$i" 2>&1 &
    pids[i]=$! running[i]=$i
    set +m
  done
  while ((${#running[@]})); do
    sleep 0.1 || :  # a Ctrl-C ends it
    for i in "${!running[@]}"; do
      if kill -0 "${pids[i]}" 2> /dev/null; then continue; fi
      unset "running[i]"
      ended=0
      wait "${pids[i]}" 2> /dev/null || ended=$?
      if ((ended == 75)); then
        saved=75
      elif ((ended)) && [[ ! $failed ]]; then
        echo "Process $i failed with exit code $ended: stopping the others." >&2
        failed=$ended
        # They may wait for it in vain, and then they cannot finish their step.
        deadline=$((SECONDS + 3))
      fi
    done
    if [[ ! $told ]] && { ((signals)) || [[ $failed ]]; }; then
      told=1
      send TERM
    fi
    if ((signals > 1)) || { [[ $failed ]] && ((SECONDS >= deadline)); }; then
      send KILL -
    fi
  done
  code=${failed:-$saved}
}

signals=0
trap 'signals=$((signals + 1))' TERM INT HUP
while :; do
  port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  if [[ $dry_run ]]; then
    for ((i = 0; i < number; i++)); do set_command "$i"; run "${command[@]}"; done
    exit
  fi
  pids=() running=() folder=$(mktemp -d)
  trap clean_up EXIT
  run_all
  clean_up
  ((code == 75 && !signals)) || exit "$code"
  echo 'All stopped after saving: starting them again.' >&2
done
