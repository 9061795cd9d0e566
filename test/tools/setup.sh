#!/usr/bin/env bash
# tools/lib/setup.sh with stand-ins for dpkg-query, apt-get, sudo and id: what is installed when.

# shellcheck source=test/tools/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
mkdir "$work/bin"

# Only "here" is installed; apt-get records its arguments, and fails for "broken".
cat >"$work/bin/dpkg-query" <<'END'
#!/bin/sh
for last; do :; done
case $last in here) printf installed ;; gone) printf config-files ;; *) exit 1 ;; esac
END
cat >"$work/bin/apt-get" <<'END'
#!/bin/sh
echo "$@" >>"$CALLS"
case "$*" in *install*broken*) echo "E: no such thing"; exit 100 ;; esac
END
cat >"$work/bin/id" <<'END'
#!/bin/sh
echo "${FAKE_UID:-0}"
END
for tool in bash env grep tail sed wc mkdir dirname nproc cat; do
    ln -s "$(type -P "$tool")" "$work/bin/$tool"
done
chmod +x "$work"/bin/{dpkg-query,apt-get,id}

# install STATUS "PART OF THE OUTPUT" "PART OF THE APT CALLS, or -" PACKAGE...
install() {
    local expected=$1 part=$2 calls=$3 out rc
    shift 3
    export CALLS=$work/calls
    : >"$CALLS"
    out=$(PATH=$work/bin bash -c '. "$1/tools/lib/setup.sh"; start_log "$2"; shift 2; install_packages "$@"' \
        bash "$root" "$work/log" "$@" 2>&1 </dev/null)
    rc=$?
    if [[ $rc -ne $expected || ($part == '' && -n $out) || $out != *"$part"* ||
        ($calls == - && -s $CALLS) || ($calls != - && $(cat "$CALLS") != *"$calls"*) ]]; then
        verdict no "$*" "  exit $rc, output: $out
  apt: $(cat "$CALLS")"
    else
        verdict ok
    fi
}

install 0 '' - here                       # nothing to do: silent, and no network
install 0 '' - here compiler:bash         # a command from elsewhere will do
install 0 'installing packages: new' 'install --no-install-recommends new' here new
install 0 'installing packages: gone' 'install --no-install-recommends gone' gone # removed, not purged
install 0 'installing packages: a b' 'install --no-install-recommends a b' a here b:no-such-command
install 0 'installing packages: new' 'update' new
install 1 'E: no such thing' 'install' broken # the end of the log is shown
FAKE_UID=1000 install 1 'neither root nor sudo' - new
FAKE_UID=1000 install 0 '' - here

cat >"$work/bin/sudo" <<'END'
#!/bin/sh
[ "$1" = -n ] || exit 9
shift
[ -z "$SUDO_REFUSES" ] || exit 1
exec "$@"
END
ln -s "$(type -P true)" "$work/bin/true"
chmod +x "$work/bin/sudo"
FAKE_UID=1000 install 0 'installing packages: new' 'install --no-install-recommends new' new
SUDO_REFUSES=1 FAKE_UID=1000 install 1 'sudo wants a password' - new
rm "$work/bin/apt-get"
install 0 'no Debian or Ubuntu here' - new

finish
