# Ends the servers of one folder and removes it, as soon as the process that started them has closed its end of our
# standard input, or is gone.
# Called by folder.go, with sh -c; $1 is the folder. $1/pids has a file for each server that runs: its name is the
# process group, its text the signal that ends the server.
trap '' HUP INT TERM QUIT
while read -r _; do :; done
cd /

for file in "$1"/pids/*; do
    [ -e "$file" ] || continue
    group=${file##*/}
    kill -s "$(cat "$file")" -- "-$group" 2>/dev/null
    n=0
    while kill -s 0 -- "-$group" 2>/dev/null; do
        n=$((n + 1))
        [ $n -lt 50 ] || { kill -s KILL -- "-$group" 2>/dev/null; break; }
        sleep 0.1
    done
done

# A server that was killed may still be writing.
for n in 1 2 3 4 5 6 7 8 9 10; do
    rm -rf "$1" 2>/dev/null && break
    sleep 0.1
done
