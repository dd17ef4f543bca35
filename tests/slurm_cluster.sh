#!/usr/bin/env bash
# A Slurm cluster of this one machine, for trying `sweep.py --engine slurm` for real.
#
#     apt-get install slurmctld slurmd slurm-client munge       (Debian, as root)
#     tests/slurm_cluster.sh start FOLDER      as root; prints what to export
#     tests/slurm_cluster.sh stop FOLDER
#
# Everything (configuration, keys, sockets, states, logs) lies in FOLDER; a Slurm that
# is installed on the machine otherwise is left alone. There is no accounting (sacct).
# The partition "main" is preempted by "urgent": its jobs are requeued.
set -euo pipefail

[ $# -eq 2 ] || { sed -n '2,9p' "$0"; exit 2; }
folder=$(realpath -m "$2")
export SLURM_CONF=$folder/slurm.conf

start() {
    mkdir -p "$folder"/{state,spool}
    head -c 1024 /dev/urandom > "$folder/munge.key"
    chmod 600 "$folder/munge.key"
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" \
        --seed-file="$folder/munged.seed"
    local host memory
    host=$(hostname -s)
    memory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
    cat > "$SLURM_CONF" <<EOF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=$(id -un)
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SchedulerParameters=sched_interval=5,bf_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$host Default=YES PriorityTier=1 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=$host PriorityTier=9 MaxTime=INFINITE State=UP
EOF
    slurmctld
    slurmd
    for _ in $(seq 60); do
        [ "$(sinfo --noheader --partition=main --format=%T 2> /dev/null)" = idle ] && break
        sleep 1
    done
    sinfo
    echo "export SLURM_CONF=$SLURM_CONF"
}

stop() {
    for daemon in slurmd slurmctld munged; do
        [ -e "$folder/$daemon.pid" ] && kill "$(cat "$folder/$daemon.pid")" || true
    done
}

"$1"
