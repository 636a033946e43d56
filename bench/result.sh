# For the files beside it: prints one result as bench/run documents it.
#
#   at_most  METRIC UNIT OURS GOAL    met when ours is the goal or less
#   at_least METRIC UNIT OURS GOAL    met when ours is the goal or more

# The program as people run it, built if it is not. $LOOMWORKS_PROGRAM names another.
release_program() {
    [ -n "${LOOMWORKS_PROGRAM:-}" ] || cargo build --quiet --release --locked -p loomworks >&2
    realpath "${LOOMWORKS_PROGRAM:-target/release/loomworks}"
}

at_most() { result "$@" '<='; }
at_least() { result "$@" '>='; }

result() {
    local met=false
    # awk, as a number may have a fraction.
    ! awk "BEGIN { exit !($3 $5 $4) }" || met=true
    printf '{"metric":"%s","unit":"%s","ours":%s,"peer":null,"peer_name":null,"ratio":null,"goal":%s,"met":%s}\n' \
        "$1" "$2" "$3" "$4" "$met"
}
