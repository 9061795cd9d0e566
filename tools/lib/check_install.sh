#!/usr/bin/env bash
# check_install.sh BUILD - the wheel of BUILD's program and its Debian package in a bare Debian root, as container/install.sh puts it
# there: the program, a run, and its record in Python. Slow: debootstrap, and packages from PyPI. As root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
build=${1:?the folder of a build}
root=$PWD/build/install-root
export LC_ALL=C
if [[ $(id -u) != 0 ]] || ! command -v debootstrap >/dev/null; then
    echo "SKIPPED: a bare root needs debootstrap, and to be root"
    exit 77
fi
rm -rf build/dist-check
tools/release wheel --build "$build" --out build/dist-check
wheel=$(echo build/dist-check/tdgen-*.whl)
# The same commit gives the same bytes.
cp "$wheel" build/dist-check/first
tools/release wheel --build "$build" --out build/dist-check
cmp "$wheel" build/dist-check/first
tools/container root "$root" --wheel "$wheel"
mkdir -p "$root/job"
cp -r demo conf "$root/job/"
rm -rf "$root/job/out"
mount -t proc proc "$root/proc"
trap 'umount "$root/proc"' EXIT
inside() { chroot "$root" /usr/bin/env -i HOME=/root PATH=/usr/local/bin:/usr/bin:/bin "$@"; }
inside tdgen --version
inside tdgen /job/conf/demo.ini --quiet
inside tdgen verify /job/out/demo | grep -q '^OK: '
inside /opt/tdgen/bin/python -c 'import tdgen; run = tdgen.open("/job/out/demo"); print(run); assert len(run) == 200'
inside tdgen export --help >/dev/null
# The Debian package beside it: apt finds what it depends on.
cmake --build "$build" --target man >/dev/null
(cd "$build" && cpack -G DEB -B package) >/dev/null
cp "$build"/package/tdgen_*.deb "$root/job/tdgen.deb"
[[ -z $(ls "$root"/usr/lib/x86_64-linux-gnu/libdnnl* 2>/dev/null) ]] # the program brought its own
inside apt-get update -q >/dev/null
inside apt-get install -y -q --no-install-recommends /job/tdgen.deb >/dev/null
inside /usr/bin/tdgen -c /job/conf/demo.ini | grep -q 'is already complete' # the same bits as the wheel's
inside sh -c 'test -s /usr/share/man/man1/tdgen.1.gz || test -s /usr/share/man/man1/tdgen.1'
inside apt-get purge -y -q tdgen >/dev/null
[[ ! -e $root/usr/bin/tdgen ]]
echo "OK"
