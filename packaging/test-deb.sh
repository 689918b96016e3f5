#!/bin/sh
# The Debian packages, as `make deb` makes them, but of a program that is built already: installed
# into a fresh root, used there, and removed without a trace.
#   test-deb.sh LLMLB DIRECTORY VERSION
set -eu
llmlb=$1 out=$2 version=$3
skip() {
    echo "test-deb: skipped, as $*"
    exit 0
}
fail() {
    echo "make deb: $*" >&2
    exit 1
}
for tool in dpkg dpkg-query dh unshare pkg-config python3; do
    command -v $tool > /dev/null || skip "there is no $tool"
done
[ "$(id -u)" = 0 ] || skip "dpkg needs root"
# What is mounted goes away with the namespace.
if [ "${TEST_DEB_UNSHARED:-}" = "" ]; then
    unshare -m true 2> /dev/null || skip "nothing may be mounted"
    TEST_DEB_UNSHARED=1 exec unshare -m "$0" "$@"
fi
umask 022
rm -rf "$out"
mkdir -p "$out"
out=$(cd "$out" && pwd)

LLMLB_PROGRAM=$llmlb "$(dirname "$0")/deb.sh" "$out/deb" "$version" > "$out/log" 2>&1 || {
    cat "$out/log" >&2
    exit 1
}
if command -v lintian > /dev/null; then
    said=$(lintian --allow-root --fail-on error,warning "$out"/deb/*.deb 2>&1) ||
        fail "lintian: $said"
    [ -z "$said" ] || fail "lintian: $said"
else
    echo "test-deb: no lint, as lintian is not installed"
fi

# Whose code is in it, and on what terms; what only builds it, or is for other systems, is not.
for package in "$out"/deb/*.deb; do
    terms=$(dpkg-deb --fsys-tarfile "$package" | tar -xO --wildcards './usr/share/doc/*/copyright')
    for crate in hyper serde ring; do
        printf '%s\n' "$terms" | grep -q "crates/$crate-[0-9.]*/" || fail "copyright: no $crate"
    done
    for crate in syn windows-sys criterion; do
        ! printf '%s\n' "$terms" | grep -q "crates/$crate-[0-9.]*/" || fail "copyright: $crate"
    done
    printf '%s\n' "$terms" | grep -q 'hyper: Copyright .* Sean McArthur' || fail "copyright: by nobody"
done

# A root of packages that this machine has, and of what they depend on.
root=$out/root
mkdir -p "$root/var/lib/dpkg/info" "$root/var/lib/dpkg/updates" "$root/tmp"
chmod 1777 "$root/tmp"
# Where a system keeps its directories.
for directory in bin sbin lib lib64; do
    [ -L /$directory ] && mkdir -p "$root/usr/$directory" && ln -s usr/$directory "$root/$directory"
done
wanted="base-files base-passwd coreutils dash debianutils diffutils dpkg grep sed libc-bin"
packages=
while [ -n "$wanted" ]; do
    packages=$(printf '%s\n' $packages $wanted | sort -u)
    # Of alternatives, and of what is provided, what is installed by the name.
    depends=$(dpkg-query -W -f '${Pre-Depends}, ${Depends}, ' $packages |
        tr ',|' '\n\n' | sed 's/(.*)//; s/:any//; s/ //g' | sort -u)
    wanted=
    for package in $depends; do
        if ! printf '%s\n' $packages | grep -Fqx "$package" &&
            [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null)" = installed ]; then
            wanted="$wanted $package"
        fi
    done
done
for package in $packages; do
    dpkg-query -s "$package" >> "$root/var/lib/dpkg/status"
    echo >> "$root/var/lib/dpkg/status"
    dpkg-query -L "$package"
done | sort -u > "$out/files"
# Documents may have been left out when this machine was made.
while read -r file; do
    [ ! -e "$file" ] && [ ! -L "$file" ] || echo "$file"
done < "$out/files" | tar -C / --no-recursion -cf - -T - 2> /dev/null | tar -C "$root" -xpf - --keep-directory-symlink
for file in /var/lib/dpkg/info/*.list; do
    name=$(basename "$file" .list)
    printf '%s\n' $packages | grep -Fqx "${name%:*}" || continue
    cp -p "/var/lib/dpkg/info/$name".* "$root/var/lib/dpkg/info/"
done
[ -e "$root/etc/passwd" ] || cp /usr/share/base-passwd/passwd.master "$root/etc/passwd"
[ -e "$root/etc/group" ] || cp /usr/share/base-passwd/group.master "$root/etc/group"
mkdir -p "$root/proc" "$root/dev"
touch "$root/dev/null"
mount -t proc none "$root/proc" 2> /dev/null || mount --rbind /proc "$root/proc"
mount --bind /dev/null "$root/dev/null"
inside() {
    chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
}
inside ldconfig
# All that is there, but for what dpkg remembers.
everything() {
    (cd "$root" && find . -path ./proc -prune -o -path ./var/lib/dpkg -prune -o \
        -path ./var/log/dpkg.log -prune -o -printf '%P %y %m %l\n' | sort)
}
everything > "$out/before"

dpkg --root="$root" --install "$out"/deb/*.deb > "$out/log" 2>&1 || {
    cat "$out/log" >&2
    exit 1
}
[ "$(inside dpkg-query -W -f '${Package} ${db:Status-Status}\n' '*llmlb*')" = "libllmlb-lock-dev installed
libllmlb-lock0.1 installed
llmlb installed" ] || fail "not installed"
[ "$(inside llmlb --version)" = "llmlb $version" ] || fail "not this version"
inside ldconfig -p | grep -q 'libllmlb_lock.so.0.1 .*=> /lib/' || fail "the library is not found"

cmp packaging/llmlb.logrotate "$root/etc/logrotate.d/llmlb" || fail "logs are not rotated"

# The stories: served, refused, seen, stopped.
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
inside mkfifo /tmp/lines
inside llmlb serve --port $port > "$root/tmp/lines" 2>&1 &
server=$!
trap 'kill $server 2> /dev/null || true' EXIT
exec 3< "$root/tmp/lines"
while read -r line <&3; do
    case $line in *"listening on"*) break ;; esac
done
case $line in *"listening on"*) ;; *) fail "it does not serve: $line" ;; esac
code=0
said=$(inside llmlb serve --port $port 2>&1) || code=$?
[ "$code" = 1 ] || fail "served twice: $said"
inside llmlb status $port > /dev/null || fail "not seen"

# A program in C, as whoever has the -dev package builds it.
export PKG_CONFIG_SYSROOT_DIR="$root" PKG_CONFIG_PATH=
PKG_CONFIG_LIBDIR=$(dirname "$(find "$root/usr/lib" -name llmlb_lock.pc)")
export PKG_CONFIG_LIBDIR
# shellcheck disable=SC2046
${CC:-cc} examples/c/launcher.c -o "$root/tmp/launcher" $(pkg-config --cflags --libs llmlb_lock)
code=0
said=$(inside /tmp/launcher $port /bin/true 2>&1) || code=$?
case $code:$said in 1:*"llmlb stop --port $port"*) ;; *) fail "launcher: $code: $said" ;; esac

inside llmlb stop $port > /dev/null 2>&1 || fail "not stopped"
wait $server || fail "serve ended with $?"
trap - EXIT
exec 3<&-
rm "$root/tmp/lines" "$root/tmp/launcher"

# An administrator's files stay until a purge.
echo LLMLB_PORT=8000 > "$root/etc/llmlb/chat.conf"
dpkg --root="$root" --remove llmlb libllmlb-lock-dev libllmlb-lock0.1 >> "$out/log" 2>&1
[ -e "$root/etc/llmlb/chat.conf" ] || fail "the administrator's files are gone"
# What systemd makes for servers: of one a model is there, of the other nothing; and another's file.
for directory in lib cache; do
    mkdir -p "$root/var/$directory/private/llmlb"
    ln -s private/llmlb "$root/var/$directory/llmlb"
done
mkdir "$root/var/lib/llmlb/models"
echo weights > "$root/var/lib/llmlb/models/chat.gguf"
echo secret > "$root/etc/llmlb/key"
dpkg --root="$root" --purge llmlb libllmlb-lock-dev libllmlb-lock0.1 >> "$out/log" 2>&1
[ "$(cat "$root/var/lib/llmlb/models/chat.gguf")" = weights ] || fail "a purge takes models away"
[ "$(ls "$root/etc/llmlb")" = key ] || fail "a purge takes others' files away, or leaves its own"
rm -r "$root/var/lib/llmlb" "$root/var/lib/private/llmlb" "$root/etc/llmlb"
rmdir "$root/var/lib/private" "$root/var/cache/private"
everything > "$out/after"
diff "$out/before" "$out/after" || fail "left behind, or taken away"
left=$(inside ldconfig -p | grep llmlb) && fail "left behind: $left"
left=$(grep -l llmlb -r "$root/var/lib/dpkg/status" "$root/var/lib/dpkg/info") && fail "left behind: $left"
umount -R "$root/proc"
umount "$root/dev/null"
rm -r "$root"
echo "the Debian packages are installed, used, and removed without a trace"
