#!/bin/bash
# Startup script of a TPU VM. Runs as root at every boot; installs the pinned revision.
#
# It holds and reads no secret: weights are converted once, elsewhere, and lie in the
# bucket, so that no worker needs a token. At the end there is /opt/mpo/ready, or
# /opt/mpo/failed and the reason in: sudo journalctl -u google-startup-scripts
set -Eeuo pipefail

base=${MPO_BASE:-/opt/mpo} mount=${MPO_MOUNT:-/bucket}
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

if [[ $repository == gs://* ]]; then  # private code: HEAD of qr.sh's user, as a bundle
  gcloud storage cp "$repository" "$base/code.bundle"
  repository=$base/code.bundle
fi
[[ -d $base/src/.git ]] || git clone --quiet "$repository" "$base/src"
if ! git -C "$base/src" cat-file -e "$revision^{commit}" 2>/dev/null; then
  git -C "$base/src" fetch --quiet "$repository" "$revision"
fi
git -C "$base/src" checkout --quiet --force --detach "$revision"

# The image's Python is older than 3.11; uv brings one, where every user can read it.
# Every version, and the hash of every file, stands in a lock, so that a slice that is
# made again next month gets the same.
locks=$base/src/tpu_setup/locks
export UV_PYTHON_INSTALL_DIR=$base/python
python3 -m pip install --quiet --target "$base/uv" --upgrade --require-hashes \
  --requirement "$locks/uv.txt"
[[ -x $base/venv/bin/python ]] || "$base/uv/bin/uv" venv --quiet --python 3.11 "$base/venv"
"$base/uv/bin/uv" pip install --quiet --python "$base/venv/bin/python" \
  --require-hashes --requirement "$locks/tpu-3.11.txt"
"$base/uv/bin/uv" pip install --quiet --python "$base/venv/bin/python" \
  --no-deps --no-build-isolation --editable "$base/src"

# Input for what reads files alone; runs read and write gs:// themselves. Every option is
# said, because gcsfuse chooses others on TPU machines: there it would trust its cache for
# ever.
if [[ -n $bucket ]] && ! mountpoint --quiet "$mount"; then
  if ! command -v gcsfuse >/dev/null; then
    key=/usr/share/keyrings/cloud.google.asc
    curl --silent --fail --output "$key" https://packages.cloud.google.com/apt/doc/apt-key.gpg
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" \
      >/etc/apt/sources.list.d/gcsfuse.list
    apt-get -qq update
    apt-get -qq install --yes gcsfuse
  fi
  mkdir -p "$mount"
  gcsfuse -o allow_other,ro --implicit-dirs --file-mode=444 --dir-mode=555 \
    --metadata-cache-ttl-secs=60 --kernel-list-cache-ttl-secs=0 \
    "$bucket" "$mount"
fi

git -C "$base/src" rev-parse HEAD >"$base/ready"
