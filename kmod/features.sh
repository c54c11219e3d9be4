#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# Writes features.h: what this kernel has, found by compiling the files in features/.
#
# usage: features.sh DIRECTORY COMPILER FLAG... >features.h
#
# DIRECTORY/shrinker_alloc.c compiles: GB_HAVE_SHRINKER_ALLOC is defined. Version numbers would say less:
# distributions take changes into older kernels.
set -eu

directory=$1
shift
log=$(mktemp)
trap 'rm -f "$log"' EXIT

compiles() {
	"$@" -fsyntax-only -Wno-error -Werror=implicit-function-declaration -Werror=incompatible-pointer-types \
		-Werror=int-conversion "$source" 2>"$log"
}

# Against a mistake in the call, which would look like a kernel that has nothing of it.
source=$directory/none.c
compiles "$@" || {
	cat "$log" >&2
	exit 1
}
echo '/* SPDX-License-Identifier: GPL-2.0-only */'
echo '/* Made by features.sh. */'
for source in "$directory"/*.c; do
	name=$(basename "$source" .c)
	[ "$name" = none ] || ! compiles "$@" || echo "#define GB_HAVE_$name" | tr '[:lower:]' '[:upper:]' |
		sed 's/#DEFINE/#define/'
done
