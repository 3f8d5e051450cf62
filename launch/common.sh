# shellcheck shell=bash disable=SC2034
# What the scripts share; they source it once they are in the checkout.

python=.venv/bin/python
[[ -x $python ]] || python=python3
dry_run=''

# Bad input: one line, and exit code 2.
error() {
  echo "Error: $*" >&2
  exit 2
}

# Prints a command as one would type it, and runs it, but for --dry-run.
run() {
  printf '\n$'; printf ' %q' "$@"; echo
  [[ $dry_run ]] || "$@"
}
