#!/bin/sh
# Start the server in a container. Started as root: make the folders it writes to usable for PUID:PGID and become
# that user. Started as another user: only look whether they are usable.
#
# The ids stay numbers, without entries in /etc/passwd: so any of them will do, on a read-only root as well.
set -eu

# As process 1 the shell would ignore it; so it ends when the command does that it is waiting for.
if [ $$ = 1 ]; then
    trap 'exit 143' TERM
fi

EXIT_BAD_SETTING=2   # as app.py exits
EXIT_NOT_WRITABLE=73 # EX_CANTCREAT of sysexits.h

say() {
    echo "entrypoint: $*" >&2
}

fail() {
    code=$1
    shift
    say "$@"
    exit "$code"
}

# Check that the variable named $1 holds a user's or group's number, $2.
check_id() {
    case $2 in
    *[!0-9]* | ???????????*) fail "$EXIT_BAD_SETTING" "$1='$2' is not the number of a user or group" ;;
    esac
}

# Run a command as the user that the server will be.
as_user() {
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid "$uid" --regid "$gid" --clear-groups --no-new-privs -- "$@"
    else
        "$@"
    fi
}

# shellcheck disable=SC2016 # $1 is the inner shell's
is_writable() {
    # Touched, not asked: on a read-only mount root is told that it may write.
    as_user sh -c 'file=$(mktemp "$1/.write-test.XXXXXX") && rm "$file"' sh "$1" 2>/dev/null
}

# Make a folder and, as root, hand it to the user if it cannot be written to.
# It changes owner with all that is in it: files of another PUID would be as useless as the folder.
prepare() {
    as_user mkdir -p "$1" 2>/dev/null || mkdir -p "$1" 2>/dev/null || true
    if is_writable "$1"; then
        return
    fi
    [ "$(id -u)" = 0 ] && [ -d "$1" ] || return
    owner=$(stat -c %u:%g "$1")
    if chown -Rh "$uid:$gid" "$1" 2>/dev/null; then
        say "$1 belonged to $owner, now it belongs to $uid:$gid"
    fi
    is_writable "$1"
}

if [ "$(id -u)" = 0 ]; then
    uid=${PUID:-1000} gid=${PGID:-1000}
    check_id PUID "$uid"
    check_id PGID "$gid"
else
    uid=$(id -u) gid=$(id -g)
    if [ "${PUID:-$uid}:${PGID:-$gid}" != "$uid:$gid" ]; then
        say "PUID and PGID have no effect: the container was started as user $uid:$gid, not as root"
    fi
fi

uploads=${TEMP_UPLOADS_DIR:-/app/temp_uploads} downloads=${HF_HOME:-/cache/huggingface}
prepare "$uploads" || fail "$EXIT_NOT_WRITABLE" "$uploads cannot be written to by user $uid:$gid, and uploads go there." \
    "On the host: chown $uid:$gid the folder that is mounted there; or set PUID and PGID to its owner."
# Without it a model in models/ is still found, so this alone stops nothing.
prepare "$downloads" || say "$downloads cannot be written to by user $uid:$gid: no model can be downloaded there"

# What is sent is buffered, and a model is unpacked, in gigabytes: beside the uploads, since /tmp may be in memory.
export TMPDIR="${TMPDIR:-$uploads}"

say "running as $uid:$gid"
if [ "$(id -u)" = 0 ]; then
    exec setpriv --reuid "$uid" --regid "$gid" --clear-groups --no-new-privs -- "$@"
fi
exec "$@"
