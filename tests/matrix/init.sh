#!/bin/busybox sh
# First process of the guest: put the host's root, read-only, under a memory overlay, and go there.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
die() { echo "matrix: $*" >/dev/console; sleep 1; reboot -f; }

while read -r module; do insmod "/modules/$module" || die "insmod $module"; done </modules/order

mount -t virtiofs -o ro root /lower || die "no virtiofs root"
mount -t tmpfs -o size=70% overlay /overlay && mkdir /overlay/upper /overlay/work
mount -t overlay -o lowerdir=/lower,upperdir=/overlay/upper,workdir=/overlay/work overlay /new || die "no overlay"

cd /new && mkdir -p dev proc run sys && cd /
# The host's own directory of that name may be a link to nowhere in here; this is the overlay, so it can go.
modules=/new/lib/modules/$(uname -r)
[ -L "$modules" ] && rm "$modules"
mkdir -p "$modules"
mount -t virtiofs -o ro modules "$modules" || die "no modules"
while read -r tag directory; do
    mkdir -p "/new$directory"
    mount -t virtiofs -o ro "$tag" "/new$directory" || die "no $directory"
done </shares

mkdir -p /new/boot && cp /config "/new/boot/config-$(uname -r)"
mount -t tmpfs -o mode=755 run /new/run
mkdir /new/run/matrix
cp /bin/busybox /session /command /environment /directory /new/run/matrix/
for directory in dev sys proc; do mount -o move "/$directory" "/new/$directory"; done
exec switch_root /new /run/matrix/session
