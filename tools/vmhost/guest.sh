# SPDX-License-Identifier: GPL-2.0-or-later
#
# First process of the guest once it is among the host's files: runs the command, says how it ended.
#
# settings has: directory, mark, load (modules, one a line), and the function command. This is busybox's shell.
cd /run/vm || exit
. ./settings
busybox=/run/vm/busybox
$busybox ip link set lo up
$busybox hostname greenboost-vm

# watch.py knows this line. From here on, whatever breaks may be our fault.
echo "vm: the guest is up" >/dev/kmsg
# As in init.sh, the last resort is a panic.
echo "$load" | while read -r module; do
	[ -z "$module" ] || $busybox insmod "$module" || {
		echo "vm: $module could not be loaded" >/dev/kmsg
		echo c >/proc/sysrq-trigger
	}
done

# The device of the port with this name, which arrives some time after its driver.
port() {
	while :; do
		for entry in /sys/class/virtio-ports/*; do
			[ -r "$entry/name" ] && read -r name <"$entry/name" && [ "$name" = "$1" ] || continue
			echo "/dev/${entry##*/}"
			return
		done
		$busybox usleep 10000
	done
}

# The command does not get the ports themselves: a port opens only once, so /dev/stdout would not.
# Opened for both directions, the pipes do not end with the command: a daemon it left may go on writing.
$busybox mkfifo out err
exec 3<>out 4<>err
$busybox cat <out >"$(port out)" 3<&- 4<&- &
$busybox cat <err >"$(port err)" 3<&- 4<&- &
(
	cd "$directory" || exit
	command
) </dev/null >&3 2>&4 3<&- 4<&-
status=$?
# Last in both, so that the host knows that it has everything. It then switches the machine off.
printf '%s %d\n' "$mark" "$status" >&3
printf '%s %d\n' "$mark" "$status" >&4
while :; do wait; $busybox sleep 1000; done
