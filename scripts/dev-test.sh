#!/usr/bin/env bash
# Runs every check and every test, as CI does. Installs what is missing.
#
#   ./scripts/dev-test.sh          everything
#   ./scripts/dev-test.sh FILTER   only the tests whose names contain FILTER
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/dev-common.sh
. scripts/dev-common.sh

case ${1:-} in -h | --help) sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
install_missing
install_s3
# What differs between versions of PostgreSQL is tried on each that can be had; the installed one always is.
not_tested=()
for major in 16 17 18; do
    ./scripts/fetch-postgresql.sh "$major" || not_tested+=("$major")
done
say_not_tested() {
    [ "${#not_tested[@]}" -eq 0 ] || say "NOT TESTED: WAL of PostgreSQL ${not_tested[*]}, whose programs could not be fetched"
}
trap say_not_tested EXIT
if [ $# -gt 0 ]; then
    cargo build --quiet --locked --workspace
    cargo test --locked --workspace -- "$@"
    exit
fi
step() {
    say "== $*"
    "$@"
}
step cargo fmt --all --check
step cargo clippy --quiet --locked --workspace --all-targets -- --deny warnings
RUSTDOCFLAGS='--deny warnings' step cargo doc --quiet --locked --workspace --no-deps --document-private-items
if command -v cargo-deny >/dev/null; then
    step cargo deny --log-level error check
fi
# The sample app too, which the end-to-end tests start beside the program.
step cargo build --quiet --locked --workspace
step cargo test --quiet --locked --workspace
step ./scripts/api-check.sh 60
