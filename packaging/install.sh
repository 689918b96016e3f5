#!/bin/sh
# `make install-program` as a package builder runs it, and `make uninstall-program`:
#   install.sh LLMLB DIRECTORY
set -eu
llmlb=$1 out=$2
rm -rf "$out"
mkdir -p "$out"
make="${MAKE:-make} --no-print-directory"
run() {
    $make "$1" DESTDIR="$out/root" PREFIX=/opt/llm LLMLB_PROGRAM="$llmlb" > "$out/log" 2>&1 || {
        cat "$out/log" >&2
        exit 1
    }
}
fail() {
    echo "make install-program: $*" >&2
    exit 1
}

umask 077 # as strict as the builder's may be
run install-program
prefix=$out/root/opt/llm
[ "$("$prefix/bin/llmlb" --version)" = "$("$llmlb" --version)" ] || fail "not the program"

# Every command has a page, and they are what the program prints.
commands=$("$llmlb" man --help | sed -n 's/.*possible values: \(.*\)\]/\1/p' | tr -d ,)
[ -n "$commands" ] || fail "no commands"
pages=llmlb.1
"$llmlb" man | cmp - "$prefix/share/man/man1/llmlb.1"
for command in $commands; do
    pages="$pages llmlb-$command.1"
    "$llmlb" man "$command" | cmp - "$prefix/share/man/man1/llmlb-$command.1"
done
# shellcheck disable=SC2086 # a list of words
[ "$(ls "$prefix/share/man/man1")" = "$(printf '%s\n' $pages | sort)" ] || fail "other pages"

for shell in bash:bash-completion/completions/llmlb zsh:zsh/site-functions/_llmlb \
    fish:fish/vendor_completions.d/llmlb.fish; do
    script=$prefix/share/${shell#*:}
    [ -s "$script" ] || fail "no $script"
    if command -v "${shell%%:*}" > /dev/null; then
        "${shell%%:*}" -n "$script"
    fi
done
if [ "$(uname -s)" = Linux ]; then
    grep -q "^ExecStart=/opt/llm/bin/llmlb serve" "$prefix/lib/systemd/system/llmlb@.service"
    cmp packaging/llmlb.tmpfiles "$prefix/lib/tmpfiles.d/llmlb.conf"
fi
cmp packaging/llmlb.logrotate "$prefix/share/doc/llmlb/llmlb.logrotate"
grep -q "^hyper [0-9]" "$prefix/share/doc/llmlb/LICENSE-THIRD-PARTY" || fail "no licences of others"
# One program; the rest is for all to read.
[ "$(find "$out/root" -type f -perm /111)" = "$prefix/bin/llmlb" ] || fail "other programs"
hidden=$(find "$out/root/opt" ! -perm -444)
[ -z "$hidden" ] || fail "not for all to read: $hidden"

# Over what is there already, and away.
run install-program
run uninstall-program
left=$(find "$out/root" ! -type d -o -name '*llmlb*')
[ -z "$left" ] || fail "left behind by make uninstall-program: $left"
echo "make install-program and uninstall-program with DESTDIR work"
