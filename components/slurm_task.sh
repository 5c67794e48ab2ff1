# shellcheck shell=sh
# The rest of what a node runs: the command is given by the lines above, as arguments. A POSIX shell, for it may be that of
# a container.
: "${PIPELINE_SLURM_FOLDER:?}" "${PIPELINE_SLURM_START:?}" "${SLURM_PROCID:?}"
ended="$PIPELINE_SLURM_FOLDER/ended" this="$PIPELINE_SLURM_START-$SLURM_PROCID"
TORCHELASTIC_ERROR_FILE="$ended/.$this.json"
export TORCHELASTIC_ERROR_FILE
child='' sent='' interrupted='' status=0

# srun and Slurm signal this shell. Of USR1 other programs than ours would die.
# shellcheck disable=SC2329 # by traps
forward() {
  interrupted=1 sent=$1
  if [ -n "$child" ]; then kill -"$1" "$child"; fi
}
trap 'forward TERM' TERM USR1 HUP QUIT
trap 'forward INT' INT
"$@" &
child=$!
if [ -n "$sent" ]; then kill -"$sent" "$child"; fi # it came before there was a child
while :; do
  last=$status interrupted=''
  wait "$child"
  status=$?
  if [ -z "$interrupted" ]; then break; fi
done
if [ "$status" = 127 ] && [ "$last" != 0 ]; then status=$last; fi # it had ended as the signal arrived
if [ "$status" = 143 ] && [ "$sent" = TERM ]; then status=75; fi # it had no handler yet
printf '%s %s %s\n' "$(date +%s%N)" "$status" "$SLURM_PROCID" >"$ended/.$this"
mv "$ended/.$this" "$ended/$this"
exit "$status"
