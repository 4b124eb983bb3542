#!/usr/bin/env bash
# Tries the Dockerfile where there is no container engine: its ENV, COPY, WORKDIR and RUN steps for one target, one after the
# other, in a scratch folder that stands for the root of the file system; then the image's command, alone and as two workers.
#
#   docker/check.sh [SCRATCH]          needs Python, pip's index and some gigabytes; SCRATCH is kept for the next time
#   TARGET=cuda docker/check.sh        the other image's steps (the CUDA libraries get installed, a GPU is not needed)
#
# Not tried: that the base image exists, users (steps that need root are named and left out), cache mounts, layers.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
root=$(mkdir -p "${1:-$here/build/docker-check}" && cd "${1:-$here/build/docker-check}" && pwd)
target=${TARGET:-cpu}
wanted=" base $target-requirements wheel $target "
failed() { echo "FAILED: $*" >&2; exit 1; }

# One instruction a line: comments out, continued lines joined.
instructions() { sed -E '/^[[:space:]]*(#|$)/d' "$here/docker/Dockerfile" | sed -E -e ':a' -e '/\\$/N; s/[[:space:]]*\\\n[[:space:]]*/ /; ta'; }

# Absolute paths of the image, moved below the scratch folder.
moved() {
    local paths="(^|[[:space:]\"'=:])/((opt|src|wheels|workspace)([/[:space:]\":]|\$))"
    sed -E -e ":a; s#$paths#\1@ROOT@/\2#; ta" -e "s#@ROOT@#$root#g" <<<"$1"
}

copy() {  # COPY [--from=STAGE] SOURCE... DESTINATION; all stages share one root here
    local words from=""
    read -ra words <<<"$1"
    if [[ ${words[0]} == --from=* ]]; then from=${words[0]}; words=("${words[@]:1}"); fi
    local last=$((${#words[@]} - 1))
    local destination=${words[last]}
    for source in "${words[@]:0:last}"; do
        if [[ -n $from ]]; then
            [[ -e $source ]] || failed "COPY $1: there is no $source"
        elif [[ -d $here/$source ]]; then
            rm -rf "$destination" && mkdir -p "$(dirname "$destination")" && cp -r "$here/$source" "$destination"
        elif [[ $destination == */ ]]; then
            mkdir -p "$destination" && cp "$here/$source" "$destination"
        else
            mkdir -p "$(dirname "$destination")" && cp "$here/$source" "$destination"
        fi
    done
}

run() {
    local command
    command=$(sed -E 's/^(--mount=[^ ]+ )+//' <<<"$1")
    if [[ $command == *groupadd* ]]; then
        echo "      left out, needs root: $command"
        mkdir -p "$root/workspace"
    else
        bash -euc "$command" || failed "RUN $command"
    fi
}

rm -rf "$root/src" "$root/wheels"
if ! command -v python >/dev/null; then   # the base image calls it so
    mkdir -p "$root/bin" && ln -sf "$(command -v python3)" "$root/bin/python" && export PATH=$PATH:$root/bin
fi
stage=""
while read -r word rest; do
    if [[ $word == FROM ]]; then
        stage=${rest##* AS }
        [[ $wanted != *" $stage "* ]] || echo "== $stage"
        continue
    fi
    if [[ $wanted != *" $stage "* ]]; then continue; fi
    rest=$(moved "$rest")
    echo "   $word $rest"
    case $word in
        ARG) name=${rest%%=*}; [[ -v $name ]] || eval "export $rest" ;;
        ENV) eval "export $rest" ;;
        COPY) copy "$rest" ;;
        RUN) run "$rest" ;;
        WORKDIR) mkdir -p "$rest" && cd "$rest" ;;
        USER | HEALTHCHECK | ENTRYPOINT | CMD) ;;
        *) failed "no way to try $word" ;;
    esac
done < <(instructions)
[[ $stage ]] || failed "no stage in the Dockerfile"

echo "== the command"
cd "$root/workspace"
export HOME=$root/workspace OMP_NUM_THREADS=1
[[ $(command -v infoprune) == "$root/opt/venv/bin/infoprune" ]] || failed "infoprune is not the environment's"
infoprune --version
quickstart=(fit "--config=$root/opt/infoprune/configs/quickstart.yaml" --trainer.max_epochs=2 --trainer.callbacks=FilterPruning
    --trainer.callbacks.macs=0.5 --trainer.callbacks.schedule=1 --trainer.accelerator=cpu --trainer.enable_progress_bar=false)
rm -rf runs
infoprune "${quickstart[@]}" >one.log 2>&1 || { tail -20 one.log; failed "infoprune fit"; }
[[ -s runs/quickstart/version_0/report.html ]] || failed "no report"

echo "== two workers, as the compose file starts them"
rm -rf runs
export MASTER_ADDR=127.0.0.1 MASTER_PORT=29500
workers=(--trainer.strategy=ddp --trainer.num_nodes=2 --trainer.devices=1)
NODE_RANK=0 timeout 300 infoprune "${quickstart[@]}" "${workers[@]}" >worker-0.log 2>&1 &
first=$!
healthy=no
for _ in {1..120}; do   # the compose file's health check
    if cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -qE ':733C 0+:0000 0A'; then healthy=yes; break; fi
    sleep 1
done
[[ $healthy == yes ]] || { tail -20 worker-0.log; failed "the first worker never listened"; }
NODE_RANK=1 timeout 300 infoprune "${quickstart[@]}" "${workers[@]}" >worker-1.log 2>&1 || { tail -20 worker-1.log; failed "worker 1"; }
wait $first || { tail -20 worker-0.log; failed "worker 0"; }
grep -q "with 2 processes" worker-0.log || failed "the workers did not find each other"
[[ -s runs/quickstart/version_0/report.html ]] || failed "no report of two workers"
echo "== done: every step of target $target that needs neither root nor an engine works"
