#!/usr/bin/env bash
# Tries `sweep.py --engine slurm` on a real Slurm cluster of this one machine.
#
#     apt-get install slurmctld slurmd slurm-client munge       (Debian, as root)
#     tests/programs/check_slurm.sh FOLDER        as root; about ten minutes on two cores
#
# An array of four runs: two are short; of the two long ones one is preempted by an
# urgent job, and both come to their time limit of two minutes, until they are done.
# A fifth run fails and is retried. Everything (configuration, key, sockets, logs,
# output) lies in FOLDER, which must not exist; a Slurm that the machine has otherwise
# is left alone. There is no accounting, hence no sacct. Ends with 0 if all went well.
set -euo pipefail

[ $# -eq 1 ] && [ ! -e "$1" ] || { sed -n '2,12p' "$0"; exit 2; }
folder=$(realpath -m "$1")
cd "$(dirname "$0")/../.."
export SLURM_CONF=$folder/slurm.conf PYTHONPATH=tests
output=$folder/output
python=.venv/bin/python
tiny=(
    env.name=Counting-v0 env.module=support_env env.max_frames=100 final_episodes=1
    policy_config.hidden_dim=8 policy_config.batch_size=16
    policy_config.frames_before_learning=40 policy_config.frames_per_update=0.5
    policy_config.log_every_n=50 policy_config.epoch_every_n=50
    agent_config.batch_size=4 agent_config.full_random_n=80
    model_config=null policy_config.value_expansion=null policy_config.bayesian=null
)

start_cluster() {
    mkdir -p "$folder"/{state,spool}
    head -c 1024 /dev/urandom > "$folder/munge.key"
    chmod 600 "$folder/munge.key"
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" \
        --seed-file="$folder/munged.seed"
    local host
    host=$(hostname -s)
    cat > "$SLURM_CONF" <<EOF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=$(id -un)
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
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES PriorityTier=1 State=UP
PartitionName=urgent Nodes=$host PriorityTier=9 State=UP
EOF
    slurmctld
    nice -n 5 slurmd
}

stop_cluster() {
    scancel --user="$(id -un)" || true
    for daemon in slurmd slurmctld munged; do
        [ -e "$folder/$daemon.pid" ] && kill "$(cat "$folder/$daemon.pid")" || true
    done
}

run() {
    echo "$(date +%T) \$ $*"
    "$@"
}

await() { # SECONDS TEXT COMMAND...: until the command's output has the text
    local deadline=$((SECONDS + $1)) text=$2
    shift 2
    until "$@" 2>&1 | grep -q -e "$text"; do
        [ $SECONDS -lt $deadline ] || { echo "awaited in vain: $text" >&2; exit 1; }
        sleep 1
    done
}

trap stop_cluster EXIT
start_cluster
await 60 idle sinfo --noheader --partition=main --format=%T
status=(run $python sweep.py status "$output")

run $python sweep.py config/quickstart.json --seeds 0-1 --gpus-per-run 0 --cpus 1 \
    --time 2 --partition main --set "output_root=$output" "${tiny[@]}" \
    total_frames=80,300 'env.make_kwargs={"pause": 0.25}'
run $python sweep.py config/quickstart.json --seeds 0-1 --gpus-per-run 0 \
    --set "output_root=$output" "${tiny[@]}" total_frames=80,300 \
    'env.make_kwargs={"pause": 0.25}' # submits nothing twice

await 120 '_3 RUNNING' squeue --noheader --array --format='%i %T'
await 60 '300-seed1 .* [1-9][0-9]* of 300' $python sweep.py status "$output"
run sbatch --partition=urgent --cpus-per-task=1 --output=/dev/null --wrap='sleep 5'
await 60 'BeginTime' squeue --noheader --array --format='%i %r'
"${status[@]}"
await 900 '4 finished' $python sweep.py status "$output"
"${status[@]}"

run $python sweep.py config/quickstart.json --gpus-per-run 0 --cpus 1 --time 2 \
    --set "output_root=$output" "${tiny[@]}" policy_config.learning_rate=1e30 \
    total_frames=80
await 120 '1 failed' $python sweep.py status "$output"
run $python sweep.py retry "$output"
run $python sweep.py cancel "$output"
sleep 5
"${status[@]}"
for index in 2 3; do
    echo "--- $output/sweeps/1/$index.txt"
    grep -e '^== ' -e '^stopping' -e '^finished' -e '^stopped' -e slurmstepd \
        "$output/sweeps/1/$index.txt"
    grep -q 'exit code 0' "$output/sweeps/1/$index.txt"
done
run grep -h '"resumed"' "$output"/Counting-v0/*300*/log/run.json
