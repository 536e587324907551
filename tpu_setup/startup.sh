#!/bin/bash
# Startup script of a TPU VM. Runs as root at every boot; installs the pinned revision.
#
# It holds and reads no secret: weights are converted once, elsewhere, and lie in the
# bucket, so that no worker needs a token. At the end there is /opt/mpo/ready, or
# /opt/mpo/failed and the reason in: sudo journalctl -u google-startup-scripts
set -Eeuo pipefail

base=${MPO_BASE:-/opt/mpo}
mkdir -p "$base"
rm -f "$base/ready" "$base/failed"
trap 'touch "$base/failed"' ERR

attribute() {  # a value that qr.sh gave the VM, empty where it gave none
  curl --silent --fail --header 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1" || true
}
repository=$(attribute mpo-repository)
revision=$(attribute mpo-revision)
bucket=$(attribute mpo-bucket)
if [[ -z $repository || -z $revision ]]; then
  echo "startup.sh: metadata mpo-repository or mpo-revision is not set" >&2
  false
fi

# Transfers between host and chips are slow without huge pages on v5e and newer.
echo always >"${MPO_HUGEPAGES:-/sys/kernel/mm/transparent_hugepage/enabled}"

[[ -d $base/src/.git ]] || git clone --quiet "$repository" "$base/src"
git -C "$base/src" fetch --quiet origin "$revision"
git -C "$base/src" checkout --quiet --force --detach FETCH_HEAD

# The image's Python is older than 3.11; uv brings one, where every user can read it.
export UV_PYTHON_INSTALL_DIR=$base/python
[[ -x $base/uv/bin/uv ]] || python3 -m pip install --quiet --target "$base/uv" uv
[[ -x $base/venv/bin/python ]] || "$base/uv/bin/uv" venv --quiet --python 3.11 "$base/venv"
"$base/uv/bin/uv" pip install --quiet --python "$base/venv/bin/python" \
  --editable "$base/src[tpu]"

# The hosts of a slice share their work directory. The bucket needs a hierarchical
# namespace: there a checkpoint's rename is atomic; elsewhere gcsfuse refuses it.
if [[ -n $bucket ]] && ! mountpoint --quiet /bucket; then
  if ! command -v gcsfuse >/dev/null; then
    key=/usr/share/keyrings/cloud.google.asc
    curl --silent --fail --output "$key" https://packages.cloud.google.com/apt/doc/apt-key.gpg
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" \
      >/etc/apt/sources.list.d/gcsfuse.list
    apt-get -qq update
    apt-get -qq install --yes gcsfuse
  fi
  mkdir -p /bucket
  gcsfuse -o allow_other --implicit-dirs --file-mode=666 --dir-mode=777 "$bucket" /bucket
fi

git -C "$base/src" rev-parse HEAD >"$base/ready"
