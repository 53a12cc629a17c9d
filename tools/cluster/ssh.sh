#!/usr/bin/env bash
# Launch one recipe on several machines over ssh, a launcher on each. After a crash the same command goes on.
#
# usage: tools/cluster/ssh.sh HOSTFILE RECIPE [key=value ...] [option of mindmodel launch ...]
#        PORT=9000 tools/cluster/ssh.sh hosts recipes/llama/1b_64.yaml --check
#
# HOSTFILE: a host a line, as ssh knows it; the first is node 0, and the others must reach it under that name. Keys
# instead of passwords; this folder, and `mindmodel` on PATH after what REMOTE_SETUP does, on every host:
#        REMOTE_SETUP='source /usr/local/Ascend/cann/set_env.sh; source .venv/bin/activate'
#
# Ctrl-C, SIGTERM, or this machine's end: every launcher gets SIGTERM, so the run is saved. The second Ctrl-C does not
# wait for that. The exit code is that of the first node that failed, 2 where ssh does, 130 if all were told to stop.
set -uo pipefail
if [ $# -lt 2 ]; then
    sed -n '2,/^set/s/^# \?//p' "$0" >&2
    exit 2
fi
mapfile -t hosts < <(grep -v -e '^[[:space:]]*#' -e '^[[:space:]]*$' "$1")
shift
if [ ${#hosts[@]} -eq 0 ]; then
    echo "ssh.sh: the host file names no host. Write one a line." >&2
    exit 2
fi
master=${hosts[0]#*@}${PORT:+:$PORT}

# A pipe that nothing is written to: when its only end for writing, here, is closed, every node's watcher notices.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkfifo "$folder/hold"
exec 3<>"$folder/hold" 4<"$folder/hold" 5>"$folder/hold" 3>&-

stop() {
    signals=$((signals + 1))
    [ "$signals" -gt 1 ] && exit 130
    exec 5>&-
}
signals=0
trap stop INT TERM HUP

for rank in "${!hosts[@]}"; do
    launch=(mindmodel launch --nodes "${#hosts[@]}" --node-rank "$rank" --master "$master" "$@")
    # a job in the background reads /dev/null, so the watcher gets the connection under another number
    remote="cd ${PWD@Q} && ${REMOTE_SETUP:-:}
        exec 3<&0
        ${launch[*]@Q} </dev/null 3<&- & launcher=\$!
        { cat <&3; kill -TERM \$launcher; } >/dev/null 2>&1 & watcher=\$!
        wait \$launcher; code=\$?
        kill \$watcher 2>/dev/null
        exit \$code"
    (
        exec 5>&-
        ssh -o BatchMode=yes -o ServerAliveInterval=30 "${hosts[rank]}" "$remote" <&4
        code=$?
        if [ "$code" -eq 255 ]; then # ssh's own
            code=2
            echo "ssh.sh: ${hosts[rank]}, node $rank: ssh failed; the other nodes are told to stop" >&2
            kill -TERM $$
        fi
        echo "$code" >"$folder/$rank" # bash forgets what it did not wait for when a signal came
    ) &
done

while [ -n "$(jobs -pr)" ]; do wait; done # a signal ends wait, not the nodes
result=0
for rank in "${!hosts[@]}"; do
    code=$(cat "$folder/$rank" 2>/dev/null || echo 130) # a terminal that closes takes ssh with it
    if [ "$code" -ne 0 ] && { [ "$result" -eq 0 ] || [ "$result" -ge 128 ]; }; then
        result=$code # 128 and more: by a signal, after another node's failure
    fi
done
exit "$result"
