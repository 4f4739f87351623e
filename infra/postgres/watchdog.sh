# Runs a PostgreSQL program ("$@" from the fourth word on) and ends it when the program that started this one ends, however that happens.
# $1: the signal that ends it at once (QUIT for the server, KILL for what cannot be left half done anyway).
# $2: a folder to remove then, or nothing.
# File descriptor 3 is a pipe that only the starting program can write to: a line on it asks for an orderly stop, its end for an immediate one.
# File descriptor 4, if there, is the folder with the data; the PostgreSQL program inherits it.
now=$1 remove=$2
shift 2
"$@" 3<&- & child=$!
{
	if read -r word <&3; then
		kill -INT "$child"
		cat <&3
	fi
	trap '' TERM # the end of the other half of this script no longer ends this half
	kill "-$now" "$child"
	while kill -0 "$child"; do sleep 0.05; done
	if [ -n "$remove" ]; then rm -rf "$remove"; fi
} >/dev/null 2>&1 & watch=$!
wait "$child"
status=$?
kill "$watch" 2>/dev/null
exit "$status"
