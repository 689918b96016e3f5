#!/bin/sh
# Makes an archive of one object that has the functions of the header and nothing else to link
# against, so that the Rust in it cannot meet that of another library in the same program:
#   archive.sh HEADER ARCHIVE OUT
# CC, AR, LD and OBJCOPY are those of the target.
set -eu
header=$1 archive=$2 out=$3
CC=${CC:-cc} AR=${AR:-ar} LD=${LD:-ld}
object=${out%.a}.o
# What is declared for this system.
functions=$($CC -E -P "$header" | sed -n 's/^[A-Za-z_].*[ *]\(llmlb_[a-z_]*\)(.*/\1/p')
rm -f "$out"
# Lists of words.
# shellcheck disable=SC2046
case $(uname -s) in
    Darwin)
        # Names have a _ before them there.
        $LD -r -arch "$(uname -m)" $(printf ' -u _%s -exported_symbol _%s' \
            $(printf '%s\n' "$functions" | sed 'p')) "$archive" -o "$object"
        ;;
    *)
        $LD -r $(printf ' -u %s' $functions) "$archive" -o "$object"
        "${OBJCOPY:-objcopy}" --wildcard --keep-global-symbol='llmlb_*' --strip-unneeded "$object"
        ;;
esac
$AR rcs "$out" "$object"
