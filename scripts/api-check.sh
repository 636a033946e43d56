#!/usr/bin/env bash
# Checks the API from outside: its document with a linter, and every endpoint with requests made from that document,
# good and bad, by a property-based tester. No answer may be a server error, and each must be one that is documented.
#
#   ./scripts/api-check.sh           about two minutes
#   ./scripts/api-check.sh SECONDS   for as long as that
#
# Needs a build (`cargo build --workspace`). Starts a platform of its own in a temporary directory and ends it.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/dev-common.sh
. scripts/dev-common.sh

case ${1:-} in -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
seconds=${1:-90}
python_with api-check scripts/api-check.txt

root=$PWD
tools=$root/target/api-check

work=$(mktemp -d /tmp/lwa-XXXXXX)
chmod 755 "$work"
mkdir "$work/profile"
printf "name = 'notes'\nupstream = '127.0.0.1:9'\n[init]\nsql = ['init.sql']\n" >"$work/profile/profile.toml"
printf 'CREATE TABLE notes (id int PRIMARY KEY, note text NOT NULL);\n' >"$work/profile/init.sql"
# Below those that the kernel gives to outgoing connections.
port=$((20000 + RANDOM % 12000))
loomworks=target/debug/loomworks
# Not slowed down: that there is a limit is tested elsewhere.
LOOMWORKS_API_RATE=100000 LOOMWORKS_API_BURST=100000 \
    "$loomworks" serve --data "$work/data" --profile "$work/profile/profile.toml" \
    --api-listen "127.0.0.1:$port" --gateway-listen "127.0.0.1:$((port + 1))" >"$work/out" 2>"$work/log" &
platform=$!
stop() {
    kill "$platform" 2>/dev/null || true
    wait "$platform" 2>/dev/null || true
    "$loomworks" remove --data "$work/data" --yes >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap stop EXIT
until grep -qx ready "$work/out"; do
    kill -0 "$platform" 2>/dev/null || { tail -5 "$work/log" >&2; fail "the platform did not start"; }
    sleep 0.2
done
export LOOMWORKS_CLIENT_FILE=$work/data/client.json
"$loomworks" tenant create acme --wait >/dev/null
key=$(sed -n 's/.*"api_key": "\(.*\)".*/\1/p' "$LOOMWORKS_CLIENT_FILE")
document=http://127.0.0.1:$port/v1/openapi.json

"$tools/bin/python" - "$document" <<'PY'
import json, sys, urllib.request
from openapi_spec_validator import validate
document = json.load(urllib.request.urlopen(sys.argv[1]))
validate(document)
print(f"the document is valid OpenAPI {document['openapi']}, with {len(document['paths'])} paths")
PY

# Bodies of any shape are sent to every endpoint: those that would wait for a base backup or the end of a job answer at
# once with the job, so that nothing here is slow. What the tester keeps for itself where it is started stays out of the
# working tree.
(cd "$work" && "$tools/bin/st" --config-file "$root/scripts/api-check.toml" run "$document" \
    --header "Authorization: Bearer $key" --max-time "$seconds" --report-dir "$work") || {
    say "the last lines of the program's log:"
    grep '"level":"ERROR"\|ERROR' "$work/log" | tail -5
    exit 1
}
