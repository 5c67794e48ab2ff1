# shellcheck shell=bash
# The rest of a job's batch script: the first node of the allocation runs it, outside of any container. The lines above
# set FOLDER (of the job, seen by all nodes), ROLE, RETRIES, GRACE (seconds), ELASTIC (1: nodes may leave) and give the
# srun command as arguments.
#
# Each start of the nodes is one `srun`. What ends it decides what follows: 0, 2 and 130 end the job; 75 starts the nodes
# again, as does a crash while its budget lasts. Where the allocation itself ends, the job is requeued, and goes on under
# the same id on whatever nodes it then gets.
set -u
: "${FOLDER:?}" "${ROLE:?}" "${RETRIES:?}" "${GRACE:?}" "${ELASTIC?}"

DONE=0 USER_MUST_CHANGE=2 PREEMPTED=75 INTERRUPTED=130
MARGIN=20 # seconds that the nodes may need beyond their grace, and this script after them
start=0 crashes=0 status='' node=''
near_limit='' cancelled='' ended_by_slurm='' step='' asked=''

trap near_limit=1 USR1    # sbatch --signal: the time limit is near
trap cancelled=1 USR2     # `torchx cancel`
trap ended_by_slurm=1 TERM # scancel, preemption, a requeue by somebody else: Slurm has decided

say() { # to the job's own log, and to that of its first node, where people look
  local log=/dev/null
  if ((start)); then log=$FOLDER/$ROLE-0.$start.log; fi
  printf '%s %s: %s\n' "$(date -u +%FT%TZ)" "$ROLE" "$*" | tee -a "$log"
}

save() {
  printf 'start=%s\ncrashes=%s\nstatus=%s\nnode=%s\ncancelled=%s\n' "$start" "$crashes" "$status" "$node" "$cancelled" >"$FOLDER/.state" &&
    mv "$FOLDER/.state" "$FOLDER/state"
}

end() { # <status>: for good
  status=$1
  save
  say "ended with status $status"
  [ -z "$cancelled" ] || scancel "$SLURM_JOB_ID"
  exit "$status"
}

requeue() { # <reason>
  say "$1: requeued"
  scontrol requeue "$SLURM_JOB_ID" || end $PREEMPTED
  exit $PREEMPTED # Slurm has taken the job back: the status is not looked at
}

limit_is_near() { # the signal may come a minute early, and the limit may have been moved meanwhile
  [ -n "$near_limit" ] || return
  local at
  at=$(date -d "$(SLURM_TIME_FORMAT=standard squeue -h -j "$SLURM_JOB_ID" -o %e)" +%s 2>/dev/null) || return 0
  ((at - $(date +%s) <= GRACE + MARGIN))
}

nap() { # a second, or less if a signal arrives
  sleep 1 &
  wait $!
}

# Print "<status> <node>" of the node that decides: one that ended with 2, else the first that failed; nothing if none
# has. Each node that has ended by itself has left a file with the time, its status and its number.
deciding_node() {
  local found='' each number
  while read -r _ each number; do
    if ((each == USER_MUST_CHANGE)); then
      found="$each $number"
      break
    fi
    if ((each != DONE)) && [ -z "$found" ]; then found="$each $number"; fi
  done < <(cat "$FOLDER"/ended/"$start"-* 2>/dev/null | sort -n)
  printf '%s\n' "$found"
}

ask_to_stop() { # <reason>: srun forwards it; each node saves and ends within its grace
  say "$1: stopping the nodes"
  asked=$1 asked_at=$SECONDS
  kill -USR1 "$step" 2>/dev/null
}

watch_step() {
  while kill -0 "$step" 2>/dev/null; do
    nap
    if [ -n "$ended_by_slurm" ]; then continue; fi
    if [ -n "$asked" ]; then
      if ((SECONDS - asked_at > GRACE + MARGIN / 2)); then
        say "nodes that have not stopped are killed"
        asked_at=$SECONDS
        kill -TERM "$step"
      fi
    elif [ -n "$cancelled" ]; then
      ask_to_stop cancelled
    elif limit_is_near; then
      ask_to_stop 'time limit'
    elif [ -z "$ELASTIC" ] && [ -n "$(deciding_node)" ]; then
      # The others would wait for one that nobody starts again in this step.
      ask_to_stop 'a node has ended'
    fi
  done
  wait "$step"
}

lost_nodes() { # of the allocation, as Slurm sees them now
  sinfo -h -N -n "$SLURM_JOB_NODELIST" -o '%N %T' | grep -E '\*|down|fail' | cut -d' ' -f1 | sort -u | tr '\n' ' '
}

# Decide what follows after a step that ended with <status of srun>. Returns to start the nodes again.
judge() {
  local lost
  status='' node=''
  read -r status node < <(deciding_node) || true
  if [ -n "$ELASTIC" ] && grep -qs " $DONE " "$FOLDER"/ended/"$start"-*; then status=$DONE; fi
  if [ -z "$status" ]; then # all is well, or nothing was started
    status=$1
    if [ -n "$asked" ] && ((status != DONE)); then status=$PREEMPTED; fi
  fi
  if [ "$status" != "$USER_MUST_CHANGE" ]; then
    if [ -n "$cancelled" ]; then end "$status"; fi
    if [ -n "$ended_by_slurm" ]; then
      say "Slurm ends this job (status $status)"
      cancelled=slurm
      save
      exit "$status"
    fi
  fi
  case $status in
    "$DONE" | "$USER_MUST_CHANGE" | "$INTERRUPTED") end "$status" ;;
    "$PREEMPTED") ;;
    *)
      lost=$(lost_nodes)
      if [ -n "$lost" ]; then requeue "lost ${lost% }"; fi
      crashes=$((crashes + 1))
      if ((crashes > RETRIES)); then end "$status"; fi
      say "ended with status $status: restart $crashes of $RETRIES"
      ;;
  esac
  save
  if limit_is_near; then requeue 'time limit'; fi
  case $(scontrol show job "$SLURM_JOB_ID" -o) in *' PreemptTime=None '*) ;; *' PreemptTime='*) requeue preempted ;; esac
}

mkdir -p "$FOLDER/ended"
# shellcheck source=/dev/null
if [ -e "$FOLDER/state" ]; then . "$FOLDER/state"; fi
cancelled=''
if [ -e "$FOLDER/cancelled" ]; then cancelled=1; end $INTERRUPTED; fi # between two allocations
scontrol show hostnames "$SLURM_JOB_NODELIST" >"$FOLDER/nodes"
TORCHX_RANK0_HOST=$(head -n 1 "$FOLDER/nodes")
export TORCHX_RANK0_HOST PIPELINE_SLURM_FOLDER=$FOLDER
while :; do
  start=$((start + 1)) status='' node='' asked=''
  save
  say "start $start on $SLURM_JOB_NODELIST (job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0})"
  export PIPELINE_SLURM_START=$start
  srun --output="$FOLDER/$ROLE-%t.$start.log" --open-mode=append "$@" >>"$FOLDER/$ROLE-0.$start.log" 2>&1 &
  step=$!
  watch_step
  judge $?
  nap
done
