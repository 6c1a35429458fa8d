#!/bin/sh
# spawn NAME BASE64: runs a command in the background, in a process group of its own. Its output goes to the
# port that init holds open as 9, each line marked "NAME: "; "NAME>" tells that it started and "NAME! CODE" that it and its output ended.
name=$1
file=/run/spawn/$name
rm -f "$file.pid"
# "sh -c" becomes the program where the command is a single one: signals and exit codes are then the program's own.
export SPAWNED="$(echo "$2" | base64 -d)"
{
    echo "$name>"
    {
        setsid sh -c "echo \$\$ >$file.new; mv $file.new $file.pid; exec sh -c \"\$SPAWNED\""
        echo $? >"$file.code"
    } 2>&1 | while IFS= read -r line || [ -n "$line" ]; do
        printf '%s: %s\n' "$name" "$line"
    done
    echo "$name! $(cat "$file.code")"
} </dev/null >&9 2>&1 &
until [ -s "$file.pid" ]; do usleep 10000; done
