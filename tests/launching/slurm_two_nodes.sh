#!/usr/bin/env bash
# A Slurm of two nodes on one machine. On Debian, as root: apt-get install slurm-wlm slurm-wlm-basic-plugins munge
# Usage: slurm_two_nodes.sh FOLDER PORT; uses PORT to PORT+2. SLURM_CONF is then FOLDER/slurm.conf. To stop it, kill the
# processes whose ids are in FOLDER/*.pid.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd); port=$2; host=$(hostname)
cat > "$folder/slurm.conf" <<EOF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
ReturnToService=2
SlurmctldPidFile=$folder/controller.pid
SlurmdPidFile=$folder/%n.pid
SlurmdSpoolDir=$folder/spool-%n
SlurmUser=root
StateSaveLocation=$folder/state
SlurmctldPort=$port
SwitchType=switch/none
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmctldLogFile=$folder/controller.log
SlurmdLogFile=$folder/%n.log
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=2
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=2
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
EOF
mkdir -p "$folder/state" "$folder/spool-n1" "$folder/spool-n2" /run/munge
chown munge /run/munge
pgrep -x munged > /dev/null || runuser -u munge -- munged
export SLURM_CONF="$folder/slurm.conf"
slurmctld && slurmd -N n1 && slurmd -N n2
for _ in $(seq 100); do
    if [ "$(sinfo --noheader --states=idle --format=%D)" = 2 ]; then exit 0; fi
    sleep 0.2
done
echo "the nodes are not idle after 20 s"
exit 1
