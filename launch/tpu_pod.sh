#!/usr/bin/env bash
# Runs main.py on a Cloud TPU slice, one process on each of its machines.
#
#   launch/tpu_pod.sh create NAME --type=TYPE --version=VERSION [--spot] [OPTIONS]
#   launch/tpu_pod.sh run NAME [OPTIONS] -- ARGUMENTS    copies the checkout there, installs it, runs in the background
#   launch/tpu_pod.sh follow NAME [OPTIONS]              shows the log of the first machine as it grows
#   launch/tpu_pod.sh stop NAME [OPTIONS]                lets the run save and end
#   launch/tpu_pod.sh delete NAME [OPTIONS]
#
#   TYPE, VERSION  such as v5litepod-32 and v2-alpha-tpuv5-lite
#   OPTIONS        --zone=ZONE --project=PROJECT (default: gcloud's), --dry-run (prints the commands only)
#   ARGUMENTS      those of main.py, with a --workdir that all machines reach, such as gs://BUCKET/RUN
#
# A run that ends with exit code 75 (stopped after saving) is started again, with any other it is at its end.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

action=${1:-} name=${2:-} type='' version='' spot='' where=()
[[ $action =~ ^(create|run|follow|stop|delete)$ ]] || error "unknown action '$action'; known: create run follow stop delete"
[[ $name =~ ^[a-z] ]] || error "'$name' is no name of a TPU; it comes after $action"
shift 2
while (($#)); do
  case $1 in
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --spot) spot=1 ;;
    --zone=* | --project=*) where+=("$1") ;;
    --dry-run) dry_run=1 ;;
    --) shift; break ;;
    *) error "unknown argument $1; known: --type=TYPE --version=VERSION --spot --zone=ZONE --project=PROJECT --dry-run" ;;
  esac
  shift
done
if [[ $action == create ]]; then
  [[ $type && $version ]] || error 'create needs --type=TYPE and --version=VERSION'
else
  [[ ! $type$version$spot ]] || error "--type, --version and --spot mean nothing to $action; leave them out"
fi
if [[ $action == run ]]; then
  (($#)) || error 'give the arguments of main.py after --'
else
  ((!$#)) || error "arguments of main.py mean nothing to $action; leave them out"
fi

tpu() {
  run gcloud compute tpus tpu-vm "$@" ${where[@]+"${where[@]}"}
}

# Runs a command in the shell of machine $1, or of all.
on() {
  tpu ssh "$name" --worker="$1" --command="$2"
}

# What the machines do is in tpu_machine.sh, which the checkout brings along.
case $action in
  create) tpu create "$name" --accelerator-type="$type" --version="$version" ${spot:+--spot} ;;
  run)
    printf -v quoted ' %q' "$@"
    # shellcheck disable=SC2016  # for the machine to expand
    on all 'mkdir -p image-transformer && cd image-transformer || exit
if kill -0 "$(cat run.pid 2> /dev/null)" 2> /dev/null; then echo "Error: a run is going; stop it first" >&2; exit 2; fi'
    tpu scp --recurse setup.py README.md main.py configs image_transformer launch "$name:image-transformer/" --worker=all
    on all "image-transformer/launch/tpu_machine.sh run$quoted"
    ;;
  follow) on 0 'tail -n 100 -F image-transformer/run.log' ;;
  stop) on all 'image-transformer/launch/tpu_machine.sh stop' ;;
  delete) tpu delete "$name" ;;
esac
