# Shared by the dev-*.sh scripts: what must be installed, where a checkout keeps its data, whom it runs as.
# shellcheck shell=bash

say() { printf '%s\n' "$*"; }
fail() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

is_root() { [ "$(id -u)" -eq 0 ]; }

has_postgresql() {
    local initdb version
    for initdb in /usr/lib/postgresql/*/bin/initdb /usr/pgsql-*/bin/initdb /usr/local/pgsql/bin/initdb /usr/bin/initdb; do
        [ -x "$initdb" ] || continue
        version=$("$initdb" --version | grep -oE '[0-9]+' | head -1)
        [ "$version" -lt 15 ] || return 0
    done
    return 1
}

# Installs what is missing where that can be done without a question, and says what is missing where it cannot.
install_missing() {
    local missing=()
    has_postgresql || missing+=(postgresql)
    # For tests only.
    command -v redis-server >/dev/null || missing+=(redis-server)
    command -v curl >/dev/null || missing+=(curl)
    command -v jq >/dev/null || missing+=(jq)
    command -v cc >/dev/null || missing+=(gcc libc6-dev)
    if [ "${#missing[@]}" -gt 0 ]; then
        command -v apt-get >/dev/null ||
            fail "missing: ${missing[*]}" "install a C compiler and the PostgreSQL server, version 15 or later"
        local apt=(apt-get)
        if ! is_root; then
            sudo -n true 2>/dev/null || fail "missing: ${missing[*]}" "run: sudo apt-get install ${missing[*]}"
            apt=(sudo -n apt-get)
        fi
        say "installing ${missing[*]}"
        "${apt[@]}" update -qq
        DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
        has_postgresql || fail "the system's PostgreSQL is older than 15" "see https://www.postgresql.org/download/"
    fi
    command -v cargo >/dev/null || fail "missing: the Rust toolchain" "see https://rustup.rs"
}

# For what checks the API from outside.
install_python() {
    ! python3 -c 'import ensurepip, venv' 2>/dev/null || return 0
    command -v apt-get >/dev/null || fail "missing: python3 with venv" "install Python 3.10 or later"
    local apt=(apt-get)
    if ! is_root; then
        sudo -n true 2>/dev/null || fail "missing: python3-venv" "run: sudo apt-get install python3-venv"
        apt=(sudo -n apt-get)
    fi
    say "installing python3-venv"
    DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y -qq --no-install-recommends python3-venv >/dev/null
}

# A Python with the packages that a file names, in target/NAME. Test programs that run side by side may all ask for it.
python_with() {
    local tools=target/$1 packages=$2
    mkdir -p target
    (
        flock 9
        [ ! -x "$tools/bin/python" ] || ! cmp -s "$packages" "$tools/installed.txt" || exit 0
        install_python
        say "installing $(tr '\n' ' ' <"$packages")"
        python3 -m venv "$tools"
        "$tools/bin/pip" --quiet --disable-pip-version-check install --requirement "$packages"
        cp "$packages" "$tools/installed.txt"
    ) 9>"$tools.lock"
}

# A server that speaks S3, for tests.
install_s3() { python_with s3 scripts/s3.txt; }

# PostgreSQL refuses to run as root: for root the platform runs as this user, whom the package has made.
service_user=postgres

# What to put before a command so that it runs as that user. Not a function: one that is put into the background would
# leave a shell between us and the command, and ending the shell would not end the command.
as_service=()
# shellcheck disable=SC2034 # the scripts that read this file use it
if is_root; then
    as_service=(setpriv "--reuid=$service_user" "--regid=$service_user" --clear-groups --)
fi

# A directory for each checkout, with a short name (a socket's path has 107 bytes) that the platform's user can reach.
data_directory() {
    local base
    if is_root; then
        base=/var/lib/loomworks
    else
        base=${XDG_DATA_HOME:-$HOME/.local/share}/loomworks
    fi
    printf '%s/dev-%s' "$base" "$(printf '%s' "$PWD" | cksum | cut -d' ' -f1)"
}

client_file() { printf '%s/loomworks/client.json' "${XDG_CONFIG_HOME:-$HOME/.config}"; }
