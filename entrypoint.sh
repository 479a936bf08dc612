#!/bin/sh
# Start the server in a container. As root: make its writable folders usable for PUID:PGID and switch to
# that user. As another user: only check whether they are usable.
#
# The ids need no entries in /etc/passwd, so any number is valid, even with a read-only root.
set -eu

# As process 1 the shell would ignore SIGTERM; with a trap it exits when the current command ends.
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

# Run a command as the server's user.
as_user() {
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid "$uid" --regid "$gid" --clear-groups --no-new-privs -- "$@"
    else
        "$@"
    fi
}

# shellcheck disable=SC2016 # $1 is the inner shell's
is_writable() {
    # By writing a file: on a read-only mount, `test -w` is true for root.
    as_user sh -c 'file=$(mktemp "$1/.write-test.XXXXXX") && rm "$file"' sh "$1" 2>/dev/null
}

# Create a folder and, as root, make the user its owner if it is not writable, with all files in it, as
# files of another PUID would not be usable either.
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
# Not fatal: a model in models/ is still found.
prepare "$downloads" || say "$downloads cannot be written to by user $uid:$gid: no model can be downloaded there"

# Uploads are buffered, gigabytes, next to those of jobs, as /tmp may be in memory.
export TMPDIR="${TMPDIR:-$uploads}"

say "running as $uid:$gid"
if [ "$(id -u)" = 0 ]; then
    exec setpriv --reuid "$uid" --regid "$gid" --clear-groups --no-new-privs -- "$@"
fi
exec "$@"
