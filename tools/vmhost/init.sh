#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# First process of the guest: makes a root directory of the host's files and goes there.
#
# settings has: repository, modules (where the kernel's are, on the host), nvme (how many devices).
set -eu
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
# The last resort is a panic: the host sees it on the console. PID 1 must not just end, though it would too.
trap 'echo "vm: the guest could not be set up (line $LINENO)" >/dev/kmsg; echo c >/proc/sysrq-trigger' EXIT
. /settings
while read -r module options; do
	# shellcheck disable=SC2086 # several words
	insmod "/modules/$module" $options
done </modules/order

# The host's files are only read. What is written is in memory and ends with the guest, ...
mount -t virtiofs -o ro root /host
mount -t tmpfs -o mode=0755 tmpfs /mnt
mkdir /mnt/upper /mnt/work
mount -t overlay -o lowerdir=/host,upperdir=/mnt/upper,workdir=/mnt/work overlay /new
mount --move /dev /new/dev
mount --move /sys /new/sys
for where in run tmp dev/shm; do
	mkdir -p "/new/$where"
	mount -t tmpfs -o mode=1777 tmpfs "/new/$where"
done
chmod 755 /new/run
# ... except in the checkout. After /tmp, for it may be in there.
mkdir -p "/new$repository"
mount -t virtiofs repository "/new$repository"

mkdir -p "/new/lib/modules"
mount --bind "/new$modules" "/new/lib/modules"
mkdir -p /new/dev/pts /new/sys/fs/cgroup
mount -t devpts devpts /new/dev/pts
mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
mount -t debugfs debugfs /new/sys/kernel/debug
mount -t tracefs tracefs /new/sys/kernel/tracing
ln -s /proc/self/fd /new/dev/fd
ln -s fd/0 /new/dev/stdin
ln -s fd/1 /new/dev/stdout
ln -s fd/2 /new/dev/stderr
# There is no udev. With these, opening a device loads its module (fuse, loop-control, mapper/control).
while read -r _ name kind; do
	case $kind in [bc][0-9]*:*) ;; *) continue ;; esac # not the comment
	mkdir -p "/new/dev/$(dirname "$name")"
	numbers=${kind#?}
	[ -e "/new/dev/$name" ] || mknod "/new/dev/$name" "${kind%"$numbers"}" "${numbers%:*}" "${numbers#*:}"
done <"/new/lib/modules/$(uname -r)/modules.devname"

# nvme0 may be any of them: controllers are probed side by side. Their serial numbers say which is which.
ready=0
while [ "$ready" -lt "$nvme" ]; do
	ready=0
	for device in /new/sys/block/nvme*; do
		[ -r "$device/device/serial" ] && [ -b "/new/dev/${device##*/}" ] || continue
		ln -sfn "${device##*/}" "/new/dev/$(tr -d ' ' <"$device/device/serial")"
		ready=$((ready + 1))
	done
	[ "$ready" -ge "$nvme" ] || usleep 10000
done

mkdir /new/run/vm
cp /bin/busybox /guest.sh /settings /new/run/vm/
mount --move /proc /new/proc
trap - EXIT
exec switch_root /new /run/vm/busybox sh /run/vm/guest.sh
