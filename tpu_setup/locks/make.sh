#!/usr/bin/env bash
# Make the locks of this folder again: newest versions within pyproject.toml's ranges,
# with hashes, one file per Python.
#
#   tpu_setup/locks/make.sh        (or make locks; needs uv: pip install uv)
#
#   tpu-*.txt    what slices and the image install: the extras tpu, gcs and wandb
#   uv.txt       with what startup.sh installs them
#   test-*.txt   what make installs: the extra test, without torch, which pyproject.toml
#                pins and whose build for CPUs comes from elsewhere
#
# Files name no index: whoever installs takes his own. UV names another uv.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
echo "torch; python_version < '3'" >"$scratch/no-torch.txt"

lock() {  # NAME SOURCE [uv's flags]; more requirements come from standard input
  echo "tpu_setup/locks/$1.txt" >&2
  # TPU images have glibc 2.35.
  ${UV:-uv} pip compile "$2" - --quiet --upgrade \
    --python-platform=x86_64-manylinux_2_31 --generate-hashes \
    --no-annotate --no-emit-index-url --no-emit-find-links \
    --custom-compile-command=tpu_setup/locks/make.sh \
    --output-file="tpu_setup/locks/$1.txt" "${@:3}"
}

for python in 3.11 3.12; do
  # setuptools builds the project itself.
  lock "tpu-$python" pyproject.toml --python-version="$python" \
    --extra=tpu --extra=gcs --extra=wandb <<<'setuptools>=77'
  lock "test-$python" pyproject.toml --python-version="$python" --extra=test \
    --override="$scratch/no-torch.txt" <<<'setuptools>=77'
done
echo uv >"$scratch/uv.in"
lock uv "$scratch/uv.in" --python-version=3.8 </dev/null
