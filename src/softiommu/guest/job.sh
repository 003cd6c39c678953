# What a guest does under `softiommu guest`: guests/init sources it. The kernel's command line gives `mib`.
# shellcheck shell=dash disable=SC2154

say() {
	echo "guest: $*"
}

# Store a number (octal) where QEMU ends for it, with status 2 * NUMBER + 1 (isa-debug-exit): see ending.py.
end_with() {
	printf "\\$1" | dd of=/dev/port bs=1 seek=$((0xf4)) conv=notrunc 2>/dev/null
	sleep 10
}

fail() {
	say "FAILED: $*"
	dmesg | tail -n 20
	end_with 001
	leave
}

now() {
	cut -d' ' -f1 /proc/uptime
}

wait_for() {
	for _ in $(seq 200); do
		"$@" && return
		usleep 50000
	done
	fail "waited in vain: $*"
}

# Use a drive, the first or a later one: nvme0n1.
drive() {
	modprobe nvme
	wait_for test -b "/dev/$1"
	say "found the drive $1: $(sed 's/ *$//' "/sys/block/$1/device/model"), $(($(cat "/sys/block/$1/size") >> 11)) MiB"
	modprobe ext4
	mkfs.ext4 -F -q "/dev/$1" && mount -t ext4 "/dev/$1" /mnt || fail "no file system could be made"
	say "made a file system and mounted it"
	head -c 1048568 /dev/urandom >/tmp/random
	written=$(for i in $(seq 1000001 $((1000000 + mib))); do echo "$i" && cat /tmp/random; done |
		tee /mnt/file | md5sum) && sync || fail "the file could not be written"
	say "wrote a file of $(($(stat -c %s /mnt/file) >> 20)) MiB, checksum ${written%% *}"
	echo 3 >/proc/sys/vm/drop_caches
	[ "$(md5sum </mnt/file)" = "$written" ] || fail "read something else back"
	say "read it back from the drive: the checksums are equal"
	umount /mnt
}

engine() {
	modprobe ioatdma
	wait_for test -e /sys/class/dma/dma0chan0
	say "found a DMA engine: its driver tested $(ls /sys/class/dma | wc -l) channel(s), copies and interrupts work"
}

set -o pipefail
stty -onlcr
say "Linux $(uname -r) has booted, $(now) s after power-on"
if [ -d /sys/class/iommu/dmar0 ]; then say "sees an IOMMU of its own: dmar0"; fi
drives=0 engines=0
for class in $(cat /sys/bus/pci/devices/*/class); do
	case $class in
	0x010802)
		drive "nvme${drives}n1"
		drives=$((drives + 1))
		;;
	0x088000) engines=$((engines + 1)) ;;
	esac
done
if [ $engines != 0 ]; then engine; fi
[ $((drives + engines)) != 0 ] || fail "found no device to drive"
# Drives are let go as at a power-off.
modprobe -r nvme
say "is done, $(now) s after power-on"
end_with 052
