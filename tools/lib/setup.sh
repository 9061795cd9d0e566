# shellcheck shell=bash
# setup.sh - what tools/quickstart and tools/check share: packages, builds, logs. To be sourced.
#
# Says what is done in one line each, and nothing about what is already there. The output of the
# commands goes to a log; its end is shown when one fails.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
log=${log:-$root/build/logs/setup.log}

# Package, or package:command where the command is enough, wherever it came from.
# shellcheck disable=SC2034 # for the scripts that source this file
build_packages=(build-essential:gcc libc6-dev cmake:cmake ninja-build:ninja pkg-config:pkg-config
    libinih-dev libjansson-dev libpcre2-dev libxxhash-dev libutf8proc-dev libdnnl-dev
    zlib1g-dev libzstd-dev)

say() { printf '%s\n' "$*"; }

start_log() { # FILE
    log=$1
    mkdir -p "$(dirname "$log")"
    : >"$log"
}

# Runs a command with its output in the log; when it fails, shows the end of it.
logged() {
    local from status=0
    from=$(wc -l <"$log")
    printf '+ %s\n' "$*" >>"$log"
    "$@" >>"$log" 2>&1 </dev/null || status=$?
    if ((status != 0)); then
        # Without ninja's lines on what went well.
        tail -n "+$((from + 2))" "$log" | grep -vE '^\[[0-9]+/[0-9]+\] [A-Z]' | tail -n "${tail_lines:-40}" | sed 's/^/    /' >&2
        say "    failed with status $status: ${*:1:3} (all of it: $log)" >&2
    fi
    return "$status"
}

missing_packages() { # PACKAGE[:COMMAND]...
    local item package
    for item; do
        package=${item%%:*}
        if [[ $item == *:* ]] && command -v "${item#*:}" >/dev/null; then
            continue
        fi
        if [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) != installed ]]; then
            printf '%s ' "$package"
        fi
    done
}

as_root() {
    if [[ $(id -u) == 0 ]]; then
        "$@"
    elif [[ -t 0 ]]; then
        sudo "$@"
    else
        sudo -n "$@"
    fi
}

# Installs what is missing of the packages; without a network only when there is something to do.
install_packages() { # PACKAGE[:COMMAND]...
    local missing
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        say "no Debian or Ubuntu here: these must be there in another way: ${*%%:*}"
        return 0
    fi
    missing=$(missing_packages "$@")
    [[ -n $missing ]] || return 0
    if [[ $(id -u) != 0 ]] && ! command -v sudo >/dev/null; then
        say "missing packages, and neither root nor sudo to install them; ask for:"
        say "    apt-get install $missing"
        return 1
    fi
    if [[ $(id -u) != 0 ]]; then
        # A password can be asked for only here: later its prompt would be in the log.
        if [[ -t 0 ]]; then sudo -v || return 1; fi
        if ! sudo -n true 2>/dev/null; then
            say "missing packages, and sudo wants a password but there is no terminal; run as root:"
            say "    apt-get install $missing"
            return 1
        fi
    fi
    say "installing packages: $missing"
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300)
    logged as_root "${apt[@]}" update || say "    (apt-get update failed; trying with the lists that are there)"
    # shellcheck disable=SC2086 # one word per package
    logged as_root "${apt[@]}" install --no-install-recommends $missing || return 1
}

# Configures a preset into a folder and builds it; one line when there is something to build.
build_preset() { # PRESET FOLDER [CMAKE ARGUMENT...]
    local preset=$1 folder=$2 begin=$SECONDS jobs
    shift 2
    jobs=$(nproc)
    logged cmake --preset "$preset" -B "$folder" "$@" || return 1
    # "no work to do" is what ninja prints for a build that is up to date.
    if ninja -C "$folder" -n 2>/dev/null | grep -q 'no work to do'; then
        return 0
    fi
    say "building $folder ($jobs jobs)"
    logged cmake --build "$folder" --parallel "$jobs" || return 1
    say "    done in $((SECONDS - begin)) s"
}
