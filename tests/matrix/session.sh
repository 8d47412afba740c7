#!/run/matrix/busybox sh
# Second stage, on the host's root: what an init would mount, then the command, then its status, then the end.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root USER=root LANG=C.UTF-8 TERM=dumb
b=/run/matrix/busybox
$b mkdir -p /dev/pts /dev/shm /run/lock
$b mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
$b mount -t tmpfs shm /dev/shm
$b mount -t cgroup2 cgroup /sys/fs/cgroup
$b mount -t bpf bpf /sys/fs/bpf
$b mount -t debugfs debug /sys/kernel/debug
$b mount -t tracefs trace /sys/kernel/tracing
$b mount -t securityfs security /sys/kernel/security
$b ln -sfn /proc/self/fd /dev/fd
$b ln -sfn /proc/self/fd/0 /dev/stdin
$b ln -sfn /proc/self/fd/1 /dev/stdout
$b ln -sfn /proc/self/fd/2 /dev/stderr
$b ip link set lo up
$b hostname guest

for port in /sys/class/virtio-ports/*; do
    read -r name <"$port/name" && eval "$name=/dev/${port##*/}"
done
export MATRIX_REPORT="$report"
. /run/matrix/environment
read -r directory </run/matrix/directory
cd "$directory" || echo "matrix: no $directory in the guest" >"$stderr"

exec 3>"$status"
read -r uptime _ </proc/uptime
echo "started $uptime" >&3
$b setsid /bin/sh /run/matrix/command </dev/null >"$stdout" 2>"$stderr" 3>&-
echo "ended $?" >&3
$b sync
$b reboot -f
