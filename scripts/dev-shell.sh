#!/usr/bin/env bash
# Opens psql as the superuser in a database of the platform that dev-start.sh runs.
#
#   ./scripts/dev-shell.sh                    the management database
#   ./scripts/dev-shell.sh acme               a tenant's database
#   ./scripts/dev-shell.sh acme -c 'SELECT 1' with psql's own arguments
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/dev-common.sh
. scripts/dev-common.sh

case ${1:-} in -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
data=${LOOMWORKS_DATA:-$(data_directory)}
[ -f "$data/port" ] || fail "there is no platform in $data" "start one with ./scripts/dev-start.sh"
database=${1:-loomworks_mgmt}
[ $# -eq 0 ] || shift
cd /
"${as_service[@]}" psql --host "$data/run" --port "$(cat "$data/port")" --username postgres "$database" "$@"
