#!/bin/sh
# What every recipe of this folder runs as root within a bare Debian 12 or Ubuntu 24.04: the wheel of
# `tools/release wheel`, in a Python environment of its own, and `tdgen` on the PATH.
#   install.sh WHEEL [EXTRAS]      EXTRAS: "" (default: reading records), "prepare", "prepare,export", ...
set -eu
wheel=${1:?the wheel of tools/release wheel}
extras=${2-}
export DEBIAN_FRONTEND=noninteractive
if ! python3 -m venv --help >/dev/null 2>&1 || ! python3 -c 'import ensurepip' 2>/dev/null; then
    apt-get update -q
    apt-get install -y -q --no-install-recommends python3 python3-venv ca-certificates
    rm -rf /var/lib/apt/lists/*
fi
python3 -m venv /opt/tdgen
/opt/tdgen/bin/pip install --no-cache-dir --disable-pip-version-check "$wheel${extras:+[$extras]}"
# A wheel of the same version replaces what is there, too.
/opt/tdgen/bin/pip install --no-cache-dir --disable-pip-version-check -q --force-reinstall --no-deps "$wheel"
for command in /opt/tdgen/bin/tdgen*; do
    ln -sf "$command" /usr/local/bin/
done
tdgen --version
