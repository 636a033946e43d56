# For the files beside it: prints one result as bench/run documents it.
#
#   at_most  METRIC UNIT OURS GOAL [PEER PEER_NAME]    met when ours is the goal or less
#   at_least METRIC UNIT OURS GOAL [PEER PEER_NAME]    met when ours is the goal or more
#   told     METRIC UNIT OURS [PEER PEER_NAME]         there is no goal

# The program as people run it, built if it is not. $LOOMWORKS_PROGRAM names another.
release_program() {
    [ -n "${LOOMWORKS_PROGRAM:-}" ] || cargo build --quiet --release --locked -p loomworks >&2
    realpath "${LOOMWORKS_PROGRAM:-target/release/loomworks}"
}

at_most() { result '<=' "$@"; }
at_least() { result '>=' "$@"; }
told() { result '' "$1" "$2" "$3" null "${@:4}"; }

result() {
    local ours=$4 goal=$5 peer=${6:-null} name=null ratio=null met=null
    # awk, as a number may have a fraction.
    [ "$goal" = null ] || met=$(awk "BEGIN { print ($ours $1 $goal) ? \"true\" : \"false\" }")
    if [ "$peer" != null ]; then
        name="\"$7\""
        ratio=$(awk "BEGIN { printf \"%.2f\", $ours / $peer }")
    fi
    printf '{"metric":"%s","unit":"%s","ours":%s,"peer":%s,"peer_name":%s,"ratio":%s,"goal":%s,"met":%s}\n' \
        "$2" "$3" "$ours" "$peer" "$name" "$ratio" "$goal" "$met"
}
