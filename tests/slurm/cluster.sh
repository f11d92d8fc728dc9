#!/usr/bin/env bash
# A Slurm cluster of two nodes on this machine, for trying jobs: its own configuration, key, ports and folder.
#
#   tests/slurm/cluster.sh start FOLDER    then: export SLURM_CONF=FOLDER/slurm.conf
#   tests/slurm/cluster.sh stop FOLDER
#
# Needs Debian's slurmctld, slurmd, slurm-client and munge (apt-get install slurm-wlm munge), and root, as slurmd
# does. Nothing outside FOLDER is written, no running Slurm is touched. There is no accounting (sacct).
set -euo pipefail

action="${1:-}"
folder="$(realpath -m "${2:?usage: cluster.sh start|stop FOLDER}")"
export SLURM_CONF="$folder/slurm.conf"
# Debian keeps the daemons out of users' paths.
PATH="$PATH:/usr/sbin:/sbin"

start() {
  for program in munged slurmctld slurmd sbatch srun scontrol; do
    command -v "$program" >/dev/null || { echo "cluster.sh: no $program; apt-get install slurm-wlm munge" >&2; exit 3; }
  done
  [ "$(id -u)" = 0 ] || { echo "cluster.sh: slurmd wants root" >&2; exit 3; }
  mkdir -p "$folder/state"
  chmod 755 "$folder"
  (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"

  # torchrun looks for a job's first node by its name: by weight that is this host's, which leads here.
  local host ports
  host="$(hostname -s)"
  read -r -a ports < <(python3 -c '
import socket
sockets = [socket.socket() for _ in range(3)]
for s in sockets: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))')
  cat >"$SLURM_CONF" <<CONF
ClusterName=two-nodes
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmctldPidFile=$folder/slurmctld.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmdLogFile=$folder/slurmd.%n.log
SlurmdSpoolDir=$folder/spool.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
ReturnToService=2
InactiveLimit=0
KillWait=5
SlurmdTimeout=30
MinJobAge=86400
NodeName=$host NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[1]} CPUs=2 RealMemory=8000 Weight=1
NodeName=second NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[2]} CPUs=2 RealMemory=8000 Weight=2
PartitionName=cpu Nodes=$host,second Default=YES MaxTime=INFINITE State=UP
CONF
  slurmctld -c
  slurmd -N "$host"
  slurmd -N second
  for _ in $(seq 60); do
    if [ "$(sinfo --noheader --Node --states=idle 2>/dev/null | wc -l)" = 2 ]; then
      echo "two nodes are up; export SLURM_CONF=$SLURM_CONF"
      return
    fi
    sleep 0.5
  done
  echo "cluster.sh: the nodes did not come up; see $folder/*.log" >&2
  stop
  exit 1
}

stop() {
  scancel --user=root 2>/dev/null || true
  for pid_file in "$folder"/slurmd.*.pid "$folder"/slurmctld.pid "$folder"/munged.pid; do
    [ -f "$pid_file" ] || continue
    local pid
    pid="$(cat "$pid_file")"
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 50); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null || true
  done
}

case "$action" in
  start) start ;;
  stop) stop ;;
  *) echo "usage: cluster.sh start|stop FOLDER" >&2; exit 2 ;;
esac
