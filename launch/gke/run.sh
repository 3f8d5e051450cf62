#!/usr/bin/env bash
# Runs main.py on Kubernetes: fills in job.yaml, beside this file, and hands it to kubectl.
#
#   launch/gke/run.sh NAME --image=IMAGE --processes=N --gpus=GPUS [--dry-run] -- ARGUMENTS
#
#   NAME         of the job
#   --image      what the Dockerfile beside this file makes
#   --processes  how many, each on a node of its own
#   --gpus       how many each has
#   --dry-run    prints what it would hand to kubectl
#   ARGUMENTS    those of main.py, with a --workdir that all pods reach, such as gs://BUCKET/RUN
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=launch/common.sh
source launch/common.sh

name=${1:-} image='' processes='' gpus=''
[[ $name =~ ^[a-z] ]] || error "'$name' is no name of a job; it comes first"
shift
while (($#)); do
  case $1 in
    --image=*) image=${1#*=} ;;
    --processes=*) processes=${1#*=} ;;
    --gpus=*) gpus=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    --) shift; break ;;
    *) error "unknown argument $1; known: --image=IMAGE --processes=N --gpus=GPUS --dry-run, and those of main.py after --" ;;
  esac
  shift
done
[[ $image && $processes =~ ^[1-9][0-9]*$ && $gpus =~ ^[1-9][0-9]*$ ]] ||
  error '--image=IMAGE, --processes=N and --gpus=GPUS are needed'
(($#)) || error 'give the arguments of main.py after --'

manifest=$("$python" - "$name" "$image" "$processes" "$gpus" "$@" <<'END'
import json, pathlib, re, sys
values = dict(zip(('NAME', 'IMAGE', 'PROCESSES', 'GPUS'), sys.argv[1:]))
# Kubernetes puts variables for $(NAME) in arguments; $$( is a plain $(.
values['ARGUMENTS'] = json.dumps([argument.replace('$(', '$$(') for argument in sys.argv[5:]])
text = pathlib.Path('launch/gke/job.yaml').read_text()
print(re.sub(r'\$\{(\w+)\}', lambda match: values[match[1]], text))
END
)
run kubectl apply -f - <<< "$manifest"
[[ ! $dry_run ]] || echo "$manifest"
