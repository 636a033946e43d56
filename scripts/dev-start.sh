#!/usr/bin/env bash
# Starts the whole platform from a checkout: installs what is missing, builds, serves, makes two sample tenants.
#
#   ./scripts/dev-start.sh             start, or go on where it was
#   ./scripts/dev-start.sh --fresh     begin anew, after asking (--yes: without asking)
#   ./scripts/dev-start.sh --check     start, make the tenants, stop again
#
# LOOMWORKS_DATA, LOOMWORKS_API_LISTEN, LOOMWORKS_GATEWAY_LISTEN say where, if the defaults do not suit.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/dev-common.sh
. scripts/dev-common.sh

fresh=false check=false yes=()
for argument in "$@"; do
    case $argument in
        --fresh) fresh=true ;;
        --check) check=true ;;
        --yes) yes=(--yes) ;;
        -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) fail "unknown argument: $argument" "see $0 --help" ;;
    esac
done

install_missing
say "building"
cargo build --quiet --locked -p loomworks -p loomworks-example-erp
data=${LOOMWORKS_DATA:-$(data_directory)}

# What a killed script has left running. The name is checked, since a number can have come to mean another process.
stop_former() {
    local pid exe
    [ -f "$data/dev.pids" ] || return 0
    while read -r pid; do
        exe=$(readlink "/proc/$pid/exe" 2>/dev/null || true)
        case $exe in "$data"/bin/*) kill "$pid" 2>/dev/null || true ;; *) continue ;; esac
        for _ in $(seq 300); do [ -d "/proc/$pid" ] || break; sleep 0.1; done
    done <"$data/dev.pids"
    rm -f "$data/dev.pids"
}
stop_former

if $fresh && [ -e "$data" ]; then
    target/debug/loomworks remove --data "$data" "${yes[@]}"
fi

# The app and its profile go beside the data, where the platform's user can reach them.
if is_root; then
    install -d -m 0755 "$(dirname "$data")"
    install -d -m 0700 -o "$service_user" -g "$service_user" "$data"
fi
"${as_service[@]}" mkdir -p "$data/bin" "$data/profiles/erp" "$data/log"
# shellcheck disable=SC2016
copy() { # FROM TO MODE: through a rename, so that a program which is running can be replaced
    "${as_service[@]}" sh -c 'cat >"$1.new" && chmod "$2" "$1.new" && mv "$1.new" "$1"' sh "$2" "$3" <"$1"
}
copy target/debug/loomworks "$data/bin/loomworks" 755
copy target/debug/loomworks-example-erp "$data/bin/loomworks-example-erp" 755
copy examples/erp/profile.toml "$data/profiles/erp/profile.toml" 644
copy examples/erp/init.sql "$data/profiles/erp/init.sql" 644
copy examples/erp/admin.sql "$data/profiles/erp/admin.sql" 644

# The usual ports, or the next that are free.
free_port() {
    local port=$1
    while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
    printf '%s' "$port"
}
api=${LOOMWORKS_API_LISTEN:-127.0.0.1:$(free_port 7070)}
gateway=${LOOMWORKS_GATEWAY_LISTEN:-127.0.0.1:$(free_port 7080)}
metrics=${LOOMWORKS_METRICS_LISTEN:-127.0.0.1:$(free_port 7090)}
app=127.0.0.1:$(free_port 8069)

pids=()
stop() {
    trap - EXIT INT TERM
    [ "${#pids[@]}" -eq 0 ] || { kill "${pids[@]}" 2>/dev/null || true; wait "${pids[@]}" 2>/dev/null || true; }
    rm -f "$data/dev.pids"
}
trap stop EXIT
trap 'say; say "stopping"; exit 0' INT TERM

"${as_service[@]}" "$data/bin/loomworks-example-erp" --listen "$app" --passfile "$data/apps/erp/pgpass" \
    >>"$data/log/erp.log" 2>&1 &
pids+=($!)
first=true
[ ! -e "$data/client.json" ] || first=false
loomworks=$data/bin/loomworks
"$loomworks" serve --data "$data" --api-listen "$api" --gateway-listen "$gateway" --metrics-listen "$metrics" \
    --profile "$data/profiles/erp/profile.toml" --upstream "erp=$app" >"$data/log/serve.out" 2>>"$data/log/loomworks.log" &
serve=$!
pids+=("$serve")
printf '%s\n' "${pids[@]}" >"$data/dev.pids"

until grep -qx ready "$data/log/serve.out"; do
    kill -0 "$serve" 2>/dev/null || { tail -5 "$data/log/loomworks.log" >&2; fail "the platform did not start" "its log is $data/log/loomworks.log"; }
    sleep 0.2
done

# The command line finds the platform through this file.
client=$(client_file)
mkdir -p "$(dirname "$client")"
install -m 0600 "$data/client.json" "$client"

for tenant in acme globex; do
    # Making a tenant that a former start began and did not finish goes on by itself.
    if ! "$loomworks" tenant show "$tenant" >/dev/null 2>&1; then
        say "making tenant $tenant"
        "$loomworks" tenant create "$tenant" --wait >/dev/null
    fi
    until [ "$("$loomworks" tenant show "$tenant" --json | sed -n 's/.*"state": "\(.*\)".*/\1/p')" != provisioning ]; do
        sleep 0.2
    done
done

port=${gateway##*:}
cat <<END

Loomworks runs, all in one process, on a PostgreSQL cluster of its own.

  tenants     http://acme.localhost:$port/
              http://globex.localhost:$port/
  API         http://$api   (document: http://$api/v1/openapi.json)
  metrics     http://$metrics/metrics
  PostgreSQL  127.0.0.1:$(cat "$data/port")
  data        $data
  log         $data/log/loomworks.log
END
if $first; then
    say "  operator    $(sed -n 's/.*"api_key": "\(.*\)".*/\1/p' "$data/client.json")   (the first key; shown this once)"
fi
cat <<END
              the command line reads its key from $client

Try, in another terminal:

  ./target/debug/loomworks demo                              the whole promise in a minute
  ./target/debug/loomworks ai-session open acme --agent me   a connection string; break something with it
  ./target/debug/loomworks ops list acme                     see what you did
  ./target/debug/loomworks ops undo acme NUMBER              take it back
  ./scripts/dev-shell.sh acme                                psql in a tenant's database

Ctrl-C stops everything. Started again it goes on where it was; --fresh begins anew.
END
$check || wait "$serve" || fail "the platform ended" "its log is $data/log/loomworks.log"
